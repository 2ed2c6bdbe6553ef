"""cross_entropy: against float64, across chunk borders, and never whole, on a CPU and in Triton."""

from functools import partial

import pytest
import torch

from minilava_kernels import cross_entropy as module
from minilava_kernels.cross_entropy import cross_entropy, cross_entropy_reference
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_within

pytestmark = pytest.mark.usefixtures("nan_filled")

IMPLS = ["chunked", "triton"]


def make(n, d, v, dtype=torch.float32):
    g = torch.Generator().manual_seed(n + d + v)
    hidden, weight = torch.randn(n, d, generator=g).to(dtype), torch.randn(v, d, generator=g)
    data = hidden, weight / d**0.5, torch.randint(v, (n,), generator=g), torch.rand(n, generator=g)
    return [t.to(DEVICE) for t in data]


def run(function, hidden, weight, targets, scale, kind=None):
    leaves = [t.detach().to(kind or t.dtype).requires_grad_() for t in (hidden, weight)]
    nll = function(*leaves, targets)
    nll.backward(scale.to(nll.dtype))
    return nll.detach(), leaves[0].grad, leaves[1].grad


def exact(hidden, weight, targets, scale):
    def plain(h, w, t):
        return torch.nn.functional.cross_entropy(h @ w.t(), t, reduction="none")

    return run(plain, hidden, weight, targets, scale, torch.float64)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "v", "chunk"), [(1, 7, 8), (13, 40, 8), (13, 41, 8), (5, 300, 256), (64, 1000, 8192)])
def test_matches_float64(monkeypatch, impl, dtype, n, v, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    data = make(n, 24, v, dtype)
    function = partial(cross_entropy, impl=impl)
    for ours, plain, truth in zip(run(function, *data), run(cross_entropy_reference, *data), exact(*data), strict=True):
        assert ours.dtype == plain.dtype
        assert_within(ours, plain, truth, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_the_same_dtype(monkeypatch, dtype):
    monkeypatch.setattr(module, "CHUNK", 128)
    hidden, weight, *rest = make(40, 24, 300, dtype)
    data = hidden, weight.to(dtype), *rest
    function = partial(cross_entropy, impl="triton")
    for ours, plain, truth in zip(run(function, *data), run(cross_entropy_reference, *data), exact(*data), strict=True):
        assert_within(ours, plain, truth, 3)


def test_long_rows_are_read_in_blocks(monkeypatch):
    from minilava_kernels.gpu import cross_entropy as gpu

    monkeypatch.setattr(gpu, "TILE", 32)
    monkeypatch.setattr(module, "CHUNK", 100)
    data = make(6, 8, 230)
    function = partial(cross_entropy, impl="triton")
    for ours, plain, truth in zip(run(function, *data), run(cross_entropy_reference, *data), exact(*data), strict=True):
        assert_within(ours, plain, truth, 3)


@pytest.mark.parametrize("impl", IMPLS)
def test_targets_at_the_borders(monkeypatch, impl):
    monkeypatch.setattr(module, "CHUNK", 16)
    hidden, weight, _, scale = make(6, 8, 40)
    targets = torch.tensor([0, 15, 16, 31, 32, 39], device=DEVICE)
    found = run(partial(cross_entropy, impl=impl), hidden, weight, targets, scale)
    expected = run(cross_entropy_reference, hidden, weight, targets, scale)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_only_the_gradient_asked_for(monkeypatch, impl):
    monkeypatch.setattr(module, "CHUNK", 16)
    hidden, weight, targets, _ = make(6, 8, 40)
    for chosen in (hidden, weight):
        chosen.requires_grad_()
        expected = torch.autograd.grad(cross_entropy_reference(hidden, weight, targets).sum(), chosen)[0]
        found = torch.autograd.grad(cross_entropy(hidden, weight, targets, impl=impl).sum(), chosen)[0]
        assert torch.allclose(found, expected, atol=1e-5)
        chosen.requires_grad_(False)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_are_the_derivatives(monkeypatch, impl):
    monkeypatch.setattr(module, "CHUNK", 4)
    hidden, weight, targets, _ = make(3, 4, 6)
    leaves = [t.double().requires_grad_() for t in (hidden, weight)]
    assert torch.autograd.gradcheck(lambda h, w: cross_entropy(h, w, targets, impl=impl), leaves)


@pytest.mark.parametrize("impl", IMPLS)
def test_extreme_logits_stay_finite(monkeypatch, impl):
    monkeypatch.setattr(module, "CHUNK", 8)
    hidden, weight, targets, scale = make(6, 8, 30)
    nll, *grads = run(partial(cross_entropy, impl=impl), hidden * 1e4, weight, targets, scale)
    assert torch.isfinite(nll).all() and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("impl", IMPLS)
def test_a_nan_stays_visible(impl):
    hidden, weight, targets, _ = make(6, 8, 30)
    hidden[2, 3] = torch.nan
    assert cross_entropy(hidden, weight, targets, impl=impl).isnan().tolist() == [i == 2 for i in range(6)]


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_never_exist_whole(monkeypatch, impl):
    """No tensor larger than a chunk's logits is ever made, forward or backward; Triton's are one buffer."""
    monkeypatch.setattr(module, "CHUNK", 512)
    n, d, v = 50, 4, 4096
    hidden, weight, targets, scale = make(n, d, v)
    largest, made = 0, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest, made
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel() * out.element_size())
                made += out.numel() == n * 512 and function is torch.ops.aten.new_empty.default
            return out

    with Watch():
        _, total = module._run(hidden, weight, targets, impl)
        dh, dw = module._run_backward(hidden, weight, targets, total, scale, True, True, impl)
    assert dh.shape == (n, d) and dw.shape == (v, d)
    assert largest <= 4 * max(v * d, n * 512)
    assert made == (2 if impl == "triton" else 0)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows(impl):
    hidden, weight, _, _ = make(1, 8, 30)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    nll = cross_entropy(hidden[:0].requires_grad_(), weight.requires_grad_(), none, impl=impl)
    nll.sum().backward()
    assert nll.shape == (0,) and not weight.grad.any()


def test_misfits_are_refused():
    hidden, weight, targets, _ = make(4, 8, 30)
    for bad in ((hidden[:, :7], weight, targets), (hidden, weight, targets[:3]), (hidden[0], weight, targets)):
        with pytest.raises(ValueError, match="cross_entropy"):
            cross_entropy(*bad)
