"""Times tilevae against diffusers on this machine, in interleaved runs, and prints one table.

    cargo build --release -p tilevae-cli
    python tools/bench_peer.py [--threads 2] [--runs 3] [--only wan]
    python tools/bench_peer.py --distvae [--ranks 2]
    python tools/bench_peer.py --layers [--threads 1]
    python tools/bench_peer.py --runtimes [--threads 2]

Weights are seeded, at the real sizes of Stable Diffusion 1.x, Wan 2.1 and Wan 2.2; both sides compute in f32 on the CPU with the same number of threads. Seconds
are those of the decode or encode alone (weights loaded before), after a warm-up in diffusers' case; memory is the peak of the whole process, weights
and libraries included. The greatest difference of the two answers is printed too.

With --distvae the tiled decode runs on several workers of one thread each instead: in DistVAE (tiles divided among processes over gloo), and in tilevae with
as many workers in one process. Memory is then that of all processes together.

With --layers single convolutions run instead: torch's in the better of its two layouts, and tilevae's as `cargo bench` measures them.

With --runtimes the untiled decode of Stable Diffusion 1.x runs, exported to ONNX, in ONNX Runtime and OpenVINO instead (PyPI: onnx, onnxscript, onnxruntime, openvino).
"""

import argparse
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

SD1 = dict(
    in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, norm_num_groups=32, sample_size=512,
)  # fmt: skip

WAN22 = dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
    latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
)  # fmt: skip


class Case(NamedTuple):
    name: str
    model: str
    direction: str
    shape: tuple
    tiling: str


# Names of `benches/benches/layers.rs`; channels, kernel and input of the same convolution in torch.
LAYERS = {
    "512 to 512, 64 px": (512, (3, 3), (64, 64)),
    "256 to 256, 256 px": (256, (3, 3), (256, 256)),
    "128 to 128, 512 px": (128, (3, 3), (512, 512)),
    "3x3x3, 96 to 96, 4 frames of 128 px": (96, (3, 3, 3), (6, 128, 128)),
}

CASES = [
    Case("sd1 decode 64x64", "sd1", "decode", (1, 4, 64, 64), "off"),
    Case("sd1 tiled decode 128x128", "sd1", "decode", (1, 4, 128, 128), "diffusers"),
    Case("sd1 encode 512x512", "sd1", "encode", (1, 3, 512, 512), "off"),
    Case("wan2.1 decode 32x32x5", "wan21", "decode", (1, 16, 5, 32, 32), "off"),
    Case("wan2.1 encode 256x256x17", "wan21", "encode", (1, 3, 17, 256, 256), "off"),
    Case("wan2.2 decode 6x8x2", "wan22", "decode", (1, 48, 2, 6, 8), "off"),
    Case("wan2.2 encode 96x128x5", "wan22", "encode", (1, 3, 5, 96, 128), "off"),
]


def build(model):
    from diffusers import AutoencoderKL, AutoencoderKLWan

    return {"sd1": lambda: AutoencoderKL(**SD1), "wan21": AutoencoderKLWan, "wan22": lambda: AutoencoderKLWan(**WAN22)}[model]()


