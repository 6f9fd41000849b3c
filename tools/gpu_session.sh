#!/usr/bin/env bash
# Everything that is to be measured on a machine with an NVIDIA GPU, in at most nine minutes and without a network:
#
#     BUNDLE=FOLDER OUT=FOLDER tools/gpu_session.sh
#
# BUNDLE is what tools/gpu_bundle.sh has made. OUT gets log.txt, results.json and profile.txt, as they come. Torch and diffusers are those of the machine's Python,
# or wheels in BUNDLE/wheels. Steps have limits of their own, the most important come first, and one that fails ends nothing.
# With REHEARSE=1 all of it runs on the device DEVICE (by default the CPU) in DTYPE (f32), with small models and few repetitions.
set -uo pipefail
cd "$(dirname "$0")/.."

BUNDLE=$(realpath "${BUNDLE:?}")
OUT=$(realpath -m "${OUT:?}")
mkdir -p "$OUT"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
exec > >(tee -a "$OUT/log.txt") 2>&1

if [ -n "${REHEARSE:-}" ]; then
    device=${DEVICE:-cpu} dtype=${DTYPE:-f32} torch_device=cpu tiny=--tiny runs=2 limit=600 share=32 size=128 latents=16,16 frames=5 clip=32x48 clip_latents=2,4,6 large=256x256
else
    device=${DEVICE:-cuda:0} dtype=${DTYPE:-bf16} torch_device=cuda tiny='' runs=20 limit=530 share=1 size=1024 latents=128,128 frames=17 clip=480x832 clip_latents=5,60,104 large=4096x4096
fi
deadline=$((SECONDS + limit))

# CUDA's compiler and headers: of a toolkit, or of the wheels that torch brings.
python=$(command -v python3 || command -v python || true)
if [ -z "${CUDA_PATH:-}" ]; then
    site=$("$python" -c 'import site; print(site.getsitepackages()[0])' 2> /dev/null)
    for folder in /usr/local/cuda "$site/nvidia/cu13" "$BUNDLE/cuda"; do
        if compgen -G "$folder/lib*/libnvrtc.so*" > /dev/null && [ -e "$folder/include/cuda_fp16.h" ]; then
            CUDA_PATH=$folder
            break
        fi
    done
    export CUDA_PATH
fi
if [ -n "${CUDA_PATH:-}" ]; then
    # The program asks for the name without a version.
    nvrtc=$(compgen -G "$CUDA_PATH/lib*/libnvrtc.so*" | head -n 1)
    ln -sf "$nvrtc" "$work/libnvrtc.so"
    export LD_LIBRARY_PATH="$work:$(dirname "$nvrtc"):${LD_LIBRARY_PATH:-}"
fi
ours() { LD_PRELOAD=$BUNDLE/libno_llvm.so "$@"; }
tilevae() { ours "$BUNDLE/tilevae" "$@"; }

