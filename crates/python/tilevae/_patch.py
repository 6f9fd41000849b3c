"""Pipelines and VAEs of diffusers, run by tilevae."""

from __future__ import annotations

import types
import warnings
from typing import Any

import numpy as np

from ._arrays import to_numpy, with_frames
from ._config import DEFAULTS, keys_of
from ._modules import tensors_of, vae_of
from ._tilevae import Engine

#: As in diffusers, values that are not finite are decoded, and frames that do not fill a latent frame are left out.
_PATCH_DEFAULTS = {**DEFAULTS, "io.on_non_finite": "allow", "io.frames": "drop"}

_STATE = "_tilevae"


class _Patched:
    """What a patched VAE remembers."""

    def __init__(self, vae: Any, settings: dict[str, Any]):
        self.settings = settings
        self.fingerprint = _fingerprint(vae)
        self.engine = Engine.of_tensors(*tensors_of(vae), keys_of(settings, _PATCH_DEFAULTS))
        self.is_freed = False

    def __reduce__(self) -> Any:
        raise TypeError("a patched VAE cannot be pickled; call tilevae.unpatch first")

    def __deepcopy__(self, _: Any) -> Any:
        raise TypeError("a patched VAE cannot be copied; call tilevae.unpatch first")


def _fingerprint(vae: Any) -> list[float]:
    """Some values of each tensor: they tell weights that have changed, as when a LoRA is fused."""
    values = []
    for tensor in vae.parameters():
        flat = tensor.detach().reshape(-1)
        values.append(float(flat[:: max(1, flat.numel() // 16)].float().sum()))
    return values


def _has_changed(vae: Any, state: _Patched) -> bool:
    # A change of the dtype rounds.
    now = _fingerprint(vae)
    return len(now) != len(state.fingerprint) or not np.allclose(now, state.fingerprint, rtol=2e-2, atol=2e-2)


def _falls_back(vae: Any, state: _Patched, x: Any) -> bool:
    import torch

    trains = vae.training and any(tensor.requires_grad for tensor in vae.parameters())
    wants_gradients = torch.is_grad_enabled() and (x.requires_grad or trains)
    if state.is_freed:
        if wants_gradients:
            raise RuntimeError("tilevae computes no gradients, and the weights of torch were freed: load the model again")
        return False
    if wants_gradients:
        warnings.warn("tilevae computes no gradients: diffusers decodes and encodes this input", stacklevel=3)
        return True
    if _has_changed(vae, state):
        warnings.warn("the weights have changed since tilevae.patch: diffusers runs this input; patch again", stacklevel=3)
        return True
    return False


def _decode(self: Any, z: Any, return_dict: bool = True, generator: Any = None) -> Any:
    """`decode` of diffusers, by tilevae."""
    import torch
    from diffusers.models.autoencoders.vae import DecoderOutput

    state = getattr(self, _STATE)
    if _falls_back(self, state, z):
        return _original(self, "decode")(z, return_dict=return_dict)
    array, has_frames = with_frames(to_numpy(z))
    shape = state.engine.output_shape(True, array.shape)
    samples = np.empty(shape, dtype=np.float32)
    state.engine.decode(array, samples, None)
    sample = torch.from_numpy(samples if has_frames else samples[:, :, 0]).to(z.device, z.dtype)
    return DecoderOutput(sample=sample) if return_dict else (sample,)


def _encode(self: Any, x: Any, return_dict: bool = True) -> Any:
    """`encode` of diffusers, by tilevae."""
    import torch
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

    state = getattr(self, _STATE)
    if _falls_back(self, state, x):
        return _original(self, "encode")(x, return_dict=return_dict)
    array, has_frames = with_frames(to_numpy(x))
    mean, logvar = state.engine.encode(array, None)
    moments = np.concatenate([mean, mean if logvar is None else logvar], axis=1)
    parameters = torch.from_numpy(moments if has_frames else moments[:, :, 0]).to(x.device, x.dtype)
    posterior = DiagonalGaussianDistribution(parameters)
    return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)


def _original(vae: Any, name: str) -> Any:
    return types.MethodType(getattr(type(vae), name), vae)


def patch(target: Any, *, free: bool = False, **settings: Any) -> Any:
    """Let tilevae do what `decode` and `encode` of a VAE do, with the weights that are loaded.

    Everything else about the pipeline stays: configuration, device, dtype, hooks, `isinstance`. Inputs that want gradients, and runs after the weights
    have changed, are left to diffusers, with a warning.

    Args:
        target: A pipeline of diffusers, or a VAE of one of the classes `AutoencoderKL`, `AutoencoderKLFlux2`, `AutoencoderKLWan` and
            `AutoencoderKLQwenImage`.
        free: Drop torch's copy of the weights. The VAE keeps its device and dtype, but cannot be saved or unpatched any more.
        **settings: As of `tilevae.Vae`.

    Returns:
        The target.

    Raises:
        TypeError: It is something else.
        ValueError: A setting is wrong, or the weights do not fit.
        RuntimeError: The weights were freed before.
    """
    vae = vae_of(target)
    unpatch(target)
    state = _Patched(vae, settings)
    vae.__dict__[_STATE] = state
    for name, method in (("decode", _decode), ("encode", _encode)):
        vae.__dict__[name] = types.MethodType(method, vae)
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
