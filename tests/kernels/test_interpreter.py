"""What the tests' interpreter says about float32 holds on a GPU, and is not what a CPU would give."""

import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.interpreter import DEVICE


@triton.jit
def _apply(X, OUT, FUNCTION: tl.constexpr):
    at = tl.arange(0, 1024)
    x = tl.load(X + at)
    if FUNCTION == "divide":
        y = 7.0 / x
    elif FUNCTION == "sqrt":
        y = tl.sqrt(x)
    elif FUNCTION == "exp":
        y = tl.exp(x)
    elif FUNCTION == "exp2":
        y = tl.exp2(x)
    elif FUNCTION == "div_rn":
        y = tl.div_rn(7.0 + tl.zeros_like(x), x)
    else:
        y = tl.sqrt_rn(x)
    tl.store(OUT + at, y)


EXACT = {"divide": lambda x: 7 / x, "sqrt": torch.sqrt, "exp": torch.exp, "exp2": torch.exp2}


@pytest.mark.parametrize(
    ("function", "exact", "ulps"),
    [("divide", "divide", 2), ("sqrt", "sqrt", 1), ("exp", "exp", 6), ("exp2", "exp2", 1)]
    + [("div_rn", "divide", 0), ("sqrt_rn", "sqrt", 0)],
)
def test_off_by_what_is_documented(function, exact, ulps):
    x = torch.rand(1024, device=DEVICE) * 3 + 0.5
    out = torch.empty_like(x)
    _apply[(1,)](x, out, function)
    nearest = EXACT[exact](x.double()).float()
    off = (out.view(torch.int32) - nearest.view(torch.int32)).abs()
    assert off.max() <= ulps
    if DEVICE == "cpu":
        assert off.max() == ulps or (function == "exp" and off.max() > 1)


def test_powers_of_nothing_and_infinities_are_exact():
    x = torch.tensor([0.0, -float("inf"), float("inf"), float("nan")], device=DEVICE).repeat(256)
    out = torch.empty_like(x)
    _apply[(1,)](x, out, "exp2")
    assert out[:3].tolist() == [1, 0, float("inf")] and out[3].isnan()


@triton.jit
def _product(A, B, OUT, PRECISION: tl.constexpr):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(OUT + at, tl.dot(tl.load(A + at), tl.load(B + at), input_precision=PRECISION))


def test_products_in_float32():
    """One sum after the other, and no operand rounded to the 10 bits of TF32."""
    a, b = torch.randn(2, 16, 16, device=DEVICE)
    out = torch.empty_like(a)
    _product[(1,)](a, b, out, "ieee")
    chain = torch.zeros(16, 16, dtype=torch.float64, device=DEVICE)
    for k in range(16):
        chain = (chain + a[:, k, None].double() * b[None, k].double()).float().double()
    exact = a.double() @ b.double()
    assert (out - exact).abs().max() <= 2 * (chain - exact).abs().max()
    if DEVICE == "cpu":
        assert torch.equal(out, chain.float())
        with pytest.raises(triton.runtime.errors.InterpreterError, match="TF32"):
            _product[(1,)](a, b, out, "tf32")
