# What CI runs.
ci:
    bash .ci/run

# Format, lint, test.
check:
    cargo fmt --all
    cargo clippy --release --workspace --all-targets -- -D warnings
    cargo test --release --workspace

# Damaged files: so many cases of every way in, of a seed.
fuzz cases seed="0":
    TILEVAE_FUZZ_CASES={{cases}} TILEVAE_FUZZ_SEED={{seed}} cargo test --release -p tilevae --test it -- hostile

# The same ways in by coverage: each target (all when none is named) for so many seconds. Needs nightly Rust and `cargo install cargo-fuzz`.
fuzz-coverage seconds *targets:
    bash tools/fuzz.sh {{seconds}} {{targets}}

# The golden case on Burn's ndarray backend; compiling it takes over ten minutes of processor time.
ndarray:
    cargo test --release -p tilevae-cli --features ndarray ndarray

# Devices that other processes serve, on loopback.
remote:
    cargo test --release -p tilevae-cli --features remote -- remote

# What the engine costs without a model, and how busy it keeps simulated devices.
bench:
    cargo bench --manifest-path benches/Cargo.toml --target-dir target

# Type-check the GPU backends without what they need to link.
check-gpu:
    DOCS_RS=1 cargo check --release -p tilevae-cli --features cuda,vulkan

# The golden files and the GPU kernels on Vulkan, where there is no GPU on Mesa's device in software; compiling Burn for it takes about an hour of processor time.
gpu-smoke:
    bash tools/gpu_smoke.sh

# The program with CUDA where Burn's LLVM cannot be downloaded (see docs/cuda.md).
cuda-nvrtc:
    bash tools/build_cuda_nvrtc.sh

# What `tools/gpu_session.sh` takes to a machine with an NVIDIA GPU.
gpu-bundle:
    bash tools/gpu_bundle.sh

# Golden files from diffusers (see tools/requirements.txt).
fixtures:
    python tools/make_fixtures.py

# The small valid files that `just fuzz` damages.
seeds:
    python tools/make_seeds.py

# The example clip and its latents.
examples:
    python tools/make_examples.py

# tilevae against diffusers on this machine.
bench-peer:
    cargo build --release -p tilevae-cli
    python tools/bench_peer.py

# Licences and advisories.
deny:
    cargo deny check
