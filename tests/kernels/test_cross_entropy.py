"""cross_entropy: against float64, across chunk borders, and never whole."""

import pytest
import torch

from minilava_kernels import cross_entropy as module
from minilava_kernels.cross_entropy import cross_entropy, cross_entropy_reference
from tests.numerics import assert_within


def make(n, d, v, dtype=torch.float32):
    g = torch.Generator().manual_seed(n + d + v)
    hidden, weight = torch.randn(n, d, generator=g).to(dtype), torch.randn(v, d, generator=g)
    return hidden, weight / d**0.5, torch.randint(v, (n,), generator=g), torch.rand(n, generator=g)


def run(function, hidden, weight, targets, scale, kind=None):
    leaves = [t.detach().to(kind or t.dtype).requires_grad_() for t in (hidden, weight)]
    nll = function(*leaves, targets)
    nll.backward(scale.to(nll.dtype))
    return nll.detach(), leaves[0].grad, leaves[1].grad


def exact(hidden, weight, targets, scale):
    def plain(h, w, t):
        return torch.nn.functional.cross_entropy(h @ w.t(), t, reduction="none")

    return run(plain, hidden, weight, targets, scale, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "v", "chunk"), [(1, 7, 8), (13, 40, 8), (13, 41, 8), (5, 300, 256), (64, 1000, 8192)])
def test_matches_float64(monkeypatch, dtype, n, v, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    data = make(n, 24, v, dtype)
    for ours, plain, truth in zip(
        run(cross_entropy, *data), run(cross_entropy_reference, *data), exact(*data), strict=True
    ):
        assert_within(ours, plain, truth, 3)


def test_extreme_logits_stay_finite():
    hidden, weight, targets, scale = make(6, 8, 30)
    nll, *grads = run(cross_entropy, hidden * 1e4, weight, targets, scale)
    assert torch.isfinite(nll).all() and all(torch.isfinite(g).all() for g in grads)


def test_logits_never_exist_whole(monkeypatch):
    """No tensor of more than a chunk's logits is ever made, forward or backward."""
    monkeypatch.setattr(module, "CHUNK", 64)
    n, d, v = 50, 4, 4096
    hidden, weight, targets, scale = make(n, d, v)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        run(cross_entropy, hidden, weight, targets, scale)
    assert largest <= max(v * d, n * 64)


def test_no_rows():
    hidden, weight, _, _ = make(1, 8, 30)
    nll = cross_entropy(hidden[:0].requires_grad_(), weight.requires_grad_(), torch.zeros(0, dtype=torch.int64))
    nll.sum().backward()
    assert nll.shape == (0,) and not weight.grad.any()


def test_misfits_are_refused():
    hidden, weight, targets, _ = make(4, 8, 30)
    for bad in ((hidden[:, :7], weight, targets), (hidden, weight, targets[:3]), (hidden[0], weight, targets)):
        with pytest.raises(ValueError, match="cross_entropy"):
            cross_entropy(*bad)
