"""A model by itself, over arrays."""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Optional, Union

import numpy as np

from ._arrays import like, to_numpy, with_frames
from ._config import DEFAULTS, keys_of
from ._modules import tensors_of
from ._tilevae import Engine

Progress = Callable[[int, int], Any]

class Posterior:
    """What an encode gives: a normal distribution for each value of the latents, in the VAE's own latent space.

    Attributes:
        mean: ``[b, c, h, w]`` or ``[b, c, t, h, w]``.
        logvar: The same shape; ``None`` where the model gives latents and no distribution.
    """

    def __init__(self, mean: Any, logvar: Any):
        self.mean = mean
        self.logvar = logvar

    def mode(self) -> Any:
        """The mean."""
        return self.mean

    def sample(self, seed: int = 0) -> Any:
        """Latents drawn from the distribution; equal for equal seeds."""
        if self.logvar is None:
            return self.mean
        mean, logvar = to_numpy(self.mean), to_numpy(self.logvar)
        noise = np.random.default_rng(seed).standard_normal(mean.shape, dtype=np.float32)
        return like(mean + np.exp(0.5 * np.clip(logvar, -30.0, 20.0)) * noise, self.mean)


class Vae:
    """A model with its weights. Threads may share it.

    Args:
        source: A checkpoint (a diffusers folder, that of a pipeline, or a file), or a VAE of diffusers, whose weights are taken from memory.
        config: A configuration file (TOML).
        **settings: ``memory_mib``, ``tile_px``, ``tiling`` (``"seamless"``, ``"diffusers"``, ``"uniform"``, ``"off"``), ``norm``, ``devices``,
            ``dtype``, ``precision``, ``executor``, ``workers``, ``threads``, ``frames_per_chunk``, and any other key with its section.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: A setting is wrong, or no family claims the model.
        MemoryError: A budget cannot be met (when a run is planned).
    """

    def __init__(self, source: Union[str, "os.PathLike[str]", Any], *, config: Optional[Union[str, "os.PathLike[str]"]] = None, **settings: Any):
        if isinstance(source, (str, os.PathLike)):
            settings = {"model.path": os.path.abspath(os.fspath(source)), **settings}
            self._engine = Engine.open(None if config is None else os.fspath(config), keys_of(settings, DEFAULTS))
        else:
            if config is not None:
                raise TypeError("a model in memory takes settings, not a configuration file")
            self._engine = Engine.of_tensors(*tensors_of(source), keys_of(settings, DEFAULTS))

    @property
    def latent_channels(self) -> int:
        """Channels of latents."""
        return self._engine.latent_channels

    @property
    def spatial_ratio(self) -> int:
        """Px of a sample in a latent px, along height and width."""
        return self._engine.spatial_ratio

    def decode(self, latents: Any, *, out: Optional[np.ndarray] = None, progress: Optional[Progress] = None) -> Any:
        """Latents of the VAE's own latent space to samples, about -1 to 1.

        Args:
            latents: ``[b, c, h, w]`` or ``[b, c, t, h, w]``; contiguous f32 on the CPU is read where it is.
            out: A contiguous f32 array for the samples.
            progress: Called with the tiles that are done and all tiles.

        Returns:
            Samples as the same kind of thing, with frames if the latents have them.
        """
        array, has_frames = with_frames(to_numpy(latents))
        shape = self._engine.output_shape(True, array.shape)
        wanted = shape if has_frames else (*shape[:2], *shape[3:])
        if out is None:
            samples = np.empty(wanted, dtype=np.float32)
        elif out.dtype == np.float32 and out.shape == tuple(wanted) and out.flags.c_contiguous and out.flags.writeable:
            samples = out
        else:
            raise ValueError(f"out must be a writeable, contiguous array of float32 of the shape {list(wanted)}")
        self._engine.decode(array, samples.reshape(shape), progress)
        return samples if out is not None else like(samples, latents)

    def encode(self, samples: Any, *, progress: Optional[Progress] = None) -> Posterior:
        """Samples from -1 to 1, ``[b, c, h, w]`` or ``[b, c, t, h, w]``, to latents of the VAE's own latent space."""
        array, has_frames = with_frames(to_numpy(samples))
        mean, logvar = self._engine.encode(array, progress)

        def own(values: Optional[np.ndarray]) -> Any:
            if values is None:
                return None
            return like(values if has_frames else values[:, :, 0], samples)

        return Posterior(own(mean), own(logvar))

    def plan(self, shape: Any, direction: str = "decode") -> dict[str, Any]:
        """Tiles, stages and predicted memory of a run over an input of this shape."""
        if direction not in ("decode", "encode"):
            raise ValueError(f'the direction is "decode" or "encode", not {direction!r}')
        shape = tuple(shape)
        if len(shape) == 4:
            shape = (*shape[:2], 1, *shape[2:])
        plan: dict[str, Any] = json.loads(self._engine.plan(direction == "decode", shape))
        return plan

    def __reduce__(self) -> Any:
        raise TypeError("a Vae cannot be pickled: its weights are on devices; pickle what it was made from")
