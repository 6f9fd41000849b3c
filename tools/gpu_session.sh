#!/usr/bin/env bash
# Everything that is to be measured on a machine with an NVIDIA GPU, in at most nine minutes and without a network:
#
#     BUNDLE=FOLDER|FILE OUT=FOLDER tools/gpu_session.sh
#
# BUNDLE is what tools/gpu_bundle.sh has made, the folder or the archive. OUT gets log.txt, results.json, profile.txt and gpu.csv, as they come. Torch and diffusers are
# those of the machine's Python, or wheels in BUNDLE/wheels. Steps have limits of their own, the most important come first, and one that fails ends nothing.
# STEPS="versions models sdxl_ours" runs only those. With WORK=FOLDER models, references and compiled kernels stay there for another call on the same machine.
# With REHEARSE=1 all of it runs on the device DEVICE (by default the CPU) in DTYPE (f32), with small models and few repetitions.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

OUT=$(realpath -m "${OUT:?}")
mkdir -p "$OUT"
work=${WORK:-$(mktemp -d)}
mkdir -p "$work" && rm -f "$work"/step-*
sampler=
finish() {
    if [ -n "$sampler" ]; then kill "$sampler" 2> /dev/null; fi
    if [ -z "${WORK:-}" ]; then rm -rf "$work"; fi
}
trap finish EXIT
exec > >(tee -a "$OUT/log.txt") 2>&1

if [ -n "${REHEARSE:-}" ]; then
    device=${DEVICE:-cpu} dtype=${DTYPE:-f32} torch_device=cpu tiny=--tiny runs=2 limit=${LIMIT:-240} share=32 size=128 latents=16,16 frames=5 clip=32x48 clip_latents=2,4,6 large=256x256
    cpu_sd1=1,4,32,32 cpu_wan=1,16,1,40,40 few=1 kernels=operators::plain norms=operators::plain tests=operators::plain cap=25
else
    device=${DEVICE:-cuda:0} dtype=${DTYPE:-bf16} torch_device=cuda tiny='' runs=20 limit=${LIMIT:-530} share=1 size=1024 latents=128,128 frames=17 clip=480x832 clip_latents=5,60,104 large=4096x4096
    # 16 tiles of diffusers: of 128 px, and of 256 px of one frame.
    cpu_sd1=1,4,48,48 cpu_wan=1,16,1,96,96 few=3 cap=120
    kernels=operators::cube::tests norms='operators::tests::attention operators::tests::features operators::tests::frames operators::tests::moments' tests=operators::tests
fi
deadline=$((SECONDS + limit))
python=$(command -v python3 || command -v python || true)
BUNDLE=$(realpath "${BUNDLE:?}")
if [ -f "$BUNDLE" ]; then
    # Python reads .xz where tar finds no xz.
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$BUNDLE" "$work/bundle" && BUNDLE=$work/bundle
fi
export XDG_CACHE_HOME="$work/cache" XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-$work}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD/tools${PYTHONPATH:+:$PYTHONPATH}"

# Diffusers in a folder of its own where the machine's Python lacks it. Without compilation, which takes longer than the import.
if ! "$python" -c 'import diffusers' 2> /dev/null && compgen -G "$BUNDLE/wheels/*.whl" > /dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$BUNDLE"/wheels/*.whl
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi
no_torch=$("$python" -c 'import torch, diffusers' 2>&1 > /dev/null | tail -n 1)

# CUDA's compiler and headers: of a toolkit, or of the wheels that torch brings.
if [ -z "${CUDA_PATH:-}" ]; then
    site=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2> /dev/null)
    for folder in /usr/local/cuda "$site/cu13" "$BUNDLE/cuda"; do
        if compgen -G "$folder/lib*/libnvrtc.so*" > /dev/null && [ -e "$folder/include/cuda_fp16.h" ]; then
            CUDA_PATH=$folder
            break
        fi
    done
