"""The small valid files that the tests of hostile input damage: crates/tilevae/tests/it/hostile/seeds, a folder for each way in.
Those whose names begin with `odd-` are of kinds that need not be read, but may.

    python tools/make_seeds.py
"""

import collections
import io
import json
import pathlib
import pickle
import shutil
import struct
import sys
import types
import zipfile
import zlib

import numpy
from PIL import Image

SEEDS = pathlib.Path(__file__).parent.parent / "crates/tilevae/tests/it/hostile/seeds"


def place(way, name):
    folder = SEEDS / way
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def safetensors(path, tensors, metadata=None):
    """`tensors` are names with a dtype, a shape and bytes."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def half_zeros(shapes):
    return {name: ("F16", shape, bytes(2 * numpy.prod(shape, dtype=int))) for name, shape in shapes.items()}


class Torch:
    """Pickles as `torch.save` writes them, without torch: functions and classes of torch are named, and storages are persistent ids."""

    NAMES = {"torch._utils": ["_rebuild_tensor_v2", "_rebuild_parameter"], "torch": ["FloatStorage", "HalfStorage", "BFloat16Storage"]}

    def __init__(self):
        self.storages = []
        for module, names in self.NAMES.items():
            sys.modules[module] = types.ModuleType(module)
            for name in names:
                stand_in = type(name, (), {"__module__": module, "__qualname__": name}) if name.endswith("Storage") else lambda: None
                stand_in.__module__, stand_in.__qualname__ = module, name
                setattr(sys.modules[module], name, stand_in)
        sys.modules["torch.nn.modules.linear"] = types.ModuleType("torch.nn.modules.linear")
        self.linear = type("Linear", (), {"__module__": "torch.nn.modules.linear", "__qualname__": "Linear"})
        sys.modules["torch.nn.modules.linear"].Linear = self.linear

    def tensor(self, kind, shape, content, stride=None, is_parameter=False):
        strides = stride or tuple(int(numpy.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape)))
        torch, utils = sys.modules["torch"], sys.modules["torch._utils"]
        storage = Reference(("storage", getattr(torch, f"{kind}Storage"), str(len(self.storages)), "cpu", int(numpy.prod(shape, dtype=int))))
        self.storages.append(content)
        value = Call(utils._rebuild_tensor_v2, (storage, 0, tuple(shape), strides, False, collections.OrderedDict()))
        return Call(utils._rebuild_parameter, (value, True, collections.OrderedDict())) if is_parameter else value

    def pickled(self, value, legacy=False):
        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                return ((*value.id, None) if legacy else value.id) if isinstance(value, Reference) else None

        file = io.BytesIO()
        Pickler(file, protocol=2).dump(value)
        return file.getvalue()

    def save(self, path, value):
        with zipfile.ZipFile(path, "w") as file:
            self.add(file, f"{path.stem}/data.pkl", self.pickled(value))
            self.add(file, f"{path.stem}/byteorder", b"little")
            for key, content in enumerate(self.storages):
                self.add(file, f"{path.stem}/data/{key}", content)
            self.add(file, f"{path.stem}/version", b"3\n")

    def add(self, file, name, content):
        file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)

    def save_legacy(self, path, value, width):
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        parts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
        parts += [self.pickled(value, legacy=True), pickle.dumps([str(key) for key in range(len(self.storages))], protocol=2)]
        parts += [struct.pack("<Q", len(content) // width) + content for content in self.storages]
        path.write_bytes(b"".join(parts))


class Reference:
    def __init__(self, id):
        self.id = id


class Call:
    def __init__(self, function, arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def tensors():
    shape = [1, 4, 2, 3]
    values = numpy.linspace(-1, 1, 24, dtype="float32").reshape(shape)
    origin = {"tilevae.height": "16", "tilevae.width": "24", "tilevae.frames": "1", "tilevae.fps": "24000/1001"}
    top_halves = (values.view("uint32") >> 16).astype("<u2").tobytes()
    clip = [1, 4, 1, 2, 3]
    safetensors(place("safetensors", "f32.safetensors"), {"latents": ("F32", shape, values.tobytes())}, origin)
    halves = {"latents": ("BF16", shape, top_halves), "mean": ("F16", shape, values.astype("f2").tobytes())}
    safetensors(place("safetensors", "two.safetensors"), halves)
    safetensors(place("safetensors", "f64.safetensors"), {"latents": ("F64", clip, values.astype("f8").tobytes())})
    comfy = {"latent_tensor": ("F32", shape, values.tobytes()), "latent_format_version_0": ("F32", [0], b"")}
    safetensors(place("latent", "comfy.latent"), comfy)
    numpy.save(place("npy", "f4.npy"), values)
    numpy.save(place("npy", "f2.npy"), values.astype("f2").reshape(clip))
    numpy.save(place("npy", "f8-big-endian.npy"), values.astype(">f8"))
    numpy.savez(place("npz", "stored.npz"), latents=values)
    numpy.savez_compressed(place("npz", "deflated.npz"), latents=values, original_size=numpy.array([16, 24]))
    (torch := Torch()).save(place("torch", "tensor.pt"), torch.tensor("Float", shape, values.tobytes()))
    torch = Torch()
    torch.save(place("torch", "dict.pt"), {"latents": torch.tensor("Half", shape, values.astype("f2").tobytes()), "step": 3})
    torch = Torch()
    torch.save_legacy(place("torch", "legacy.pt"), {"latents": torch.tensor("BFloat16", shape, top_halves)}, 2)


def gradient(height, width, channels):
    y, x, c = numpy.mgrid[0:height, 0:width, 0:channels]
    return ((37 * y + 11 * x + 60 * c) % 256).astype("uint8")


def interlaced_png(width, height):
    """Adam7, which Pillow does not write: grey, 8 bits."""
    rows = b""
    for start_x, start_y, step_x, step_y in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        columns = len(range(start_x, width, step_x))
        if columns:
            rows += b"".join(b"\0" + bytes((y * 16 + x) % 256 for x in range(start_x, width, step_x)) for y in range(start_y, height, step_y))

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pictures():
    colour = Image.fromarray(gradient(9, 13, 3))
    alpha = Image.fromarray(gradient(9, 13, 4))
    grey = Image.fromarray(gradient(9, 13, 1)[..., 0])
    deep = Image.fromarray(gradient(9, 13, 1)[..., 0].astype("uint16") * 257)
    frames = [Image.fromarray(gradient(9, 13, 3)[::step]).resize((13, 9)) for step in (1, 2, 3)]
    turned = Image.Exif()
    turned[0x112] = 6

    colour.save(place("png", "rgb.png"))
    alpha.save(place("png", "rgba.png"))
    deep.save(place("png", "grey16.png"))
    grey.convert("1").save(place("png", "one-bit.png"))
    colour.quantize(5).save(place("png", "palette.png"), transparency=2)
    colour.save(place("png", "turned.png"), exif=turned)
    place("png", "interlaced.png").write_bytes(interlaced_png(13, 9))
    frames[0].save(place("apng", "rgb.png"), save_all=True, append_images=frames[1:], duration=[40, 80, 40])
    alpha.save(place("apng", "rgba.png"), save_all=True, append_images=[alpha.rotate(180)], disposal=2, blend=1)

    colour.save(place("jpeg", "baseline.jpg"), quality=80)
    colour.save(place("jpeg", "progressive.jpg"), quality=80, progressive=True, subsampling=0)
    grey.save(place("jpeg", "grey.jpg"), exif=turned)
    colour.convert("CMYK").save(place("jpeg", "cmyk.jpg"))
    colour.resize((40, 40)).save(place("jpeg", "restarts.jpg"), restart_marker_blocks=1, optimize=True)

    colour.save(place("webp", "lossy.webp"), quality=60)
    colour.save(place("webp", "lossless.webp"), lossless=True)
    alpha.save(place("webp", "lossy-alpha.webp"), quality=60, exif=turned)
    frames[0].save(place("webp-clip", "lossy.webp"), save_all=True, append_images=frames[1:], duration=40)
    alpha.save(place("webp-clip", "lossless.webp"), save_all=True, append_images=[alpha.rotate(180)], lossless=True, duration=[40, 100])

    for name, compression in [("raw", None), ("lzw", "tiff_lzw"), ("deflate", "tiff_adobe_deflate"), ("packbits", "packbits"), ("jpeg", "jpeg")]:
        colour.save(place("tiff", f"{name}.tiff"), compression=compression)
    grey.convert("1").save(place("tiff", "fax.tiff"), compression="group4")
    deep.save(place("tiff", "grey16.tif"))
    colour.quantize(5).save(place("tiff", "odd-palette.tif"))
    Image.fromarray(gradient(9, 13, 1)[..., 0].astype("float32") / 255).save(place("tiff", "odd-float.tif"))
    alpha.save(place("tiff", "strips.tif"), compression="tiff_lzw", strip_size=64, tiffinfo={274: 6})
    colour.save(place("tiff", "odd-big.tif"), big_tiff=True)
    frames[0].save(place("tiff-pages", "pages.tif"), save_all=True, append_images=frames[1:], compression="tiff_lzw")

    frames[0].save(place("gif", "clip.gif"), save_all=True, append_images=frames[1:], duration=[40, 80, 40], loop=0)
    colour.quantize(7).save(place("gif", "still.gif"), interlace=1)
    alpha.save(place("gif", "disposal.gif"), save_all=True, append_images=[alpha.rotate(180)], disposal=2, transparency=0)


def by_other_names():
    """Formats are told by what they hold: each under the name of another."""
    for way, name in [("gif", "still.gif"), ("jpeg", "baseline.jpg"), ("webp", "lossy.webp"), ("tiff", "lzw.tiff"), ("webp-clip", "lossy.webp")]:
        shutil.copy(SEEDS / way / name, place("png", f"odd-{way}.png"))
    for kind, pixels in [("P1", b"0 1 1\n1 0 0\n"), ("P3", b"9 " * 18), ("P4", b"\x40\x80"), ("P5", bytes(6)), ("P6", bytes(18))]:
        depth = b"" if kind in ("P1", "P4") else b"255\n"
        place("png", f"odd-{kind}.png").write_bytes(kind.encode() + b"\n3 2\n" + depth + pixels)
    header = b"P7\nWIDTH 3\nHEIGHT 2\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n"
    place("png", "odd-P7.png").write_bytes(header + bytes(18))


def y4m():
    width, height = 5, 4
    planes = {"420jpeg": 2 * 3 * 2, "422": 2 * 3 * 4, "444": 2 * 20, "mono": 0, "411": 2 * 2 * 4, "420p10": 2 * 3 * 2, "444alpha": 3 * 20}
    for tag, chroma in planes.items():
        bytes_per_value = 2 if "p10" in tag else 1
        frame = bytes(range(20 + chroma)) if bytes_per_value == 1 else b"".join(struct.pack("<H", 31 * i % 1024) for i in range(20 + chroma))
        header = f"YUV4MPEG2 W{width} H{height} F24000:1001 Ip A1:1 C{tag} XCOLORRANGE=LIMITED\n".encode()
        odd = "odd-" if tag in ("411", "444alpha") else ""
        place("y4m", f"{odd}{tag}.y4m").write_bytes(header + 2 * (b"FRAME\n" + frame))


def convolution(name, out, channels, kernel):
    return {f"{name}.weight": [out, channels, *kernel], f"{name}.bias": [out]}


def kl(width=2, latent=2, ldm=False):
    """The tensors of an AutoencoderKL of two blocks of one width, by diffusers' names or the original ones."""
    three, one, shapes = (3, 3), (1, 1), {}
    names = [("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1")]
    names += [("down_blocks", "down"), ("up_blocks", "up"), ("resnets", "block"), ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample")]
    names += [("conv_norm_out", "norm_out"), ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]

    def norm(name):
        return {f"{name}.weight": [width], f"{name}.bias": [width]}

    def resnet(name):
        parts = [norm(f"{name}.norm1"), convolution(f"{name}.conv1", width, width, three)]
        return parts + [norm(f"{name}.norm2"), convolution(f"{name}.conv2", width, width, three)]

    for coder, into, out, layers, sampler in [("encoder", 3, 2 * latent, 1, "down"), ("decoder", latent, 3, 2, "up")]:
        parts = [convolution(f"{coder}.conv_in", width, into, three), norm(f"{coder}.conv_norm_out"), convolution(f"{coder}.conv_out", out, width, three)]
        for block in range(2):
            for layer in range(layers):
                parts += resnet(f"{coder}.{sampler}_blocks.{block}.resnets.{layer}")
        # The finest block is the original's first up block, and the last one of diffusers: the other one samples.
        sampling = 1 if ldm and sampler == "up" else 0
        parts += [convolution(f"{coder}.{sampler}_blocks.{sampling}.{sampler}samplers.0.conv", width, width, three)]
        parts += resnet(f"{coder}.mid_block.resnets.0") + resnet(f"{coder}.mid_block.resnets.1")
        attention = f"{coder}.mid_block.attentions.0"
        parts += [norm(f"{attention}.group_norm")]
        parts += [convolution(f"{attention}.{part}", width, width, one if ldm else ()) for part in ("to_q", "to_k", "to_v", "to_out.0")]
        for part in parts:
            shapes |= part
    shapes |= convolution("quant_conv", 2 * latent, 2 * latent, one) | convolution("post_quant_conv", latent, latent, one)
    if ldm:
        for new, old in names:
            shapes = {name.replace(new, old): shape for name, shape in shapes.items()}
    return shapes


def wan(base=2, z=2, wider=2, patch=1, is_residual=False, original=False):
    """The tensors of an AutoencoderKLWan of two blocks, the second `wider` times as wide, by diffusers' names or (Wan 2.1) the original ones."""
    three, one, shapes = (3, 3, 3), (1, 1, 1), {}

    def resnet(name, channels, out):
        parts = {f"{name}.norm1.gamma": [channels, 1, 1, 1], f"{name}.norm2.gamma": [out, 1, 1, 1]}
        parts |= convolution(f"{name}.conv1", out, channels, three) | convolution(f"{name}.conv2", out, out, three)
        return parts | (convolution(f"{name}.conv_shortcut", out, channels, one) if channels != out else {})

    def sampler(name, channels, out, time_out):
        return convolution(f"{name}.resample.1", out, channels, (3, 3)) | convolution(f"{name}.time_conv", time_out, channels, (3, 1, 1))

    def middle(name, width):
        parts = resnet(f"{name}.resnets.0", width, width) | resnet(f"{name}.resnets.1", width, width)
        parts |= {f"{name}.attentions.0.norm.gamma": [width, 1, 1]} | convolution(f"{name}.attentions.0.to_qkv", 3 * width, width, (1, 1))
        return parts | convolution(f"{name}.attentions.0.proj", width, width, (1, 1))

    wide, into = wider * base, 3 * patch * patch
    shapes |= convolution("encoder.conv_in", base, into, three) | convolution("decoder.conv_in", wide, z, three)
    if is_residual:
        shapes |= resnet("encoder.down_blocks.0.resnets.0", base, base) | sampler("encoder.down_blocks.0.downsampler", base, base, base)
        shapes |= resnet("encoder.down_blocks.1.resnets.0", base, wide)
        shapes |= resnet("decoder.up_blocks.0.resnets.0", wide, wide) | resnet("decoder.up_blocks.0.resnets.1", wide, wide)
        shapes |= sampler("decoder.up_blocks.0.upsampler", wide, wide, 2 * wide)
        shapes |= resnet("decoder.up_blocks.1.resnets.0", wide, base) | resnet("decoder.up_blocks.1.resnets.1", base, base)
    else:
        shapes |= resnet("encoder.down_blocks.0", base, base) | sampler("encoder.down_blocks.1", base, base, base)
        shapes |= resnet("encoder.down_blocks.2", base, wide)
        shapes |= resnet("decoder.up_blocks.0.resnets.0", wide, wide) | resnet("decoder.up_blocks.0.resnets.1", wide, wide)
        shapes |= sampler("decoder.up_blocks.0.upsamplers.0", wide, base, 2 * wide)
        shapes |= resnet("decoder.up_blocks.1.resnets.0", base, base) | resnet("decoder.up_blocks.1.resnets.1", base, base)
    for coder, width, out in [("encoder", wide, 2 * z), ("decoder", base, into)]:
        shapes |= middle(f"{coder}.mid_block", wide) | {f"{coder}.norm_out.gamma": [width, 1, 1, 1]}
        shapes |= convolution(f"{coder}.conv_out", out, width, three)
    shapes |= convolution("quant_conv", 2 * z, 2 * z, one) | convolution("post_quant_conv", z, z, one)
    if original:
        names = [("post_quant_conv", "conv2"), ("quant_conv", "conv1"), ("conv_in", "conv1.#"), ("norm_out", "head.0"), ("conv_out", "head.2")]
        names += [("mid_block.attentions.0", "middle.1"), ("mid_block.resnets.0", "middle.0"), ("mid_block.resnets.1", "middle.2")]
        names += [("up_blocks.0.resnets.", "upsamples."), ("up_blocks.0.upsamplers.0", "upsamples.2"), ("up_blocks.1.resnets.0", "upsamples.3")]
        names += [("up_blocks.1.resnets.1", "upsamples.4"), ("down_blocks", "downsamples"), ("conv_shortcut", "shortcut")]
        names += [("norm1", "residual.0"), ("norm2", "residual.3")]
        for new, old in names:
            shapes = {name.replace(new, old): shape for name, shape in shapes.items()}
        within = {"conv1": "residual.2", "conv2": "residual.6"}
        fresh = {}
        for name, shape in shapes.items():
            parts = name.split(".")
            if parts[-2] in within and len(parts) > 3 and parts[1] in ("downsamples", "upsamples", "middle"):
                parts[-2] = within[parts[-2]]
            fresh[".".join(part for part in parts if part != "#")] = shape
        shapes = fresh
    return shapes


KL_CONFIG = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.42.1", "act_fn": "silu", "block_out_channels": [2, 2],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"], "force_upcast": True, "in_channels": 3, "latent_channels": 2,
    "latents_mean": None, "latents_std": None, "layers_per_block": 1, "mid_block_add_attention": True, "norm_num_groups": 2, "out_channels": 3,
    "sample_size": 32, "scaling_factor": 0.18215, "shift_factor": None, "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "use_post_quant_conv": True, "use_quant_conv": True,
}  # fmt: skip
WAN_CONFIG = {
    "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.42.1", "attn_scales": [], "base_dim": 2, "decoder_base_dim": None, "dim_mult": [1, 2],
    "dropout": 0.0, "in_channels": 3, "is_residual": False, "latents_mean": [0.1, -0.2], "latents_std": [1.0, 2.0], "num_res_blocks": 1,
    "out_channels": 3, "patch_size": None, "scale_factor_spatial": 2, "scale_factor_temporal": 2, "temperal_downsample": [True], "z_dim": 2,
}  # fmt: skip
WAN_22_CONFIG = dict(WAN_CONFIG, dim_mult=[1, 1], is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=4)
QWEN_CONFIG = {
    "_class_name": "AutoencoderKLQwenImage", "_diffusers_version": "0.42.1", "attn_scales": [], "base_dim": 2, "dim_mult": [1, 2], "dropout": 0.0,
    "input_channels": 3, "latents_mean": [0.1, -0.2], "latents_std": [1.0, 2.0], "num_res_blocks": 1, "temperal_downsample": [True], "z_dim": 2,
}  # fmt: skip
PLAIN = "diffusion_pytorch_model.safetensors"


