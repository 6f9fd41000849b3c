"""Torch and diffusers on one model, for `tools/gpu_session.sh`: a JSON line for each setting.

    python tools/gpu_torch.py FOLDER MODEL decode|encode INPUT --device cuda [--runs 20] [--threads N] [--dtype bf16] [--settings eager,channels_last,compiled]
    python tools/gpu_torch.py FOLDER MODEL decode|encode INPUT --device cuda --compare OUTPUT.safetensors

FOLDER is one of `tools/gpu_models.py`. The first form times a decode or an encode to moments, and gives the relative error of its samples against f32 without TF32,
which is kept in FOLDER. The second form gives that of another program's output.
"""

import argparse
import json
import pathlib
import sys
import time
import warnings

import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")

def model_of(folder: pathlib.Path, dtype: torch.dtype, device: str):
    import diffusers

    diffusers.logging.set_verbosity_error()

    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False).to(device).eval()

def wanted(vae, path: pathlib.Path, device: str) -> torch.Tensor:
    x = next(iter(load_file(path).values())).to(device)
    if type(vae).__name__ == "AutoencoderKL":
        return x.reshape(-1, *x.shape[-3:])
    return x if x.ndim == 5 else x[None]

def run(vae, x: torch.Tensor, direction: str) -> torch.Tensor:
    with torch.inference_mode():
        if direction == "decode":
            return vae.decode(x, return_dict=False)[0]
        return vae.encode(x).latent_dist.mode()

def relative(got: torch.Tensor, reference: torch.Tensor) -> float:
    got, reference = got.float().flatten().cpu(), reference.float().flatten().cpu()
    return float((got - reference).norm() / reference.norm())

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("model")
    parser.add_argument("direction", choices=["decode", "encode"])
    parser.add_argument("input", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16", choices=["f32", "bf16", "f16"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--settings", default="eager,channels_last,compiled")
    parser.add_argument("--compare", type=pathlib.Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16)[args.dtype]
    name = f"{args.model} {args.direction}"
    kept = args.folder / f"{args.model}-{args.direction}-{args.input.stem}.reference"
    if args.compare:
        got = next(iter(load_file(args.compare).values()))
        print(json.dumps(dict(what=name, program="tilevae", relative_error=relative(got, load_file(kept)["x"]))), flush=True)
        return

    on_gpu = args.device.startswith("cuda")
    if not kept.exists():
        vae = model_of(args.folder / args.model, torch.float32, args.device)
        save_file({"x": run(vae, wanted(vae, args.input, args.device), args.direction).contiguous().cpu()}, kept)
        del vae
    reference = load_file(kept)["x"]
    for setting in args.settings.split(","):
        try:
            vae = model_of(args.folder / args.model, dtype, args.device)
            x = wanted(vae, args.input, args.device).to(dtype)
            # Of clips, diffusers' 3-D layers have their own memory format.
            if setting != "eager" and x.ndim == 4:
                vae = vae.to(memory_format=torch.channels_last)
            if setting == "compiled":
                for part in ("decoder", "encoder"):
                    setattr(vae, part, torch.compile(getattr(vae, part)))
            begun = time.monotonic()
            for _ in range(2):
                y = run(vae, x, args.direction)
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            warm_up = time.monotonic() - begun
            seconds = []
            for _ in range(args.runs):
                begun = time.monotonic()
                y = run(vae, x, args.direction)
                if on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.monotonic() - begun)
            seconds.sort()
            peak = torch.cuda.max_memory_allocated() if on_gpu else None
            # What tilevae's time holds, too.
            begun = time.monotonic()
            for _ in range(args.runs):
                run(vae, x, args.direction).float().cpu()
            with_download = (time.monotonic() - begun) / args.runs
            row = dict(seconds=seconds[len(seconds) // 2], fastest=seconds[0], with_download=with_download, warm_up=warm_up, peak_bytes=peak, relative_error=relative(y, reference))
        except Exception as error:  # A setting that fails is a result, too.
            row = dict(error=f"{type(error).__name__}: {error}"[:300])
        print(json.dumps(dict(what=name, program=f"torch {setting}", dtype=args.dtype, threads=args.threads) | row), flush=True)
        vae = y = None
        if on_gpu:
            torch.cuda.empty_cache()

if __name__ == "__main__":
    sys.exit(main())
