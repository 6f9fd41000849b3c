"""Trains the small demo checkpoints of models/ on freely licensed photographs.

    python tools/train_demo.py kl  --minutes 90 --threads 2
    python tools/train_demo.py wan --minutes 120 --threads 2

`kl` is an `AutoencoderKL` (8x, 16 latent channels, no quant convs), `wan` an `AutoencoderKLWan` (Wan 2.1: 8x, 4x in time, 16 latent channels) that
is trained on single pictures and on clips made of them (pans, zooms, parallax); both are under 6 MB in f16. Loss: squared error, the same of means
over 8x8 px, a little absolute error, a light KL term. The learning rate follows a cosine over the given time; the weights that are saved are an
exponential average. The photograph `photographs.HELD_OUT` is never seen, and the PSNR of its round trip (`wan`: of a moving crop of it) is printed
at every checkpoint.
"""

import argparse
import copy
import math
import pathlib
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan

import photographs

EMA_DECAY = 0.999
KL_WEIGHT = 1e-6


def psnr(got, expected):
    """In dB, of two uint8 arrays."""
    return 10 * math.log10(255**2 / np.mean((got.astype(np.float64) - expected) ** 2))


class KlDemo:
    """Single pictures through an `AutoencoderKL`."""

    peak_learning_rate = 1.5e-3

    def __init__(self):
        self.levels = [photographs.pyramid(image) for image in photographs.training()]

    def build(self):
        return AutoencoderKL(
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

    def batch(self, step, elapsed, rng):
        count, side = (3, 128) if step % 4 == 3 else (12, 64)
        return photographs.crops(self.levels, count, side, rng)

    def decode(self, model, latents):
        return model.decode(latents).sample

    def round_trip(self, model):
        """PSNR of the held-out photograph through the posterior's mode; the sides are cut to multiples of 8."""
        image = photographs.held_out()
        image = image[: image.shape[0] // 8 * 8, : image.shape[1] // 8 * 8]
        samples = torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        decoded = model.decode(model.encode(samples).latent_dist.mode()).sample
        return psnr(photographs.to_uint8(decoded[0].permute(1, 2, 0)), image)

    def normalise(self, model, rng):
        """Sets shift and scaling so that latents of the training crops have mean 0 and deviation 1."""
        latents = model.encode(photographs.crops(self.levels, 64, 128, rng)).latent_dist.mode()
        model.register_to_config(shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4))


def first_frame_alone(forward):
    """Of a 3x3x3 kernel only the last slice meets something where no frame came before: a third of the work."""

    def run(self, x, cache_x=None):
        if cache_x is None and x.shape[2] == 1 and self.kernel_size == (3, 3, 3):
            return torch.nn.functional.conv2d(x[:, :, 0], self.weight[:, :, 2], self.bias, padding=1)[:, :, None]
        return forward(self, x, cache_x)

    return run


class WanDemo:
    """Pictures first, then clips of five to seventeen frames, through an `AutoencoderKLWan`."""

    peak_learning_rate = 6e-4
    pictures_until = 0.35

    def __init__(self):
        self.levels = [photographs.pyramid(image) for image in photographs.training()]
        self.photos = [photographs.to_samples(image) for image in photographs.training()]

    def build(self):
        causal = autoencoder_kl_wan.WanCausalConv3d
        causal.forward = first_frame_alone(causal.forward)
        model = AutoencoderKLWan(base_dim=16, z_dim=16, num_res_blocks=1)
        # Little noise at the start: its log-variance would take thousands of steps to fall.
        model.quant_conv.bias.data[16:] = -6.0
        # At the start every frame is coded alone, and halving and doubling in time drops and repeats frames.
        for name, value in model.named_parameters():
            if name.endswith("weight") and value.dim() == 5 and value.shape[2] == 3:
                value.data[:, :, :2] = 0.0
                if "time_conv" in name:
                    identity = torch.eye(value.shape[1]).repeat(value.shape[0] // value.shape[1], 1)
                    value.data[:, :, 2] = 0.1 * value.data[:, :, 2] + identity[:, :, None, None]
        return model

    def batch(self, step, elapsed, rng):
        if step % 8 == 0 or elapsed < self.pictures_until:
            count, side = (3, 128) if step % 4 == 3 else (12, 64)
            return photographs.crops(self.levels, count, side, rng)[:, :, None]
        # Layers look far back together: short clips alone leave them with zeros before the first frame.
        count, frames, side = [(4, 5, 64), (1, 17, 64), (2, 9, 64), (1, 5, 128)][step % 4]
        return photographs.clips(self.photos, count, frames, side, rng)

    def decode(self, model, latents):
        """As `model.decode`, without its clamp, which would stop the gradient."""
        model.clear_cache()
        latents = model.post_quant_conv(latents)
        frames = []
        for frame in range(latents.shape[2]):
            model._conv_idx = [0]
            chunk = latents[:, :, frame : frame + 1]
            frames.append(model.decoder(chunk, feat_cache=model._feat_map, feat_idx=model._conv_idx, first_chunk=frame == 0))
        return torch.cat(frames, 2)

    def round_trip(self, model):
        """PSNR of the held-out clip through the posterior's mode."""
        clip = photographs.held_out_clip()
        samples = torch.from_numpy(clip.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
        decoded = model.decode(model.encode(samples).latent_dist.mode()).sample
        return psnr(photographs.to_uint8(decoded[0].permute(1, 2, 3, 0)), clip)

    def normalise(self, model, rng):
        """Sets mean and deviation of each latent channel to those of the training clips."""
        latents = model.encode(photographs.clips(self.photos, 32, 5, 64, rng)).latent_dist.mode()
        mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        model.register_to_config(
            latents_mean=[round(v, 4) for v in mean.tolist()], latents_std=[round(v, 4) for v in deviation.tolist()]
        )


def train(demo, args):
    rng = np.random.default_rng(args.seed)
    peak = args.learning_rate or demo.peak_learning_rate
    model = demo.build()
    if args.resume:
        model.load_state_dict(type(model).from_pretrained(args.out, low_cpu_mem_usage=False).state_dict())
        demo.pictures_until = 0.0
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.99), weight_decay=1e-3)

    start, saved, step = time.time(), time.time(), 0
    while True:
        elapsed = (time.time() - start) / (60 * args.minutes)
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1, (step + 1) / (60 if args.resume else 300)) * max(0.01, 0.5 * (1 + math.cos(math.pi * min(1, elapsed))))
        samples = demo.batch(step, elapsed, rng)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(samples).latent_dist
            decoded = demo.decode(model, posterior.sample())
        error = decoded.float() - samples
        # Broad errors of colour weigh little in the squares and much for the eye.
        broad = torch.nn.functional.avg_pool2d(error.reshape(-1, *error.shape[-2:]), 8)
        loss = error.square().mean() + 0.05 * error.abs().mean() + 2 * broad.square().mean() + KL_WEIGHT * posterior.kl().float().mean()
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
            with torch.no_grad():
                print(f"step {step}  {elapsed:.0%}  loss {loss.item():.5f}  held-out PSNR {demo.round_trip(average):.2f} dB", flush=True)
                demo.normalise(average, np.random.default_rng(1))
            copy.deepcopy(average).half().save_pretrained(args.out)
            if elapsed >= 1:
                break
    print((args.out / "config.json").read_text(), f"{sum(p.numel() for p in model.parameters())} parameters")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("kl", "wan"))
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="the highest; default: the demo's own")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, with all kinds of batches from the start")
    parser.add_argument("--out", type=pathlib.Path, help="default: models/demo-MODEL")
    args = parser.parse_args()
    args.out = args.out or pathlib.Path("models") / f"demo-{args.model}"
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train({"kl": KlDemo, "wan": WanDemo}[args.model](), args)


if __name__ == "__main__":
    main()
