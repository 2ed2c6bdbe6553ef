"""The projector and its gradients against float64, on a CPU and in Triton."""

import pytest
import torch

from minilava_kernels.linear import linear_reference
from minilava_kernels.projector import projector
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within, assert_within

pytestmark = pytest.mark.usefixtures("nan_filled")


def make(*shape, k, h, n):
    shapes = (*shape, k), (h, k), (h,), (n, h), (n,)
    return [torch.randn(s, device=DEVICE) * (1 if i in (0, 2, 4) else s[-1] ** -0.5) for i, s in enumerate(shapes)]


def plain(x, w1, b1, w2, b2):
    return linear_reference(linear_reference(x, w1, b1, "gelu"), w2, b2)


def triton(*inputs):
    return projector(*inputs, impl="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu(dtype):
    assert_all_within(projector, plain, make(3, 20, k=24, h=40, n=32), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "rows, k, h, n", [(1, 7, 33, 95), (130, 72, 200, 97), (729, 16, 65, 64), (5, 1152, 96, 96), (64, 3, 40, 30)]
)
def test_triton(dtype, rows, k, h, n):
    assert_all_within(triton, plain, make(rows, k=k, h=h, n=n), dtype)


@pytest.mark.parametrize("programs, width", [(6, 256), (9, 128), (10, 64)])
def test_every_block_size(monkeypatch, programs, width):
    """In bands of tiles that do not come out even."""
    from minilava_kernels.gpu import projector as module

    monkeypatch.setattr(module, "PROGRAMS", programs)
    monkeypatch.setattr(module, "BAND", 2)
    assert module._config(300, 300, 2, False)[1] == width
    inputs = make(300, k=40, h=300, n=300)
    assert_all_within(triton, plain, inputs, torch.float16)
    with torch.no_grad():  # another kernel: nothing is kept
        half = [t.half() for t in inputs]
        assert_within(triton(*half), plain(*half), plain(*(t.double() for t in inputs)))


def test_same_bits_with_and_without_gradients():
    inputs = make(70, k=24, h=40, n=32)
    alone = triton(*inputs)
    assert torch.equal(triton(*(t.requires_grad_() for t in inputs)), alone)


def test_strides_leading_dimensions_and_mixed_dtypes():
    x, *weights = make(6, 10, k=24, h=40, n=32)
    wide = torch.cat((x, x), 2)[:, :, :24]
    assert torch.equal(triton(wide, *weights), triton(x, *weights))
    assert torch.equal(triton(x.mT.contiguous().mT, *weights), triton(x, *weights))
    half = x.bfloat16().requires_grad_()
    leaves = [w.requires_grad_() for w in weights]
    triton(half, *leaves).float().sum().backward()
    assert half.grad.dtype == torch.bfloat16 and all(w.grad.dtype == torch.float32 for w in leaves)


def test_only_the_gradients_asked_for():
    x, *weights = make(9, k=24, h=40, n=32)
    leaves = [w.requires_grad_() for w in weights]
    expected = torch.autograd.grad(plain(x, *leaves).sum(), leaves)
    found = torch.autograd.grad(triton(x, *leaves).sum(), leaves)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_no_rows(impl):
    x, *weights = (t.requires_grad_() for t in make(0, k=24, h=40, n=32))
    y = projector(x, *weights, impl=impl)
    y.sum().backward()
    assert y.shape == (0, 32) and x.grad.shape == (0, 24)
    assert not any(w.grad.any() for w in weights)


def test_triton_gradients_are_the_derivatives():
    inputs = [t.double().requires_grad_() for t in make(2, k=3, h=3, n=2)]
    assert torch.autograd.gradcheck(triton, inputs)


def test_misfits_are_refused():
    x, w1, b1, w2, b2 = make(3, k=4, h=5, n=2)
    for bad in ((x[:, :3], w1, b1, w2, b2), (x, w1, b1[:4], w2, b2), (x, w1, b1, w2[:, :4], b2), (x, w1, b1, w2, b1)):
        with pytest.raises(ValueError, match="projector"):
            projector(*bad)
