#!/usr/bin/env bash
# What is to be measured on a machine with a GPU: bash tests/perf/gpu.sh FOLDER [PART ...]
#
# Parts, all of them where none is named:
#   training   the loop against a plain PyTorch loop (bar: 3 times)
#   clean      the undefended ResNet-18 of `cifar10` (bar: 94 %) and its wall time
#   digits     the default suite, whose claims must be those of results/digits
#   packing    jobs an hour of `cifar10`, one at a time and sharing the GPU
#   suite      `cifar10` whole, hours of it
# It needs `ownbench` importable and OWNBENCH_DATA. Runs lie in FOLDER/runs and go on where they were broken off; tables
# and logs lie in FOLDER itself. A part that fails stops no other. DEVICE=cpu rehearses it where there is no GPU.
set -uo pipefail
to=${1:?"expected a folder for what is measured"}
shift
device=${DEVICE:-cuda}
mkdir -p "$to/runs"

say() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name: $*"
    "$@" >"$to/$name.log" 2>&1
    echo "   exit $?, $((SECONDS - began)) s"
    tail -n 4 "$to/$name.log"
}

# A run under a name of ours, and its records as one file.
run() {
    local name=$1
    shift
    say "$name" python -m bench run "$@" --device "$device" --out "$to/runs/$name"
    cp "$to/runs/$name/records.parquet" "$to/$name.parquet"
}

measure_training() {
    say training python -m tests.perf.training --device "$device" --to "$to"
}

measure_clean() {
    run clean cifar10 --only task=resnet18 --only defense=none --only attack=none
}

measure_digits() {
    run digits digits
    say agree python -m tests.perf.agree results/digits "$to/runs/digits"
}

measure_packing() {
    run alone cifar10 --only task=resnet20 --only defense=uchida --only attack=distill --gpus-per-job 1
    run packed cifar10 --only task=resnet20 --only defense=uchida --only attack=distill
    say packing python -m tests.perf.packing "$to/runs/alone" "$to/runs/packed" --to "$to"
}

measure_suite() {
    run cifar10 cifar10
}

parts="training clean digits packing suite"
[ $# -gt 0 ] || set -- $parts
for part in "$@"; do
    [[ " $parts " == *" $part "* ]] || { echo "expected some of $parts, got '$part'" >&2 && exit 2; }
done
[ "$device" = cpu ] || nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
for part in "$@"; do
    "measure_$part"
done
