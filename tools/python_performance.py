"""Times the decode of Stable Diffusion 1.x through `tilevae.patch` against diffusers and against the command, and prints one table.

    cargo build --release -p tilevae-cli; pip install . -r crates/python/tests/requirements.txt
    python tools/python_performance.py [--threads 2] [--rounds 5] [--latents 64]

Weights are seeded; all compute in f32. Every run is a process of its own, and the runs of a round follow each other. Seconds are those of one `vae.decode` after a small
one (compiled: after one of the same size); of the command, those that it reports for its run, and those of its whole process. Memory is the peak of the process.
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

from bench_peer import SD1

#: diffusers in several settings, and patched.
MODES = ["diffusers", "channels last", "compiled", "patched", "patched, free"]


def decode(mode, folder, threads):
    """Runs in a process of its own: prints the seconds and the peak in KiB."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL

    torch.set_num_threads(threads)
    vae = AutoencoderKL.from_pretrained(f"{folder}/vae", low_cpu_mem_usage=False).eval()
    latents = torch.from_numpy(np.load(f"{folder}/latents.npy"))
    if mode == "channels last":
        vae.to(memory_format=torch.channels_last)
        latents = latents.to(memory_format=torch.channels_last)
    elif mode == "compiled":
        vae.decoder = torch.compile(vae.decoder)
    elif mode.startswith("patched"):
        import tilevae

        tilevae.patch(vae, free="free" in mode, threads=threads)
    with torch.inference_mode():
        vae.decode(latents if mode == "compiled" else latents[..., :8, :8])
        start = time.perf_counter()
        vae.decode(latents)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def command(program, folder, threads):
    """The command's own seconds, those of its process, and its peak."""
    settings = [f"devices.cpu.threads_per_worker={threads}", "tiling.kind=seamless", "tiling.memory_mib=auto", "io.latent_space=vae"]
    keys = [part for key in settings for part in ("--set", key)]
    start = time.perf_counter()
    arguments = [program, "decode", f"{folder}/latents.npy", "-o", f"{folder}/out.png", "--model", f"{folder}/vae", "--format", "json", *keys]
    shown = subprocess.run(arguments, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - start
    answer = json.loads(shown.stdout)
    return {"seconds": answer["seconds"], "whole": whole, "peak": answer["peak_memory_bytes"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latents", type=int, default=64, help="height and width")
    parser.add_argument("--program", default="target/release/tilevae")
    parser.add_argument("--run", nargs=2, metavar=("MODE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        return decode(*given.run, given.threads)

    import numpy as np
    import torch
    from diffusers import AutoencoderKL

    results = {mode: [] for mode in [*MODES, "command"]}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoencoderKL(**SD1).save_pretrained(f"{folder}/vae")
        np.save(f"{folder}/latents.npy", torch.randn(1, 4, given.latents, given.latents).numpy())
        environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
        for _ in range(given.rounds):
            for mode in [mode for mode in MODES if mode in results]:
                arguments = [sys.executable, __file__, "--threads", str(given.threads), "--run", mode, folder]
                run = subprocess.run(arguments, capture_output=True, text=True, env=environment)
                if run.returncode == 0:
                    results[mode].append(json.loads(run.stdout.splitlines()[-1]))
                else:
                    print(f"{mode} does not run: {run.stderr.strip().splitlines()[-1]}")
                    del results[mode]
            results["command"].append(command(str(pathlib.Path(given.program)), folder, given.threads))

    def median(mode, key):
        return statistics.median(run[key] for run in results[mode])

    best = min((mode for mode in MODES[:3] if mode in results), key=lambda mode: median(mode, "seconds"))
    print(f"decode of {given.latents}x{given.latents} latents, {given.threads} threads, medians of {given.rounds}; the best of diffusers: {best}")
    print("| | seconds | best of diffusers / it | it / command | peak MiB |\n|---|---|---|---|---|")
    for mode in results:
        seconds = median(mode, "seconds")
        ratios = f"{median(best, 'seconds') / seconds:.2f} | {seconds / median('command', 'seconds'):.3f}"
        print(f"| {mode} | {seconds:.2f} | {ratios} | {median(mode, 'peak') / 2**20:.0f} |")
    print(f"the whole process of the command: {median('command', 'whole'):.2f} s")


if __name__ == "__main__":
    main()
