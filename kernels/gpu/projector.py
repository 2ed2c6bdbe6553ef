"""The projector for the GPU: one tiled matrix product whose last step is a bias, a GELU or a GELU's derivative.

The intermediate goes through memory, because keeping it on chip does not pay. A program that held BM rows of it would
stream both weight matrices, and so would the program of the next BM rows. At width 1024 the weights are 2 * 1024 *
(1152 + 1024) = 4.5 MB; one picture's 729 rows in blocks of 64 (128 KB of intermediate, what fits beside the tiles) are
12 programs that occupy 12 of 132 multiprocessors and read 53 MB, where writing and reading the intermediate costs
4 * 729 * 1024 = 3 MB. At width 4096 the intermediate of even 32 rows (256 KB) exceeds shared memory.

Programs take the tiles of the result in bands of BAND rows of tiles, column by column, so that the tiles in flight
share their operands in L2.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, sum_dtype, wide

BAND = 8
PROGRAMS = 132  # multiprocessors of an H100: what a grid should fill

# (BM, BN, BK, warps, stages), the first whose tiles fill the GPU; the last one if none does. Products that keep or
# read the values before the GELU have no registers left for the widest.
CONFIGS = ((128, 256, 32, 8, 4), (128, 128, 64, 8, 3), (64, 64, 64, 4, 4))
FLOAT32 = (64, 64, 32, 4, 2)  # no tensor cores: products and sums of IEEE float32


@triton.jit
def _cdf(z):
    """The normal distribution's cumulative function."""
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)


@triton.jit
def _finish(acc, BIAS, PRE, HIDDEN, Y, first, row, col, M, N, EPILOGUE: tl.constexpr):
    """Apply the epilogue to a tile and store it. first: the offset of its row 0, to which row counts."""
    at, inside = row * N + col, (row < M) & (col < N)
    dtype = Y.dtype.element_ty
    if EPILOGUE == "gelu_backward":
        pre = wide(tl.load(PRE + first + at, mask=inside, other=0.0))
        cdf = _cdf(pre)
        tl.store(HIDDEN + first + at, (pre * cdf).to(dtype), mask=inside)
        acc *= cdf + pre * tl.exp(-0.5 * pre * pre) * 0.3989422804014327
    else:
        acc += wide(tl.load(BIAS + col, mask=col < N, other=0.0))
        if EPILOGUE == "gelu":
            pre = acc.to(dtype)  # rounded, so that backward starts from the very same value
            if PRE is not None:
                tl.store(PRE + first + at, pre, mask=inside)
            acc = wide(pre) * _cdf(wide(pre))
    tl.store(Y + first + at, acc.to(dtype), mask=inside)