def diffusers_side(folder, index, threads):
    """Runs in a process of its own: prints the seconds and the peak in KiB."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLWan
    from safetensors.torch import load_file, save_file

    case = CASES[index]
    torch.set_num_threads(threads)
    family = AutoencoderKL if case.model == "sd1" else AutoencoderKLWan
    model = family.from_pretrained(f"{folder}/{case.model}", low_cpu_mem_usage=False).eval()
    if case.tiling == "diffusers":
        model.enable_tiling()
    value = next(iter(load_file(f"{folder}/input-{index}.safetensors").values()))
    run = (lambda x: model.decode(x).sample) if case.direction == "decode" else (lambda x: model.encode(x).latent_dist.mode())
    with torch.inference_mode():
        side = max(32, min(case.shape[-1] // 2, 128)) if case.direction == "encode" else case.shape[-2] // 2
        run(value[..., :side, :side] if len(case.shape) == 4 else value[:, :, : 1 if case.direction == "encode" else 2, :side, :side])
        start = time.perf_counter()
        answer = run(value)
        seconds = time.perf_counter() - start
    save_file({"answer": answer.contiguous()}, f"{folder}/diffusers-{index}.safetensors")
    print(json.dumps({"seconds": seconds, "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def distvae_side(folder, index, rank, ranks, port):
    """One rank of DistVAE, which divides the tiles among its ranks. Prints the seconds and the peak in KiB."""
    import torch
    import torch.distributed
    from diffusers import AutoencoderKL
    from distvae.vae import sharing, tiled_decode_for
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    model = AutoencoderKL.from_pretrained(f"{folder}/{CASES[index].model}", low_cpu_mem_usage=False).eval()
    model.enable_tiling()
    if ranks > 1:
        dispatch, assemble = sharing(torch.distributed.group.WORLD)
        model.tiled_decode = tiled_decode_for(model, dispatch=dispatch, assemble=assemble)
    value = next(iter(load_file(f"{folder}/input-{index}.safetensors").values()))
    with torch.inference_mode():
        model.decode(value[..., :32, :32])
        torch.distributed.barrier()
        start = time.perf_counter()
        answer = model.decode(value).sample
        torch.distributed.barrier()
        seconds = time.perf_counter() - start
    if rank == 0:
        save_file({"answer": answer.contiguous()}, f"{folder}/distvae-{index}.safetensors")
    print(json.dumps({"seconds": seconds, "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
    torch.distributed.destroy_process_group()


def distvae_ranks(folder, index, ranks):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--rank-of", folder, str(index)]
    processes = [subprocess.Popen([*command, str(rank), str(ranks), str(port)], stdout=subprocess.PIPE, text=True) for rank in range(ranks)]
    results = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {"seconds": max(result["seconds"] for result in results), "peak_kib": sum(result["peak_kib"] for result in results)}


# The peak of a process begins at the size of the one that starts it, so a small one does.
LAUNCHER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
output = process.stdout.read()
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps({"output": output, "status": status, "peak_kib": usage.ru_maxrss}))
"""


def tilevae_side(args, folder, index, threads, workers=None):
    case = CASES[index]
    command = [args.binary, case.direction, f"{folder}/input-{index}.safetensors", "-o", f"{folder}/tilevae-{index}.safetensors", "--format", "json", "-q",
               "--model", f"{folder}/{case.model}", "--set", "io.latent_space=vae", "--set", f"tiling.kind={case.tiling}",
               "--set", f"model.precision={args.precision}"]  # fmt: skip
    if workers:
        command += ["--set", "executor.kind=multi-device", "--set", f"devices.cpu.workers={workers}", "--set", "devices.cpu.threads_per_worker=1"]
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *command]
    run = subprocess.run(launcher, check=True, stdout=subprocess.PIPE, env=os.environ | {"RAYON_NUM_THREADS": str(threads)})
    result = json.loads(run.stdout)
    assert result["status"] == 0, command
    return {"seconds": json.loads(result["output"])["seconds"], "peak_kib": result["peak_kib"]}