fi
# Only for our programs: torch brings its own libraries.
libraries=$work/lib
mkdir -p "$libraries"
if [ -n "${CUDA_PATH:-}" ]; then
    export CUDA_PATH
    # The program asks for the name without a version.
    nvrtc=$(compgen -G "$CUDA_PATH/lib*/libnvrtc.so*" | head -n 1)
    ln -sf "$nvrtc" "$libraries/libnvrtc.so"
    libraries+=:$(dirname "$nvrtc")
fi
# Vulkan's loader and NVIDIA's driver for it, where the system does not have them in their places.
if ! ldconfig -p 2> /dev/null | grep -q 'libvulkan\.so\.1'; then libraries+=:$BUNDLE/lib; fi
icd=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
if [ -e $icd ] && [ -z "${VK_DRIVER_FILES:-}" ]; then export VK_DRIVER_FILES=$icd; fi
stubs=$(compgen -G "$BUNDLE/libno_llvm.so" || true)
ours() { LD_LIBRARY_PATH="$libraries:${LD_LIBRARY_PATH:-}" LD_PRELOAD=$stubs "$@"; }
tilevae() { ours "$BUNDLE/tilevae" "$@"; }

# What the GPU does, five times a second: for the memory and the load of each step.
if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=memory.used,utilization.gpu,clocks.sm,power.draw --format=csv,noheader,nounits -lms 200 > "$OUT/gpu.csv" &
    sampler=$!
fi

# What the steps have printed so far: the JSON values of each, whole or one a line, with its status; and how many tests passed, by their lines, because a test may end
# its process.
cat > "$work/collect.py" << 'PYTHON'
import json, os, pathlib, re, sys

work, out = map(pathlib.Path, sys.argv[1:3])
decoder, steps = json.JSONDecoder(), []
for file in sorted(work.glob("step-*")):
    text, at, values = file.read_text(errors="replace"), 0, []
    while at < len(text):
        if text[at] == "{":
            try:
                value, at = decoder.raw_decode(text, at)
                values.append(value)
                continue
            except ValueError:
                pass
        at = (text.find("\n", at) + 1) or len(text)
    state = [value for value in values if "step" in value]
    results = [value for value in values if "step" not in value]
    begun, ended = re.findall(r"^test (\S+) \.\.\.", text, re.M), re.findall(r"^test (\S+) \.\.\. (ok|FAILED)$", text, re.M)
    if begun and "bench::" not in begun[0]:
        failed = [name for name, how in ended if how == "FAILED"]
        results.append({"tests": len(begun), "passed": len(ended) - len(failed), "failed": failed, "unfinished": begun[len(ended):]})
    steps.append((state[-1] if state else {"step": file.name, "status": None}) | ({"results": results} if results else {}))
(out / "results.json.new").write_text(json.dumps({"rehearsal": bool(os.environ.get("REHEARSE")), "steps": steps}, indent=1))
os.replace(out / "results.json.new", out / "results.json")
PYTHON
collect() { "$python" "$work/collect.py" "$work" "$OUT"; }

