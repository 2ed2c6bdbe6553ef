"""The numerics rule: a kernel's error against float64 is at most twice that of plain PyTorch in the same precision."""

import torch


def assert_within(result, plain, exact, factor=2.0):
    """result, plain: the kernel and plain PyTorch in the same precision. exact: float64.

    Where plain happens to be exact, half a unit in the last place of the largest value is allowed.
    """
    exact = exact.double()
    assert result.shape == exact.shape, (result.shape, exact.shape)
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
