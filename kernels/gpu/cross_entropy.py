"""Cross-entropy for the GPU: what happens to a chunk of logits between the matrix products that make and use it.

cuBLAS writes the chunk in the inputs' dtype. Forward reads it once, and carries each row's maximum, its sum of
exponentials (relative to that maximum) and its target's logit from chunk to chunk. Backward turns it in place, one read
and one write, into the gradient that the two products take. One buffer serves all chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, power_of_2, sum_dtype, wide

TILE = 8192  # logits that a program holds at a time
WARPS = 8


@triton.jit
def update_kernel(
    LOGITS, TARGETS, TOP, TOTAL, HIT, rows, C, start, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Take the logits (rows, C) of the vocabulary from start on into account."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid, at = row < rows, tl.arange(0, BLOCK)[None, :]
    first = row.to(tl.int64) * C
    top, total = tl.load(TOP + row, mask=valid, other=0.0), tl.load(TOTAL + row, mask=valid, other=0.0)
    for block in range(0, C, BLOCK):
        inside = valid[:, None] & (block + at < C)
        x = wide(tl.load(LOGITS + first[:, None] + block + at, mask=inside, other=-float("inf")))
        higher = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
        top = higher
    tl.store(TOP + row, top, mask=valid)
    tl.store(TOTAL + row, total, mask=valid)
    target = tl.load(TARGETS + row, mask=valid, other=-1) - start
    here = (target >= 0) & (target < C)
    hit = tl.load(LOGITS + first + target, mask=here, other=0.0)
    tl.store(HIT + row, wide(hit), mask=here)


@triton.jit
def gradient_kernel(
    LOGITS, TARGETS, LSE, GRAD, rows, C, start, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """LOGITS (rows, C) = (softmax - 1 at the target) * GRAD, in place."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid, at = row < rows, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    lse, grad = tl.load(LSE + row, mask=valid, other=0.0), tl.load(GRAD + row, mask=valid, other=0.0)
    target = tl.load(TARGETS + row, mask=valid, other=-1) - start
    place, inside = LOGITS + row.to(tl.int64)[:, None] * C + at, valid[:, None] & (at < C)
    p = tl.exp(wide(tl.load(place, mask=inside, other=0.0)) - lse[:, None])
    p = tl.where(at == target[:, None], p - 1.0, p) * grad[:, None]
    tl.store(place, p.to(LOGITS.dtype.element_ty), mask=inside)


def cross_entropy(hidden, weight, targets, chunk: int):
    """hidden (N, D), weight (V, D), targets int64 (N,) -> (negative log-likelihoods, log-sum-exps), (N,) each."""
    rows = len(hidden)
    top = hidden.new_full((rows,), -float("inf"), dtype=sum_dtype(hidden.dtype))
    total, hit = torch.zeros_like(top), torch.zeros_like(top)
    for start, _, logits in _chunks(hidden, weight, chunk):
        height, block = _shape(logits.shape[1])
        if rows:
            update_kernel[(triton.cdiv(rows, height),)](
                logits, targets, top, total, hit, rows, logits.shape[1], start, ROWS=height, BLOCK=block,
                num_warps=WARPS,
            )  # fmt: skip
    lse = top + total.log()
    return lse - hit, lse


def cross_entropy_backward(hidden, weight, targets, lse, grad, need_dh: bool, need_dw: bool, chunk: int):
    """grad (N,) -> gradients of hidden (summed in float32) and weight, each None unless needed."""
    rows = len(hidden)
    dh = torch.zeros_like(hidden, dtype=lse.dtype) if need_dh else None
    dw = weight.new_empty(weight.shape) if need_dw else None
    for start, part, logits in _chunks(hidden, weight, chunk):
        height, block = _shape(logits.shape[1])
        if rows:
            gradient_kernel[(triton.cdiv(rows, height), triton.cdiv(logits.shape[1], block))](
                logits, targets, lse, grad, rows, logits.shape[1], start, ROWS=height, BLOCK=block, num_warps=WARPS
            )  # fmt: skip
        if need_dh:
            dh += logits @ part
        if need_dw:
            dw[start : start + len(part)] = logits.t() @ hidden
    return dh, dw


def _chunks(hidden, weight, chunk):
    """(first vocabulary row, weights from there on in hidden's dtype, their logits) of every chunk."""
    buffer = hidden.new_empty(len(hidden) * min(chunk, len(weight)))
    for start in range(0, len(weight), chunk):
        part = weight[start : start + chunk].to(hidden.dtype)
        logits = buffer[: len(hidden) * len(part)].view(len(hidden), len(part))
        yield start, part, torch.mm(hidden, part.t(), out=logits)


def _shape(width: int) -> tuple[int, int]:
    """(ROWS, BLOCK)."""
    block = min(power_of_2(width), TILE)
    return TILE // block, block


def variants() -> Iterator[Variant]:
    numbers = {"rows": "i32", "C": "i32", "start": "i32", "TARGETS": "*i64", "LOGITS": "*bf16"}
    for width in (8192, 512):
        height, block = _shape(width)
        shape = {"ROWS": height, "BLOCK": block}
        for kernel, sums in ((update_kernel, ("TOP", "TOTAL", "HIT")), (gradient_kernel, ("LSE", "GRAD"))):
            yield Variant(
                f"{kernel.__name__} C={width}", kernel, numbers | dict.fromkeys(sums, "*fp32"), shape, WARPS,
                unaligned=("rows",),
            )  # fmt: skip
