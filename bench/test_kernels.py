"""The microbenchmarks under pytest-benchmark: pytest bench --benchmark-only."""

from importlib import import_module

import pytest
import torch

from bench import micro

STEMS = (
    "norm",
    "swiglu",
    "pool",
    "splice",
    "rope_kv",
    "projector",
    "cross_entropy",
    "linear_q",
    "sample",
    "decode_attention",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def named_cases():
    for stem in STEMS:
        for case in import_module(f"bench.{stem}").cases(DEVICE, DTYPE):
            yield pytest.param(case, id=f"{stem}: {case.name}")


@pytest.mark.parametrize("case", named_cases())
def test_kernel(benchmark, case):
    micro.check(case)

    def run():
        case.ours(*case.inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        benchmark(run)
