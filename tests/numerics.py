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


def with_threads(count, function):
    """function() run with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function()
    finally:
        torch.set_num_threads(before)
