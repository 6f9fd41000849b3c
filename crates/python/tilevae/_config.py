"""Keys of the configuration from Python's arguments."""

from __future__ import annotations

import json
import os
from typing import Any, Mapping

#: What arrays are, for a model: values of its own latent space, and the posterior of an encode.
DEFAULTS = {"io.latent_space": "vae", "io.posterior": "moments"}

#: Short names of keys.
SHORT = {
    "devices": "devices.use",
    "dtype": "model.dtype",
    "executor": "executor.kind",
    "frames_per_chunk": "model.frames_per_chunk",
    "latent_space": "io.latent_space",
    "memory_mib": "tiling.memory_mib",
    "norm": "tiling.norm",
    "precision": "model.precision",
    "threads": "devices.cpu.threads_per_worker",
    "tile_px": "tiling.tile_px",
    "tiling": "tiling.kind",
    "workers": "devices.cpu.workers",
}


def keys_of(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """``section.key=value`` for each setting, laid over the defaults.

    A name is one of `SHORT`, or a key with its section: ``{"io.on_non_finite": "allow"}``. Without a kind of tiles they are seamless; without a size
    of tiles and a budget, on the CPU, within most of the free memory.
    """
    full = dict(defaults)
    for name, value in settings.items():
        key = SHORT.get(name, name)
        if "." not in key:
            raise TypeError(f"`{name}` is no setting; those with a short name are {', '.join(sorted(SHORT))}, others are given as section.key")
        if value is not None:
            full[key] = value
    kind = full.pop("tiling.kind", "seamless")
    devices = full.get("devices.use", ["cpu"])
    devices = list(devices) if isinstance(devices, (list, tuple)) else [devices]
    is_on_cpu = all(str(device) == "cpu" for device in devices)
    if kind == "seamless" and is_on_cpu and not {"tiling.memory_mib", "tiling.tile_px"} & full.keys():
        full["tiling.memory_mib"] = "auto"
    if "devices.use" in full:
        full["devices.use"] = devices
    # A change of the kind clears the keys of the section, so it comes first.
    ordered = {"tiling.kind": kind, **full}
    return [f"{key}={_json(key, value)}" for key, value in ordered.items()]


#: What torch calls the types that models have.
_DTYPES = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}


def _json(key: str, value: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if hasattr(value, "tolist"):
            return value.tolist()
        if type(value).__module__ == "torch":
            return _DTYPES.get(str(value), str(value))
        raise TypeError(f"{key} cannot be set to a value of the type {type(value).__name__}")

    return json.dumps(value, default=plain)