# step NAME SECONDS LEAST COMMAND: at most so many seconds of those that are left, and not at all where less than LEAST are.
number=0
step() {
    local name=$1 most=$2 least=$3 left=$((deadline - SECONDS)) begun=$SECONDS file status samples reason='' gpu=''
    shift 3
    most=$((most < cap ? most : cap))
    if [ -n "${STEPS:-}" ] && [[ " $STEPS " != *" $name "* ]]; then return; fi
    number=$((number + 1))
    file=$work/step-$(printf %02d $number)-$name
    if [ "$left" -lt "$least" ]; then
        reason="$left s are left, it needs $least"
    elif [ -n "$no_torch" ] && [[ $name == *torch* ]]; then
        reason="no torch with diffusers: ${no_torch//[\"\\]/}"
    elif [ "$1" = operators ] && [ ! -e "$BUNDLE/vae_core_tests" ] || [ "$1" = bench ] && [ ! -e "$BUNDLE/vae_core_tests" ]; then
        reason='BUNDLE has no vae_core_tests'
    fi
    if [ -n "$reason" ]; then
        printf '\n== %s: skipped: %s\n' "$name" "$reason"
        printf '{"step": "%s", "skipped": "%s"}\n' "$name" "$reason" > "$file"
        collect
        return
    fi
    printf '\n== %s (%s s left)\n' "$name" "$left"
    samples=$(wc -l 2> /dev/null < "$OUT/gpu.csv" || echo 0)
    timeout -k 5 $((most < left ? most : left)) bash -c 'set -uo pipefail; "$@"' step "$@" | tee "$file"
    status=${PIPESTATUS[0]}
    if [ -n "$sampler" ]; then
        # MiB at most, and the mean load of the samples with any.
        gpu=$(tail -n "+$((samples + 1))" "$OUT/gpu.csv" | awk -F, '$1 > most { most = $1 } $2 > 0 { load += $2; n++ } END { printf ", \"gpu_mib\": %d, \"gpu_load\": %.0f", most, n ? load / n : 0 }')
    fi
    printf '\n{"step": "%s", "status": %s, "seconds": %s%s}\n' "$name" "$status" $((SECONDS - begun)) "$gpu" >> "$file"
    printf -- '-- %s: status %s after %s s\n' "$name" "$status" $((SECONDS - begun))
    collect
}

versions() {
    nvidia-smi
    "$python" -c 'import json, torch; print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}))'
    "$python" -c 'import json, diffusers; print(json.dumps({"diffusers": diffusers.__version__}))'
    if command -v nvidia-smi > /dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | sed 's/.*/{"gpu": "&"}/'
    fi
    printf '{"cuda_path": "%s", "program": "%s", "devices": "%s", "cores": %s, "processor": "%s"}\n' "${CUDA_PATH:-}" "$(tilevae --version)" \
        "$(tilevae devices | awk '{ printf "%s ", $1 }')" "$(nproc)" "$(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo)"
    tilevae devices
}

models() {
    local model
    for model in sdxl sd1 wan21; do
        if [ ! -e "$work/$model/config.json" ]; then "$python" tools/gpu_models.py "$work" --models $model $tiny || return; fi
    done
    "$python" tools/gpu_models.py "$work" --models '' --input "kl=1,4,$latents" --input "clip=1,16,$clip_latents" --input "cpu-sd1=$cpu_sd1" --input "cpu-wan21=$cpu_wan" || return
    "$python" tools/gpu_models.py "$work" --models '' --input "frames=1,3,$frames,${clip/x/,}" --samples
}

# Timed runs of the whole model on the device, in one process. Each run's end is taken from its events, so that some are left where the process is ended, or ends itself
# because two runs gave different bytes.
cat > "$work/timed.py" << 'PYTHON'
import json, signal, statistics, subprocess, sys

head, command = json.loads(sys.argv[1]), sys.argv[2:]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
signal.signal(signal.SIGTERM, lambda *_: process.terminate())
seconds, last, error = [], None, None
for line in process.stderr:
    try:
        event = json.loads(line)
    except ValueError:
        print(line, end="", file=sys.stderr)
        continue
    if event.get("event") == "tile_finished" and event["tiles"] == event["of_tiles"]:
        seconds.append(event["seconds"])
    elif event.get("event") == "error":
        error = event["message"]
    elif event.get("event") in ("tile_failed", "worker_retired", "tile_upcast", "log"):
        print(line, end="", file=sys.stderr)
