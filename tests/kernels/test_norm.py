"""rms_norm, its gradients and layer_norm against float64, and the RMS norm of a row in any batch."""

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


@pytest.mark.parametrize("dim", [7, 64, 100, 1024])  # not 1: there the gradient of x is what cancellation leaves
@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
def test_rms_norm_gradients(simd, dim, dtypes):
    x, w, grad = torch.randn(300, dim) * 3, torch.randn(dim), torch.randn(300, dim)
    leaves = x.to(dtypes[0]).requires_grad_(), w.to(dtypes[1]).requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in leaves]
    native, plain, exact = rms_norm(*leaves, 1e-6), rms_norm_reference(*leaves, 1e-6), rms_norm_reference(*wide, 1e-6)
    assert_within(native, plain, exact)
    grad = grad.to(dtypes[0])
    triples = (
        torch.autograd.grad(y, xs, grad.to(y.dtype)) for y, xs in ((native, leaves), (plain, leaves), (exact, wide))
    )
    for leaf, n, p, e in zip(leaves, *triples, strict=True):
        assert n.dtype == leaf.dtype
        assert_within(n, p, e, factor=3)


def test_rms_norm_gradients_are_the_same_bits_on_any_threads(simd):
    x, w, grad = torch.randn(700, 200).requires_grad_(), torch.randn(200).requires_grad_(), torch.randn(700, 200)
    runs = [with_threads(n, lambda: torch.autograd.grad(rms_norm(x, w, 1e-6), (x, w), grad)) for n in (1, 2, 3)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_rms_norm_strided_empty_and_other_dtypes():
    x, w = torch.randn(6, 200), torch.randn(100)
    assert torch.equal(rms_norm(x[:, :100], w, 1e-6), rms_norm(x[:, :100].contiguous(), w, 1e-6))
    assert rms_norm(x[:, :100].bfloat16(), w.bfloat16(), 1e-6).dtype == torch.bfloat16
    assert rms_norm(x[:, :100].double(), w.double(), 1e-6).dtype == torch.float64
    w.requires_grad_()
    rms_norm(x[:0, :100], w, 1e-6).sum().backward()
    assert not w.grad.any()
    rms_norm(x[:, :100], w, 1e-6).sum().backward()
    assert w.grad.all()


def test_rms_norm_refuses_misfits():
    for x, w in ((torch.randn(3, 8), torch.randn(7)), (torch.randn(3, 8).double(), torch.randn(8).double())):
        with pytest.raises(ValueError, match="rms_norm"):
            rms_norm(x, w, 1e-6, impl="native")


def test_layer_norm():
    x, w, b = torch.randn(300, 72), torch.randn(72), torch.randn(72)
    wide = x.double()
    exact = (wide - wide.mean(1, True)) / (wide.var(1, False, keepdim=True) + 1e-6).sqrt() * w + b
    plain = (x - x.mean(1, True)) / (x.var(1, False, keepdim=True) + 1e-6).sqrt() * w + b
    assert_within(layer_norm(x, w, b, 1e-6), plain, exact)