def models():
    for name, config, shapes in [
        ("kl", KL_CONFIG, kl()),
        ("wan", WAN_CONFIG, wan()),
        ("wan22", WAN_22_CONFIG, wan(wider=1, patch=2, is_residual=True)),
        ("qwen", QWEN_CONFIG, wan()),
    ]:
        place(f"{name}-config", "config.json").write_text(json.dumps(config, indent=1) + "\n")
        safetensors(place(f"{name}-weights", PLAIN), half_zeros(shapes))
    ldm, original = kl(ldm=True), wan(original=True)
    whole = {f"first_stage_model.{name}": shape for name, shape in ldm.items()}
    safetensors(place("kl-weights", "whole.safetensors"), half_zeros(whole | {"model.diffusion_model.out.2.bias": [4]}))
    safetensors(place("single", "wan.safetensors"), half_zeros(original))

    def state(torch, shapes, **options):
        return {name: torch.tensor("Half", shape, bytes(2 * numpy.prod(shape, dtype=int)), **options) for name, shape in shapes.items()}

    torch = Torch()
    callbacks = {torch.linear: {"best": torch.tensor("Float", [], bytes(4))}, "counts": {1: (2.5, None, True), "x": [b"bytes", -7, 2**70]}}
    torch.save(place("pickle", "lightning.ckpt"), {"epoch": 3, "callbacks": callbacks, "state_dict": collections.OrderedDict(state(torch, ldm))})
    torch = Torch()
    torch.save(place("wan-pickle", "wan.pth"), state(torch, original, is_parameter=True))
    torch = Torch()
    torch.save_legacy(place("legacy-pickle", "ldm.ckpt"), state(torch, ldm), 2)

    names = sorted(kl())
    shards = {name: f"shard-{1 + number % 2}.safetensors" for number, name in enumerate(names)}
    index = {"metadata": {"total_size": 1234}, "weight_map": shards}
    place("index", f"{PLAIN}.index.json").write_text(json.dumps(index, indent=1) + "\n")
    for shard in set(shards.values()):
        safetensors(SEEDS.parent / shard, half_zeros({name: shape for name, shape in kl().items() if shards[name] == shard}))


