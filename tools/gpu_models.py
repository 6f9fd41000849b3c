"""Writes seeded checkpoints of the sizes of SDXL, Stable Diffusion 1.x and Wan 2.1, and seeded inputs. Needs numpy alone.

    python tools/gpu_models.py FOLDER [--models sdxl,sd1,wan21] [--dtype f32] [--tiny]
    python tools/gpu_models.py FOLDER --models '' --input NAME=1,4,128,128 [--input NAME=1,3,17,480,832 --samples]

A model is a folder in diffusers' layout, FOLDER/MODEL. Its weights are spread as torch's layers are when they are new: uniform, up to 1 / sqrt(inputs of an output);
norms are ones and zeros. A tensor depends on the seed and on its name alone. An input is FOLDER/NAME.safetensors: latents of a normal distribution, or samples
between -1 and 1. With --tiny the models have few channels, to try a script out.
"""

import argparse
import json
import math
import pathlib
import zlib

import numpy

from bench_peer import SD1

KL = SD1 | dict(scaling_factor=0.18215)
WAN = dict(
    base_dim=96, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0,
    latents_mean=[0.0] * 16, latents_std=[1.0] * 16,
)  # fmt: skip

MODELS = {
    "sdxl": ("AutoencoderKL", KL | dict(sample_size=1024, scaling_factor=0.13025, force_upcast=True)),
    # Of the real size, with small tiles: as many as there are workers, without as many seconds.
    "sd1": ("AutoencoderKL", KL | dict(sample_size=128)),
    "wan21": ("AutoencoderKLWan", WAN),
}
TINY = {
    "AutoencoderKL": dict(block_out_channels=[32, 32, 64, 64], layers_per_block=1, sample_size=128),
    "AutoencoderKLWan": dict(base_dim=16, num_res_blocks=1),
}


def config_of(name, tiny=False):
    """The class of a model and its configuration."""
    kind, config = MODELS[name]
    return kind, config | (TINY[kind] if tiny else {})


def conv(name, inputs, outputs, *kernel):
    return [(f"{name}.weight", (outputs, inputs, *kernel)), (f"{name}.bias", (outputs,))]


def norm(name, channels):
    return [(f"{name}.weight", (channels,)), (f"{name}.bias", (channels,))]


def kl_resnet(name, inputs, outputs):
    tensors = [*norm(f"{name}.norm1", inputs), *conv(f"{name}.conv1", inputs, outputs, 3, 3)]
    tensors += [*norm(f"{name}.norm2", outputs), *conv(f"{name}.conv2", outputs, outputs, 3, 3)]
    return tensors + (conv(f"{name}.conv_shortcut", inputs, outputs, 1, 1) if inputs != outputs else [])


def kl_middle(name, channels):
    attention = f"{name}.attentions.0"
    tensors = norm(f"{attention}.group_norm", channels)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        tensors += conv(f"{attention}.{part}", channels, channels)
    return tensors + [shape for at in range(2) for shape in kl_resnet(f"{name}.resnets.{at}", channels, channels)]


def kl_tensors(config):
    """Names and shapes of an AutoencoderKL."""
    channels, latent = config["block_out_channels"], config["latent_channels"]
    last = len(channels) - 1
    tensors = conv("encoder.conv_in", 3, channels[0], 3, 3)
    width = channels[0]
    for at, outputs in enumerate(channels):
        block = f"encoder.down_blocks.{at}"
        for layer in range(config["layers_per_block"]):
            tensors += kl_resnet(f"{block}.resnets.{layer}", width, outputs)
            width = outputs
        if at != last:
            tensors += conv(f"{block}.downsamplers.0.conv", width, width, 3, 3)
    tensors += [*kl_middle("encoder.mid_block", width), *norm("encoder.conv_norm_out", width), *conv("encoder.conv_out", width, 2 * latent, 3, 3)]
    tensors += [*conv("decoder.conv_in", latent, width, 3, 3), *kl_middle("decoder.mid_block", width)]
    for at, outputs in enumerate(reversed(channels)):
        block = f"decoder.up_blocks.{at}"
        for layer in range(config["layers_per_block"] + 1):
            tensors += kl_resnet(f"{block}.resnets.{layer}", width, outputs)
            width = outputs
        if at != last:
            tensors += conv(f"{block}.upsamplers.0.conv", width, width, 3, 3)
    tensors += [*norm("decoder.conv_norm_out", width), *conv("decoder.conv_out", width, 3, 3, 3)]
    return tensors + conv("quant_conv", 2 * latent, 2 * latent, 1, 1) + conv("post_quant_conv", latent, latent, 1, 1)


def wan_resnet(name, inputs, outputs):
    tensors = [(f"{name}.norm1.gamma", (inputs, 1, 1, 1)), *conv(f"{name}.conv1", inputs, outputs, 3, 3, 3)]
    tensors += [(f"{name}.norm2.gamma", (outputs, 1, 1, 1)), *conv(f"{name}.conv2", outputs, outputs, 3, 3, 3)]
    return tensors + (conv(f"{name}.conv_shortcut", inputs, outputs, 1, 1, 1) if inputs != outputs else [])


def wan_middle(name, channels):
    attention = f"{name}.attentions.0"
    tensors = [(f"{attention}.norm.gamma", (channels, 1, 1))]
    tensors += [*conv(f"{attention}.to_qkv", channels, 3 * channels, 1, 1), *conv(f"{attention}.proj", channels, channels, 1, 1)]
    return tensors + [shape for at in range(2) for shape in wan_resnet(f"{name}.resnets.{at}", channels, channels)]


