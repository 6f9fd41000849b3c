"""The golden files of crates/vae-wan/tests/data: seeded checkpoints in diffusers' layout and the original ones, and what diffusers makes of them.

Weights and samples are rounded to f16 and stored as such, so that small files hold exactly what diffusers computed with in f32.
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders import autoencoder_kl_qwenimage, autoencoder_kl_wan
from safetensors.torch import save_file

from fixtures import half_difference, report, save_as_half

DATA = pathlib.Path(__file__).parent.parent / "crates/vae-wan/tests/data"


def latent_statistics(channels):
    return dict(latents_mean=[0.1 * (i % 5) - 0.2 for i in range(channels)], latents_std=[0.5 + 0.25 * (i % 4) for i in range(channels)])


CONFIGS = {
    # Wan 2.1 in small: 8x, 4x in time.
    "wan21": dict(latent_statistics(4), base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2),
    # Wan 2.2 in small: shortcuts, patches, 16x.
    "wan22": dict(
        latent_statistics(6), base_dim=4, decoder_base_dim=8, z_dim=6, dim_mult=[1, 2, 4, 4], num_res_blocks=1, is_residual=True,
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
    ),
    # What the others leave out: attention in the encoder, an odd base, other ratios.
    "odd": dict(
        latent_statistics(3), base_dim=5, decoder_base_dim=6, z_dim=3, dim_mult=[1, 2, 3], num_res_blocks=1, attn_scales=[0.5],
        temperal_downsample=[True, False], scale_factor_temporal=2, scale_factor_spatial=4,
    ),
    "qwen": dict(latent_statistics(4), base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True]),
}  # fmt: skip

# Tile and stride in sample px: tiles of 4 (wan22: 2) latent px.
TILES = {"wan21": (32, 24), "wan22": (32, 16), "odd": (16, 12), "qwen": (16, 12)}

# Sizes: batch, latent frames, latent height and width, sample frames. Short tiles, redundant ones, one axis below a tile; 1, 5 and 13 sample frames.
CASES = {
    "wan21": [(1, 1, 8, 5, 1), (2, 2, 7, 4, 5), (1, 4, 3, 5, 13)],
    "wan22": [(1, 1, 5, 3, 1), (1, 2, 5, 2, 5), (1, 4, 2, 3, 13)],
    "odd": [(1, 1, 6, 9, 1), (1, 3, 7, 5, 5), (1, 7, 3, 8, 13)],
    "qwen": [(1, 1, 8, 5, 1), (1, 2, 6, 7, 5)],
}


def takes_a_cache(forward):
    """In diffusers the encoder hands its cache to attention, too, which does not take it."""
    return lambda self, x, feat_cache=None, feat_idx=None: forward(self, x)


for module, name in ((autoencoder_kl_wan, "WanAttentionBlock"), (autoencoder_kl_qwenimage, "QwenImageAttentionBlock")):
    block = getattr(module, name)
    block.forward = takes_a_cache(block.forward)


def seeded(name, config, seed):
    torch.manual_seed(seed)
    model = (AutoencoderKLQwenImage if name == "qwen" else AutoencoderKLWan)(**config).eval()
    for key, value in model.named_parameters():
        if key.endswith("gamma"):
            value.data = 1 + 0.2 * torch.randn_like(value)
        elif key.endswith("conv_out.weight"):
            value.data *= 2.0
        value.data = value.data.half().float()
    return model


@torch.no_grad()
def single_blocks(name, model):
    """Inputs and outputs of layers alone. Those with memory see three chunks, one after the other."""
    tensors = {}

    def record(key, x, y):
        tensors.update({f"block.{key}.in": x, f"block.{key}.out": y})

    def stream(key, layer, chunks, slots):
        cache = [None] * slots
        for step, x in enumerate(chunks):
            record(f"{key}.{step}", x, layer(x, feat_cache=cache, feat_idx=[0]))

    def noise(channels, frames, height=6, width=4):
        return torch.randn(1, channels, frames, height, width)

    attention = model.decoder.mid_block.attentions[0]
    record("attention", x := noise(attention.dim, 2), attention(x))
    stream("mid", model.encoder.mid_block, [noise(model.encoder.mid_block.dim, t) for t in (1, 1, 2)], 4)
    if name not in ("wan21", "wan22"):
        return tensors
    ups = [block.upsampler if name == "wan22" else block.upsamplers[0] for block in model.decoder.up_blocks[:-1]]
    downs = [block.downsampler for block in model.encoder.down_blocks[:-1]] if name == "wan22" else [
        layer for layer in model.encoder.down_blocks if hasattr(layer, "mode")]  # fmt: skip
    for axes in ("2d", "3d"):
        up = next(layer for layer in ups if layer.mode == f"upsample{axes}")
        stream(f"up{axes}", up, [noise(up.dim, t) for t in (1, 1, 2)], 1)
        down = next(layer for layer in downs if layer.mode == f"downsample{axes}")
        stream(f"down{axes}", down, [noise(down.dim, t) for t in (1, 4, 2)], 1)
    if name == "wan22":
        for index, block in enumerate(model.encoder.down_blocks):
            for frames in (1, 4):
                record(f"mean.{index}.{frames}", x := noise(block.avg_shortcut.in_channels, frames), block.avg_shortcut(x))
        for index, block in enumerate(model.decoder.up_blocks[:-1]):
            for first in (True, False):
                x = noise(block.avg_shortcut.in_channels, 1 if first else 2)
                record(f"spread.{index}.{'first' if first else 'later'}", x, block.avg_shortcut(x, first_chunk=first))
    return tensors


def cut(model, name, tiled):
    tile, stride = TILES[name]
    model.enable_tiling(tile, tile, stride, stride) if tiled else model.disable_tiling()


@torch.no_grad()
def golden(name, model):
    torch.manual_seed(1)
    tensors = single_blocks(name, model)
    ratio = getattr(model.config, "scale_factor_spatial", None) or model.spatial_compression_ratio
    for batch, frames, height, width, sample_frames in CASES[name]:
        case = f"{batch}x{frames}x{height}x{width}"
        latents = torch.randn(batch, model.config.z_dim, frames, height, width)
        samples = (torch.rand(batch, 3, sample_frames, height * ratio, width * ratio) * 2 - 1).half()
        tensors |= {f"{case}.latents": latents, f"{case}.samples": samples}
        for mode in ("untiled", "tiled"):
            cut(model, name, mode == "tiled")
            posterior = model.encode(samples.float()).latent_dist
            tensors |= {
                f"{case}.{mode}.decoded": model.decode(latents).sample,
                f"{case}.{mode}.mean": posterior.mean,
                f"{case}.{mode}.logvar": posterior.logvar,
            }
    return {key: value.contiguous() for key, value in tensors.items()}


def to_original(name, config):
    """The original name of a tensor that diffusers names `name`."""
    layers = config.num_res_blocks + 2
    parts = name.split(".")
    if parts[0] in ("quant_conv", "post_quant_conv"):
        return f"{'conv1' if parts[0] == 'quant_conv' else 'conv2'}.{parts[1]}"
    coder, rest = parts[0], parts[1:]
    within = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6", "conv_shortcut": "shortcut"}

    def layer(tail):
        return ".".join([within.get(tail[0], tail[0]), *tail[1:]])

    match rest:
        case ["conv_in", field]:
            return f"{coder}.conv1.{field}"
        case ["norm_out", field]:
            return f"{coder}.head.0.{field}"
        case ["conv_out", field]:
            return f"{coder}.head.2.{field}"
        case ["mid_block", "attentions", "0", *tail]:
            return f"{coder}.middle.1.{'.'.join(tail)}"
        case ["mid_block", "resnets", index, *tail]:
            return f"{coder}.middle.{2 * int(index)}.{layer(tail)}"
        case ["down_blocks" | "up_blocks" as blocks, block, "resnets", index, *tail] if config.is_residual:
            samples = "downsamples" if blocks == "down_blocks" else "upsamples"
            return f"{coder}.{samples}.{block}.{samples}.{index}.{layer(tail)}"
        case ["down_blocks", block, "downsampler", *tail]:
            return f"{coder}.downsamples.{block}.downsamples.{config.num_res_blocks}.{'.'.join(tail)}"
        case ["up_blocks", block, "upsampler", *tail]:
            return f"{coder}.upsamples.{block}.upsamples.{config.num_res_blocks + 1}.{'.'.join(tail)}"
        case ["down_blocks", index, *tail]:
            return f"{coder}.downsamples.{index}.{layer(tail)}"
        case ["up_blocks", block, "resnets", index, *tail]:
            return f"{coder}.upsamples.{layers * int(block) + int(index)}.{layer(tail)}"
        case ["up_blocks", block, "upsamplers", "0", *tail]:
            return f"{coder}.upsamples.{layers * int(block) + layers - 1}.{'.'.join(tail)}"
    raise ValueError(name)


def original_layout(name, model, folder):
    half = {key: value.half() for key, value in model.state_dict().items()}
    original = {to_original(key, model.config): value for key, value in half.items()}
    assert len(original) == len(half)
    if name == "wan21":
        converted = convert_wan_vae_to_diffusers(dict(original))
        assert converted.keys() == half.keys() and all(torch.equal(converted[key], half[key]) for key in half)
        torch.save(original, folder / "original.pth")
    else:
        save_file(original, folder / "original.safetensors")


def write():
    shutil.rmtree(DATA, ignore_errors=True)
    for seed, (name, config) in enumerate(CONFIGS.items()):
        folder = DATA / name
        model = seeded(name, config, seed)
        save_as_half(model, folder)
        tensors = golden(name, model)
        save_file(tensors, folder / "golden.safetensors")
        report(name, tensors)
        if name in ("wan21", "wan22"):
            original_layout(name, model, folder)
            for dtype in (torch.float16, torch.bfloat16):
                print(f"{name}: diffusers in {dtype} differs from itself in f32 by {half_difference(model, tensors, dtype, lambda model, tiled: cut(model, name, tiled)):.3f}")
    print(json.dumps({str(path.relative_to(DATA)): path.stat().st_size for path in sorted(DATA.rglob("*.*")) if path.is_file()}, indent=1))
