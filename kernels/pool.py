"""Pooling of feature rows: every output row is a weighted sum, or the maximum, of four input rows.

One form covers 2x2 average, 2x2 maximum and bilinear pooling of a view's grid, pooling across tile borders, and the
bilinear shrink of a large picture's map, because the geometry decides beforehand which rows are mixed.
Cost for M output rows of width D: reads 4 M D values, writes M D; 7 M D FLOPs, so it is bound by memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minilava_kernels.ops import register, registered


def mix_rows_reference(rows: Tensor, taps: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return rows[taps].amax(1)
    wide = rows if rows.dtype == torch.float64 else rows.float()
    out = wide[taps[:, 0]] * weights[:, :1]
    for i in range(1, 4):
        out = out + wide[taps[:, i]] * weights[:, i : i + 1]
    return out.to(rows.dtype)


def mix_rows(rows: Tensor, taps: Tensor, weights: Tensor | None, impl: str | None = None) -> Tensor:
    """rows (R, D), taps int64 (M, 4), weights float (M, 4), or None for the maximum. Returns (M, D) in rows' dtype;
    sums are taken in float32. Values equal to the maximum share its gradient. impl forces "reference" or "triton"."""
    impl = impl or implementation(rows)
    if impl == "reference":
        return mix_rows_reference(rows, taps, weights)
    return (torch.ops.minilava.pool if registered(rows) else _run)(rows, taps, weights, impl)


def implementation(rows: Tensor) -> str:
    """Which implementation mix_rows() uses for these rows."""
    return "triton" if rows.device.type == "cuda" and rows.dtype != torch.float64 else "reference"


def _run(rows, taps, weights, impl):
    from minilava_kernels.gpu.pool import pool

    return pool(rows.contiguous(), taps.contiguous(), _float(weights))


def _run_backward(rows, taps, weights, grad, impl):
    from minilava_kernels.gpu.pool import pool_backward

    return pool_backward(rows.contiguous(), taps.contiguous(), _float(weights), grad.contiguous())


def _float(weights):
    return None if weights is None else weights.float().contiguous()


def _keep(ctx, inputs, output):
    rows, taps, weights, ctx.impl = inputs
    ctx.save_for_backward(rows, taps, weights)


def _backward(ctx, grad):
    return torch.ops.minilava.pool_backward(*ctx.saved_tensors, grad, ctx.impl), None, None, None


register(
    "pool_backward(Tensor rows, Tensor taps, Tensor? weights, Tensor grad, str impl) -> Tensor",
    _run_backward,
    lambda rows, taps, weights, grad, impl: rows.new_empty(rows.shape),
)
register(
    "pool(Tensor rows, Tensor taps, Tensor? weights, str impl) -> Tensor",
    _run,
    lambda rows, taps, weights, impl: rows.new_empty(taps.shape[0], rows.shape[1]),
    _backward,
    _keep,
)
