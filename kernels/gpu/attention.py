"""Packed variable-length attention for the GPU, forward and backward, after FlashAttention-2.

A program holds one block of queries (forward, dQ) or of keys (dK and dV) of one sequence and head, and walks over the
blocks on the other side: scores exist only in registers. Softmax is online and in base 2, sums are float32. Most blocks
of keys are seen whole by all queries of a program, so forward and dQ walk over those in a loop without masks. dK and dV
take all queries and heads of a group in one loop, masked where causal: more loops need more registers than there are.

The head dim is cut into powers of two, a main part and a rest: 72 and 80 are 64 + 16, where padding them to 128 would
cost 1.6 times the work. Gradients are sums in a fixed order, over the heads of a group too: no atomics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, power_of_2, reciprocal, sum_dtype, wide

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
ROWS = 64  # (row, head) pairs of one program of the delta kernel

# kernel -> {float32, or up to which head dim: (BLOCK_M queries, BLOCK_N keys, warps, stages)}, the same for any GPU:
# the greatest blocks that need no more registers than there are on sm_80 and on sm_90 (python -m bench.aot).
CONFIGS = {
    "forward": {"float32": (32, 16, 8, 2), 64: (128, 64, 8, 3), 80: (128, 64, 8, 3), 128: (128, 64, 8, 3)},
    "dkv": {"float32": (16, 64, 8, 2), 64: (64, 128, 8, 2), 80: (32, 128, 8, 2), 128: (64, 64, 8, 2)},
    "dq": {"float32": (32, 16, 4, 2), 64: (128, 64, 8, 2), 80: (128, 32, 8, 2), 128: (128, 32, 8, 2)},
}


def config(kernel: str, dim: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """(block sizes and parts of the head dim, launch options)."""
    key = "float32" if dtype.itemsize > 2 else next(d for d in (64, 80, 128) if dim <= d)
    m, n, warps, stages = CONFIGS[kernel][key]
    return parts(dim) | {"BLOCK_M": m, "BLOCK_N": n}, {"num_warps": warps, "num_stages": stages}


def parts(dim: int) -> dict[str, int]:
    """The head dim as a main part and a rest: 16 is the least that a tensor core multiplies."""
    main = max(16, power_of_2(dim + 1) // 2)
    return {"DIM": dim, "MAIN": main, "REST": max(16, power_of_2(dim - main)) if dim > main else 0}


@triton.jit
def _part(X, stride, row, inside, DIM: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    column = FIRST + tl.arange(0, WIDTH)[None, :]
    at = X + row[:, None] * stride + column
    if FIRST + WIDTH > DIM:
        return tl.load(at, mask=(inside[:, None] & (column < DIM)) if MASKED else column < DIM, other=0.0)
    if MASKED:
        return tl.load(at, mask=inside[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def load_rows(
    X, stride, row, inside, DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr = True
):
    """Rows of X as their main part and the rest (the main part again where there is no rest). Masked, rows that are
    not inside are 0."""
    main = _part(X, stride, row, inside, DIM, 0, MAIN, MASKED)
    rest = main
    if REST:
        rest = _part(X, stride, row, inside, DIM, MAIN, REST, MASKED)
    return main, rest


@triton.jit
def store_rows(X, stride, row, inside, main, rest, DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    at = X + row[:, None] * stride
    column = tl.arange(0, MAIN)[None, :]
    tl.store(at + column, main.to(X.dtype.element_ty), mask=inside[:, None] & (column < DIM))
    if REST:
        column = MAIN + tl.arange(0, REST)[None, :]
        tl.store(at + column, rest.to(X.dtype.element_ty), mask=inside[:, None] & (column < DIM))


@triton.jit
def dot(a, b, acc=None):
    dtype: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=dtype)


@triton.jit
def inner(a, a_rest, b, b_rest, REST: tl.constexpr, start=None):
    """a @ b^T over both parts of the columns, plus start."""
    s = dot(a, tl.trans(b), start)
    return dot(a_rest, tl.trans(b_rest), s) if REST else s


@triton.jit
def add_product(acc, acc_rest, a, b, b_rest, REST: tl.constexpr):
    """acc + a @ b, for both parts of b's columns."""
    a = a.to(b.dtype)
    return dot(a, b, acc), dot(a, b_rest, acc_rest) if REST else acc_rest


