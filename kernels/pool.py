"""Pooling of feature rows: every output row is a weighted sum, or the maximum, of four input rows.

One form covers 2x2 average, 2x2 maximum and bilinear pooling of a view's grid, pooling across tile borders, and the
bilinear shrink of a large picture's map, because the geometry decides beforehand which rows are mixed.
Cost for M output rows of width D: reads 4 M D values, writes M D; 7 M D FLOPs, so it is bound by memory.
"""

from __future__ import annotations

from torch import Tensor


def mix_rows(rows: Tensor, taps: Tensor, weights: Tensor | None) -> Tensor:
    """rows (R, D), taps int64 (M, 4), weights float (M, 4), or None for the maximum. Returns (M, D) in rows' dtype;
    sums are taken in float32."""
    if weights is None:
        return rows[taps].amax(1)
    out = rows[taps[:, 0]].float() * weights[:, :1]
    for i in range(1, 4):
        out = out + rows[taps[:, i]].float() * weights[:, i : i + 1]
    return out.to(rows.dtype)
