"""swiglu and its gradients against float64, over the whole range of float32, and in place."""

import pytest
import torch

from minilava_kernels.swiglu import swiglu, swiglu_reference
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within, assert_within, with_threads


@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (3, 37), (2, 2816), (40, 1029)])
def test_native(simd, rows, width):
    both = torch.randn(rows, 2 * width) * 4
    gate, up = both.split(width, 1)
    exact, plain = swiglu_reference(gate.double(), up.double()), swiglu_reference(gate, up)
    result = swiglu(gate, up)
    assert result.data_ptr() == gate.data_ptr()
    assert_within(result, plain, exact)


def test_extremes(simd):
    gate = torch.tensor([[-1e30, -200.0, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e30, float("inf"), float("nan")]])
    out = swiglu(gate.clone(), torch.ones_like(gate))[0]
    assert out[:2].abs().max() < 1e-6 or out[0].isfinite()
    assert torch.equal(out[6:9], gate[0, 6:9]) and out[9].isnan() and out[4] == 0


def gradients(gate, up, grad, function=swiglu):
    leaves = gate.detach().requires_grad_(), up.detach().requires_grad_()
    return torch.autograd.grad(function(*leaves), leaves, grad)


@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (3, 37), (2, 2816), (40, 1029)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(simd, rows, width, dtype):
    gate, up = (torch.randn(rows, 2 * width) * 4).to(dtype).split(width, 1)
    grad = torch.randn(rows, width).to(dtype)
    before = gate.clone()
    y = swiglu(gate.detach().requires_grad_(), up)
    assert torch.equal(gate, before)  # kept for the backward pass
    assert_within(y, swiglu_reference(gate, up), swiglu_reference(gate.double(), up.double()))
    plain, exact = (gradients(*t, grad.to(t[0].dtype), swiglu_reference) for t in ((gate, up), (gate.double(), up)))
    for n, p, e in zip(gradients(gate, up, grad), plain, exact, strict=True):
        assert_within(n, p, e, factor=3)


def test_gradients_at_extremes(simd):
    gate = torch.tensor([[-1e4, -200.0, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e30, float("nan")]])
    dgate, dup = gradients(gate, torch.ones_like(gate), torch.ones_like(gate))
    assert dgate[0, :3].abs().max() < 1e-30 and dup[0, :3].abs().max() < 1e-30
    assert torch.equal(dgate[0, 3:8], torch.tensor([0.5, 0.5, 0.5, 1, 1]))
    assert torch.equal(dup[0, 6:8], gate[0, 6:8]) and dgate[0, 8].isnan() and dup[0, 8].isnan()


def test_threads():
    gate, up, grad = torch.randn(30, 3000), torch.randn(30, 3000), torch.randn(30, 3000)
    results = [with_threads(n, lambda: swiglu(gate.clone(), up)) for n in (1, 2, 3)]
    assert all(torch.equal(results[0], other) for other in results)
    results = [with_threads(n, lambda: torch.cat(gradients(gate, up, grad))) for n in (1, 2, 3)]
    assert all(torch.equal(results[0], other) for other in results)


def test_misfits_are_refused():
    x = torch.randn(3, 8)
    for gate, up in ((x, x[:2]), (x[0], x[0]), (x.t(), x.t()), (x, x.bfloat16()), (x.double(), x.double())):
        with pytest.raises(ValueError, match="swiglu"):
            swiglu(gate, up, impl="native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (3, 37), (2, 2816), (40, 1029)])
def test_triton(dtype, rows, width):
    gate, up = (torch.randn(rows, 2 * width, device=DEVICE) * 4).to(dtype).split(width, 1)  # strided rows
    expected, exact = swiglu_reference(gate, up), swiglu_reference(gate.double(), up.double())
    assert_all_within(lambda *x: swiglu(*x, impl="triton"), swiglu_reference, (gate, up), dtype)
    with torch.no_grad():
        result = swiglu(gate, up, impl="triton")
    assert result.data_ptr() == gate.data_ptr()
    assert_within(result, expected, exact)


def test_triton_gradients_are_the_derivatives():
    gate, up = (torch.randn(3, 5, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *x: swiglu(*x, impl="triton"), (gate, up))