@triton.jit
def zeros(X, ROWS: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr):
    """Accumulators for rows of X's dtype."""
    dtype: tl.constexpr = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32
    return tl.zeros((ROWS, MAIN), dtype), tl.zeros((ROWS, REST if REST else 16), dtype)


@triton.jit
def softmax_step(acc, acc_rest, top, total, s, v, v_rest, scale, REST: tl.constexpr, MASKED: tl.constexpr):
    """Takes one more block of scores s and its values v into the online softmax. top is the greatest score so far
    (base 2), total the sum of exponentials and acc the weighted sum of values, both relative to top."""
    new = tl.maximum(top, tl.max(s, 1) * scale)
    base = new
    if MASKED:  # nothing seen yet: -inf less -inf would be NaN
        base = tl.where(new == float("-inf"), 0.0, new)
    p = tl.exp2(s * scale - base[:, None])
    decay = tl.exp2(top - base)
    total = total * decay + tl.sum(p, 1)
    acc *= decay[:, None]
    acc_rest *= decay[:, None]
    acc, acc_rest = add_product(acc, acc_rest, p, v, v_rest, REST)
    return acc, acc_rest, new, total


@triton.jit
def attend(
    acc, acc_rest, top, total, q, q_rest, K, V, stride_k, stride_v, keys, seen, lo, hi, scale,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The softmax goes on over the keys lo:hi; query i sees the first seen[i]."""
    for first in range(lo, hi, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        k, k_rest = load_rows(K, stride_k, key, key < keys, DIM, MAIN, REST, MASKED)
        s = inner(q, q_rest, k, k_rest, REST)
        if MASKED:
            s = tl.where(key[None, :] < seen[:, None], s, float("-inf"))
        v, v_rest = load_rows(V, stride_v, key, key < keys, DIM, MAIN, REST, MASKED)
        acc, acc_rest, top, total = softmax_step(acc, acc_rest, top, total, s, v, v_rest, scale, REST, MASKED)
    return acc, acc_rest, top, total


@triton.jit
def segment(CU, s, CAUSAL: tl.constexpr):
    """This program's block of queries, and the first row and the length of its segment."""
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block  # the longest walks first
    first = tl.load(CU + s).to(tl.int64)
    return block, first, (tl.load(CU + s + 1) - first).to(tl.int32)


@triton.jit
def span(block, n, keys, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of a block of queries: how many keys each sees, how many keys all of them see (whole blocks), and the most."""
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    if CAUSAL:
        past = keys - n
        least = min(keys, max(0, past + block * BLOCK_M + 1))
        return tl.minimum(past + row + 1, keys), least // BLOCK_N * BLOCK_N, min(keys, past + (block + 1) * BLOCK_M)
    return keys + row * 0, keys // BLOCK_N * BLOCK_N, keys


@triton.jit
def attention_kernel(
    Q, K, V, OUT, LSE, CU_Q, K_START, K_LEN, heads, stride_q, stride_k, stride_v, scale,
    CAUSAL: tl.constexpr, SHARE: tl.constexpr, DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, s = tl.program_id(1), tl.program_id(2)
    block, first, n = segment(CU_Q, s, CAUSAL)
    if block * BLOCK_M >= n:
        return
    start, keys = tl.load(K_START + s).to(tl.int64), tl.load(K_LEN + s)
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q, q_rest = load_rows(Q + first * stride_q + head * DIM, stride_q, row, row < n, DIM, MAIN, REST)
    K += start * stride_k + head // SHARE * DIM
    V += start * stride_v + head // SHARE * DIM
    seen, whole, end = span(block, n, keys, CAUSAL, BLOCK_M, BLOCK_N)
    acc, acc_rest = zeros(Q, BLOCK_M, MAIN, REST)
    top = tl.sum(acc, 1) - float("inf")
    total = tl.sum(acc, 1)
    acc, acc_rest, top, total = attend(
        acc, acc_rest, top, total, q, q_rest, K, V, stride_k, stride_v, keys, seen, 0, whole, scale,
        DIM, MAIN, REST, BLOCK_N, False,
    )  # fmt: skip
    acc, acc_rest, top, total = attend(
        acc, acc_rest, top, total, q, q_rest, K, V, stride_k, stride_v, keys, seen, whole, end, scale,
        DIM, MAIN, REST, BLOCK_N, True,
    )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # a query that sees no key gives zeros, and -inf
    tl.store(LSE + (first + row) * heads + head, (top + tl.log2(total)) * LN2, mask=row < n)
    share = reciprocal(total)[:, None]
    OUT += (first * heads + head) * DIM
    store_rows(OUT, heads * DIM, row, row < n, acc * share, acc_rest * share, DIM, MAIN, REST)


@triton.jit
def delta_kernel(OUT, DOUT, DELTA, count, DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Row sums of out * dout."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < count)[:, None] & (column < DIM)
    at = row[:, None] * DIM + column
    out = wide(tl.load(OUT + at, mask=inside, other=0.0))
    dout = wide(tl.load(DOUT + at, mask=inside, other=0.0))
    tl.store(DELTA + row, tl.sum(out * dout, 1), mask=row < count)


@triton.jit
def dkv_kernel(
    Q, K, V, DOUT, LSE, DELTA, DK, DV, CU, heads, stride_q, stride_k, stride_v, scale,
    CAUSAL: tl.constexpr, SHARE: tl.constexpr, DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    left, group, s = tl.program_id(0) * BLOCK_N, tl.program_id(1), tl.program_id(2)
    first = tl.load(CU + s).to(tl.int64)
    n = (tl.load(CU + s + 1) - first).to(tl.int32)
    if left >= n:
        return
    key = left + tl.arange(0, BLOCK_N)
    k, k_rest = load_rows(K + first * stride_k + group * DIM, stride_k, key, key < n, DIM, MAIN, REST)
    v, v_rest = load_rows(V + first * stride_v + group * DIM, stride_v, key, key < n, DIM, MAIN, REST)
    dk, dk_rest = zeros(K, BLOCK_N, MAIN, REST)
    dv, dv_rest = zeros(K, BLOCK_N, MAIN, REST)
    begin = left // BLOCK_M * BLOCK_M if CAUSAL else 0
    blocks = tl.cdiv(n - begin, BLOCK_M)
    Q += first * stride_q
    DOUT += first * heads * DIM
    LSE += first * heads
    DELTA += first * heads
    for step in range(SHARE * blocks):  # the heads of the group, one after the other
        # Scores are transposed, keys by queries: so they are the left operand of the next products as they lie.
        # Products start from what is to be subtracted from them: that needs fewer registers than to subtract it after.
        head = group * SHARE + step // blocks
        row = begin + step % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
        q, q_rest = load_rows(Q + head * DIM, stride_q, row, row < n, DIM, MAIN, REST)
        dout, dout_rest = load_rows(DOUT + head * DIM, heads * DIM, row, row < n, DIM, MAIN, REST)
        lse = tl.load(LSE + row * heads + head, mask=row < n, other=float("inf"))  # no weight is left past the end
        delta = tl.load(DELTA + row * heads + head, mask=row < n, other=0.0)
        if Q.dtype.element_ty == tl.float32:  # there, all sums would be rounded at the start's magnitude
            p = tl.exp2(inner(k, k_rest, q, q_rest, REST) * (scale * LOG2E) - (lse * LOG2E)[None, :])
        else:
            start = tl.broadcast_to((lse * (-1.0 / scale))[None, :], (BLOCK_N, BLOCK_M))
            p = tl.exp2(inner(k, k_rest, q, q_rest, REST, start) * (scale * LOG2E))
        if CAUSAL:
            p = tl.where(key[:, None] <= row[None, :], p, 0.0)
        dv, dv_rest = add_product(dv, dv_rest, p, dout, dout_rest, REST)
        start = tl.broadcast_to(-delta[None, :], (BLOCK_N, BLOCK_M))
        ds = p * inner(v, v_rest, dout, dout_rest, REST, start)
        dk, dk_rest = add_product(dk, dk_rest, ds, q, q_rest, REST)
    at = (first * (heads // SHARE) + group) * DIM
    stride = heads // SHARE * DIM
    store_rows(DK + at, stride, key, key < n, dk * scale, dk_rest * scale, DIM, MAIN, REST)
    store_rows(DV + at, stride, key, key < n, dv, dv_rest, DIM, MAIN, REST)


@triton.jit
def gather_dq(
    dq, dq_rest, q, q_rest, dout, dout_rest, lse, delta, K, V, stride_k, stride_v, n, seen, lo, hi, scale,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds what the keys lo:hi give to the gradients of these queries; query i sees the first seen[i]."""
    for first in range(lo, hi, BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        k, k_rest = load_rows(K, stride_k, key, key < n, DIM, MAIN, REST, MASKED)
        v, v_rest = load_rows(V, stride_v, key, key < n, DIM, MAIN, REST, MASKED)
        p = tl.exp2(inner(q, q_rest, k, k_rest, REST) * (scale * LOG2E) - lse[:, None])
        if MASKED:
            p = tl.where(key[None, :] < seen[:, None], p, 0.0)
        less = tl.broadcast_to(-delta[:, None], p.shape)
        ds = p * inner(dout, dout_rest, v, v_rest, REST, less)
        dq, dq_rest = add_product(dq, dq_rest, ds, k, k_rest, REST)
    return dq, dq_rest


@triton.jit
def dq_kernel(
    Q, K, V, DOUT, LSE, DELTA, DQ, CU, heads, stride_q, stride_k, stride_v, scale,
    CAUSAL: tl.constexpr, SHARE: tl.constexpr, DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, s = tl.program_id(1), tl.program_id(2)
    block, first, n = segment(CU, s, CAUSAL)
    if block * BLOCK_M >= n:
        return
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    at = (first * heads + head) * DIM
    q, q_rest = load_rows(Q + first * stride_q + head * DIM, stride_q, row, row < n, DIM, MAIN, REST)
    dout, dout_rest = load_rows(DOUT + at, heads * DIM, row, row < n, DIM, MAIN, REST)
    lse = tl.load(LSE + (first + row) * heads + head, mask=row < n, other=float("inf")) * LOG2E
    delta = tl.load(DELTA + (first + row) * heads + head, mask=row < n, other=0.0)
    K += first * stride_k + head // SHARE * DIM
    V += first * stride_v + head // SHARE * DIM
    seen, whole, end = span(block, n, n, CAUSAL, BLOCK_M, BLOCK_N)
    dq, dq_rest = zeros(Q, BLOCK_M, MAIN, REST)
    dq, dq_rest = gather_dq(
        dq, dq_rest, q, q_rest, dout, dout_rest, lse, delta, K, V, stride_k, stride_v, n, seen, 0, whole, scale,
        DIM, MAIN, REST, BLOCK_N, False,
    )  # fmt: skip
    dq, dq_rest = gather_dq(
        dq, dq_rest, q, q_rest, dout, dout_rest, lse, delta, K, V, stride_k, stride_v, n, seen, whole, end, scale,
        DIM, MAIN, REST, BLOCK_N, True,
    )  # fmt: skip
    store_rows(DQ + at, heads * DIM, row, row < n, dq * scale, dq_rest * scale, DIM, MAIN, REST)


def attention(q, k, v, cu_q, k_start, k_len, causal, max_q, scale):
    """q (T, H, K), k and v (R, G, K), with contiguous heads; scale above 0 -> out (T, H, K) and the log-sum-exp of the
    scores (T, H), -inf where a query sees no key, in float32."""
    t, heads, dim = q.shape
    out, lse = q.new_empty(t, heads, dim), q.new_empty(t, heads, dtype=sum_dtype(q.dtype))
    shape, options = config("forward", dim, q.dtype)
    if t and max_q:
        attention_kernel[(triton.cdiv(max_q, shape["BLOCK_M"]), heads, len(k_len))](
            q, k, v, out, lse, cu_q, k_start, k_len, heads, q.stride(0), k.stride(0), v.stride(0), scale * LOG2E.value,
            CAUSAL=causal, SHARE=heads // k.shape[1], **shape, **options,
        )  # fmt: skip
    return out, lse


def attention_backward(dout, q, k, v, out, lse, cu, causal, max_q, scale):
    """Gradients of q, k and v, where keys are packed as queries are. dout and out are contiguous."""
    (t, heads, dim), groups, sequences = q.shape, k.shape[1], len(cu) - 1
    delta = lse.new_empty(lse.shape)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    if not (t and max_q):
        return dq, dk, dv
    count = t * heads
    delta_kernel[(triton.cdiv(count, ROWS),)](out, dout, delta, count, DIM=dim, BLOCK=power_of_2(dim), ROWS=ROWS)
    common = (cu, heads, q.stride(0), k.stride(0), v.stride(0), scale)
    kind = {"CAUSAL": causal, "SHARE": heads // groups}
    shape, options = config("dkv", dim, q.dtype)
    dkv_kernel[(triton.cdiv(max_q, shape["BLOCK_N"]), groups, sequences)](
        q, k, v, dout, lse, delta, dk, dv, *common, **kind, **shape, **options
    )
    shape, options = config("dq", dim, q.dtype)
    dq_kernel[(triton.cdiv(max_q, shape["BLOCK_M"]), heads, sequences)](
        q, k, v, dout, lse, delta, dq, *common, **kind, **shape, **options
    )
    return dq, dk, dv


def variants() -> Iterator[Variant]:
    kernels = {
        "forward": (attention_kernel, "Q K V OUT", "LSE", "CU_Q K_START K_LEN"),
        "dkv": (dkv_kernel, "Q K V DOUT DK DV", "LSE DELTA", "CU"),
        "dq": (dq_kernel, "Q K V DOUT DQ", "LSE DELTA", "CU"),
    }
    numbers = dict.fromkeys("heads stride_q stride_k stride_v".split(), "i32") | {"scale": "fp32"}
    bf16, fp32 = torch.bfloat16, torch.float32
    cases = [(bf16, 72, False, 1), (bf16, 80, False, 1), (bf16, 64, True, 1), (bf16, 64, True, 7), (bf16, 80, True, 7)]
    cases += [(bf16, 128, True, 1), (bf16, 128, True, 7), (fp32, 72, False, 1), (fp32, 128, True, 7)]
    for kind, (kernel, tensors, sums, spans) in kernels.items():
        for dtype, dim, causal, share in cases:
            shape, options = config(kind, dim, dtype)
            element = "*bf16" if dtype == bf16 else "*fp32"
            types = dict.fromkeys(tensors.split(), element) | dict.fromkeys(sums.split(), "*fp32")
            types |= dict.fromkeys(spans.split(), "*i32") | numbers
            yield Variant(
                f"{kind} K={dim} {f'causal H/G={share}' if causal else 'full'} {element[1:]}", kernel, types,
                shape | {"CAUSAL": causal, "SHARE": share}, **options, dots=dtype == bf16, unaligned=("heads",),
            )  # fmt: skip
    for dim in (72, 128):
        types = {"OUT": "*bf16", "DOUT": "*bf16", "DELTA": "*fp32", "count": "i32"}
        shape = {"DIM": dim, "BLOCK": power_of_2(dim), "ROWS": ROWS}
        yield Variant(f"delta K={dim}", delta_kernel, types, shape, unaligned=("count",))
