"""Every registered operation against PyTorch's own checks: schema, shapes without data, gradients, tracing."""

import pytest
import torch
from torch import library

import minilava_kernels.attention
import minilava_kernels.cross_entropy
import minilava_kernels.decode_attention
import minilava_kernels.linear_i8
import minilava_kernels.linear_q
import minilava_kernels.norm
import minilava_kernels.pool
import minilava_kernels.projector
import minilava_kernels.rope_kv
import minilava_kernels.sample
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
    weights = [leaf(*s, grad=False) for s in ((6, 8), (6,), (4, 6), (4,))]
    yield "projector", (leaf(2, 3, 8), *(w.clone().requires_grad_() for w in weights), "triton")
    for need_dx in (True, False):
        x = leaf(3, 8, grad=False), leaf(3, 6, grad=False), weights[0], weights[2], leaf(3, 4, grad=False)
        yield "projector_backward", (*x, need_dx, "triton")
    targets = torch.tensor([3, 0, 9], device=DEVICE)
    for impl in ("chunked", "triton"):
        yield "cross_entropy", (leaf(3, 8), leaf(10, 8), targets, impl)
        x = leaf(3, 8, grad=False), leaf(10, 8, grad=False), targets, leaf(3, grad=False), leaf(3, grad=False)
        yield "cross_entropy_backward", (*x, True, impl == "triton", impl)
    for form, impl in (((8,), "gemv"), ((4, 32), "gemm"), ((4, 32, True), "triton")):
        q = minilava_kernels.linear_q.quantize(leaf(5, 64, grad=False), *form)
        yield "linear_q", (leaf(2, 3, 64), q.values, q.scales, q.zeros, leaf(5), q.bits, q.group, impl)
    p = minilava_kernels.linear_i8.pack(torch.randn(5, 64), 8)
    yield "linear_i8", (torch.randn(2, 3, 64), p.values, p.scales, None, torch.randn(2, 3, 5), p.n, p.bits, "gelu_tanh")
    for impl in ("reference", "triton"):
        ones, zeros = torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE, dtype=torch.int64)
        yield "sample", (leaf(2, 9, grad=False), ones, zeros + 5, ones / 2, ones / 9, zeros, zeros, impl)
    cu = torch.tensor([0, 3, 3, 5], dtype=torch.int32, device=DEVICE)
    for impl in IMPLS:
        yield "attention", (leaf(5, 4, 8), leaf(5, 2, 8), leaf(5, 2, 8), cu, cu[:-1], cu.diff(), True, 3, 0.3, impl)
        x = [leaf(*s, grad=False) for s in ((5, 4, 8), (5, 4, 8), (5, 2, 8), (5, 2, 8), (5, 4, 8), (5, 4))]
        yield "attention_backward", (*x, cu, True, 3, 0.3, impl)
    x = [leaf(*s, grad=False) for s in ((3, 4, 8), (5, 2, 8), (5, 2, 8), (2, 16, 2, 8), (2, 16, 2, 8))]
    table = torch.tensor([[0, 1], [1, 0], [0, 0]], dtype=torch.int32, device=DEVICE)
    yield "decode_attention", (*x[:3], cu[:-1], cu.diff(), 3, None, 0.3, "triton")
    yield "decode_attention", (x[0], *x[3:], None, cu.diff(), 3, table, 0.3, "triton")


CASES = list(cases())


@pytest.mark.parametrize("name, arguments", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_operator(name, arguments):
    library.opcheck(getattr(torch.ops.minilava, name).default, arguments)


def test_none_is_left_out():
    ours = {n.removeprefix("minilava::").split(".")[0] for n in torch._C._dispatch_get_all_op_names()
            if n.startswith("minilava::")}  # fmt: skip
    assert ours == {name for name, _ in CASES}
