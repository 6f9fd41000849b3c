"""VAEs of diffusers: which there are, and what they hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

#: Classes of diffusers that can be taken over.
SUPPORTED = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLWan", "AutoencoderKLQwenImage")

#: What `AutoencoderKLFlux2` has for its pipeline alone. Without it, it is an `AutoencoderKL`.
_FLUX2 = ("batch_norm_eps", "batch_norm_momentum", "decoder_block_out_channels", "patch_size")


def vae_of(target: Any, expected: str = "a pipeline of diffusers") -> Any:
    """The VAE of a pipeline, or the VAE itself. `expected` is what a message asks for besides a VAE."""
    vae = getattr(target, "vae", None)
    vae = target if vae is None else vae
    kind = type(vae)
    if kind.__name__ not in SUPPORTED or not kind.__module__.startswith("diffusers."):
        raise TypeError(
            f"{kind.__module__}.{kind.__name__} cannot be taken over: expected {expected}, or one of {', '.join(SUPPORTED)} "
            "(a subclass may compute something else)"
        )
    return vae


def _own(tensors: Any) -> dict[str, Any]:
    """Tensors by name, without the copies that `fuse_qkv_projections` makes."""
    named = dict(tensors)
    return {name: tensor for name, tensor in named.items() if ".to_qkv." not in name or name.replace(".to_qkv.", ".to_q.") not in named}


class WeightSamples:
    """Some values of each tensor. They tell weights that have changed, as when a LoRA is fused or loaded, from weights that were moved or rounded."""

    _COUNT = 16

    def __init__(self, vae: Any):
        import torch

        self._places = {}
        for name, tensor in _own(vae.named_parameters()).items():
            at = torch.linspace(0, max(0, tensor.numel() - 1), self._COUNT, dtype=torch.float64).long()
            self._places[name] = torch.unravel_index(at, tensor.shape)
        self._values = self._read(vae)

    def _read(self, vae: Any) -> dict[str, Any]:
        """By name. Tensors that accelerate has put away are left out."""
        return {name: tensor.detach()[self._places[name]].cpu() for name, tensor in _own(vae.named_parameters()).items() if not tensor.is_meta}

    def have_changed(self, vae: Any) -> bool:
        import torch

        if _own(vae.named_parameters()).keys() != self._places.keys():
            return True

        def is_same(now: Any, before: Any) -> bool:
            # Exactly, or as a change of the dtype rounds.
            dtypes = (now.dtype, torch.float16, torch.bfloat16)
            return any(torch.allclose(now, before.to(dtype).to(now.dtype), rtol=0, atol=0, equal_nan=True) for dtype in dtypes)

        return not all(is_same(now, self._values[name]) for name, now in self._read(vae).items() if name in self._values)


def tile_settings(vae: Any, kind: str, ratio: int) -> dict[str, Any]:
    """The size of tiles that `enable_tiling` has set, in whole latent px, as settings; empty where tiling is not enabled."""
    if not vae.use_tiling:
        return {}

    def sides(what: str) -> list[int]:
        given = (getattr(vae, f"tile_sample_{what}_{side}", None) or vae.tile_sample_min_size for side in ("height", "width"))
        return [max(1, int(px) // ratio) * ratio for px in given]

    settings: dict[str, Any] = {"tiling.tile_px": sides("min")}
    if kind == "diffusers" and hasattr(vae, "tile_overlap_factor"):
        settings["tiling.overlap"] = float(vae.tile_overlap_factor)
    elif kind == "diffusers":
        settings["tiling.stride_px"] = sides("stride")
    return settings


def bytes_in_memory(vae: Any) -> int:
    """Bytes of the weights in host memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in vae.parameters() if tensor.device.type == "cpu")


def tensors_of(vae: Any) -> tuple[str, list[tuple[str, str, list[int], np.ndarray]]]:
    """The configuration as JSON, and the tensors, which share memory with the module where they are contiguous and on the CPU."""
    import torch

    vae = vae_of(vae, "the path of a checkpoint, a pipeline of diffusers")
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith("_")}
    config["_class_name"] = type(vae).__name__
    weights = _own(vae.state_dict())
    if type(vae).__name__ == "AutoencoderKLFlux2":
        decoder = config.get("decoder_block_out_channels")
        if decoder is not None and list(decoder) != list(config["block_out_channels"]):
            raise ValueError("a decoder with other channels than the encoder is not implemented (`decoder_block_out_channels`)")
        config = {key: value for key, value in config.items() if key not in _FLUX2} | {"_class_name": "AutoencoderKL"}
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("bn.")}
    tensors = []
    for name, tensor in weights.items():
        if tensor.is_meta:
            raise ValueError(
                f"{name} has no values (it is on the device `meta`): load the weights, or give a path. With enable_sequential_cpu_offload, patch before it"
            )
        tensor = tensor.detach().to("cpu").contiguous()
        values = tensor.reshape(-1).view(torch.uint8).numpy()
        tensors.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), values))
    return json.dumps(config, default=str), tensors
