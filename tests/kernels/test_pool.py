"""Row mixing against PyTorch's own pooling and interpolation, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from minilava.config import ImageConfig
from minilava.inputs.geometry import image_layout, video_layout
from minilava_kernels.pool import mix_rows, mix_rows_reference
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within, assert_within

OPS = {
    "average": lambda x: F.avg_pool2d(x, 2),
    "max": lambda x: F.max_pool2d(x, 2),
    "bilinear": lambda x: F.interpolate(x, size=((x.shape[-1] + 1) // 2,) * 2, mode="bilinear"),
}


def pooled(op, x, side):
    """x (F, side * side, D) through PyTorch's 2-d operator, as rows."""
    return OPS[op](x.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("side", [2, 8, 27])
def test_like_pytorch(op, side):
    layout = video_layout(3, ImageConfig(side=side), op, "no_token")
    taps = torch.from_numpy(layout.taps)
    weights = None if layout.weights is None else torch.from_numpy(layout.weights).float()
    x = torch.randn(3, side * side, 40, requires_grad=True)
    out = mix_rows(x.flatten(0, 1), taps, weights)
    exact = pooled(op, x.double(), side)
    assert_within(out, pooled(op, x, side), exact)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    (expected,) = torch.autograd.grad(exact.square().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_bfloat16_sums_in_float32():
    rows = torch.randn(64, 32).bfloat16()
    layout = video_layout(1, ImageConfig(side=8), "average", "no_token")
    out = mix_rows(rows, torch.from_numpy(layout.taps), torch.from_numpy(layout.weights).float())
    exact = pooled("average", rows[None].double(), 8)
    assert out.dtype == torch.bfloat16 and torch.equal(out, exact.to(torch.bfloat16))


def test_shrunk_map_like_interpolate():
    """anyres_max on a 6 x 6 canvas: the map of all tiles, resampled across their borders."""
    side, view = 4, 56
    config = ImageConfig("anyres_max_4", f"[[{6 * view}, {6 * view}]]", "spatial_unpad", view, side)
    layout = image_layout((500, 500), config)
    x = torch.randn(layout.views * side * side, 16)
    got = mix_rows(x, torch.from_numpy(layout.taps), torch.from_numpy(layout.weights).float())
    tiles = x[side * side :].view(6, 6, side, side, 16).permute(4, 0, 2, 1, 3).reshape(1, 16, 24, 24)
    shrunk = int(24 // (24 * 24 / (4 * side * side)) ** 0.5)
    want = F.interpolate(tiles, size=(shrunk, shrunk), mode="bilinear").flatten(2)[0].T
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("side", "dim"), [(2, 40), (5, 1), (9, 1100)])
def test_triton(dtype, op, side, dim):
    layout = video_layout(2, ImageConfig(side=side), op, "no_token")
    taps = torch.from_numpy(layout.taps).to(DEVICE)
    weights = None if layout.weights is None else torch.from_numpy(layout.weights).float().to(DEVICE)
    rows = torch.randn(2 * side * side, dim, device=DEVICE)

    def through(function, **options):
        return lambda rows: function(rows, taps, weights, **options)

    assert_all_within(through(mix_rows, impl="triton"), through(mix_rows_reference), (rows,), dtype)


def test_triton_shares_the_gradient_of_a_maximum_among_equals():
    rows = torch.tensor([[1.0], [2.0], [2.0], [0.0]], device=DEVICE, requires_grad=True)
    taps = torch.tensor([[0, 1, 2, 3], [1, 1, 0, 0]], device=DEVICE)
    for impl in ("triton", "reference"):
        (gradient,) = torch.autograd.grad(mix_rows(rows, taps, None, impl=impl).sum(), rows)
        assert gradient.flatten().tolist() == [0, 1.5, 0.5, 0], impl


def test_triton_gradients_are_the_derivatives():
    rows = torch.randn(6, 5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    taps, weights = torch.randint(6, (4, 4), device=DEVICE), torch.rand(4, 4, device=DEVICE)
    assert torch.autograd.gradcheck(lambda x: mix_rows(x, taps, weights, impl="triton"), (rows,))
    assert torch.autograd.gradcheck(lambda x: mix_rows(x, taps, None, impl="triton"), (rows,))
