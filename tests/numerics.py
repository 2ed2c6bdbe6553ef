"""The one numerical rule of the tests, and running on a number of threads."""

import torch


def assert_within(result, plain, exact, factor=2.0):
    """result is at most `factor` times as far from exact (float64) as the plain PyTorch version in the same precision.

    Where plain happens to be exact, one rounding of the result's dtype is allowed.
    """
    exact = exact.double()
    assert result.shape == exact.shape
    if not exact.numel():
        return
    error = (result.double() - exact).abs().max().item()
    floor = torch.finfo(result.dtype).eps * exact.abs().max().item() / 2
    allowed = max(factor * (plain.double() - exact).abs().max().item(), floor)
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def assert_all_within(run, plain, inputs, dtype, factor=2.0):
    """run(*inputs) and its gradients against plain's, both in dtype, by float64: outputs by ``factor``, gradients by 3.

    inputs: float tensors, which get gradients, and anything else, which is passed on. Outputs get random gradients.
    """

    def leaf(x, to):
        return x.detach().to(to).requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    inputs = [leaf(x, dtype) for x in inputs]
    wide = [leaf(x, torch.float64) for x in inputs]
    outputs = [_tuple(f(*xs)) for f, xs in ((run, inputs), (plain, inputs), (plain, wide))]
    seeds = [torch.randn_like(y) for y in outputs[0]]
    for result, expected, exact in zip(*outputs, strict=True):
        assert result.dtype == expected.dtype
        assert_within(result.detach(), expected.detach(), exact.detach(), factor)
    gradients = []
    for ys, xs in zip(outputs, (inputs, inputs, wide), strict=True):
        leaves = [x for x in xs if isinstance(x, torch.Tensor) and x.requires_grad]
        gradients.append(torch.autograd.grad(ys, leaves, [g.to(y.dtype) for g, y in zip(seeds, ys, strict=True)]))
    for result, expected, exact in zip(*gradients, strict=True):
        assert result.dtype == expected.dtype
        assert_within(result, expected, exact, 3)


def _tuple(x):
    return x if isinstance(x, tuple) else (x,)


def with_threads(count, function):
    """function() run with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function()
    finally:
        torch.set_num_threads(before)