# The JSON lines so far, as one array.
collect() {
    grep -h '^{' "$work"/*.json 2> /dev/null | sed '$!s/$/,/; 1s/^/[\n/; $s/$/\n]/' > "$work/all" && mv "$work/all" "$OUT/results.json"
}

# step NAME SECONDS COMMAND: at most so many seconds of those that are left.
step() {
    local name=$1 most=$2 left=$((deadline - SECONDS)) begun=$SECONDS status
    shift 2
    if [ $left -lt 10 ]; then
        echo "{\"step\": \"$name\", \"skipped\": \"no time is left\"}" > "$work/$name.json"
        collect
        return
    fi
    printf '\n== %s (%s s left)\n' "$name" "$left"
    export -f "$1" 2> /dev/null
    timeout -k 5 $((most < left ? most : left)) bash -c 'set -uo pipefail; "$@"' step "$@" | tee "$work/$name.json"
    status=${PIPESTATUS[0]}
    echo "{\"step\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - begun))}" >> "$work/$name.json"
    collect
}
export -f ours tilevae
export BUNDLE OUT work device dtype torch_device tiny runs share size latents frames clip clip_latents large python

versions() {
    nvidia-smi
    "$python" -c 'import torch, diffusers; print(torch.__version__, diffusers.__version__, torch.version.cuda)'
    echo "CUDA_PATH=${CUDA_PATH:-none}"
    tilevae --version
    tilevae devices
    nproc
}

models() {
    "$python" tools/gpu_models.py "$work" --models sdxl,sd1,wan21 $tiny || return
    "$python" tools/gpu_models.py "$work" --models '' --input "kl=1,4,$latents" --input "clip=1,16,$clip_latents" || return
    "$python" tools/gpu_models.py "$work" --models '' --input "frames=1,3,$frames,${clip/x/,}" --samples
}

# Timed runs of the whole model on the device, and what its output differs by: MODEL DIRECTION INPUT DTYPE.
ours_of() {
    local keys=(--device "$device" --model "$work/$1" --set "model.dtype=$4" --set tiling.kind=off --set "devices.tf32=${5:-true}" --set io.latent_space=vae --format json -q)
    tilevae bench "$work/$3.safetensors" --direction "$2" --executor sequential --runs "$runs" "${keys[@]}" | "$python" -c '
import json, sys
run = json.load(sys.stdin)["runs"][0]
what, dtype = sys.argv[1:]
print(json.dumps({"what": what, "program": "tilevae", "dtype": dtype} | {key: run.get(key) for key in ("seconds", "busy", "device_memory_bytes", "peak_memory_bytes")}))' "$1 $2" "$4"
    tilevae "$2" "$work/$3.safetensors" -o "$work/ours.safetensors" "${keys[@]}" > /dev/null && "$python" tools/gpu_torch.py "$work" "$1" "$2" "$work/$3.safetensors" --compare "$work/ours.safetensors"
}
torch_of() { "$python" tools/gpu_torch.py "$work" "$1" "$2" "$work/$3.safetensors" --device "$torch_device" --runs "$runs" --settings "$4" --dtype "${5:-$dtype}"; }
bench() { TILEVAE_TEST_DEVICE=${device%:*} TILEVAE_TEST_DTYPE=$dtype TILEVAE_TEST_SHARE=$share ours "$BUNDLE/vae_core_tests" --ignored --nocapture --exact "operators::cube::bench::$1"; }

# The operators' tests, which compare every device that they find with the CPU: DEVICE.
operators() { (cd crates/vae-core && TILEVAE_TEST_DEVICE=$1 ours "$BUNDLE/vae_core_tests" operators --test-threads 1); }

tiled() {
    tilevae bench "$large" --executor sequential,pipelined --device "$device" --model "$work/sdxl" --set model.dtype=$dtype --set tiling.kind=uniform --set tiling.tile_px=$size --format json -q
}
mixed() {
    tilevae bench "$large" --executor multi-device --workers 2 --device "$device" --device cpu --model "$work/sdxl" --set tiling.kind=uniform --set tiling.tile_px=$((size / 2)) --format json -q
}
# Time by kernel, from CubeCL's own clock.
profile() {
    mkdir -p "$work/profile" && cd "$work/profile" || return
    printf '[profiling]\nlogger = { level = "medium", file = "%s/profile/kernels" }\n' "$work" > cubecl.toml
    tilevae bench "$work/kl.safetensors" --direction decode --executor sequential --runs 2 --device "$device" --model "$work/sdxl" --set model.dtype=$dtype --set tiling.kind=off -q
    tail -n 200 kernels > "$OUT/profile.txt"
}
# Workers of one thread, and one worker of all threads, against torch.
cpu_scaling() {
    local cores model input
    cores=$(nproc)
    for model in sd1 wan21; do
        input=$([ $model = sd1 ] && echo kl || echo clip)
        for workers in 1 2 4 8 16; do
            [ $workers -le "$cores" ] && tilevae bench "$work/$input.safetensors" --direction decode --executor multi-device --workers $workers --device cpu --model "$work/$model" --set devices.cpu.threads_per_worker=1 --set tiling.kind=uniform --set tiling.tile_px=$((size / 4)) --format json -q
        done
        tilevae bench "$work/$input.safetensors" --direction decode --executor sequential --device cpu --model "$work/$model" --set devices.cpu.threads_per_worker="$cores" --set tiling.kind=off --format json -q
        for dtype in f32 bf16; do
            "$python" tools/gpu_torch.py "$work" $model decode "$work/$input.safetensors" --device cpu --runs 1 --settings channels_last --threads "$cores" --dtype $dtype
        done
    done
}

step versions 30 versions
step models 40 models
step bandwidth 20 bench bandwidth
step matrix_rate 30 bench matrix_rate
step sdxl_torch 150 torch_of sdxl decode kl eager,channels_last,compiled
step sdxl_ours 120 ours_of sdxl decode kl "$dtype"
step sdxl_f32 60 ours_of sdxl decode kl f32 false
step operators 60 operators "${device%:*}"
step convolutions 60 bench convolutions
step norms 20 bench norms
step wan_torch 60 torch_of wan21 decode clip eager
step wan_ours 100 ours_of wan21 decode clip "$dtype"
step wan_encode_torch 40 torch_of wan21 encode frames eager
step wan_encode_ours 60 ours_of wan21 encode frames "$dtype"
step sdxl_tf32 40 ours_of sdxl decode kl f32
step tiled 40 tiled
step profile 40 profile
step mixed 40 mixed
step cpu_scaling 90 cpu_scaling
step vulkan 40 operators vulkan
printf '\ndone after %s s\n' "$SECONDS"
