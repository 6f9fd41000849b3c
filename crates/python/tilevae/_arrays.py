"""Arrays of numpy, tensors of torch, and what has DLPack."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any) -> np.ndarray:
    """f32, contiguous; a view where the value is that already."""
    if is_torch(value):
        import torch

        value = value.detach().to("cpu", torch.float32).numpy()
    elif not isinstance(value, np.ndarray):
        if not hasattr(value, "__dlpack__"):
            raise TypeError(f"expected an array of numpy, a tensor of torch or an object with __dlpack__, got {type(value).__name__}")
        value = np.from_dlpack(value)
    if value.dtype.kind not in "fiu":
        raise TypeError(f"expected numbers, got an array of {value.dtype}")
    return np.ascontiguousarray(value, dtype=np.float32)


def with_frames(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """``[b, c, t, h, w]``, and whether the array had frames."""
    if array.ndim == 5:
        return array, True
    if array.ndim == 4:
        return array[:, :, None], False
    raise ValueError(f"expected [b, c, h, w] or [b, c, t, h, w], got an array of the shape {list(array.shape)}")


def like(array: np.ndarray, value: Any) -> Any:
    """The array as the kind of thing that `value` is."""
    if is_torch(value):
        import torch

        return torch.from_numpy(array).to(value.device, value.dtype if value.dtype.is_floating_point else torch.float32)
    if not isinstance(value, np.ndarray) and hasattr(value, "__array_namespace__"):
        return value.__array_namespace__().from_dlpack(array)
    return array
