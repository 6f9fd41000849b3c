"""VAEs of diffusers: which there are, and what they hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

#: Classes of diffusers that can be taken over.
SUPPORTED = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLWan", "AutoencoderKLQwenImage")

#: What `AutoencoderKLFlux2` has for its pipeline alone. Without it, it is an `AutoencoderKL`.
_FLUX2 = ("batch_norm_eps", "batch_norm_momentum", "decoder_block_out_channels", "patch_size")


def vae_of(target: Any) -> Any:
    """The VAE of a pipeline, or the VAE itself."""
    vae = getattr(target, "vae", None)
    vae = target if vae is None else vae
    kind = type(vae)
    if kind.__name__ not in SUPPORTED or not kind.__module__.startswith("diffusers."):
        raise TypeError(
            f"{kind.__module__}.{kind.__name__} cannot be taken over: expected a pipeline of diffusers, or one of {', '.join(SUPPORTED)} "
            "(a subclass may compute something else)"
        )
    return vae


def tensors_of(vae: Any) -> tuple[str, list[tuple[str, str, list[int], np.ndarray]]]:
    """The configuration as JSON, and the tensors, which share memory with the module where they are contiguous and on the CPU."""
    import torch

    vae = vae_of(vae)
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith("_")}
    config["_class_name"] = type(vae).__name__
    weights = vae.state_dict()
    if type(vae).__name__ == "AutoencoderKLFlux2":
        decoder = config.get("decoder_block_out_channels")
        if decoder is not None and list(decoder) != list(config["block_out_channels"]):
            raise ValueError("a decoder with other channels than the encoder is not implemented (`decoder_block_out_channels`)")
        config = {key: value for key, value in config.items() if key not in _FLUX2} | {"_class_name": "AutoencoderKL"}
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("bn.")}
    tensors = []
    for name, tensor in weights.items():
        if tensor.is_meta:
            raise ValueError(f"{name} has no values (it is on the device `meta`): load the weights, or give a path")
        tensor = tensor.detach().to("cpu").contiguous()
        values = tensor.reshape(-1).view(torch.uint8).numpy()
        tensors.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), values))
    return json.dumps(config, default=str), tensors
