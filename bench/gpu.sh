#!/usr/bin/env bash
# Build for, test on and measure the GPU of this machine, with the Python that is here and without a network.
#
#   bash bench/gpu.sh [RESULTS]      (PYTHON=python3; RESULTS defaults to bench/results)
#   ONLY="build tests end_to_end" bash bench/gpu.sh      some parts: all of them take about half an hour
#
# Needs torch and Triton for this GPU, nvcc, pybind11, setuptools, pytest and pytest-xdist. A part that fails does not
# stop the rest; the exit status says whether one did. Every part's output is kept beside the results.
# MINILAVA_COMMIT stands in the results where the tree is a copy without its history.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=$(realpath -m "${1:-bench/results}")
mkdir -p "$OUT"
failed=()

part() {  # part NAME SECONDS COMMAND...: run it, keep its output
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] || return 0
    if timeout "$limit" "$@" >"$OUT/gpu-$name.log" 2>&1; then
        echo "ok     $name, $((SECONDS - began)) s: $(tail -n 1 "$OUT/gpu-$name.log" | cut -c1-150)"
    else
        echo "FAILED $name, $((SECONDS - began)) s:"
        tail -n 25 "$OUT/gpu-$name.log"
        failed+=("$name")
    fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader || exit 1
export MINILAVA_CUDA=1 MINILAVA_RESULTS=$OUT
part build 240 "$PYTHON" -m pip install -q --no-deps --no-build-isolation --no-index -e .
part doctor 60 "$PYTHON" -m minilava.doctor
part tests 240 "$PYTHON" -m pytest -q -m gpu tests
# Nearly all of the time is compiling, one kernel a core.
part kernels 400 "$PYTHON" -m pytest -q -n "$(nproc)" tests/kernels --maxfail=30 \
    -k "triton or operator or decode_attention or cross_entropy or linear_q or sample or splice or projector"
part end_to_end 300 "$PYTHON" -m bench.end_to_end_gpu --keep
for stem in norm swiglu pool splice rope_kv projector attention decode_attention cross_entropy linear_q sample; do
    part "$stem" 150 "$PYTHON" -m "bench.$stem" --device cuda --keep
done
part preprocess 90 "$PYTHON" -m bench.preprocess --device cuda
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
