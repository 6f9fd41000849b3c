"""The golden files of crates/vae-kl/tests/data: seeded checkpoints in diffusers' layout and others, and what diffusers makes of them.

Weights are rounded to f16 and stored as such, so that small files hold exactly what diffusers computed with in f32.
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file

from fixtures import half_difference, report, save_as_half

DATA = pathlib.Path(__file__).parent.parent / "crates/vae-kl/tests/data"


def blocks(count):
    return dict(down_block_types=["DownEncoderBlock2D"] * count, up_block_types=["UpDecoderBlock2D"] * count)


CONFIGS = {
    # SD 1.x in small: quant convs, 4 latent channels, 8x.
    "sd": dict(blocks(4), block_out_channels=[16, 16, 16, 32], layers_per_block=2, latent_channels=4, norm_num_groups=16, sample_size=32),
    # FLUX.1 in small: no quant convs, 16 latent channels, a shift.
    "flux": dict(
        blocks(4), block_out_channels=[8, 16, 16, 24], layers_per_block=1, latent_channels=16, norm_num_groups=8, sample_size=32,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159, force_upcast=False,
    ),
    # What the others leave out.
    "odd": dict(
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        block_out_channels=[16, 24], layers_per_block=1, latent_channels=3, norm_num_groups=8, sample_size=16, act_fn="mish",
        mid_block_add_attention=False, use_quant_conv=False, latents_mean=[0.1, -0.2, 0.3], latents_std=[1.5, 0.7, 1.1],
    ),
}

# Latent sizes: batch, height, width. With tiles of 4 (sd, flux) or 8 (odd) latent px: short tiles, redundant ones, one axis below a tile.
CASES = {
    "sd": [(1, 4, 4), (2, 5, 3), (1, 11, 7), (2, 7, 2)],
    "flux": [(1, 3, 4), (1, 10, 9)],
    "odd": [(2, 7, 8), (1, 13, 20), (2, 9, 14)],
}


def seeded(config, seed):
    torch.manual_seed(seed)
    model = AutoencoderKL(in_channels=3, out_channels=3, **config).eval()
    for name, value in model.named_parameters():
        if "norm" in name:
            value.data = torch.randn_like(value) * 0.2 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("conv_out.weight"):
            value.data *= 2.0
        value.data = value.data.half().float()
    return model


def single_blocks(model):
    encoder, decoder = model.encoder, model.decoder
    firsts = [block.resnets[0] for block in reversed(decoder.up_blocks)]
    found = {
        "down": encoder.down_blocks[-2],
        "up": decoder.up_blocks[0],
        "shortcut": next(resnet for resnet in firsts if resnet.conv_shortcut is not None),
        "mid": encoder.mid_block,
    }
    if model.config.mid_block_add_attention:
        found["attention"] = encoder.mid_block.attentions[0]
    return found


def set_tiling(model, tiled):
    model.enable_tiling() if tiled else model.disable_tiling()


@torch.no_grad()
def golden(name, model):
    torch.manual_seed(1)
    tensors = {}
    for block, module in single_blocks(model).items():
        channels = next(value for value in module.parameters()).shape[-1] if block == "attention" else None
        first = module if block == "shortcut" else None if block == "attention" else module.resnets[0]
        x = torch.randn(1, channels or first.conv1.in_channels, 6, 10)
        y = module(x, None) if block == "shortcut" else module(x)
        tensors |= {f"block.{block}.in": x, f"block.{block}.out": y}
    ratio = 2 ** (len(model.config.block_out_channels) - 1)
    for batch, height, width in CASES[name]:
        case = f"{batch}x{height}x{width}"
        latents = torch.randn(batch, model.config.latent_channels, height, width)
        # A remainder below a latent px is dropped by the encoder.
        samples = torch.rand(batch, 3, height * ratio + height % 2, width * ratio) * 2 - 1
        tensors |= {f"{case}.latents": latents, f"{case}.samples": samples}
        for mode in ("untiled", "tiled"):
            set_tiling(model, mode == "tiled")
            posterior = model.encode(samples).latent_dist
            tensors |= {
                f"{case}.{mode}.decoded": model.decode(latents).sample,
                f"{case}.{mode}.mean": posterior.mean,
                f"{case}.{mode}.logvar": posterior.logvar,
            }
    return {key: value.contiguous() for key, value in tensors.items()}


def to_ldm(name, blocks):
    """The original name of a tensor that diffusers names `name`."""
    for index in range(blocks):
        name = name.replace(f"encoder.down_blocks.{index}.", f"encoder.down.{index}.")
        name = name.replace(f"decoder.up_blocks.{index}.", f"decoder.up.{blocks - 1 - index}#.")
    for new, old in [
        ("#", ""), ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1"),
        ("resnets", "block"), ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"), ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
    ]:  # fmt: skip
        name = name.replace(new, old)
    return name


def other_layouts(model, folder):
    half = {name: value.half() for name, value in model.state_dict().items()}
    blocks = len(model.config.block_out_channels)
    ldm = {to_ldm(name, blocks): value for name, value in half.items()}
    for name in ldm:
        if ".attn_1." in name and "norm" not in name and name.endswith("weight"):
            ldm[name] = ldm[name][:, :, None, None].clone()
    converted = convert_ldm_vae_checkpoint({f"first_stage_model.{k}": v for k, v in ldm.items()}, dict(model.config))
    assert converted.keys() == half.keys() and all(torch.equal(converted[k].reshape(half[k].shape), half[k]) for k in half)
    whole = {f"first_stage_model.{name}": value for name, value in ldm.items()}
    whole["model.diffusion_model.out.2.bias"] = torch.zeros(4).half()
    save_file(whole, folder / "whole.safetensors")
    torch.save({"state_dict": dict(ldm, **{"loss.logvar": torch.zeros(1)})}, folder / "bare.ckpt")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in half.items():
        for fresh, former in names.items():
            name = name.replace(fresh, former)
        old[name] = value[:, :, None, None].clone() if name.endswith(("query.weight", "value.weight")) else value
    (folder / "old-names").mkdir()
    save_file(old, folder / "old-names/diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(folder / "config.json", folder / "old-names/config.json")


def write():
    shutil.rmtree(DATA, ignore_errors=True)
    for seed, (name, config) in enumerate(CONFIGS.items()):
        folder = DATA / name
        model = seeded(config, seed)
        save_as_half(model, folder)
        tensors = golden(name, model)
        save_file(tensors, folder / "golden.safetensors")
        report(name, tensors)
        if name == "flux":
            for dtype in (torch.float16, torch.bfloat16):
                print(f"{name}: diffusers in {dtype} differs from itself in f32 by {half_difference(model, tensors, dtype, set_tiling):.3f}")
        if name == "sd":
            other_layouts(model, folder)
    print(json.dumps({str(path.relative_to(DATA)): path.stat().st_size for path in sorted(DATA.rglob("*.*")) if path.is_file()}, indent=1))

