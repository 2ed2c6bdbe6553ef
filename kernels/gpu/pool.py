"""Mixing of four feature rows for the GPU, forward and backward: one program per output row and BLOCK values of it."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, divide, sum_dtype, wide

BLOCK = 1024


@triton.jit
def mixed(ROWS, TAPS, WEIGHTS, m, at, inside, D, MAX: tl.constexpr):
    """Values ``at`` of mixture m: the weighted sum or the maximum of the four rows that TAPS names."""
    for i in tl.static_range(4):
        tap = tl.load(TAPS + m * 4 + i)
        x = wide(tl.load(ROWS + tap * D + at, mask=inside, other=0.0))
        if MAX:
            y = x if i == 0 else tl.maximum(y, x)  # noqa: F821
        else:
            x *= tl.load(WEIGHTS + m * 4 + i)
            y = x if i == 0 else y + x  # noqa: F821
    return y


@triton.jit
def unmix(ROWS, DROWS, TAPS, WEIGHTS, grad, m, at, inside, D, MAX: tl.constexpr):
    """Add the gradient of mixture m to its four rows. A maximum's is shared by all that reach it."""
    share = grad
    if MAX:
        top = mixed(ROWS, TAPS, WEIGHTS, m, at, inside, D, MAX)
        reached = tl.zeros_like(grad)
        for i in tl.static_range(4):
            tap = tl.load(TAPS + m * 4 + i)
            reached += tl.where(wide(tl.load(ROWS + tap * D + at, mask=inside, other=0.0)) == top, 1.0, 0.0)
        share = divide(grad, reached)
    for i in tl.static_range(4):
        tap = tl.load(TAPS + m * 4 + i)
        if MAX:
            x = wide(tl.load(ROWS + tap * D + at, mask=inside, other=0.0))
            tl.atomic_add(DROWS + tap * D + at, tl.where(x == top, share, 0.0), mask=inside, sem="relaxed")
        else:
            weight = tl.load(WEIGHTS + m * 4 + i)
            tl.atomic_add(DROWS + tap * D + at, share * weight, mask=inside, sem="relaxed")


@triton.jit
def pool_kernel(ROWS, TAPS, WEIGHTS, Y, D, MAX: tl.constexpr, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < D
    y = mixed(ROWS, TAPS, WEIGHTS, m, at, inside, D, MAX)
    tl.store(Y + m * D + at, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def pool_backward_kernel(ROWS, DROWS, TAPS, WEIGHTS, GRAD, D, MAX: tl.constexpr, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < D
    grad = wide(tl.load(GRAD + m * D + at, mask=inside, other=0.0))
    unmix(ROWS, DROWS, TAPS, WEIGHTS, grad, m, at, inside, D, MAX)


def pool(rows, taps, weights):
    """rows (R, D), taps int64 (M, 4), weights float32 (M, 4) or None for the maximum, all contiguous -> (M, D)."""
    y = rows.new_empty(len(taps), rows.shape[1])
    if len(taps):
        grid = len(taps), triton.cdiv(rows.shape[1], BLOCK)
        pool_kernel[grid](rows, taps, weights, y, rows.shape[1], MAX=weights is None, BLOCK=BLOCK)
    return y


def pool_backward(rows, taps, weights, grad):
    """The gradient of rows, (R, D): sums in float32, in no fixed order where a row is in three or more mixtures."""
    drows = rows.new_zeros(rows.shape, dtype=sum_dtype(rows.dtype))
    if len(taps):
        grid = len(taps), triton.cdiv(rows.shape[1], BLOCK)
        pool_backward_kernel[grid](rows, drows, taps, weights, grad, rows.shape[1], MAX=weights is None, BLOCK=BLOCK)
    return drows.to(rows.dtype)


def variants() -> Iterator[Variant]:
    for name, most in (("weighted", False), ("maximum", True)):
        constants = {"MAX": most, "BLOCK": BLOCK} | ({"WEIGHTS": None} if most else {})
        types = {"ROWS": "*bf16", "TAPS": "*i64", "D": "i32"} | ({} if most else {"WEIGHTS": "*fp32"})
        yield Variant(name, pool_kernel, types | {"Y": "*bf16"}, constants)
        backward = types | {"DROWS": "*fp32", "GRAD": "*bf16"}
        yield Variant(f"{name} backward", pool_backward_kernel, backward, constants)
