"""swiglu against float64, over the whole range of float32, in place and with gradients."""

import pytest
import torch

from minilava_kernels.swiglu import swiglu, swiglu_reference
from tests.numerics import assert_within, with_threads


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


def test_threads_and_gradients():
    gate, up = torch.randn(30, 3000), torch.randn(30, 3000)
    results = [with_threads(n, lambda: swiglu(gate.clone(), up)) for n in (1, 2, 3)]
    assert all(torch.equal(results[0], other) for other in results)
    gate.requires_grad_()
    swiglu(gate, up).sum().backward()
    assert gate.grad.shape == gate.shape
