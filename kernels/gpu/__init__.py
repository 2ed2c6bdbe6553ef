"""The Triton kernels, one file per operation with the operation's name. Imported at the first call that needs them:
Triton is an optional dependency, and a CPU never loads it.

Every file ends with ``variants()``: all forms in which its kernels can be launched, which bench.aot compiles without
a GPU. Arithmetic is float32 after every load (float64 for float64, which tests differentiate numerically); products
accumulate in float32 and ask for IEEE float32 where their operands are float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel. types: argument name -> "*bf16", "*i32", "i32", "fp32" ...; arguments that are
    not named in types or constants do not exist. dots: whether tensor-core instructions must appear."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    dots: bool = False
    unaligned: tuple[str, ...] = field(default=())  # integer arguments that need not be multiples of 16


@triton.jit
def wide(x):
    """x in the dtype to compute in."""
    if x.dtype == tl.float64:  # one return: a compiler, unlike the interpreter, wants one type of all of them
        y = x
    else:
        y = x.to(tl.float32)
    return y


@triton.jit
def divide(x, y):
    """x / y to the nearest value, x a tensor. A plain ``/`` of float32 may be two units in the last place off."""
    if x.dtype == tl.float32:
        q = tl.div_rn(x, tl.cast(y, tl.float32))
    else:
        q = x / y
    return q


@triton.jit
def reciprocal(x):
    """1 / x to the nearest value."""
    return divide(tl.zeros_like(x) + 1.0, x)


@triton.jit
def sqrt(x):
    """The root to the nearest value."""
    if x.dtype == tl.float32:
        y = tl.sqrt_rn(x)
    else:
        y = tl.sqrt(x)
    return y


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over values of this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
