#!/usr/bin/env bash
# Builds what tools/gpu_session.sh takes to a machine with a GPU, in target/gpu-bundle and as target/gpu-bundle.tar.xz of at most 40 MiB: the program and the
# tests of the operators, which time single kernels, too, with the features cuda-nvrtc and vulkan; and diffusers as wheels, if pip can have them. Needs no GPU; compiling
# takes about half an hour on two cores. Further arguments go to cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

# A folder of its own, because the flags would compile everything anew: as in tools/build_cuda_nvrtc.sh LLVM is left out, and a library with its names takes its place.
export DOCS_RS=1 CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-13000} CARGO_TARGET_DIR=${GPU_TARGET_DIR:-target/gpu}
export RUSTFLAGS=-Clink-arg=-Wl,--unresolved-symbols=ignore-all
# shellcheck disable=SC2054 # a list of cargo's.
features=(--release --locked --workspace --features tilevae-cli/cuda-nvrtc,tilevae-cli/vulkan,tilevae-core/testing "$@")
# Names of the executables that cargo reports.
built() { grep -o '"executable":"[^"]*"' | cut -d'"' -f4; }
cargo build "${features[@]}" --bin tilevae
tests=$(cargo test "${features[@]}" --lib --no-run --message-format json 2> /dev/null | built | grep '/vae_core-')

bundle=target/gpu-bundle
rm -rf "$bundle" && mkdir -p "$bundle"
cp "$CARGO_TARGET_DIR/release/tilevae" "$bundle"
cp "$tests" "$bundle/vae_core_tests"

# With a version of its own, so that a Vulkan driver that has an LLVM keeps it.
names=$(nm -D --undefined-only "$bundle"/* | awk '$NF ~ /^(LLVM|cubecl_)/ { print $NF }' | sort -u)
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    printf 'void tilevae_no_llvm(void) { fputs("this program was built without LLVM\\n", stderr); abort(); }\n'
    # shellcheck disable=SC2086 # a line for each.
    printf 'void %s(void) __attribute__((alias("tilevae_no_llvm")));\n' $names
} > "$CARGO_TARGET_DIR/no_llvm.c"
echo 'NO_LLVM { global: *; };' > "$CARGO_TARGET_DIR/no_llvm.map"
cc -shared -fPIC -Wl,--version-script="$CARGO_TARGET_DIR/no_llvm.map" -o "$bundle/libno_llvm.so" "$CARGO_TARGET_DIR/no_llvm.c"

strip "$bundle"/*

# Vulkan's loader, for machines that have NVIDIA's driver for it alone.
loader=$(ldconfig -p | awk '/libvulkan\.so\.1 .*x86-64/ { print $NF; exit }')
if [ -n "$loader" ]; then
    mkdir "$bundle/lib"
    cp -L "$loader" "$bundle/lib/libvulkan.so.1"
else
    echo 'no libvulkan.so.1 is here: the bundle goes without'
fi
# Diffusers with what torch does not need, of the versions in tools/requirements.txt. Stored, not deflated: then xz makes a fifth of it.
if ! python3 - "$bundle/wheels" << 'PYTHON'; then
import pathlib, re, subprocess, sys, tempfile, zipfile

out, pinned = pathlib.Path(sys.argv[1]), pathlib.Path("tools/requirements.txt").read_text()
packages = [re.search(r"^diffusers==\S+", pinned, re.M)[0], "importlib_metadata", "zipp"]
out.mkdir()
with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, *packages], check=True)
    for wheel in pathlib.Path(folder).glob("*.whl"):
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out / wheel.name, "w", zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
PYTHON
    echo 'the wheels of diffusers cannot be had: the bundle goes without'
    rm -rf "$bundle/wheels"
fi

tar -C "$bundle" -cf - . | xz -T1 --x86 --lzma2=preset=6e,dict=512MiB > "$bundle.tar.xz"
size=$(stat -c %s "$bundle.tar.xz")
echo "$bundle.tar.xz: $((size >> 20)) MiB"
test "$size" -le $((40 << 20))
