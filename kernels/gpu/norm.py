"""RMS and layer norm for the GPU, with the residual add before it in the same pass; forward and backward.

A program holds ROWS rows of D values in registers: x is read once and y written once. Weight gradients are sums over
rows: each of a fixed number of programs adds its own rows in order, and the partial sums are added in order, so the
result depends on the shape alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, divide, power_of_2, reciprocal, sqrt, sum_dtype, wide

TILE = 2048  # values that a program holds at a time where rows are shorter
PARTS = 512  # programs of the backward pass, about four on each of an H100's multiprocessors


@triton.jit
def _normalise(x, inside, D, eps, CENTER: tl.constexpr):
    """(normalised rows, 1 / their deviation (ROWS, 1)); x is 0 outside."""
    if CENTER:
        x = tl.where(inside, x - divide(tl.sum(x, 1), D)[:, None], 0.0)
    deviation = sqrt(divide(tl.sum(x * x, 1), D) + eps)
    scale = reciprocal(deviation)[:, None]
    return x * scale, scale


@triton.jit
def norm_kernel(
    X, RESIDUAL, WEIGHT, BIAS, Y, TOTAL, rows, D, eps, stride_x, stride_r,
    CENTER: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (at < D)
    x = wide(tl.load(X + row * stride_x + at, mask=inside, other=0.0))
    if ADD:
        x += wide(tl.load(RESIDUAL + row * stride_r + at, mask=inside, other=0.0))
        x = x.to(TOTAL.dtype.element_ty)  # what others read is what is normalised
        tl.store(TOTAL + row * D + at, x, mask=inside)
        x = wide(x)
    normed, _ = _normalise(x, inside, D, eps, CENTER)
    y = normed * wide(tl.load(WEIGHT + at, mask=at < D, other=0.0))
    if CENTER:
        y += wide(tl.load(BIAS + at, mask=at < D, other=0.0))
    tl.store(Y + row * D + at, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward_kernel(
    TOTAL, WEIGHT, DY, DTOTAL, DX, DW, DB, rows, D, eps, rows_per_part,
    CENTER: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    at = tl.arange(0, BLOCK)[None, :]
    weight = wide(tl.load(WEIGHT + at, mask=at < D, other=0.0))
    dw = wide(tl.zeros((ROWS, BLOCK), TOTAL.dtype.element_ty))
    db = wide(tl.zeros((ROWS, BLOCK), TOTAL.dtype.element_ty))
    first = part * rows_per_part
    for start in range(first, min(first + rows_per_part, rows), ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < rows) & (row < first + rows_per_part) & (at < D)
        x = wide(tl.load(TOTAL + row * D + at, mask=inside, other=0.0))
        dy = wide(tl.load(DY + row * D + at, mask=inside, other=0.0))
        normed, scale = _normalise(x, inside, D, eps, CENTER)
        dw += dy * normed
        db += dy
        g = dy * weight
        dx = g - normed * divide(tl.sum(g * normed, 1), D)[:, None]
        if CENTER:
            dx -= divide(tl.sum(g, 1), D)[:, None]
        dx *= scale
        if ADD:
            dx += wide(tl.load(DTOTAL + row * D + at, mask=inside, other=0.0))
        tl.store(DX + row * D + at, dx.to(DX.dtype.element_ty), mask=inside)
    tl.store(DW + part * D + at, tl.sum(dw, 0)[None, :], mask=at < D)
    if CENTER:
        tl.store(DB + part * D + at, tl.sum(db, 0)[None, :], mask=at < D)


def norm(x, residual, weight, bias, eps):
    """x and residual (T, D) with contiguous rows, bias None for an RMS norm -> (normed, x + residual or None)."""
    rows, dim = x.shape
    y = x.new_empty(x.shape)
    total = None if residual is None else x.new_empty(x.shape)
    block, height, warps = _shape(dim)
    if rows:
        norm_kernel[(triton.cdiv(rows, height),)](
            x, residual, weight, bias, y, total, rows, dim, eps, x.stride(0),
            0 if residual is None else residual.stride(0),
            CENTER=bias is not None, ADD=residual is not None, ROWS=height, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return y, total


def norm_backward(total, weight, center, dy, dtotal, eps):
    """All (T, D) contiguous -> gradients of the sum (T, D), of the weight (D) and, centred, of the bias, in float32."""
    rows, dim = total.shape
    dx = total.new_empty(total.shape)
    block, height, warps = _shape(dim)
    share = triton.cdiv(triton.cdiv(max(rows, 1), PARTS), height) * height
    parts = triton.cdiv(rows, share)
    dw = total.new_zeros(parts, dim, dtype=sum_dtype(total.dtype))
    db = dw.new_zeros(dw.shape) if center else None
    if rows:
        norm_backward_kernel[(parts,)](
            total, weight, dy, dtotal, dx, dw, db, rows, dim, eps, share,
            CENTER=center, ADD=dtotal is not None, ROWS=height, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return dx, dw.sum(0), db.sum(0) if center else None


def _shape(dim: int) -> tuple[int, int, int]:
    """(BLOCK, ROWS, warps): 16 to 32 values a thread."""
    block = power_of_2(dim)
    return block, max(1, TILE // block), 4 if block <= 2048 else 8


def variants() -> Iterator[Variant]:
    for center, dim in ((True, 1152), (False, 896), (False, 1024), (False, 3584), (False, 8192)):
        block, height, warps = _shape(dim)
        for add in (False, True):
            shape = {"CENTER": center, "ADD": add, "ROWS": height, "BLOCK": block}
            names = ["X", "WEIGHT", "Y"] + ["BIAS"] * center + ["RESIDUAL", "TOTAL"] * add
            absent = dict.fromkeys(set("X WEIGHT Y BIAS RESIDUAL TOTAL".split()) - set(names))
            numbers = {"rows": "i32", "D": "i32", "eps": "fp32", "stride_x": "i32", "stride_r": "i32"}
            types = dict.fromkeys(names, "*bf16") | numbers
            kind = f"{'layer' if center else 'rms'}_norm{'_add' * add} D={dim}"
            yield Variant(kind, norm_kernel, types, shape | absent, warps, unaligned=("rows",))
            names = ["TOTAL", "WEIGHT", "DY", "DX"] + ["DTOTAL"] * add
            sums = ["DW"] + ["DB"] * center
            absent = dict.fromkeys(set("DTOTAL DB".split()) - {*names, *sums})
            numbers = {"rows": "i32", "D": "i32", "eps": "fp32", "rows_per_part": "i32"}
            types = dict.fromkeys(names, "*bf16") | dict.fromkeys(sums, "*fp32") | numbers
            yield Variant(
                f"{kind} backward", norm_backward_kernel, types, shape | absent, warps,
                unaligned=("rows", "rows_per_part"),
            )  # fmt: skip