output = process.stdout.read()
status = process.wait()
run = json.loads(output)["runs"][0] if status == 0 else {}
later = sorted(seconds[3:] or seconds)
row = {"status": status, "error": error, "runs": len(seconds), "first": seconds[:1], "seconds": statistics.median(later) if later else None, "fastest": later[:1], "slowest": later[-1:]}
print(json.dumps(head | row | {key: run.get(key) for key in ("busy", "device_memory_bytes", "peak_memory_bytes")}), flush=True)
PYTHON
# timed WHAT INPUT RUNS KEYS...: the model and what else is to be set are among the keys.
timed() { ours "$python" "$work/timed.py" "{\"program\": \"tilevae\", $1}" "$BUNDLE/tilevae" bench "$2" --workers 1 --runs $(($3 + 3)) --device "$device" --format json "${@:4}"; }
# MODEL DIRECTION INPUT DTYPE TF32 RUNS: first one whole run, which compiles, tunes, and is compared with torch in f32 if its reference is there.
ours_of() {
    local keys=(--model "$work/$1" --set "model.dtype=$4" --set tiling.kind=off --set "devices.tf32=$5" --set io.latent_space=vae)
    tilevae "$2" "$work/$3.safetensors" -o "$work/ours.safetensors" --device "$device" "${keys[@]}" --format json -q || return
    if [ -z "$no_torch" ]; then
        "$python" tools/gpu_torch.py "$work" "$1" "$2" "$work/$3.safetensors" --device "$torch_device" --compare "$work/ours.safetensors"
    fi
    timed "\"what\": \"$1 $2\", \"dtype\": \"$4\", \"tf32\": $5" "$work/$3.safetensors" "$6" --direction "$2" --executor sequential "${keys[@]}"
}
torch_of() { "$python" tools/gpu_torch.py "$work" "$1" "$2" "$work/$3.safetensors" --device "$torch_device" --runs "$runs" --settings "$4" --dtype "${5:-$dtype}"; }
bench() { TILEVAE_TEST_DEVICE=${device%:*} TILEVAE_TEST_DTYPE=$dtype TILEVAE_TEST_SHARE=$share ours "$BUNDLE/vae_core_tests" --ignored --nocapture --exact "operators::cube::bench::$1"; }

# The operators' tests, which compare a device with the CPU: DEVICE NAMES...
operators() { (cd crates/vae-core && TILEVAE_TEST_DEVICE=$1 ours "$BUNDLE/vae_core_tests" "${@:2}" --test-threads 1 --nocapture); }

# The golden files of the families, decoded and encoded by the program: DEVICE DTYPE TF32 TOLERANCE. Their own test binaries would not fit into a bundle.
cat > "$work/goldens.py" << 'PYTHON'
import concurrent.futures, json, os, pathlib, subprocess, sys
import numpy
from safetensors.numpy import load_file

program, device, work, dtype, tf32, tolerance = sys.argv[1:]

def check(job):
    model, case, direction, wanted = job
    golden = load_file(model / "golden.safetensors")
    name = f"{model.parts[1]}/{model.name} {case} {direction}"
    out = pathlib.Path(work) / f"golden-{abs(hash(name))}.safetensors"
    tensor = f"{case}.{'latents' if direction == 'decode' else 'samples'}"
    keys = {"io.tensor": tensor, "io.latent_space": "vae", "tiling.kind": "off", "devices.tf32": tf32, "model.dtype": dtype}
    command = [program, direction, model / "golden.safetensors", "-o", out, "--model", model, "--device", device, "--no-cache", "-q"]
    run = subprocess.run(command + [word for key, value in keys.items() for word in ("--set", f"{key}={value}")], capture_output=True, text=True, timeout=120)
    if run.returncode:
        print(f"{name}: status {run.returncode}: {run.stderr[-300:]}", flush=True)
        return name, f"status {run.returncode}: {run.stderr[-300:]}"
    got = next(iter(load_file(out).values())).ravel()
    out.unlink()
    difference = float(numpy.abs(got.astype(numpy.float32) - golden[wanted].astype(numpy.float32).ravel()).max())
    print(f"{name}: {difference:.2e}", flush=True)
    return name, difference

jobs = []
for model in sorted(file.parent for file in pathlib.Path("crates").glob("vae-*/tests/data/*/golden.safetensors")):
    golden = load_file(model / "golden.safetensors")
    cases = [name.removesuffix(".untiled.decoded") for name in golden if name.endswith(".untiled.decoded")]
    # The largest.
    case = max(cases, key=lambda case: golden[f"{case}.untiled.decoded"].size)
    jobs += [(model, case, "decode", f"{case}.untiled.decoded"), (model, case, "encode", f"{case}.untiled.mean")]
