"""Progress of runs: a bar, or what the caller brings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Union

#: Called with the tiles that are done and all tiles.
Callback = Callable[[int, int], Any]

#: `True` shows a bar of tqdm.
Progress = Union[Callback, bool, None]


@contextmanager
def shown(progress: Progress, what: str) -> Iterator[Optional[Callback]]:
    """What a run calls with the tiles that are done and all tiles, as long as the context lasts."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        try:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("progress=True needs tqdm; install it, or give a callable that takes the tiles that are done and all tiles") from error
        with tqdm(desc=what, unit="tile") as bar:

            def show(done: int, all: int) -> None:
                bar.total = all
                bar.update(done - bar.n)

            yield show
    elif callable(progress):
        yield progress
    else:
        raise TypeError(f"progress is True or a callable that takes the tiles that are done and all tiles, not {type(progress).__name__}")
