"""Trains the small demo checkpoint of models/demo-kl on freely licensed photographs.

    python tools/train_demo.py --minutes 90 --threads 2

An `AutoencoderKL` (8x, 16 latent channels, no quant convs) under 6 MB in f16. Loss: squared error, a little absolute error, a light KL term.
The learning rate follows a cosine over the given time; the weights that are saved are an exponential average. The photograph
`photographs.HELD_OUT` is never seen, and the PSNR of its round trip is printed at every checkpoint.
"""

import argparse
import copy
import json
import math
import pathlib
import time

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

import photographs

CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[16, 32, 64, 128],
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=8,
    sample_size=256,
    force_upcast=False,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
PEAK_LEARNING_RATE = 1.5e-3
EMA_DECAY = 0.999
KL_WEIGHT = 1e-6


def pyramid(image):
    """The photograph at several scales: crops of a smaller copy hold more detail a pixel."""
    picture = Image.fromarray(image)
    sizes = [(max(160, int(picture.width * s)), max(160, int(picture.height * s))) for s in (1.0, 0.75, 0.55)]
    return [np.asarray(picture.resize(size, Image.LANCZOS)) for size in sizes]


def crops(levels, count, side, rng):
    """Float samples [count, 3, side, side] in [-1, 1]: random place, scale, flip, turn, colour order and contrast."""
    batch = np.empty((count, side, side, 3), np.float32)
    for item in batch:
        photo = levels[rng.integers(len(levels))]
        image = photo[rng.integers(len(photo))]
        y, x = rng.integers(image.shape[0] - side + 1), rng.integers(image.shape[1] - side + 1)
        crop = np.rot90(image[y : y + side, x : x + side], rng.integers(4))
        crop = crop[:, :: rng.choice([-1, 1])]
        if rng.random() < 0.3:
            crop = crop[..., rng.permutation(3)]
        crop = crop.astype(np.float32) / 127.5 - 1
        if rng.random() < 0.5:
            crop = np.clip(crop * rng.uniform(0.7, 1.2) + rng.uniform(-0.2, 0.2), -1, 1)
        item[:] = crop
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def round_trip(model, image):
    """Decoded uint8 picture and its PSNR in dB, through the posterior's mode; the sides are cut to multiples of 8."""
    image = image[: image.shape[0] // 8 * 8, : image.shape[1] // 8 * 8]
    samples = torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    latents = model.encode(samples).latent_dist.mode()
    decoded = model.decode(latents).sample[0].permute(1, 2, 0).clamp(-1, 1)
    picture = ((decoded + 1) * 127.5).round().numpy().astype(np.uint8)
    return picture, 10 * math.log10(255**2 / np.mean((picture.astype(np.float64) - image) ** 2))


@torch.no_grad()
def normalise_latents(model, levels, rng):
    """Sets shift and scaling so that latents of the training crops have mean 0 and deviation 1."""
    latents = model.encode(crops(levels, 64, 128, rng)).latent_dist.mode()
    model.register_to_config(shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models/demo-kl"))
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    levels = [pyramid(image) for image in photographs.training()]
    model = AutoencoderKL(**CONFIG)
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3)

    start, saved, step = time.time(), time.time(), 0
    while True:
        elapsed = (time.time() - start) / (60 * args.minutes)
        for group in optimiser.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * min(1, step / 300) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1, elapsed))))
        samples = crops(levels, *((3, 128) if step % 4 == 3 else (12, 64)), rng)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(samples).latent_dist
            decoded = model.decode(posterior.sample()).sample
        error = decoded.float() - samples
        loss = error.square().mean() + 0.05 * error.abs().mean() + KL_WEIGHT * posterior.kl().float().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            decay = min(EMA_DECAY, step / (step + 10))
            for kept, fresh in zip(average.parameters(), model.parameters()):
                kept.lerp_(fresh, 1 - decay)

        if elapsed >= 1 or time.time() - saved > 180:
            saved = time.time()
            picture, psnr = round_trip(average, photographs.held_out())
            print(f"step {step}  {elapsed:.0%}  loss {loss.item():.5f}  held-out PSNR {psnr:.2f} dB", flush=True)
            normalise_latents(average, levels, np.random.default_rng(1))
            copy.deepcopy(average).half().save_pretrained(args.out)
            if elapsed >= 1:
                break
    config = json.loads((args.out / "config.json").read_text())
    print(f"scaling {config['scaling_factor']}, shift {config['shift_factor']}, {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
