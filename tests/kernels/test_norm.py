"""rms_norm and layer_norm against float64, and the RMS norm of a row in any batch."""

import pytest
import torch

from minilava_kernels.norm import layer_norm, rms_norm, rms_norm_reference
from tests.numerics import assert_within, with_threads


@pytest.mark.parametrize("dim", [1, 7, 64, 100, 1024])
@pytest.mark.parametrize("rows", [0, 300])
def test_rms_norm(simd, rows, dim):
    x, w = torch.randn(rows, dim) * 3, torch.randn(dim)
    assert_within(
        rms_norm(x, w, 1e-6), rms_norm_reference(x, w, 1e-6), rms_norm_reference(x.double(), w.double(), 1e-6)
    )


def test_rms_norm_row_is_the_same_bits_in_any_batch(simd):
    x, w = torch.randn(50, 1000), torch.randn(1000)
    whole = with_threads(1, lambda: rms_norm(x, w, 1e-6))
    assert torch.equal(with_threads(3, lambda: rms_norm(x, w, 1e-6)), whole)
    assert torch.equal(rms_norm(x[7], w, 1e-6), whole[7])


def test_rms_norm_strided_and_other_dtypes():
    x, w = torch.randn(6, 200), torch.randn(100)
    assert torch.equal(rms_norm(x[:, :100], w, 1e-6), rms_norm(x[:, :100].contiguous(), w, 1e-6))
    assert rms_norm(x[:, :100].bfloat16(), w.bfloat16(), 1e-6).dtype == torch.bfloat16
    w.requires_grad_()
    rms_norm(x[:, :100], w, 1e-6).sum().backward()
    assert w.grad is not None


def test_layer_norm():
    x, w, b = torch.randn(300, 72), torch.randn(72), torch.randn(72)
    wide = x.double()
    exact = (wide - wide.mean(1, True)) / (wide.var(1, False, keepdim=True) + 1e-6).sqrt() * w + b
    plain = (x - x.mean(1, True)) / (x.var(1, False, keepdim=True) + 1e-6).sqrt() * w + b
    assert_within(layer_norm(x, w, b, 1e-6), plain, exact)