def wan_tensors(config):
    """Names and shapes of an AutoencoderKLWan like that of Wan 2.1."""
    base, z, factors, in_time = config["base_dim"], config["z_dim"], config["dim_mult"], config["temperal_downsample"]
    widths = [base * factor for factor in factors]
    last = len(widths) - 1
    tensors = conv("encoder.conv_in", 3, base, 3, 3, 3)
    # The encoder's blocks are one flat list, downsampling among them.
    width, place = base, 0
    for at, outputs in enumerate(widths):
        for _ in range(config["num_res_blocks"]):
            tensors += wan_resnet(f"encoder.down_blocks.{place}", width, outputs)
            width, place = outputs, place + 1
        if at != last:
            tensors += conv(f"encoder.down_blocks.{place}.resample.1", width, width, 3, 3)
            if in_time[at]:
                tensors += conv(f"encoder.down_blocks.{place}.time_conv", width, width, 3, 1, 1)
            place += 1
    tensors += [*wan_middle("encoder.mid_block", width), ("encoder.norm_out.gamma", (width, 1, 1, 1)), *conv("encoder.conv_out", width, 2 * z, 3, 3, 3)]
    tensors += [*conv("decoder.conv_in", z, width, 3, 3, 3), *wan_middle("decoder.mid_block", width)]
    for at, outputs in enumerate(reversed(widths)):
        block = f"decoder.up_blocks.{at}"
        # What comes from an upsampling has half the channels.
        width = width if at == 0 else width // 2
        for layer in range(config["num_res_blocks"] + 1):
            tensors += wan_resnet(f"{block}.resnets.{layer}", width, outputs)
            width = outputs
        if at != last:
            tensors += conv(f"{block}.upsamplers.0.resample.1", width, width // 2, 3, 3)
            if in_time[last - 1 - at]:
                tensors += conv(f"{block}.upsamplers.0.time_conv", width, 2 * width, 3, 1, 1)
    tensors += [("decoder.norm_out.gamma", (width, 1, 1, 1)), *conv("decoder.conv_out", width, 3, 3, 3, 3)]
    return tensors + conv("quant_conv", 2 * z, 2 * z, 1, 1, 1) + conv("post_quant_conv", z, z, 1, 1, 1)


def weights(tensors, seed=0):
    """Names and seeded values, one after the other."""
    inputs = 1
    for name, shape in tensors:
        if len(shape) > 1:
            inputs = math.prod(shape[1:])
        if name.endswith(".gamma") or (len(shape) == 1 and "norm" in name):
            yield name, numpy.full(shape, 0.0 if name.endswith(".bias") else 1.0, numpy.float32)
        else:
            # A bias comes after its weight and has the same range.
            value = numpy.random.default_rng([seed, zlib.crc32(name.encode())]).random(shape, numpy.float32)
            value -= 0.5
            value *= 2 / math.sqrt(inputs)
            yield name, value


def as_bf16(value):
    """The bits of the nearest bf16, ties to even."""
    bits = value.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def save(file, tensors, dtype="f32"):
    """Writes f32 tensors, an iterable of names, shapes and functions that give values, as safetensors: numpy has no bf16, and this holds one tensor at a time."""
    size = {"f32": 4, "bf16": 2}[dtype]
    header, end = {}, 0
    for name, shape, _ in tensors:
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, _, value in tensors:
            value = numpy.ascontiguousarray(value(), numpy.float32)
            (as_bf16(value) if dtype == "bf16" else value).tofile(out)


def write_model(folder, name, dtype="f32", tiny=False, seed=0):
    """Writes a model to FOLDER/NAME. Returns the number of its parameters."""
    kind, config = config_of(name, tiny)
    tensors = kl_tensors(config) if kind == "AutoencoderKL" else wan_tensors(config)
    folder = pathlib.Path(folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    # Values come in the order of the names.
    values = weights(tensors, seed)
    save(folder / "diffusion_pytorch_model.safetensors", [(name, shape, lambda: next(values)[1]) for name, shape in tensors], dtype)
    # Last: a folder with it is complete.
    (folder / "config.json").write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.42.1", **config}, indent=2))
    return sum(math.prod(shape) for _, shape in tensors)


def write_input(folder, name, shape, samples=False, seed=0):
    """Writes seeded latents or samples to FOLDER/NAME.safetensors."""
    random = numpy.random.default_rng([seed, zlib.crc32(name.encode())])
    value = random.random(shape, numpy.float32) * 2 - 1 if samples else random.standard_normal(shape, numpy.float32)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"{name}.safetensors", [("samples" if samples else "latents", shape, lambda: value)])


def named_shape(text):
    name, _, shape = text.partition("=")
    return name, tuple(int(side) for side in shape.split(","))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="of the weights in the file")
    parser.add_argument("--tiny", action="store_true", help="few channels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=named_shape, action="append", default=[], metavar="NAME=SHAPE", help="an input, its axes separated by commas")
    parser.add_argument("--samples", action="store_true", help="inputs are samples, not latents")
    args = parser.parse_args()
    for name in filter(None, args.models.split(",")):
        print(f"{args.folder / name}: {write_model(args.folder, name, args.dtype, args.tiny, args.seed) / 1e6:.1f} million parameters")
    for name, shape in args.input:
        write_input(args.folder, name, shape, args.samples, args.seed)
        print(f"{args.folder / name}.safetensors: {shape}")


if __name__ == "__main__":
    main()
