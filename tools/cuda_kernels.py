"""Compiles CUDA kernels that `tools/null_cuda.c` has recorded (NULL_CUDA_SOURCES), and prints a Markdown table of what they need.

    python tools/cuda_kernels.py SOURCES --toolkit FOLDER [--toolkit FOLDER] [--cuobjdump FILE] [--arch sm_90a] [--json FILE]

A toolkit is a folder with `include`, `lib/libnvrtc.so*` and `bin/ptxas`. PyPI's `triton` brings `cuobjdump`. Exits with 1 when a
kernel does not compile or spills registers, or when a convolution lacks the instructions of tensor cores.
"""

import argparse
import collections
import ctypes
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor


def compile_ptx(source: str, arch: str, toolkit: pathlib.Path) -> str:
    library = ctypes.CDLL(str(next((toolkit / "lib").glob("libnvrtc.so.*"))))
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None)
    options = [f"--gpu-architecture={arch}", f"--include-path={toolkit}/include", f"--include-path={toolkit}/include/cccl"]
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[option.encode() for option in options]))
    size = ctypes.c_size_t()
    of = "ProgramLog" if failed else "PTX"
    getattr(library, f"nvrtcGet{of}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{of}")(program, text)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(text.value.decode()[:500])
    return text.value.decode()


def measure(job: tuple) -> dict:
    path, arch, toolkit, cuobjdump = job
    source = path.read_text()
    name = re.search(r'extern "C" __global__ void\s+(?:__\w+__\s*\([^)]*\)\s*)*(\w+)', source)
    row = {"file": path.name, "kernel": name.group(1) if name else path.stem, "arch": arch, "toolkit": toolkit.name}
    try:
        ptx = compile_ptx(source, arch, toolkit)
    except RuntimeError as error:
        return row | {"error": str(error)}
    if cuobjdump is None:
        return row
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "k.ptx").write_text(ptx)
        run = subprocess.run([toolkit / "bin" / "ptxas", "-v", f"-arch={arch}", "k.ptx", "-o", "k.cubin"], cwd=folder, capture_output=True, text=True)
        if run.returncode:
            return row | {"error": run.stderr[:500]}
        number = lambda pattern: int((re.search(pattern, run.stderr) or [0, 0])[1])
        sass = subprocess.run([cuobjdump, "-sass", "k.cubin"], cwd=folder, capture_output=True, text=True).stdout
    return row | {
        "registers": number(r"Used (\d+) registers"),
        "spilled": number(r"(\d+) bytes spill stores"),
        "stack": number(r"(\d+) bytes stack frame"),
        "shared": number(r"(\d+) bytes smem"),
        "matrix": len(re.findall(r"\b[HIQ]G?MMA\b", sass)),
        "tensor_loads": len(re.findall(r"\bUTMALDG\b", sass)),
    }


def kind(row: dict) -> str:
    """The kernel's function and types, without its hash."""
    name = re.sub(r"_[0-9a-f]{8}$", "", row["kernel"])
    types = re.findall(r"_(f32|f16|bf16|tf32)(?=_|$)", name)
    function = re.split(r"_(?:lhs|e|f|c|t|p|n)_", name + "_")[0].rstrip("_")
    return f"{function} {' '.join(dict.fromkeys(types))}".strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=pathlib.Path)
    parser.add_argument("--toolkit", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--cuobjdump", type=pathlib.Path, help="without it kernels are only compiled to PTX")
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    files = sorted(args.sources.glob("*.cu"))
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(measure, [(path, args.arch, toolkit.resolve(), args.cuobjdump) for toolkit in args.toolkit for path in files]))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    groups = collections.defaultdict(list)
    for row in rows:
        groups[kind(row), row["toolkit"]].append(row)
    print("| kernel | toolkit | variants | registers | spilled, bytes | static shared memory, bytes | matrix instructions |\n|---|---|---|---|---|---|---|")
    for (name, toolkit), group in sorted(groups.items()):
        good = [row for row in group if "error" not in row]
        span = lambda key: (lambda values: f"{min(values)} to {max(values)}" if len(set(values)) > 1 else str(values[0]))([row.get(key, 0) for row in good] or [0])
        refused = len(group) - len(good)
        print(f"| `{name}` | {toolkit} | {len(group)}{f', {refused} refused' if refused else ''} | {span('registers')} | {span('spilled')} | {span('shared')} | {span('matrix')} |")
    errors = [f"{row['kernel']} ({row['toolkit']}): {row['error']}" for row in rows if "error" in row]
    errors += [f"{row['kernel']} ({row['toolkit']}) spills {row['spilled']} bytes" for row in rows if row.get("spilled")]
    errors += [f"{row['kernel']} ({row['toolkit']}) has no matrix instructions" for row in rows if row["kernel"].startswith("matmul") and row.get("matrix") == 0]
    print(*errors, sep="\n", file=sys.stderr)
    print(f"{len(files)} kernels, {len(args.toolkit)} compilers, {len(errors)} faults", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
