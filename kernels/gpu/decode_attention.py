"""Attention of one query per sequence over a KV cache, split over the keys.

A program takes SPLIT keys of one sequence and kv head, with all query heads of the group as the rows of one product
(padded to 16, the least of a tensor core: the time goes into reading keys). It writes its softmax unfinished: the
greatest score, the sum of exponentials and the weighted sum of values, in float32. A second kernel adds the splits of a
sequence in order, a fixed number at a time. Nothing depends on the batch, and the grid on max_k and the shapes alone:
programs past a sequence's end leave at once, and what they would have written is never read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, divide, power_of_2, sum_dtype
from minilava_kernels.gpu.attention import LOG2E, inner, load_rows, parts, softmax_step, store_rows, zeros

SPLIT = 256  # keys of a program
CHUNK = 16  # splits that are added at a time
CONFIGS = {"float32": (32, 4, 2), 64: (64, 4, 4), 80: (32, 4, 4), 128: (64, 4, 3)}  # up to K: (BLOCK_N, warps, stages)


def config(dim: int, share: int, page: int, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """(constants, launch options)."""
    key = "float32" if dtype.itemsize > 2 else next(d for d in (64, 80, 128) if dim <= d)
    block, warps, stages = CONFIGS[key]
    constants = {"PAGE": page, "SHARE": share, "ROWS": max(16, power_of_2(share)), "SPLIT": SPLIT, "BLOCK_N": block}
    return parts(dim) | constants, {"num_warps": warps, "num_stages": stages + 2 * (page > 0)}  # a table comes before


@triton.jit
def decode_kernel(
    Q, K, V, ACC, TOP, TOTAL, K_LEN, WHERE, heads, width, splits, stride_q, stride_k, stride_v, scale,
    PAGE: tl.constexpr, SHARE: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_N: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """WHERE: the first cache row of each sequence or, with pages, its table of width pages."""
    split, group, s = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys = tl.load(K_LEN + s)
    if split * SPLIT >= keys:
        return
    member = tl.arange(0, ROWS)
    head = group * SHARE
    q, q_rest = load_rows(Q + s * stride_q + head * DIM, DIM, member, member < SHARE, DIM, MAIN, REST)
    K += group * DIM
    V += group * DIM
    acc, acc_rest = zeros(Q, ROWS, MAIN, REST)
    top = tl.sum(acc, 1) - float("inf")
    total = tl.sum(acc, 1)
    for first in range(split * SPLIT, min(split * SPLIT + SPLIT, keys), BLOCK_N):
        key = first + tl.arange(0, BLOCK_N)
        inside = key < keys
        if PAGE:
            row = tl.load(WHERE + s * width + key // PAGE, mask=inside, other=0).to(tl.int64) * PAGE + key % PAGE
        else:
            row = tl.load(WHERE + s).to(tl.int64) + key
        k, k_rest = load_rows(K, stride_k, row, inside, DIM, MAIN, REST)
        scores = tl.where(inside[None, :], inner(q, q_rest, k, k_rest, REST), float("-inf"))
        v, v_rest = load_rows(V, stride_v, row, inside, DIM, MAIN, REST)
        acc, acc_rest, top, total = softmax_step(acc, acc_rest, top, total, scores, v, v_rest, scale, REST, False)
    at = (s * heads + head) * splits + split
    tl.store(TOP + at + member * splits, top, mask=member < SHARE)
    tl.store(TOTAL + at + member * splits, total, mask=member < SHARE)
    store_rows(ACC + at * DIM, splits * DIM, member, member < SHARE, acc, acc_rest, DIM, MAIN, REST)


@triton.jit
def combine_kernel(
    ACC, TOP, TOTAL, OUT, K_LEN, heads, splits,
    SPLIT: tl.constexpr, CHUNK: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head, s = tl.program_id(0), tl.program_id(1).to(tl.int64)
    used = tl.cdiv(tl.load(K_LEN + s), SPLIT)
    column = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), ACC.dtype.element_ty)
    total = tl.sum(acc, 0)
    top = total - float("inf")
    for first in range(0, used, CHUNK):
        split = first + tl.arange(0, CHUNK)
        at = (s * heads + head) * splits + split
        tops = tl.load(TOP + at, mask=split < used, other=float("-inf"))
        new = tl.maximum(top, tl.max(tops, 0))
        weight = tl.exp2(tops - new)
        decay = tl.exp2(top - new)
        inside = (split < used)[:, None] & (column < DIM)[None, :]
        part = tl.load(ACC + at[:, None] * DIM + column[None, :], mask=inside, other=0.0)
        acc = acc * decay + tl.sum(part * weight[:, None], 0)
        total = total * decay + tl.sum(tl.load(TOTAL + at, mask=split < used, other=0.0) * weight, 0)
        top = new
    out = divide(acc, tl.where(total == 0.0, 1.0, total))  # zeros without a key
    tl.store(OUT + (s * heads + head) * DIM + column, out.to(OUT.dtype.element_ty), mask=column < DIM)


def decode_attention(q, k, v, k_len, where, page, max_k, scale):
    """q (S, H, K), k and v (R, G, K), all with contiguous heads; where (S), or (S, P) with pages -> (S, H, K)."""
    sequences, heads, dim = q.shape
    groups, splits = k.shape[1], max(1, triton.cdiv(max_k, SPLIT))
    out = q.new_empty(q.shape)
    if not sequences:
        return out
    acc = q.new_empty(sequences, heads, splits, dim, dtype=sum_dtype(q.dtype))
    top, total = (acc.new_empty(sequences, heads, splits) for _ in range(2))
    constants, options = config(dim, heads // groups, page, q.dtype)
    decode_kernel[(splits, groups, sequences)](
        q, k, v, acc, top, total, k_len, where, heads, where.shape[-1], splits, q.stride(0), k.stride(0), v.stride(0),
        scale * LOG2E.value, **constants, **options,
    )  # fmt: skip
    combine_kernel[(heads, sequences)](
        acc, top, total, out, k_len, heads, splits, SPLIT=SPLIT, CHUNK=CHUNK, DIM=dim, BLOCK=power_of_2(dim)
    )
    return out


def variants() -> Iterator[Variant]:
    bf16, fp32 = torch.bfloat16, torch.float32
    cases = [(bf16, 64, 1, 0), (bf16, 64, 7, 16), (bf16, 72, 1, 0), (bf16, 80, 7, 0), (bf16, 128, 1, 0)]
    cases += [(bf16, 128, 7, 0), (bf16, 128, 7, 16), (bf16, 128, 8, 64), (fp32, 128, 7, 0)]
    for dtype, dim, share, page in cases:
        constants, options = config(dim, share, page, dtype)
        element = "*bf16" if dtype == bf16 else "*fp32"
        types = dict.fromkeys("QKV", element) | dict.fromkeys(("ACC", "TOP", "TOTAL"), "*fp32")
        types |= {"K_LEN": "*i32", "WHERE": "*i32", "scale": "fp32"}
        types |= dict.fromkeys("heads width splits stride_q stride_k stride_v".split(), "i32")
        kind = f"page={page}" if page else "contiguous"
        yield Variant(
            f"decode K={dim} H/G={share} {kind} {element[1:]}", decode_kernel, types, constants, **options,
            dots=dtype == bf16, unaligned=("heads", "width", "splits"),
        )  # fmt: skip
    for dim in (72, 128):
        types = dict.fromkeys(("ACC", "TOP", "TOTAL"), "*fp32") | {"OUT": "*bf16", "K_LEN": "*i32"}
        types |= {"heads": "i32", "splits": "i32"}
        constants = {"SPLIT": SPLIT, "CHUNK": CHUNK, "DIM": dim, "BLOCK": power_of_2(dim)}
        yield Variant(f"combine K={dim}", combine_kernel, types, constants, unaligned=("heads", "splits"))
