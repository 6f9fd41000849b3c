#!/usr/bin/env bash
# Builds the program with the feature cuda-nvrtc where the LLVM that Burn wants for CUDA cannot be downloaded: see docs/cuda.md. Needs cc and nm.
# Further arguments go to cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

# Burn's build scripts leave LLVM alone then.
export DOCS_RS=1
target=${CARGO_TARGET_DIR:-target}
build() {
    local link=$1
    shift
    cargo rustc --release --locked -p tilevae-cli --bin tilevae --features cuda-nvrtc "$@" -- "-Clink-arg=$link"
}

# NVRTC takes the place of LLVM, but the program still names LLVM's functions. First find out which; then put one in their place that ends the program.
build -Wl,--unresolved-symbols=ignore-all "$@"
names=$(nm -D --undefined-only "$target/release/tilevae" | awk '$NF ~ /^(LLVM|cubecl_)/ { print $NF }')
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    printf 'void tilevae_no_llvm(void) { fputs("this program was built without LLVM\\n", stderr); abort(); }\n'
    printf 'void %s(void) __attribute__((alias("tilevae_no_llvm")));\n' $names
} > "$target/no-llvm.c"
cc -c -o "$target/no-llvm.o" "$target/no-llvm.c"
build "$(realpath "$target/no-llvm.o")" "$@"
"$target/release/tilevae" devices
