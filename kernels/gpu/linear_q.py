"""Products with weight-only quantised matrices for the GPU: a matrix-vector kernel and a small-batch matrix kernel.

Weights leave memory in their packed form and become numbers in registers. Values are summed within a group as
integers times x, and the group's scale multiplies the sum: no dequantised weight is ever rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, sum_dtype, wide

STEP = 512  # bytes of a row that one warp of the matrix-vector kernel takes at a time, 16 a thread
OUTPUTS = 4  # rows of the weight of a program: one a warp, so that nothing crosses warps
GEMV_TILE = 16  # values that share a "group" where a whole row shares its scale: what a thread loads at once
GEMM_TILE = 64  # the same for the matrix kernel
BN = 64  # rows of the weight of a program of the matrix kernel: the 64 rows of Hopper's instruction
PROGRAMS = 264  # two on each of an H100's multiprocessors


@triton.jit
def _unpack(q, zero, BITS: tl.constexpr, HIGH: tl.constexpr, dtype: tl.constexpr):
    """Stored bytes -> signed values in dtype, exactly. 4 bits: the low or the high half of each byte less zero."""
    if BITS == 4:
        q = (q >> 4 if HIGH else q & 15).to(tl.int8) - zero
    return q.to(tl.float32).to(dtype)


@triton.jit
def gemv_kernel(
    X, VALUES, SCALES, ZEROS, BIAS, Y, N, K, groups, stride_x,
    BITS: tl.constexpr, GROUP: tl.constexpr, CHANNEL: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """One row of Y (M, N) and OUTPUTS of its columns: each column's K values in one order, whatever M is."""
    m = tl.program_id(0).to(tl.int64)  # fastest: programs that read the same weights run side by side
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    WIDTH: tl.constexpr = GROUP * BITS // 8  # bytes of a group
    valid, byte = (n < N)[:, None, None], tl.arange(0, WIDTH)[None, None, :]
    row = VALUES + (n.to(tl.int64) * (K * BITS // 8))[:, None, None]
    compute = wide(tl.zeros((1,), X.dtype.element_ty)).dtype
    acc = tl.zeros((OUTPUTS, GROUPS), compute)
    for first in range(0, groups, GROUPS):
        group = first + tl.arange(0, GROUPS)
        # x is read in the weights' shape, hence in their layout: a thread has what it multiplies, without exchange.
        k = tl.broadcast_to(group[None, :, None] * GROUP + byte, (OUTPUTS, GROUPS, WIDTH))
        q = tl.load(row + group[None, :, None] * WIDTH + byte, mask=valid & (k < K), other=0)
        x = wide(tl.load(X + m * stride_x + k, mask=k < K, other=0.0))
        at = n[:, None] * groups + group[None, :]
        inside = (n < N)[:, None] & (group < groups)[None, :]
        zero = 8 if ZEROS is None else tl.load(ZEROS + at, mask=inside, other=0).to(tl.int8)[:, :, None]
        products = _unpack(q, zero, BITS, False, compute) * x
        if BITS == 4:
            x = wide(tl.load(X + m * stride_x + k + WIDTH, mask=k < K, other=0.0))
            products += _unpack(q, zero, BITS, True, compute) * x
        total = tl.sum(products, 2)
        acc += total if CHANNEL else total * wide(tl.load(SCALES + at, mask=inside, other=0.0))
    y = tl.sum(acc, 1)
    if CHANNEL:
        y *= wide(tl.load(SCALES + n, mask=n < N, other=0.0))
    if BIAS is not None:
        y += wide(tl.load(BIAS + n, mask=n < N, other=0.0))
    tl.store(Y + m * N + n, y.to(Y.dtype.element_ty), mask=n < N)


@triton.jit
def gemm_kernel(
    X, VALUES, SCALES, ZEROS, BIAS, Y, M, N, K, groups, groups_per_part, stride_x,
    BITS: tl.constexpr, GROUP: tl.constexpr, CHANNEL: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """A tile of Y (parts, M, N), transposed: the weights are the left operand, which the tensor cores take from
    registers, and few rows of x are a narrow right one. A part is a range of groups."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    part = tl.program_id(2)
    WIDTH: tl.constexpr = GROUP * BITS // 8
    dtype: tl.constexpr = X.dtype.element_ty
    byte = tl.arange(0, WIDTH)
    row = VALUES + n.to(tl.int64)[:, None] * (K * BITS // 8) + byte[None, :]
    x_at = X + m.to(tl.int64)[None, :] * stride_x + byte[:, None]
    acc = wide(tl.zeros((BN, BM), dtype))
    for group in range(part * groups_per_part, min((part + 1) * groups_per_part, groups)):
        rest = K - group * GROUP
        q = tl.load(row + group * WIDTH, mask=(n < N)[:, None] & (byte < rest)[None, :], other=0)
        inside = (m < M)[None, :] & (byte < rest)[:, None]
        x = tl.load(x_at + group * GROUP, mask=inside, other=0.0)
        at = n * groups + group
        zero = 8 if ZEROS is None else tl.load(ZEROS + at, mask=n < N, other=0).to(tl.int8)[:, None]
        if CHANNEL:
            acc = tl.dot(_unpack(q, zero, BITS, False, dtype), x, acc, input_precision="ieee", out_dtype=acc.dtype)
        else:
            total = tl.dot(_unpack(q, zero, BITS, False, dtype), x, input_precision="ieee", out_dtype=acc.dtype)
            if BITS == 4:
                x = tl.load(x_at + group * GROUP + WIDTH, mask=inside, other=0.0)
                total = tl.dot(
                    _unpack(q, zero, BITS, True, dtype), x, total, input_precision="ieee", out_dtype=acc.dtype
                )
            acc += total * wide(tl.load(SCALES + at, mask=n < N, other=0.0))[:, None]
    if CHANNEL:
        acc *= wide(tl.load(SCALES + n, mask=n < N, other=0.0))[:, None]
    if BIAS is not None:
        acc += wide(tl.load(BIAS + n, mask=(n < N) & (part == 0), other=0.0))[:, None]
    y_at = Y + (part * M + m).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(y_at, acc.to(Y.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


def gemv(x, values, scales, zeros, bias, bits: int, group: int):
    """x (M, K) with contiguous rows -> (M, N)."""
    (m, k), n = x.shape, len(values)
    y = x.new_empty(m, n)
    if m:
        size, groups, channel = _groups(k, group, GEMV_TILE)
        gemv_kernel[(m, triton.cdiv(n, OUTPUTS))](
            x, values, scales, zeros, bias, y, n, k, groups, x.stride(0), BITS=bits, GROUP=size, CHANNEL=channel,
            GROUPS=STEP * 8 // (size * bits), OUTPUTS=OUTPUTS, num_warps=OUTPUTS,
        )  # fmt: skip
    return y


def gemm(x, values, scales, zeros, bias, bits: int, group: int):
    """x (M, K) with contiguous rows -> (M, N). Few tiles are split along K; the parts' sums are added in order."""
    (m, k), n = x.shape, len(values)
    size, groups, channel = _groups(k, group, GEMM_TILE)
    share = triton.cdiv(groups, max(1, PROGRAMS // triton.cdiv(n, BN)))
    parts = triton.cdiv(groups, share)
    y = x.new_empty(parts, m, n, dtype=x.dtype if parts == 1 else sum_dtype(x.dtype))
    if m:
        bm = _rows(m, x.element_size())
        gemm_kernel[(triton.cdiv(n, BN), triton.cdiv(m, bm), parts)](
            x, values, scales, zeros, bias, y, m, n, k, groups, share, x.stride(0),
            BITS=bits, GROUP=size, CHANNEL=channel, BN=BN, BM=bm, num_warps=4, num_stages=4,
        )  # fmt: skip
    return y[0] if parts == 1 else y.sum(0).to(x.dtype)


def _groups(k: int, group: int, tile: int) -> tuple[int, int, bool]:
    """(values of a group, groups of a row, whether the whole row shares its scale and groups are mere tiles)."""
    size = group or tile
    return size, triton.cdiv(k, size), not group


def _rows(m: int, element_size: int) -> int:
    """BM. Without tensor cores 64 rows would not fit in the registers."""
    return 16 if m <= 16 else 64 if element_size == 2 else 32


def variants() -> Iterator[Variant]:
    formats = [(8, group, False) for group in (0, 32, 64, 128)]
    formats += [(4, group, zero_point) for group in (32, 64, 128) for zero_point in (False, True)]
    dtypes = [("*bf16", f) for f in formats] + [("*fp32", formats[0]), ("*fp32", formats[-1])]
    for dtype, (bits, group, zero_point) in dtypes:
        kind = f"{dtype[1:]} int{bits} {f'group {group}' if group else 'per channel'}{' with zeros' * zero_point}"
        absent = {} if zero_point else {"ZEROS": None}
        types = dict.fromkeys(("X", "SCALES", "BIAS", "Y"), dtype) | {"VALUES": "*u8" if bits == 4 else "*i8"}
        types |= dict.fromkeys(("N", "K", "groups", "stride_x"), "i32") | ({"ZEROS": "*u8"} if zero_point else {})
        size, _, channel = _groups(896, group, GEMV_TILE)
        shape = {"BITS": bits, "CHANNEL": channel} | absent
        steps = {"GROUP": size, "GROUPS": STEP * 8 // (size * bits), "OUTPUTS": OUTPUTS}
        yield Variant(f"gemv {kind}", gemv_kernel, types, shape | steps, OUTPUTS, unaligned=("groups",))
        types = types | dict.fromkeys(("M", "groups_per_part"), "i32") | {"Y": "*fp32"}  # a part
        size, _, channel = _groups(896, group, GEMM_TILE)
        for bm in (16, 64 if dtype == "*bf16" else 32):
            yield Variant(
                f"gemm {kind} {bm} rows", gemm_kernel, types, shape | {"GROUP": size, "BN": BN, "BM": bm},
                4, 4, dots=dtype == "*bf16", unaligned=("M", "groups", "groups_per_part"),
            )  # fmt: skip
