"""Triton's interpreter for tests on a CPU, with bfloat16 as the hardware has it.

The interpreter keeps bfloat16 as 16-bit integers: it truncates where the hardware rounds to nearest, and adds and
multiplies the integers. Here conversions round, products widen their operands first, and any other arithmetic on
bfloat16 is an error: the kernels compute in float32.
"""

import numpy as np
import torch
import triton.language as tl
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
    a, b = (TensorHandle(widen(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
    return _dot(self, a, b, d, input_precision, max_num_imprecise_acc)


def binary(self, lhs, rhs, op):
    assert tl.bfloat16 not in (lhs.dtype.scalar, rhs.dtype.scalar), "arithmetic on bfloat16"
    return _binary(self, lhs, rhs, op)


InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, InterpreterBuilder.binary_op = cast, dot, binary
