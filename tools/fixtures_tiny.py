"""The checkpoint and the golden file of examples/downstream-vae: a seeded AutoencoderTiny in diffusers' layout, and what diffusers makes of it, untiled and in tiles.

Weights are rounded to f16 and stored as such, so that small files hold exactly what diffusers computed with in f32.
"""

import pathlib
import shutil

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from fixtures import save_as_half

MODEL = pathlib.Path(__file__).parent.parent / "examples/downstream-vae/tests/data/tiny"

# TAESD in small: 4 latent channels, 8x.
CONFIG = dict(
    encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1, 1, 2, 1), num_decoder_blocks=(1, 2, 1, 1)
)

# Tiles of 8 latent px whose strides are 6. The last row of tiles is one latent px high, less than the overlap.
TILE_PX, OVERLAP = 64, 0.25

# Latent sizes: batch, height, width.
CASES = [(2, 3, 2), (1, 13, 9)]


def seeded():
    torch.manual_seed(0)
    model = AutoencoderTiny(**CONFIG).eval()
    for name, value in model.named_parameters():
        # As large an output as the input at each residual block, and samples of about -1 to 1 at the end.
        if name.endswith("weight"):
            value.data *= 2.5 if name.startswith("encoder") else 2.0
        value.data = value.data.half().float()
    model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = TILE_PX, TILE_PX // 8, OVERLAP
    return model


@torch.no_grad()
def golden(model):
    torch.manual_seed(1)
    tensors = {}
    for batch, height, width in CASES:
        case = f"{batch}x{height}x{width}"
        latents = torch.randn(batch, 4, height, width) * 2
        samples = torch.rand(batch, 3, height * 8, width * 8) * 2 - 1
        tensors |= {f"{case}.latents": latents, f"{case}.samples": samples}
        for mode in ("untiled", "tiled"):
            model.enable_tiling() if mode == "tiled" else model.disable_tiling()
            tensors |= {f"{case}.{mode}.decoded": model.decode(latents).sample, f"{case}.{mode}.encoded": model.encode(samples).latents}
    for name, value in tensors.items():
        print(f"tiny: {name} {tuple(value.shape)}, mean |value| {value.abs().mean():.2f}, deviation {value.std():.2f}")
    return {key: value.contiguous() for key, value in tensors.items()}


def write():
    shutil.rmtree(MODEL, ignore_errors=True)
    model = seeded()
    save_as_half(model, MODEL)
    save_file(golden(model), MODEL / "golden.safetensors")
