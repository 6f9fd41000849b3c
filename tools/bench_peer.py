"""Times tilevae against diffusers on this machine, in interleaved runs, and prints one table.

    cargo build --release -p tilevae-cli
    python tools/bench_peer.py [--threads 2] [--runs 3]

Weights are seeded, at the real size of Stable Diffusion 1.x; both sides compute in f32 on the CPU with the same number of threads. Seconds are those
of the decode alone (weights loaded before), after a warm-up in diffusers' case; memory is the peak of the whole process, weights and libraries
included. The greatest difference of the two answers is printed too.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SD1 = dict(
    in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=512,
)  # fmt: skip
CASES = [("decode 64x64", 64, "off"), ("tiled decode 128x128", 128, "diffusers")]


def diffusers_side(folder, size, tiling, threads):
    """Runs in a process of its own: prints the seconds and the peak in KiB."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(threads)
    model = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    if tiling == "diffusers":
        model.enable_tiling()
    latents = load_file(f"{folder}/latents-{size}.safetensors")["latents"]
    with torch.inference_mode():
        model.decode(latents[:, :, :32, :32])
        start = time.perf_counter()
        samples = model.decode(latents).sample
        seconds = time.perf_counter() - start
    save_file({"samples": samples.contiguous()}, f"{folder}/diffusers-{size}.safetensors")
    print(json.dumps({"seconds": seconds, "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def tilevae_side(binary, folder, size, tiling, threads):
    command = [binary, "decode", f"{folder}/latents-{size}.safetensors", "-o", f"{folder}/tilevae-{size}.safetensors", "--model", folder, "--format", "json",
               "--set", "io.latent_space=vae", "--set", f"tiling.kind={tiling}"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"RAYON_NUM_THREADS": str(threads)})
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return {"seconds": json.loads(output)["seconds"], "peak_kib": usage.ru_maxrss}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/tilevae")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose names hold this")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        folder, size, tiling = args.side
        return diffusers_side(folder, int(size), tiling, args.threads)

    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoencoderKL(**SD1).save_pretrained(folder)
        for _, size, _ in CASES:
            save_file({"latents": torch.randn(1, 4, size, size)}, f"{folder}/latents-{size}.safetensors")
        print(f"torch {torch.__version__}, {args.threads} threads, f32, medians of {args.runs} interleaved runs\n")
        print("| case | diffusers s | tilevae s | time ratio | diffusers MiB | tilevae MiB | memory ratio | max diff |")
        print("|---|---|---|---|---|---|---|---|")
        for name, size, tiling in (case for case in CASES if args.only in case[0]):
            sides = ([], [])
            for _ in range(args.runs):
                command = [sys.executable, __file__, "--threads", str(args.threads), "--side", folder, str(size), tiling]
                sides[0].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
                sides[1].append(tilevae_side(args.binary, folder, size, tiling, args.threads))
            ratio = statistics.median(ours["seconds"] / theirs["seconds"] for theirs, ours in zip(*sides))
            seconds = [statistics.median(run["seconds"] for run in side) for side in sides]
            peaks = [statistics.median(run["peak_kib"] for run in side) / 1024 for side in sides]
            a, b = (load_file(pathlib.Path(folder) / f"{side}-{size}.safetensors")["samples"] for side in ("diffusers", "tilevae"))
            print(f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} | {ratio:.2f} | {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[1] / peaks[0]:.2f} | {(a - b).abs().max():.1e} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
