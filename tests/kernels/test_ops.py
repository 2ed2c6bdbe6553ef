"""Every registered operation against torch.library's own checks: schema, shapes without data, gradients, tracing."""

import pytest
import torch

import minilava_kernels.norm  # noqa: F401
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


CASES = list(cases())


@pytest.mark.parametrize("name, arguments", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_operator(name, arguments):
    torch.library.opcheck(getattr(torch.ops.minilava, name).default, arguments)


def test_none_is_left_out():
    ours = {n.removeprefix("minilava::").split(".")[0] for n in torch._C._dispatch_get_all_op_names()
            if n.startswith("minilava::")}  # fmt: skip
    assert ours == {name for name, _ in CASES}
