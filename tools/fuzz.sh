#!/usr/bin/env bash
# Runs fuzz targets, one after the other, each for some seconds: tools/fuzz.sh SECONDS [TARGET...] (all when none is named).
# Needs a nightly toolchain and cargo-fuzz. What goes wrong is left in fuzz/artifacts/TARGET; mended, it becomes a case in crates/tilevae/tests/it/hostile/found.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=$1
shift
targets=("$@")
if [ ${#targets[@]} = 0 ]; then
    for file in targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

scratch=$(mktemp -d -p "$([ -d /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$scratch"' EXIT
failed=()
for target in "${targets[@]}"; do
    # The seeds of all ways that the target names.
    seeds=()
    for way in $(grep -o '"[^"]*"' "targets/$target.rs" | tr -d '"'); do
        for folder in seeds found; do
            [ -d "../crates/tilevae/tests/it/hostile/$folder/$way" ] && seeds+=("../crates/tilevae/tests/it/hostile/$folder/$way")
        done
    done
    mkdir -p "corpus/$target"
    printf '\n== %s\n' "$target"
    TMPDIR=$scratch cargo +nightly fuzz run --fuzz-dir . --sanitizer none "$target" "corpus/$target" "${seeds[@]}" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 || failed+=("$target")
done
if [ ${#failed[@]} != 0 ]; then
    echo "found something: ${failed[*]}"
    exit 1
fi