def row(head, sides, folder, index, peer):
    """A line of the table: both sides' medians, their ratios, and the greatest difference of their answers."""
    from safetensors.torch import load_file

    ratio = statistics.median(theirs["seconds"] / ours["seconds"] for theirs, ours in zip(*sides))
    seconds = [statistics.median(run["seconds"] for run in side) for side in sides]
    peaks = [statistics.median(run["peak_kib"] for run in side) / 1024 for side in sides]
    a, b = (next(iter(load_file(pathlib.Path(folder) / f"{side}-{index}.safetensors").values())) for side in (peer, "tilevae"))
    cells = [*head, *(f"{side:.2f}" for side in seconds), f"{ratio:.2f}", *(f"{peak:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.2f}"]
    return f"| {' | '.join(map(str, cells))} | {(a - b).abs().max():.1e} |"


def matmul_gain(threads, side=2048):
    """How much faster torch multiplies two square matrices on so many threads than on one: what the machine gives at best."""
    import torch

    a, b = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for count in (1, threads):
        torch.set_num_threads(count)
        times = []
        for _ in range(9):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        seconds.append(statistics.median(times))
    return seconds[0] / seconds[1]


def export_decoder(folder, index):
    """The decoder with its convolution before it, as ONNX for the one shape of the case."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import load_file

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoencoderKL.from_pretrained(f"{folder}/{CASES[index].model}").eval()

        def forward(self, latents):
            return self.model.decode(latents, return_dict=False)[0]

    value = next(iter(load_file(f"{folder}/input-{index}.safetensors").values()))
    torch.onnx.export(Decode(), (value,), f"{folder}/decoder.onnx", input_names=["latents"], output_names=["samples"], dynamo=True)


def runtime_side(folder, index, runtime, threads):
    """Runs the exported decoder in a process of its own: prints the seconds and the peak in KiB."""
    import torch
    from safetensors.torch import load_file, save_file

    value = next(iter(load_file(f"{folder}/input-{index}.safetensors").values())).numpy()
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(f"{folder}/decoder.onnx", options, providers=["CPUExecutionProvider"])
        run = lambda: session.run(None, {"latents": value})[0]
    else:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(f"{folder}/decoder.onnx", "CPU", settings)
        run = lambda: compiled([value])[0]
    run()
    start = time.perf_counter()
    answer = run()
    seconds = time.perf_counter() - start
    save_file({"answer": torch.from_numpy(answer.copy())}, f"{folder}/{runtime}-{index}.safetensors")
    print(json.dumps({"seconds": seconds, "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def against_runtimes(args, folder):
    from importlib.metadata import version

    subprocess.run([sys.executable, __file__, "--export", folder, "0"], check=True, stdout=subprocess.DEVNULL)
    print(f"{args.threads} threads, f32, precision {args.precision}, medians of {args.runs} interleaved runs after a warm-up of theirs\n")
    print("| runtime | its s | tilevae s | runtime / tilevae | its MiB | tilevae MiB | memory ratio | max diff |")
    print("|---|---|---|---|---|---|---|---|")
    for runtime in ("onnxruntime", "openvino"):
        sides = ([], [])
        for _ in range(args.runs):
            command = [sys.executable, __file__, "--threads", str(args.threads), "--runtime", folder, "0", runtime]
            sides[0].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
            sides[1].append(tilevae_side(args, folder, 0, args.threads))
        print(row([f"{runtime} {version(runtime)}"], sides, folder, 0, runtime), flush=True)


def torch_layer(name, threads):
    """GFLOP/s of a convolution in the better of two layouts."""
    import torch

    torch.set_num_threads(threads)
    channels, kernel, size = LAYERS[name]
    flat = len(kernel) == 2
    kind = torch.nn.Conv2d if flat else torch.nn.Conv3d
    best = 0.0
    for layout in (torch.contiguous_format, torch.channels_last if flat else torch.channels_last_3d):
        conv = kind(channels, channels, kernel, padding=1 if flat else (0, 1, 1)).eval().to(memory_format=layout)
        x = torch.randn(1, channels, *size).to(memory_format=layout)
        with torch.inference_mode():
            operations = 2 * conv(x).numel() * channels * conv.weight[0, 0].numel()
            times = []
            for _ in range(5):
                start = time.perf_counter()
                conv(x)
                times.append(time.perf_counter() - start)
        best = max(best, operations / statistics.median(times) / 1e9)
    return best


def tilevae_layer(name, threads):
    command = ["cargo", "bench", "--locked", "--manifest-path", "benches/Cargo.toml", "--target-dir", "target", "--bench", "layers", "--",
               f"^layers/{name}$", "--measurement-time", "2", "--warm-up-time", "0.5"]  # fmt: skip
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | {"RAYON_NUM_THREADS": str(threads)})
    _, _, _, middle, unit, *_ = next(line for line in run.stdout.splitlines() if "thrpt:" in line).split()
    return float(middle) * {"Gelem/s": 1, "Telem/s": 1000}[unit]


def single_layers(args):
    import torch

    print(f"torch {torch.__version__}, {args.threads} threads, f32, medians of {args.runs} interleaved runs; GFLOP/s of the direct convolution\n")
    print("| convolution | torch | tilevae | ratio |")
    print("|---|---|---|---|")
    for name in LAYERS:
        runs = [(torch_layer(name, args.threads), tilevae_layer(name, args.threads)) for _ in range(args.runs)]
        theirs, ours = (statistics.median(side) for side in zip(*runs))
        ratio = statistics.median(ours / theirs for theirs, ours in runs)
        print(f"| {name} | {theirs:.0f} | {ours:.0f} | {ratio:.2f} |", flush=True)


def against_distvae(args, folder, chosen):
    import torch
    from importlib.metadata import version

    print(f"torch {torch.__version__}, distvae {version('distvae')}, f32, one thread a worker, medians of {args.runs} interleaved runs")
    print(f"a plain product of two matrices is {matmul_gain(args.ranks):.2f} times as fast on {args.ranks} threads as on one\n")
    print("| case | workers | distvae s | tilevae s | distvae / tilevae | distvae MiB | tilevae MiB | memory ratio | max diff |")
    print("|---|---|---|---|---|---|---|---|---|")
    for index in chosen:
        sides = ([], [])
        for _ in range(args.runs):
            sides[0].append(distvae_ranks(folder, index, args.ranks))
            sides[1].append(tilevae_side(args, folder, index, 1, args.ranks))
        print(row([CASES[index].name, args.ranks], sides, folder, index, "distvae"), flush=True)



def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/tilevae")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose names hold this")
    parser.add_argument("--distvae", action="store_true", help="against DistVAE, on several workers")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", action="store_true", help="single convolutions")
    parser.add_argument("--runtimes", action="store_true", help="against ONNX Runtime and OpenVINO")
    parser.add_argument("--precision", choices=["fast", "strict"], default="fast", help="of tilevae")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rank-of", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--runtime", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        return distvae_side(args.rank_of[0], *map(int, args.rank_of[1:]))
    if args.export:
        return export_decoder(args.export[0], int(args.export[1]))
    if args.runtime:
        return runtime_side(args.runtime[0], int(args.runtime[1]), args.runtime[2], args.threads)
    if args.layers:
        return single_layers(args)
    if args.side:
        return diffusers_side(args.side[0], int(args.side[1]), args.threads)

    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        chosen = [index for index, case in enumerate(CASES) if args.only in case.name]
        if args.distvae:
            chosen = [index for index in chosen if CASES[index].model == "sd1" and CASES[index].tiling == "diffusers"]
        if args.runtimes:
            chosen = [0]
        for model in {CASES[index].model for index in chosen}:
            build(model).save_pretrained(f"{folder}/{model}")
        for index in chosen:
            case = CASES[index]
            value = torch.randn(case.shape) if case.direction == "decode" else torch.rand(case.shape) * 2 - 1
            save_file({"latents" if case.direction == "decode" else "samples": value}, f"{folder}/input-{index}.safetensors")
        if args.runtimes:
            return against_runtimes(args, folder)
        if args.distvae:
            return against_distvae(args, folder, chosen)
        print(f"torch {torch.__version__}, {args.threads} threads, f32, precision {args.precision}, medians of {args.runs} interleaved runs\n")
        print("| case | diffusers s | tilevae s | diffusers / tilevae | diffusers MiB | tilevae MiB | memory ratio | max diff |")
        print("|---|---|---|---|---|---|---|---|")
        for index in chosen:
            sides = ([], [])
            for _ in range(args.runs):
                command = [sys.executable, __file__, "--threads", str(args.threads), "--side", folder, str(index)]
                sides[0].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]))
                sides[1].append(tilevae_side(args, folder, index, args.threads))
            print(row([CASES[index].name], sides, folder, index, "diffusers"), flush=True)


if __name__ == "__main__":
    main()