with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count())) as pool:
    rows = list(pool.map(check, jobs))
failed = [[name, found] for name, found in rows if isinstance(found, str) or not found <= float(tolerance)]
worst = max((found for _, found in rows if not isinstance(found, str)), default=None)
print(json.dumps({"tests": "goldens", "device": device, "dtype": dtype, "tf32": tf32, "passed": len(rows) - len(failed), "failed": failed, "worst": worst}))
sys.exit(bool(failed))
PYTHON
goldens() { ours "$python" "$work/goldens.py" "$BUNDLE/tilevae" "$1" "$work" "${@:2}"; }

# One large picture. Overlapping tiles have the size that the untiled decode was tuned for. The first run of seamless tiles compiles and tunes.
tiled() {
    local executor keys=(--model "$work/sdxl" --set "model.dtype=$dtype")
    for executor in pipelined sequential; do
        timed "\"what\": \"$large, overlapping tiles\", \"executor\": \"$executor\"" "$large" 0 --executor $executor "${keys[@]}" --set tiling.kind=uniform --set tiling.tile_px=$size
    done
}
seamless() {
    local executor keys=(--model "$work/sdxl" --set "model.dtype=$dtype" --set tiling.kind=seamless --set tiling.tile_px=$size)
    for executor in pipelined sequential; do
        timed "\"what\": \"$large, seamless tiles\", \"executor\": \"$executor\"" "$large" 0 --executor $executor "${keys[@]}"
    done
}
mixed() {
    local devices=(--device "$device,cpu" --set "devices.dtype={\"$device\" = \"$dtype\", cpu = \"f32\"}") workers=1
    if [ "$device" = cpu ]; then devices=(--device cpu) workers=2; fi
    # The configured executor must take two devices, whichever are named in --executor.
    tilevae bench "$large" --set executor.kind=multi-device --executor multi-device,pipelined --workers $workers "${devices[@]}" --model "$work/sdxl" --set tiling.kind=uniform --set tiling.tile_px=$size --format json -q
}

# Time by kernel, from CubeCL's own clock, which waits for each. What the tuning of a first run starts is counted, too.
cat > "$work/kernels.py" << 'PYTHON'
import collections, json, re, sys