@triton.jit
def product_kernel(
    X, W, BIAS, PRE, HIDDEN, Y, M, N, K, stride_x, stride_n, stride_k,
    EPILOGUE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """Y (M, N) = epilogue(X (M, K) times W, whose element (n, k) lies at n * stride_n + k * stride_k).

    "bias": + BIAS. "gelu": PRE (where given) = product + BIAS, Y = gelu(PRE). "gelu_backward": Y = product *
    gelu'(PRE), HIDDEN = gelu(PRE).
    """
    tile = tl.program_id(0)
    down, across = tl.cdiv(M, BM), tl.cdiv(N, BN)
    band = tile // (BAND * across) * BAND
    height = min(down - band, BAND)
    within = tile % (BAND * across)
    top, left = (band + within % height) * BM, within // height * BN
    row, col, k = tl.arange(0, BM)[:, None], left + tl.arange(0, BN)[None, :], tl.arange(0, BK)
    M -= top  # rows from here on
    X += top.to(tl.int64) * stride_x  # 64 bits from tile to tile, 32 within it
    x_at = X + row * stride_x + k[None, :]
    w_at = W + col.to(tl.int64) * stride_n + k[:, None] * stride_k
    acc = wide(tl.zeros((BM, BN), X.dtype.element_ty))
    for start in range(0, K, BK):
        x = tl.load(x_at, mask=(row < M) & (k[None, :] < K - start), other=0.0)
        w = tl.load(w_at, mask=(col < N) & (k[:, None] < K - start), other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee", out_dtype=acc.dtype)
        x_at += BK
        w_at += BK * stride_k
    first = top.to(tl.int64) * N
    # One half of the columns after the other: the epilogue of a whole tile would not fit in the registers.
    col = left + tl.arange(0, BN // 2)[None, :]
    one, two = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
    _finish(one, BIAS, PRE, HIDDEN, Y, first, row, col, M, N, EPILOGUE)
    _finish(two, BIAS, PRE, HIDDEN, Y, first, row, col + BN // 2, M, N, EPILOGUE)


def projector(x, w1, b1, w2, b2, keep: bool):
    """x (T, K) with contiguous rows, w1 (H, K), w2 (N, H) -> ((T, N), the values before the GELU (T, H) or None)."""
    pre = x.new_empty(len(x), len(w1)) if keep else None
    hidden = _product("gelu", x, w1, b1, pre)
    return _product("bias", hidden, w2, b2), pre


def projector_backward(x, pre, w1, w2, dy, need_dx: bool):
    """dy (T, N) contiguous -> gradients of x (None unless needed), w1, b1, w2 and b2; the biases' are sums' dtype."""
    hidden = pre.new_empty(pre.shape)
    dh = _product("gelu_backward", dy, w2.t(), None, pre, hidden)
    wide_sum = sum_dtype(x.dtype)
    dx = dh @ w1 if need_dx else None
    return dx, dh.t() @ x, dh.sum(0, dtype=wide_sum), dy.t() @ hidden, dy.sum(0, dtype=wide_sum)


def _product(epilogue, x, w, bias, pre=None, hidden=None):
    """w (N, K) with any strides."""
    (m, k), n = x.shape, len(w)
    y = x.new_empty(m, n)
    if m:
        bm, bn, bk, warps, stages = _config(m, n, x.element_size(), pre is not None)
        product_kernel[(triton.cdiv(m, bm) * triton.cdiv(n, bn),)](
            x, w, bias, pre, hidden, y, m, n, k, x.stride(0), w.stride(0), w.stride(1),
            EPILOGUE=epilogue, BM=bm, BN=bn, BK=bk, BAND=BAND, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return y


def _config(m: int, n: int, element_size: int, pre: bool) -> tuple[int, ...]:
    if element_size > 2:
        return FLOAT32
    fits = (c for c in CONFIGS[1 if pre else 0 :] if triton.cdiv(m, c[0]) * triton.cdiv(n, c[1]) >= PROGRAMS)
    return next(fits, CONFIGS[-1])


def variants() -> Iterator[Variant]:
    epilogues = ("bias", ["BIAS"]), ("gelu", ["BIAS"]), ("gelu", ["BIAS", "PRE"]), ("gelu_backward", ["PRE", "HIDDEN"])
    for dtype, configs in (("*bf16", CONFIGS), ("*fp32", (FLOAT32,))):
        for epilogue, extra in epilogues:
            backward = epilogue == "gelu_backward"
            numbers = dict.fromkeys(("M", "N", "K", "stride_x", "stride_k" if backward else "stride_n"), "i32")
            constants = {"stride_n" if backward else "stride_k": 1, "EPILOGUE": epilogue, "BAND": BAND}
            constants |= dict.fromkeys({"BIAS", "PRE", "HIDDEN"} - set(extra))
            types = dict.fromkeys(("X", "W", "Y", *extra), dtype) | numbers
            kind = f"{epilogue}{' kept' * (extra == ['BIAS', 'PRE'])} {dtype[1:]}"
            usable = configs[1:] if "PRE" in extra and configs is CONFIGS else configs
            for bm, bn, bk, warps, stages in usable:
                yield Variant(
                    f"{kind} {bm}x{bn}x{bk}", product_kernel, types, constants | {"BM": bm, "BN": bn, "BK": bk},
                    warps, stages, dots=dtype == "*bf16", unaligned=("M",),
                )  # fmt: skip
