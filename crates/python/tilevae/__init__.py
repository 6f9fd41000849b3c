"""Decode and encode through the VAEs of diffusion models: in tiles, in bounded memory, without seams.

``patch(pipe)`` lets a diffusers pipeline use tilevae in the place of its VAE's own ``decode`` and ``encode``; ``Vae`` is a model by itself.
"""

from ._patch import patch, unpatch
from ._plan import Plan
from ._tilevae import __version__
from ._vae import Posterior, Vae

__all__ = ["Plan", "Posterior", "Vae", "__version__", "patch", "unpatch"]
