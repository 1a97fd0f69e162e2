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
suite() {
    local name=$1
    shift
    say "$name" python -m bench run "$@" --device "$device" --out "$to/runs/$name"
    cp "$to/runs/$name/records.parquet" "$to/$name.parquet"
}

training() {
    say training python -m tests.perf.training --device "$device" --to "$to"
}

clean() {
    suite clean cifar10 --only task=resnet18 --only defense=none --only attack=none
}

digits() {
    suite digits digits
    say agree python -m tests.perf.agree results/digits "$to/runs/digits"
}

packing() {
    suite alone cifar10 --only task=resnet20 --only defense=uchida --only attack=distill --gpus-per-job 1
    suite packed cifar10 --only task=resnet20 --only defense=uchida --only attack=distill
    say packing python -m tests.perf.packing "$to/runs/alone" "$to/runs/packed"
    cp "$to/runs/packing.parquet" "$to"
}

whole() {
    suite cifar10 cifar10
}

[ "$device" = cpu ] || nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
[ $# -gt 0 ] || set -- training clean digits packing suite
for part in "$@"; do
    case $part in
    training | clean | digits | packing) "$part" ;;
    suite) whole ;;
    *) echo "expected one of training, clean, digits, packing, suite, got '$part'" >&2 && exit 2 ;;
    esac
done
