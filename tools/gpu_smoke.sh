#!/usr/bin/env bash
# Runs the golden tests of all families, and those of the GPU kernels, on Vulkan. Where no GPU's driver is named (VK_DRIVER_FILES), on lavapipe, Mesa's device in
# software, which is installed on Debian and its kin if it is missing. Each crate's tests are a process of their own: a driver that crashes ends one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VK_DRIVER_FILES:-}" ]; then
    lavapipe() { find /usr/share/vulkan/icd.d -name 'lvp_icd*.json' 2>/dev/null | head -n 1; }
    if [ -z "$(lavapipe)" ] && command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends mesa-vulkan-drivers libvulkan1
    fi
    if [ -z "$(lavapipe)" ]; then
        echo "skipped: there is no lavapipe here and it cannot be installed; packages mesa-vulkan-drivers and libvulkan1 of Debian have it"
        exit 0
    fi
    VK_DRIVER_FILES=$(lavapipe)
    export VK_DRIVER_FILES VK_ICD_FILENAMES=$VK_DRIVER_FILES
fi
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-$(mktemp -d)}
export TILEVAE_TEST_DEVICE=vulkan

build=(--release --locked -p tilevae-cli --features tilevae-cli/vulkan)
cargo run "${build[@]}" -- devices
cargo test --no-fail-fast "${build[@]}" -p tilevae -p tilevae-core -p tilevae-kl -p tilevae-wan -- gpu golden operators
