"""linear_q: formats and their errors, products against float64, and a row in any batch."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava_kernels.linear_q import dequantize, linear_q, linear_q_reference, quantize
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within, assert_within

pytestmark = pytest.mark.usefixtures("nan_filled")

FORMATS = [(8, 0, False), (8, 32, False), (8, 128, False)]
FORMATS += [(4, group, zero_point) for group in (32, 64, 128) for zero_point in (False, True)]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def make(rows, k, n, dtype, form):
    weight = (torch.randn(n, k, device=DEVICE) + 0.3) * k**-0.5
    return torch.randn(rows, k, device=DEVICE), quantize(weight.to(dtype), *form), torch.randn(n, device=DEVICE)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_the_nearest(dtype, form):
    weight = (torch.randn(7, 256) * torch.logspace(-2, 2, 7)[:, None]).to(dtype)
    weight[3, :128] = 0
    q = quantize(weight, *form)
    bits, group, zero_point = form
    assert q.values.nbytes == 7 * 256 * bits // 8 and q.scales.dtype == dtype
    assert q.scales.shape == (7, 256 // group if group else 1) and (q.zeros is not None) == zero_point
    scale = q.scales.double().repeat_interleave(group or 256, 1)
    error = (dequantize(q, torch.float64) - weight.double()).abs() / scale
    # Half a step, and as much as rounding the scale moves the outermost values: up to 127 (15, 7) steps.
    steps = 127 if bits == 8 else 15 if zero_point else 7
    assert error.max() <= 0.5 + steps * torch.finfo(dtype).eps
    assert not dequantize(q)[3, :128].any()


def test_halves_of_a_group_share_bytes():
    weight = torch.randint(-7, 8, (3, 128)).float()
    weight[:, ::32] = 7  # every group's largest: scales of 1
    q = quantize(weight, 4, 32)
    assert torch.equal(dequantize(q), weight) and (q.scales == 1).all()
    bytes_ = q.values.view(3, 4, 16)
    assert torch.equal((bytes_ & 15).int() - 8, weight.view(3, 4, 32)[:, :, :16].int())
    assert torch.equal((bytes_ >> 4).int() - 8, weight.view(3, 4, 32)[:, :, 16:].int())
    with pytest.raises(FrozenInstanceError):
        q.bits = 8


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 4), st.integers(0, 2**31), st.floats(-6, 4))
def test_quantizing_again_changes_nothing(form, rows, seed, exponent):
    weight = torch.randn(rows, 256, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    q = quantize(weight, *form)
    again = quantize(dequantize(q), *form)
    assert torch.allclose(dequantize(again), dequantize(q), rtol=1e-5, atol=0)
    assert q.values.shape == again.values.shape


@pytest.mark.parametrize("impl", ["gemv", "gemm"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMATS)
def test_triton(impl, dtype, form):
    x, q, bias = make(*((3, 384, 21) if impl == "gemv" else (20, 384, 70)), dtype, form)
    exact = x.to(dtype).double() @ dequantize(q, torch.float64).T
    assert_within(linear_q(x.to(dtype), q, impl=impl), linear_q_reference(x.to(dtype), q), exact)
    found = linear_q(x.to(dtype), q, bias.to(dtype), impl=impl)
    assert_within(found, linear_q_reference(x.to(dtype), q, bias.to(dtype)), exact + bias.to(dtype).double())


@pytest.mark.parametrize("rows, k, n", [(1, 1, 40), (2, 77, 65), (17, 200, 130), (70, 129, 33)])
@pytest.mark.parametrize("impl", ["gemv", "gemm"])
def test_odd_shapes(impl, rows, k, n):
    rows = min(rows, 5) if impl == "gemv" else rows
    x, q, bias = make(rows, k, n, torch.float32, (8, 0, False))
    exact = x.double() @ dequantize(q, torch.float64).T + bias.double()
    assert_within(linear_q(x, q, bias, impl=impl), linear_q_reference(x, q, bias), exact, 3)


@pytest.mark.parametrize("form", [(8, 0, False), (4, 32, True), (4, 128, False)])
def test_a_vector_has_the_same_bits_in_any_batch(form):
    x, q, bias = make(9, 640, 37, torch.float16, form)
    x = x.half()
    whole = linear_q(x, q, bias.half(), impl="gemv")
    for i in range(9):
        assert torch.equal(linear_q(x[i], q, bias.half(), impl="triton"), whole[i])
    assert torch.equal(linear_q(x[2:6], q, bias.half(), impl="triton"), whole[2:6])


def test_parts_of_k(monkeypatch):
    """Few outputs are split along K, many are not; a part may hold fewer groups than the others."""
    from minilava_kernels.gpu import linear_q as module

    x, q, bias = make(18, 5 * 32, 70, torch.float32, (4, 32, True))
    exact = x.double() @ dequantize(q, torch.float64).T + bias.double()
    for programs in (1, 4, 7, 264):  # 1, 2, 3 and 5 parts
        monkeypatch.setattr(module, "PROGRAMS", programs)
        assert_within(linear_q(x, q, bias, impl="gemm"), linear_q_reference(x, q, bias), exact)


def test_gradients():
    x, q, bias = make(6, 128, 20, torch.float32, (4, 64, True))
    for impl in ("gemv", "gemm", "reference"):
        assert_all_within(
            lambda x, b, impl=impl: linear_q(x, q, b, impl=impl),
            lambda x, b: torch.nn.functional.linear(x, dequantize(q, x.dtype), b),
            (x, bias), torch.float32,
        )  # fmt: skip


@pytest.mark.parametrize("impl", ["gemv", "gemm", "triton", "reference"])
def test_no_rows_and_leading_dimensions(impl):
    x, q, bias = make(6, 128, 20, torch.float32, (4, 64, False))
    assert linear_q(x[:0], q, bias, impl=impl).shape == (0, 20)
    assert linear_q(x.view(2, 3, 128), q, bias, impl=impl).shape == (2, 3, 20)
    whole = linear_q(x, q, bias, impl=impl)
    assert torch.equal(linear_q(torch.cat((x, x), 1)[:, :128], q, bias, impl=impl), whole)
    assert torch.equal(linear_q(x.T.contiguous().T, q, bias, impl=impl), whole)


def test_misfits_are_refused():
    x, q, bias = make(3, 128, 20, torch.float32, (4, 64, False))
    for bad in ((x[:, :100], q, bias), (x, q, bias[:7]), (x, replace(q, bits=8), bias)):
        with pytest.raises(ValueError, match="linear_q"):
            linear_q(*bad)
    for bits, group, zero_point in ((3, 32, False), (4, 0, False), (4, 48, False), (8, 0, True), (4, 128, False)):
        with pytest.raises(ValueError, match="quantize"):
            quantize(torch.randn(4, 96), bits, group, zero_point)
