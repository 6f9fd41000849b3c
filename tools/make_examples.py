"""Writes the example clip (examples/clips) and its latents (examples/latents), which diffusers encodes with the demo checkpoint.

    python tools/make_examples.py
"""

import pathlib

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import save_file

import photographs

ROOT = pathlib.Path(__file__).parent.parent
FPS = 10


@torch.no_grad()
def main():
    clip = photographs.held_out_clip()
    # Without dithering, which is noise to a model.
    frames = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in clip]
    (ROOT / "examples/clips").mkdir(exist_ok=True)
    frames[0].save(ROOT / "examples/clips/chelsea.gif", save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0)

    model = AutoencoderKLWan.from_pretrained(ROOT / "models/demo-wan").float().eval()
    samples = torch.from_numpy(clip.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (model.config.latents_mean, model.config.latents_std))
    latents = (model.encode(samples).latent_dist.mode() - mean) / std
    save_file({"latents": latents.half().contiguous()}, ROOT / "examples/latents/chelsea-clip.safetensors", {"tilevae.fps": str(FPS)})


if __name__ == "__main__":
    main()
