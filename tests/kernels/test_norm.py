"""RMS and layer norm and their gradients against float64, on a CPU and in Triton, and a row in any batch."""

from importlib.util import find_spec

import pytest
import torch

from minilava_kernels.norm import implementation, layer_norm, rms_norm, rms_norm_reference
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within, assert_within, with_threads

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


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


def step_by_step(x, w, b):
    """A layer norm as PyTorch's operations, each rounded: PyTorch's own keeps more than the dtype in between."""
    return (x - x.mean(1, True)) / (x.var(1, False, keepdim=True) + 1e-6).sqrt() * w + b


@pytest.mark.parametrize("dtype", FLOATS)
def test_layer_norm(dtype):
    """Without gradients the native one where there is one, with them PyTorch's."""
    x, w, b = (torch.randn(*shape).to(dtype) for shape in ((300, 72), (72,), (72,)))
    native = "native" if find_spec("minilava._C") and dtype != torch.float16 else "reference"
    assert implementation(x, w, b) == native and implementation(x, w.clone().requires_grad_(), b) == "reference"
    exact = step_by_step(*(t.double() for t in (x, w, b)))
    assert_within(layer_norm(x, w, b, 1e-6), step_by_step(x, w, b), exact)
    assert_within(layer_norm(x, w, b.requires_grad_(), 1e-6).detach(), step_by_step(x, w, b).detach(), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, dim", [(1, 1), (3, 7), (40, 64), (300, 100), (33, 1152)])
@pytest.mark.parametrize("add", [False, True])
def test_native_layer_norm(simd, dtype, rows, dim, add):
    """With a mean far from zero, as residual streams have: the sum of squares alone would cancel."""
    x, r, w, b = (torch.randn(*s).to(dtype) for s in ((rows, dim), (rows, dim), (dim,), (dim,)))
    x = x * 3 + 20
    total = x + r if add else x
    exact = step_by_step(*(t.double() for t in (total, w, b)))
    got = layer_norm(x, w, b, 1e-6, r if add else None, impl="native")
    if add:
        got, summed = got
        assert torch.equal(summed, total)
    assert got.dtype == dtype
    assert_within(got, step_by_step(total, w, b), exact)


def test_native_layer_norm_row_is_the_same_bits_in_any_batch(simd):
    x, r, w, b = torch.randn(50, 1000), torch.randn(50, 1000), torch.randn(1000), torch.randn(1000)
    whole, _ = with_threads(1, lambda: layer_norm(x, w, b, 1e-6, r, impl="native"))
    assert torch.equal(with_threads(3, lambda: layer_norm(x, w, b, 1e-6, r, impl="native")[0]), whole)
    assert torch.equal(layer_norm(x[7], w, b, 1e-6, r[7], impl="native")[0], whole[7])


def test_native_layer_norm_refuses_misfits_and_gradients():
    x, w = torch.randn(3, 8), torch.randn(8)
    assert layer_norm(x[:0], w, w, 1e-6, impl="native").shape == (0, 8)
    for wrong in ((x, w[:7], w[:7]), (x, w, w[:7]), (x.double(), w, w), (x, w, w, x[:2]), (x, w, w.requires_grad_())):
        with pytest.raises(ValueError, match="layer_norm"):
            layer_norm(*wrong[:3], 1e-6, *wrong[3:], impl="native")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows, dim", [(1, 1), (40, 72), (600, 100), (33, 1152), (5, 5000)])
@pytest.mark.parametrize("add", [False, True])
def test_triton_layer_norm(dtype, rows, dim, add):
    x, r, w, b = (torch.randn(n, dim, device=DEVICE).squeeze(0) * 3 for n in (rows, rows, 1, 1))
    x, r = x.view(rows, dim), r.view(rows, dim)
    if dim == 1:
        x, r = x * 0, r * 0  # a single value less its mean: the gradient is pure cancellation

    def plain(x, r, w, b):
        total = x + r if add else x
        y = step_by_step(total, w, b)
        return (y, total) if add else (y, r)

    def run(x, r, w, b):
        got = layer_norm(x, w, b, 1e-6, r if add else None, impl="triton")
        return got if add else (got, r)

    assert_all_within(run, plain, (x, r, w, b), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows, dim", [(40, 72), (130, 100), (1200, 16), (33, 896), (5, 5000)])
@pytest.mark.parametrize("add", [False, True])
def test_triton_rms_norm(dtype, rows, dim, add):
    x, r, w = (
        torch.randn(rows, dim, device=DEVICE) * 3,
        torch.randn(rows, dim, device=DEVICE),
        torch.randn(dim, device=DEVICE),
    )

    def plain(x, r, w):
        total = x + r if add else x
        return rms_norm_reference(total, w, 1e-6), total if add else r

    def run(x, r, w):
        got = rms_norm(x, w, 1e-6, r if add else None, impl="triton")
        return got if add else (got, r)

    assert_all_within(run, plain, (x, r, w), dtype)


def test_triton_gradients_are_the_derivatives():
    x, r, w, b = (
        torch.randn(*s, dtype=torch.float64, device=DEVICE, requires_grad=True) for s in ((4, 6), (4, 6), (6,), (6,))
    )
    assert torch.autograd.gradcheck(lambda x, r, w: rms_norm(x, w, 1e-6, r, impl="triton"), (x, r, w))
    assert torch.autograd.gradcheck(lambda x, w, b: layer_norm(x, w, b, 1e-6, impl="triton"), (x, w, b))


def test_a_residual_of_another_dtype_or_shape_is_refused():
    """Added to x it would make a sum that the kernel reads as x's dtype."""
    pytest.importorskip("minilava._C")
    x, weight = torch.randn(3, 8).bfloat16(), torch.ones(8)
    for residual in (x.float(), x.half(), x[:1]):
        with pytest.raises(ValueError, match="residual"):
            rms_norm(x, weight, 1e-6, residual, impl="native")
    for misfit in (weight[:7], weight[:, None][:, :0]):
        with pytest.raises(ValueError, match="weight"):
            rms_norm(x, misfit, 1e-6, impl="native")
