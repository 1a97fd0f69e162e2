#!/usr/bin/env bash
# Everything that is to be measured on a machine with a GPU, in one call: bash tests/perf/gpu.sh FOLDER
# It needs `ownbench` importable and OWNBENCH_DATA; each part leaves its output in FOLDER, a part that fails stops no other.
set -uo pipefail
to=${1:?"expected a folder for what is measured"}
run="python -m bench run"
mkdir -p "$to"

part() {
    local name=$1
    shift
    echo "== $name: $*"
    local began=$SECONDS
    "$@" >"$to/$name.log" 2>&1
    echo "   exit $?, $((SECONDS - began)) s"
    tail -n 3 "$to/$name.log"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
# The loop against a plain PyTorch loop; bar: 3 times.
part training python -m tests.perf.training --device cuda --to "$to"
# The clean ResNet-18 of the suite; bar: 94 %.
part clean $run cifar10 --only defense=none --only attack=none --device cuda --out "$to/clean"
# The default suite, whose claims must be those of the CPU.
part digits $run digits --device cuda --out "$to/digits"
part agree python -m tests.perf.agree results/digits "$to/digits"
# Jobs an hour, one at a time and packed; the second is the whole suite's wall time.
part alone $run cifar10 --only attack=distill --only defense=uchida --gpus-per-job 1 --device cuda --out "$to/alone"
part packed $run cifar10 --only attack=distill --only defense=uchida --device cuda --out "$to/packed"
part cifar10 $run cifar10 --device cuda --out "$to/cifar10"