UNITS = {"ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}
total, count = collections.Counter(), collections.Counter()
for line in open(sys.argv[1], errors="replace"):
    found = re.match(r".*?\| ([0-9.]+)(ns|µs|us|ms|s) *\| (.+)", line)
    if found:
        name = found[3].split("\n")[0].strip(" |")[:100]
        total[name] += float(found[1]) * UNITS[found[2]]
        count[name] += 1
whole = sum(total.values())
with open(sys.argv[2], "a") as out:
    print(f"\n== tilevae, CubeCL: {whole * 1e3:.2f} ms in {sum(count.values())} kernels", file=out)
    for name, seconds in total.most_common(60):
        print(f"{seconds * 1e3:10.3f} ms {100 * seconds / whole:5.1f} % {count[name]:6}  {name}", file=out)
print(json.dumps({"what": "kernels", "milliseconds": whole * 1e3, "kernels": sum(count.values()), "first": [[name, seconds * 1e3, count[name]] for name, seconds in total.most_common(12)]}))
PYTHON
profile() {
    mkdir -p "$work/profile" && cd "$work/profile" && rm -f kernels || return
    printf '[profiling]\nlogger = { level = "medium", file = "%s/profile/kernels" }\n' "$work" > cubecl.toml
    tilevae decode "$work/kl.safetensors" -o "$work/ours.safetensors" --device "$device" --model "$work/sdxl" --set io.latent_space=vae --set model.dtype="$dtype" --set tiling.kind=off -q
    if [ ! -e kernels ]; then
        echo '{"what": "kernels", "error": "CubeCL has logged none: not a device of CubeCL"}'
        return
    fi
    "$python" "$work/kernels.py" kernels "$OUT/profile.txt"
}
# By the counters of a profiler, where the machine has one.
profilers() {
    local decode=("$BUNDLE/tilevae" decode "$work/kl.safetensors" -o "$work/ours.safetensors" --device "$device" --model "$work/sdxl" --set io.latent_space=vae --set model.dtype="$dtype" --set tiling.kind=off -q)
    if command -v nsys > /dev/null; then
        ours nsys profile -o "$work/nsys" --force-overwrite true "${decode[@]}" && nsys stats -r cuda_gpu_kern_sum "$work/nsys.nsys-rep" >> "$OUT/profile.txt"
    elif command -v ncu > /dev/null; then
        printf '\n== tilevae, ncu: launch, kernel, nanoseconds, bytes\n' >> "$OUT/profile.txt"
        # The clocks of the card are left alone.
        ours ncu --clock-control none --csv --metrics gpu__time_duration.sum,dram__bytes.sum "${decode[@]}" > "$work/ncu.csv"
        "$python" - "$work/ncu.csv" << 'PYTHON' >> "$OUT/profile.txt"
import collections, csv, sys

rows = csv.DictReader(line for line in open(sys.argv[1], errors="replace") if line.startswith('"'))
sums = collections.defaultdict(lambda: [0, 0.0, 0.0])
for row in rows:
    value, unit = float(row["Metric Value"].replace(",", "")), row["Metric Unit"]
    factor = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1, "msecond": 1, "byte": 1e-9, "Kbyte": 1e-6, "Mbyte": 1e-3, "Gbyte": 1}.get(unit, 1)
    entry, is_time = sums[row["Kernel Name"][:100]], row["Metric Name"].startswith("gpu__time")
    entry[0] += is_time
    entry[1 if is_time else 2] += value * factor
for name, (count, time, size) in sorted(sums.items(), key=lambda item: -item[1][1])[:60]:
    print(f"{time:10.3f} ms {size:8.3f} GB {count:6}  {name}")
PYTHON
    else
        echo '{"skipped": "neither nsys nor ncu is here"}'
    fi
}
torch_profile() {
    "$python" - "$work" "$torch_device" "$dtype" << 'PYTHON' >> "$OUT/profile.txt"
import pathlib, sys
import torch, gpu_torch
from torch.profiler import ProfilerActivity, profile

folder, device, dtype = pathlib.Path(sys.argv[1]), sys.argv[2], {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[3]]
vae = gpu_torch.model_of(folder / "sdxl", dtype, device).to(memory_format=torch.channels_last)
x = gpu_torch.wanted(vae, folder / "kl.safetensors", device).to(dtype)
gpu_torch.run(vae, x, "decode")
on_gpu = device == "cuda"
with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
    gpu_torch.run(vae, x, "decode")
    if on_gpu:
        torch.cuda.synchronize()
print("\n== torch, channels_last\n" + found.key_averages().table(sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total", row_limit=40, max_name_column_width=100))
PYTHON
}

# Workers of one thread, and one worker of all threads: a tiled decode, with the tiles of diffusers and with seamless ones. The most threads first.
cpu_ours() {
    local cores model kind workers keys
    cores=$(nproc)
    for model in sd1 wan21; do
        for kind in diffusers seamless; do
            keys=(--direction decode --device cpu --model "$work/$model" --set io.latent_space=vae --set tiling.kind=$kind --format json -q)
            RAYON_NUM_THREADS=$cores tilevae bench "$work/cpu-$model.safetensors" --executor sequential "${keys[@]}"
            for workers in 16 8 4 2 1; do
                if [ $workers -le "$cores" ] && { [ $kind = diffusers ] || [ $workers -gt 4 ]; }; then
                    tilevae bench "$work/cpu-$model.safetensors" --executor multi-device --workers $workers --set devices.cpu.threads_per_worker=1 "${keys[@]}"
                fi
            done
        done
    done
}
# The same in torch, in one process: each number of threads while there is time for twice the seconds of the last; the first of them after a
# run that is not counted.
cpu_torch() {
    "$python" - "$work" "$(nproc)" "$1" << 'PYTHON'
import json, pathlib, sys, time
import torch, gpu_torch
from bench_peer import matmul_gain

folder, cores, until = pathlib.Path(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
print(json.dumps({"what": f"product of matrices, {cores} threads against one", "gain": matmul_gain(cores)}), flush=True)
for model in ("sd1", "wan21"):
    for dtype in (torch.float32, torch.bfloat16):
        vae = gpu_torch.model_of(folder / model, dtype, "cpu")
        vae.enable_tiling()
        x, last = gpu_torch.wanted(vae, folder / f"cpu-{model}.safetensors", "cpu").to(dtype), 0.0
        for threads in (count for count in (16, 8, 4, 2, 1) if count <= cores):
            if time.monotonic() + 2.2 * last > until:
                break
            torch.set_num_threads(threads)
            for _ in range(1 if last else 2):
                begun = time.monotonic()
                gpu_torch.run(vae, x, "decode")
                last = time.monotonic() - begun
            print(json.dumps({"what": f"{model} tiled decode", "program": "torch eager", "dtype": str(dtype)[6:], "threads": threads, "seconds": last}), flush=True)
PYTHON
}

export -f ours tilevae versions models timed ours_of torch_of bench operators goldens tiled seamless mixed profile profilers torch_profile cpu_ours cpu_torch
export BUNDLE OUT work libraries stubs device dtype torch_device tiny runs share size latents frames clip clip_latents large cpu_sd1 cpu_wan cap python no_torch

# What shows first whether the kernels compute what they should, then the goals, then what explains them.
# shellcheck disable=SC2086 # names of tests, and their numbers.
{
    step versions 40 5 versions
    step models 40 5 models
    step kernels 60 10 operators "${device%:*}" $kernels
    step sdxl_torch 50 20 torch_of sdxl decode kl eager,channels_last
    step sdxl_ours 120 20 ours_of sdxl decode kl "$dtype" true "$runs"
    step wan_torch 50 20 torch_of wan21 decode clip eager
    step wan_ours 110 20 ours_of wan21 decode clip "$dtype" true "$runs"
    step sdxl_torch_compiled 100 40 torch_of sdxl decode kl compiled
    step seamless 90 20 seamless
    step goldens 60 15 goldens "$device" f32 false 2e-4
    step bandwidth 20 5 bench bandwidth
    step matrix_rate 30 5 bench matrix_rate
    step convolutions 60 10 bench convolutions
    step norms 20 5 bench norms
    step profile 40 10 profile
    step sdxl_torch_profile 30 15 torch_profile
    step norms_and_attention 40 10 operators "${device%:*}" $norms
    step sdxl_f32 60 20 ours_of sdxl decode kl f32 false $few
    step sdxl_tf32 40 15 ours_of sdxl decode kl f32 true $few
    step tiled 60 10 tiled
    step cpu_ours 80 15 cpu_ours
    step cpu_torch 90 20 cpu_torch $((cap * 2 / 3))
    step wan_encode_torch 40 15 torch_of wan21 encode frames eager
    step wan_encode_ours 60 15 ours_of wan21 encode frames "$dtype" true "$runs"
    step mixed 40 10 mixed
    step profilers 40 20 profilers
    step goldens_tf32 60 15 goldens "$device" f32 true 5e-2
    step goldens_half 60 15 goldens "$device" "$dtype" true 1.5e-1
    step operators 90 10 operators "${device%:*}" $tests
    step vulkan 40 10 operators vulkan $kernels $norms
    step vulkan_goldens 40 15 goldens vulkan:0 f32 false 2e-4
    step wan_torch_compiled 100 60 torch_of wan21 decode clip compiled
}
printf '\ndone after %s s\n' "$SECONDS"
