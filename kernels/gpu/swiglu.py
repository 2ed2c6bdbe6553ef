"""SwiGLU for the GPU: one pass over gate and up, forward and backward. A program takes BLOCK values of one row."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, reciprocal, wide

BLOCK = 1024  # 8 values, a 16-byte access, for each of 128 threads


@triton.jit
def _sigmoid(x, dtype: tl.constexpr):
    """Divides to the nearest value for float32 only: that takes twice the instructions, and 16 bits do not show it."""
    below = 1.0 + tl.exp(-x)
    if dtype == tl.float32:
        y = reciprocal(below)
    else:
        y = 1.0 / below
    return y


@triton.jit
def swiglu_kernel(GATE, UP, Y, D, stride_gate, stride_up, stride_y, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < D
    gate = wide(tl.load(GATE + row * stride_gate + at, mask=inside, other=0.0))
    up = wide(tl.load(UP + row * stride_up + at, mask=inside, other=0.0))
    y = gate * _sigmoid(gate, Y.dtype.element_ty) * up
    tl.store(Y + row * stride_y + at, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(GATE, UP, GRAD, DGATE, DUP, D, stride_gate, stride_up, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < D
    gate = wide(tl.load(GATE + row * stride_gate + at, mask=inside, other=0.0))
    up = wide(tl.load(UP + row * stride_up + at, mask=inside, other=0.0))
    grad = wide(tl.load(GRAD + row * D + at, mask=inside, other=0.0))
    share = _sigmoid(gate, DGATE.dtype.element_ty)
    silu = gate * share
    dgate = grad * up * share * (1.0 + gate - silu)
    tl.store(DGATE + row * D + at, dgate.to(DGATE.dtype.element_ty), mask=inside)
    tl.store(DUP + row * D + at, (grad * silu).to(DUP.dtype.element_ty), mask=inside)


def swiglu(gate, up, y):
    """gate and up (T, D), rows at any stride, into y, which may be gate itself."""
    rows, dim = gate.shape
    if rows:
        grid = rows, triton.cdiv(dim, BLOCK)
        swiglu_kernel[grid](gate, up, y, dim, gate.stride(0), up.stride(0), y.stride(0), BLOCK=BLOCK)
    return y


def swiglu_backward(gate, up, grad):
    """Gradients of gate and up, each (T, D), for a contiguous grad."""
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    rows, dim = gate.shape
    if rows:
        grid = rows, triton.cdiv(dim, BLOCK)
        swiglu_backward_kernel[grid](gate, up, grad, dgate, dup, dim, gate.stride(0), up.stride(0), BLOCK=BLOCK)
    return dgate, dup


def variants() -> Iterator[Variant]:
    strides = {"D": "i32", "stride_gate": "i32", "stride_up": "i32"}
    for dtype in ("bf16", "fp32"):
        forward = dict.fromkeys(("GATE", "UP", "Y"), f"*{dtype}") | strides | {"stride_y": "i32"}
        yield Variant(f"swiglu {dtype}", swiglu_kernel, forward, {"BLOCK": BLOCK})
        backward = dict.fromkeys(("GATE", "UP", "GRAD", "DGATE", "DUP"), f"*{dtype}") | strides
        yield Variant(f"swiglu backward {dtype}", swiglu_backward_kernel, backward, {"BLOCK": BLOCK})
