"""Pipelines and VAEs of diffusers, run by tilevae."""

from __future__ import annotations

import types
import warnings
from typing import Any

from ._config import DEFAULTS, SHORT, keys_of
from ._modules import WeightSamples, bytes_in_memory, tensors_of, tile_settings, vae_of
from ._progress import Progress
from ._tilevae import Engine
from ._vae import Vae

#: As in diffusers, values that are not finite are decoded, and frames that do not fill a latent frame are left out.
_PATCH_DEFAULTS = {**DEFAULTS, "io.on_non_finite": "allow", "io.frames": "drop"}

_STATE = "_tilevae"


class _Patched:
    """What a patched VAE remembers."""

    def __init__(self, vae: Any, settings: dict[str, Any], progress: Progress, free: bool):
        self.progress = progress
        self.is_freed = False
        self._settings = {SHORT.get(name, name): value for name, value in settings.items() if value is not None}
        # Tiles in 16 bits that overflow are computed again from torch's values, which stay alive for it.
        is_wide = str(self._settings.get("model.dtype", "f32")) in ("f32", "auto", "torch.float32")
        stays = not free or not is_wide
        self._engine = Engine.of_tensors(*tensors_of(vae), self._keys({}), bytes_in_memory(vae) if stays else 0)
        self.weights = WeightSamples(vae)
        kind = self._settings.get("tiling.kind", "seamless")
        is_left_open = not any(key.startswith("tiling.") and key not in ("tiling.kind", "tiling.norm") for key in self._settings)
        self._heard_kind = kind if is_left_open and kind in ("seamless", "diffusers") else None
        #: By the size of tiles.
        self._latest: tuple[dict[str, Any], Vae] = ({}, Vae._of(self._engine))

    def _keys(self, tiles: dict[str, Any]) -> list[str]:
        return keys_of({**self._settings, **tiles}, _PATCH_DEFAULTS)

    def vae(self, module: Any) -> Vae:
        """The model with the tiles that the module asks for."""
        tiles = tile_settings(module, self._heard_kind, self._engine.spatial_ratio) if self._heard_kind else {}
        latest, vae = self._latest
        if tiles != latest:
            vae = Vae._of(self._engine.share(self._keys(tiles)))
            self._latest = (tiles, vae)
        return vae

    def __reduce__(self) -> Any:
        raise TypeError("a patched VAE cannot be pickled; call tilevae.unpatch first")

    def __deepcopy__(self, _: Any) -> Any:
        raise TypeError("a patched VAE cannot be copied; call tilevae.unpatch first")


def _falls_back(vae: Any, state: _Patched, x: Any) -> bool:
    import torch

    if not isinstance(x, torch.Tensor):
        raise TypeError(f"expected a tensor of torch, got {type(x).__name__}")
    trains = vae.training and any(tensor.requires_grad for tensor in vae.parameters())
    wants_gradients = torch.is_grad_enabled() and (x.requires_grad or trains)
    if state.is_freed:
        if wants_gradients:
            raise RuntimeError("tilevae computes no gradients, and the weights of torch were freed: load the model again")
        return False
    if wants_gradients:
        warnings.warn("tilevae computes no gradients: diffusers decodes and encodes this input", stacklevel=4)
        return True
    if state.weights.have_changed(vae):
        warnings.warn("the weights have changed since tilevae.patch: diffusers runs this input; patch again", stacklevel=4)
        return True
    return False


def _parts(vae: Any, x: Any) -> Any:
    """The items of a batch, where slicing is enabled."""
    return x.split(1) if vae.use_slicing else (x,)


def _decode(self: Any, z: Any, return_dict: bool = True, generator: Any = None) -> Any:
    """`decode` of diffusers, by tilevae."""
    import torch
    from diffusers.models.autoencoders.vae import DecoderOutput

    state = getattr(self, _STATE)
    if _falls_back(self, state, z):
        return _original(self, "decode")(z, return_dict=return_dict)
    vae = state.vae(self)
    parts = [vae.decode(part, progress=state.progress) for part in _parts(self, z)]
    sample = parts[0] if len(parts) == 1 else torch.cat(parts)
    return DecoderOutput(sample=sample) if return_dict else (sample,)


def _encode(self: Any, x: Any, return_dict: bool = True) -> Any:
    """`encode` of diffusers, by tilevae."""
    import torch
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

    state = getattr(self, _STATE)
    if _falls_back(self, state, x):
        return _original(self, "encode")(x, return_dict=return_dict)
    vae = state.vae(self)
    parts = [vae.encode(part, progress=state.progress) for part in _parts(self, x)]
    posterior = DiagonalGaussianDistribution(torch.cat([torch.cat([part.mean, part.logvar], dim=1) for part in parts]))
    return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def _original(vae: Any, name: str) -> Any:
    return types.MethodType(getattr(type(vae), name), vae)


def patch(target: Any, *, free: bool = False, progress: Progress = None, **settings: Any) -> Any:
    """Let tilevae do what `decode` and `encode` of a VAE do, with the weights that are loaded.

    Everything else about the pipeline stays: configuration, device, dtype, hooks, `isinstance`. Inputs that want gradients, and runs after the weights
    have changed, are left to diffusers, with a warning.

    `enable_tiling` of the VAE sets the size of tiles, seamless or (with ``tiling="diffusers"``) overlapping, and `enable_slicing` runs a batch item by
    item. A size or a budget that is given here (``tile_px``, ``memory_mib``) comes before `enable_tiling`.

    With ``memory_mib`` the budget counts torch's copy of the weights, if it is in host memory and stays there. Other models, torch and the interpreter
    are not counted.

    Args:
        target: A pipeline of diffusers, or a VAE of one of the classes `AutoencoderKL`, `AutoencoderKLFlux2`, `AutoencoderKLWan` and
            `AutoencoderKLQwenImage`.
        free: Drop torch's copy of the weights. The VAE keeps its device and dtype, but cannot be saved or unpatched any more.
        progress: For each decode and encode ``True`` shows a bar of tqdm; a callable is given the tiles that are done and all tiles.
        **settings: As of `tilevae.Vae`.

    Returns:
        The target.

    Raises:
        TypeError: It is something else.
        ValueError: A setting is wrong, or the weights do not fit.
        RuntimeError: The weights were freed before.
    """
    from diffusers.utils import accelerate_utils

    # Hooks move the module, and modules before it, as they do around the methods that are replaced.
    hooked: Any = accelerate_utils.apply_forward_hook
    vae = vae_of(target)
    unpatch(target)
    state = _Patched(vae, settings, progress, free)
    vae.__dict__[_STATE] = state
    for name, method in (("decode", _decode), ("encode", _encode)):
        vae.__dict__[name] = types.MethodType(hooked(method), vae)
    if free:
        state.is_freed = True
        for tensor in vae.parameters():
            tensor.data = tensor.data.new_empty(0)
    return target


def unpatch(target: Any) -> Any:
    """Undo `patch`. Does nothing to what is not patched. Returns the target.

    Raises:
        RuntimeError: The weights of torch were freed.
    """
    vae = vae_of(target)
    state = vae.__dict__.get(_STATE)
    if state is not None and state.is_freed:
        raise RuntimeError("the weights of torch were freed by tilevae.patch: load the model again")
    for name in ("decode", "encode", _STATE):
        vae.__dict__.pop(name, None)
    return target