TOML = """\
[model]
path = "models/demo-kl"
family = "kl"
dtype = "bf16"
config = "config.json"
frames_per_chunk = 2

[devices]
use = ["cpu", "cuda:1", "remote://gpu:7700/1"]
on_missing = "skip"
dtype = { cpu = "f32", "cuda:1" = "f16" }
cpu = { workers = 2, threads_per_worker = "auto" }

[tiling]
kind = "diffusers"
tile_px = [256, 384]
overlap = 0.25
skip_redundant = true

[blend]
kind = "feather"

[executor]
kind = "pipelined"
in_flight = 3
retries = 1
batch_tiles = 2
tile_timeout_s = 60

[io]
posterior = "sample"
seed = 9223372036854775807
jpeg_quality = 90
"""

TEXTS = {
    "toml": {
        "all.toml": TOML,
        "uniform.toml": 'tiling = { kind = "uniform", splits = [2, 3], overlap = [0.25, 0.5] }\nblend.kind = "cascade"\n',
        "off.toml": '[tiling]\nkind = "off"\n[executor]\nkind = "multi-device"\nbatch_tiles = 4\n',
    },
    "override": {
        "string.txt": "io.posterior=sample",
        "pair.txt": "tiling.tile_px = [256, 512]",
        "list.txt": 'devices.use=["cpu", "remote://[::1]:7700/0"]',
        "table.txt": 'executor={ kind = "pipelined", in_flight = 2 }',
        "number.txt": "tiling.tile_px=256",
        "device.txt": 'devices.dtype.cuda:0="bf16"',
    },
    "device": {
        "plain.txt": "cpu",
        "number.txt": "vulkan:1",
        "remote.txt": "remote://10.0.0.2:7700/1",
        "ipv6.txt": "remote://[2001:db8::1]:7700/0",
    },
    "fps": {"whole.txt": "16", "point.txt": "23.976", "fraction.txt": "24000/1001"},
    "faulty": {f"{kind}.txt": kind for kind in ("caught", "deep", "endless", "enormous", "fine", "memory", "panic", "refused", "thread")},
    "size": {"picture.txt": "1024x768", "clip.txt": "81x480x832"},
}


def texts():
    for way, files in TEXTS.items():
        for name, text in files.items():
            place(way, name).write_text(text)


def main():
    shutil.rmtree(SEEDS, ignore_errors=True)
    for write in (tensors, pictures, by_other_names, y4m, models, texts):
        write()
    for path in sorted(SEEDS.rglob("*.*")):
        print(path.stat().st_size, path.relative_to(SEEDS))


if __name__ == "__main__":
    main()
