"""A model by itself, over arrays."""

from __future__ import annotations

import json
import operator
import os
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Union

import numpy as np

from ._arrays import like, to_numpy, with_frames
from ._config import DEFAULTS, keys_of
from ._modules import tensors_of
from ._plan import Plan
from ._progress import Progress, shown
from ._tilevae import Engine

StrPath = Union[str, "os.PathLike[str]"]


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

    Arrays of numpy, tensors of torch and objects with ``__dlpack__`` go in and come out as the same kind (numpy, if an object has no
    ``__array_namespace__``). An input that is contiguous f32 on the CPU is read where it is; others are copied to that. Outputs are f32 in memory of
    their own, and are not copied; tensors get the input's device and dtype. Ctrl-C ends a run within a tile.

    Args:
        source: A checkpoint (a diffusers folder, that of a pipeline, or a file), or a VAE of diffusers, whose weights are copied from memory.
        config: A configuration file (TOML).
        **settings: ``memory_mib``, ``tile_px``, ``tiling`` (``"seamless"``, ``"diffusers"``, ``"uniform"``, ``"off"``), ``norm``, ``devices``,
            ``dtype``, ``precision``, ``executor``, ``workers``, ``threads``, ``frames_per_chunk``, ``latent_space`` (``"vae"``: the VAE's own;
            ``"diffusion"``: as pipelines return them), and any other key with its section.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: A setting is wrong, or no family claims the model.
        MemoryError: A budget cannot be met (when a run is planned).
    """

    def __init__(self, source: Union[StrPath, Any], *, config: Optional[StrPath] = None, **settings: Any):
        if isinstance(source, (str, os.PathLike)):
            settings = {"model.path": os.path.abspath(os.fspath(source)), **settings}
            self._engine = Engine.open(None if config is None else os.fspath(config), keys_of(settings, DEFAULTS))
        else:
            if config is not None:
                raise TypeError("a model in memory takes settings, not a configuration file")
            self._engine = Engine.of_tensors(*tensors_of(source), keys_of(settings, DEFAULTS), 0)

    @classmethod
    def _of(cls, engine: Engine) -> Vae:
        vae = cls.__new__(cls)
        vae._engine = engine
        return vae

    @property
    def latent_channels(self) -> int:
        """Channels of latents."""
        return self._engine.latent_channels

    @property
    def spatial_ratio(self) -> int:
        """Px of a sample in a latent px, along height and width."""
        return self._engine.spatial_ratio

    def decode(self, latents: Any, *, out: Optional[np.ndarray] = None, progress: Progress = None) -> Any:
        """Latents of the VAE's own latent space to samples, about -1 to 1.

        Args:
            latents: ``[b, c, h, w]`` or ``[b, c, t, h, w]``.
            out: A contiguous f32 array for the samples, which are written there and nowhere else.
            progress: ``True`` for a bar of tqdm, or a callable, which is given the tiles that are done and all tiles.

        Returns:
            ``out``, or samples ``[b, 3, h * ratio, w * ratio]`` as the same kind of thing, with frames if the latents have them.

        Raises:
            ValueError: The model does not take this shape, or `out` does not fit.
            TypeError: The latents are no array of numbers.
            MemoryError: The budget cannot be met.
        """
        array, has_frames = with_frames(to_numpy(latents))
        shape = self._engine.output_shape(True, array.shape)
        wanted = shape if has_frames else (*shape[:2], *shape[3:])
        samples = np.empty(wanted, dtype=np.float32) if out is None else _checked(out, wanted, array)
        with shown(progress, "decode") as callback:
            self._engine.decode(array, samples.reshape(shape), callback)
        return samples if out is not None else like(samples, latents)

    def decode_to(self, path: StrPath, latents: Any, *, fps: Union[int, float, str, None] = None, progress: Progress = None) -> list[Path]:
        """Decode into a file, in any format that ``tilevae decode`` writes; its name says which. It has its name when it is complete.

        Args:
            path: The file; a batch of images or clips gets numbers. An existing file is replaced.
            latents: As for `decode`, or a file of latents, as ``tilevae decode`` reads it. Both are of the latent space of the settings, by default
                the VAE's own.
            fps: Frames a second of a clip, as a number or ``"24000/1001"``.
            progress: As for `decode`.

        Returns:
            The files that were written.

        Raises:
            ValueError: No format has this name, it cannot hold the samples, or the model does not take the latents.
            OSError: A file cannot be read or written.
        """
        is_file = isinstance(latents, (str, os.PathLike))
        source, has_frames = (latents, False) if is_file else with_frames(to_numpy(latents))
        with shown(progress, "decode") as callback:
            written = self._engine.decode_to(path, source, has_frames, None if fps is None else str(fps), callback)
        return written

    def decode_frames(self, latents: Any, *, progress: Progress = None) -> Iterator[Any]:
        """Iterate over the samples of a clip as they are finished: some consecutive frames at a time, in order.

        The run begins with the first `next`, goes on while the loop works, and waits while nothing is taken from it. It ends with the iterator. In
        several tiles, frames are finished at the end of the run, and wait in a scratch file. The loop may use the same `Vae`.

        Args:
            latents: ``[b, c, t, h, w]``. The run copies them when it begins.
            progress: As for `decode`.

        Yields:
            Samples ``[b, 3, frames, h * ratio, w * ratio]`` as the same kind of thing.

        Raises:
            ValueError: The latents are no clip, or the model does not take this shape.
            TypeError: The latents are no array of numbers.
            MemoryError: The budget cannot be met.
        """
        array, has_frames = with_frames(to_numpy(latents))
        if not has_frames:
            raise ValueError(f"expected the latents of a clip, [b, c, t, h, w], got an array of the shape {list(array[:, :, 0].shape)}")
        # What is wrong is said here, before the first frames are asked for.
        self._engine.output_shape(True, array.shape)
        return self._frames(array, latents, progress)

    def _frames(self, array: np.ndarray, latents: Any, progress: Progress) -> Iterator[Any]:
        with shown(progress, "decode") as callback:
            for frames in self._engine.decode_frames(array, callback):
                yield like(frames, latents)

    def encode(self, samples: Any, *, progress: Progress = None) -> Posterior:
        """Samples to latents of the VAE's own latent space.

        Args:
            samples: ``[b, 3, h, w]`` or ``[b, 3, t, h, w]``, from -1 to 1.
            progress: As for `decode`.

        Returns:
            The distribution of latents ``[b, c, h / ratio, w / ratio]``, with frames if the samples have them, as the same kind of thing.

        Raises:
            ValueError, TypeError, MemoryError: As for `decode`.
        """
        array, has_frames = with_frames(to_numpy(samples))
        with shown(progress, "encode") as callback:
            mean, logvar = self._engine.encode(array, callback)

        def own(values: Optional[np.ndarray]) -> Any:
            if values is None:
                return None
            return like(values if has_frames else values[:, :, 0], samples)

        return Posterior(own(mean), own(logvar))

    def plan(self, shape: Sequence[int], direction: str = "decode") -> Plan:
        """Tiles, stages and predicted memory of a run over an input of this shape. A notebook draws it.

        Args:
            shape: ``[b, c, h, w]`` or ``[b, c, t, h, w]``.
            direction: ``"decode"`` or ``"encode"``.

        Raises:
            ValueError: The model does not take this shape.
            MemoryError: The budget cannot be met.
        """
        if direction not in ("decode", "encode"):
            raise ValueError(f'the direction is "decode" or "encode", not {direction!r}')
        sides = [operator.index(side) for side in shape]
        if len(sides) == 4:
            sides.insert(2, 1)
        if len(sides) != 5 or min(sides) < 0 or max(sides) >= 1 << 63:
            raise ValueError(f"expected the shape [b, c, h, w] or [b, c, t, h, w], got {list(shape)}")
        b, c, t, h, w = sides
        return Plan(json.loads(self._engine.plan(direction == "decode", (b, c, t, h, w))))

    def __reduce__(self) -> Any:
        raise TypeError("a Vae cannot be pickled: its weights are on devices; pickle what it was made from")


def _checked(out: Any, shape: Sequence[int], latents: np.ndarray) -> np.ndarray:
    """An array that samples of a shape can be written to."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an array of numpy, not {type(out).__name__}")
    if out.dtype != np.float32 or out.shape != tuple(shape) or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out must be a writeable, contiguous array of float32 of the shape {list(shape)}, got {out.dtype} of {list(out.shape)}")
    if np.may_share_memory(out, latents):
        raise ValueError("out must not share memory with the latents")
    return out

