"""Every registered operation against torch.library's own checks: schema, shapes without data, gradients, tracing."""

import pytest
import torch

import minilava_kernels.norm
import minilava_kernels.pool
import minilava_kernels.rope_kv
import minilava_kernels.splice
import minilava_kernels.swiglu  # noqa: F401
from tests.kernels.interpreter import DEVICE

IMPLS = ["native", "triton"] if DEVICE == "cpu" else ["triton"]


def leaf(*shape, grad=True):
    return torch.randn(*shape, device=DEVICE, requires_grad=grad)


def cases():
    """(operation, arguments) for every registered operation."""
    for impl in IMPLS:
        for residual in (None, leaf(5, 12)):
            yield "norm", (leaf(5, 12), residual, leaf(12), None, 1e-6, impl)
    yield "norm", (leaf(5, 12), leaf(5, 12), leaf(12), leaf(12), 1e-6, "triton")
    yield "norm_backward", (*(leaf(*s, grad=False) for s in ((5, 12), (12,))), True, leaf(5, 12, grad=False), None,
                            1e-6, "triton")  # fmt: skip
    for impl in IMPLS:
        yield "swiglu", (leaf(3, 20), leaf(3, 20), impl)
        yield "swiglu_backward", (*(leaf(3, 20, grad=False) for _ in range(3)), impl)
        yield "rope", (leaf(3, 2, 8), leaf(3, 1, 8), leaf(3, 4, grad=False), leaf(3, 4, grad=False), 1.0, impl)
        tables, cache = [leaf(9, 4, grad=False) for _ in range(2)], [leaf(5, 1, 8, grad=False) for _ in range(2)]
        at = torch.tensor([4, 0, 2], device=DEVICE)
        yield "rope_kv", (*(leaf(3, n, grad=False) for n in (16, 8, 8)), *tables, at, *cache, at, impl)
    taps, weights = torch.randint(6, (5, 4), device=DEVICE), torch.rand(5, 4, device=DEVICE)
    for w in (weights, None):
        yield "pool", (leaf(6, 12), taps, w, "triton")
        yield "pool_backward", (leaf(6, 12, grad=False), taps, w, leaf(5, 12, grad=False), "triton")
    ids, rows = torch.tensor([3, 0, 0, 0, 1], device=DEVICE), torch.tensor([1, 2, 3], device=DEVICE)
    source = torch.tensor([2, 7, 16], device=DEVICE)
    for grad in (True, False):
        x = leaf(4, 12, grad=grad), ids, rows, source, leaf(6, 12, grad=grad), taps, weights, taps, leaf(12, grad=grad)
        yield ("splice", (*x, "triton")) if grad else ("splice_backward", (*x, leaf(5, 12, grad=False), "triton"))


CASES = list(cases())


@pytest.mark.parametrize("name, arguments", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_operator(name, arguments):
    torch.library.opcheck(getattr(torch.ops.minilava, name).default, arguments)


def test_none_is_left_out():
    ours = {n.removeprefix("minilava::").split(".")[0] for n in torch._C._dispatch_get_all_op_names()
            if n.startswith("minilava::")}  # fmt: skip
    assert ours == {name for name, _ in CASES}
