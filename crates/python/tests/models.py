"""Tiny models with seeded weights."""

import diffusers
import torch


def kl(**config):
    torch.manual_seed(0)
    sizes = dict(block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1)
    return diffusers.AutoencoderKL(**(sizes | dict(sample_size=64) | config)).eval()


def wan(base_dim=16, dim_mult=(1, 2, 2, 2)):
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(base_dim=base_dim, z_dim=4, dim_mult=list(dim_mult), num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()


def qwen():
    torch.manual_seed(0)
    return diffusers.AutoencoderKLQwenImage(base_dim=16, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()


def flux2_vae():
    torch.manual_seed(0)
    sizes = dict(block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1)
    return diffusers.AutoencoderKLFlux2(**sizes, latent_channels=4, sample_size=64).eval()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
