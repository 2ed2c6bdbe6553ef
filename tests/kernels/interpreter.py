"""Triton's interpreter for tests on a CPU, with bfloat16 and float32 as the hardware has them.

The interpreter keeps bfloat16 as 16-bit integers: it truncates where the hardware rounds to nearest, and adds and
multiplies the integers. Here conversions round, products widen their operands first, and any other arithmetic on
bfloat16 is an error: the kernels compute in float32.

And it divides, takes roots and exponentiates float32 to the nearest value, where Triton's ``/``, ``sqrt`` and ``exp``
compile to div.full, sqrt.approx and ex2.approx. Here every such result is off by up to what NVIDIA documents (of ex2,
what it documents of expf, which is made of it), and products of float32 are chains of fused multiply-adds, so that a
kernel within the numerics rule here is within it on the hardware. div_rn and sqrt_rn are exact there and here; erf and
the logarithms are what plain PyTorch calls on a GPU, too.
"""

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_cast, _dot, _binary = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, InterpreterBuilder.binary_op


def widen(data):
    """bfloat16 bits -> float32."""
    return (data.astype(np.uint32) << 16).view(np.float32)


def narrow(data):
    """float32 -> bfloat16 bits, to nearest, ties to even."""
    bits = np.ascontiguousarray(data).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)


def cast(self, src, dst_type):
    source, target = src.dtype.scalar, dst_type.scalar
    if source == tl.bfloat16 and target == tl.float32:
        return TensorHandle(widen(src.data), tl.float32)
    if source == tl.float32 and target == tl.bfloat16:
        return TensorHandle(narrow(src.data), tl.bfloat16)
    assert tl.bfloat16 not in (source, target) or source == target, f"a cast of {source} to {target}"
    return _cast(self, src, dst_type)


def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    if a.data.dtype == d.data.dtype == np.float32:  # no tensor core: one fused multiply-add after the other
        assert input_precision == ir.INPUT_PRECISION.IEEE, "float32 operands rounded to TF32"
        sums, x, y = d.data, a.data.astype(np.float64), b.data.astype(np.float64)
        for k in range(x.shape[-1]):
            sums = (sums + x[..., k, None] * y[..., k, None, :]).astype(np.float32)
        return TensorHandle(sums, tl.float32)
    a, b = (TensorHandle(widen(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, d, input_precision, max_num_imprecise_acc)


def binary(self, lhs, rhs, op):
    assert tl.bfloat16 not in (lhs.dtype.scalar, rhs.dtype.scalar), "arithmetic on bfloat16"
    return _binary(self, lhs, rhs, op)


def off(values, ulps):
    """float32 values moved by up to ``ulps`` units in the last place: at random, but always alike for the same value.
    Zeros, infinities and NaN stay."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    drawn = (bits * np.uint32(2654435761)) >> np.uint32(16)
    moved = (bits + drawn % np.uint32(2 * ulps + 1) - np.uint32(ulps)).view(np.float32)
    return np.where(np.isfinite(values) & np.isfinite(moved) & (np.abs(values) > 1e-37), moved, values)


def approximate(function, ulps):
    """An operation of the interpreter whose float32 results are off by up to ``ulps``."""

    def run(self, *operands):
        result = function(self, *operands)
        if result.data.dtype == np.float32:
            result.data = off(result.data, ulps)
        return result

    return run


def exp2(self, x):
    if x.data.dtype != np.float32:
        return TensorHandle(np.exp2(x.data), x.dtype.scalar)
    y = np.exp2(x.data.astype(np.float64)).astype(np.float32)
    return TensorHandle(np.where(x.data == 0, y, off(y, 1)), tl.float32)  # 2^0 is 1 exactly


def exp(self, x):
    if x.data.dtype != np.float32:
        return TensorHandle(np.exp(x.data), x.dtype.scalar)
    return exp2(self, TensorHandle(x.data * np.float32(1.4426950408889634), tl.float32))


InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, InterpreterBuilder.binary_op = cast, dot, binary
InterpreterBuilder.create_exp, InterpreterBuilder.create_exp2 = exp, exp2
InterpreterBuilder.create_fdiv = approximate(InterpreterBuilder.create_fdiv, 2)
InterpreterBuilder.create_sqrt = approximate(InterpreterBuilder.create_sqrt, 1)
