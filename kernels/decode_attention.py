"""Attention of one new query per sequence over its cached keys, contiguous or in pages: the decode step on a GPU.

A step reads the 2 G K elements of every cached key once (m keys of 2 bytes: 4 m G K bytes) for 4 m H K FLOPs, which is
H / G FLOPs a byte: bound by memory bandwidth for any grouping in use, so all heads of a group share one read of their
keys. A few sequences would fill only a few of a GPU's multiprocessors, so a sequence is cut into splits of a fixed
number of keys, whose partial results a second kernel adds in order; they cost 2 H / (G SPLIT) of the bytes again, 5%
for 7 heads of a group. A split is the same in any batch, and so are the bits of every result.

S sequences, one row each; R cache rows, H heads, G kv heads, K head dim.
"""

import torch

from minilava_kernels.ops import register


def decode_attention_reference(q, k, v, k_start, k_len, block_table=None, scale=None):
    """One sequence after the other: scores in q's dtype, softmax in float32. Without a key the result is zeros."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    share = q.shape[1] // k.shape[-2]
    outputs = []
    for s, length in enumerate(k_len.tolist()):
        if block_table is None:
            rows = slice(int(k_start[s]), int(k_start[s]) + length)
            ks, vs = k[rows], v[rows]
        else:
            pages = block_table[s, : -(-length // k.shape[1])].long()
            ks, vs = (x[pages].flatten(0, 1)[:length] for x in (k, v))
        ks, vs = (x.repeat_interleave(share, 1).transpose(0, 1) for x in (ks, vs))
        scores = (ks @ q[s, :, :, None])[:, :, 0] * scale
        wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
        outputs.append((scores.softmax(-1, dtype=wide).to(q.dtype)[:, None] @ vs)[:, 0])
    return torch.stack(outputs) if outputs else torch.empty_like(q)


def decode_attention(q, k, v, k_start, k_len, max_k, block_table=None, scale=None, impl=None):
    """q (S, H, K) -> (S, H, K). Keys of sequence s are the rows k_start[s]:k_start[s] + k_len[s] of k and v (R, G, K).
    With block_table (S, P), k and v are pages (N, page, G, K), key j is row j % page of page block_table[s, j // page],
    and k_start is None; page is a power of two and at least 16. All int32.

    max_k, on the host, is at least every k_len and alone decides what is launched: a captured CUDA graph stays right
    while lengths and tables change on the device. impl forces "reference" or "triton"; there are no gradients.
    """
    impl = impl or ("triton" if q.device.type == "cuda" else "reference")
    if impl == "reference":
        return decode_attention_reference(q, k, v, k_start, k_len, block_table, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    run = torch.ops.minilava.decode_attention if torch.compiler.is_compiling() else _run
    return run(q, k, v, k_start, k_len, max_k, block_table, scale, impl)


def _run(q, k, v, k_start, k_len, max_k, block_table, scale, impl):
    from minilava_kernels.gpu.decode_attention import decode_attention as run

    (s, h, d), paged = q.shape, block_table is not None
    spans = (k_len, block_table if paged else k_start)
    page = k.shape[1] if paged else 0
    if k.ndim != 3 + paged or k.shape != v.shape or k.shape[-1] != d or h % k.shape[-2] or d > 128 or scale <= 0:
        raise ValueError(f"decode_attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if any(x.dtype != torch.int32 or len(x) != s for x in spans) or not q.dtype == k.dtype == v.dtype:
        raise ValueError("decode_attention: k_len, k_start and block_table must be int32 (S, ...), q, k and v alike")
    if paged and (page < 16 or page & (page - 1)):
        raise ValueError(f"decode_attention: a page of {page} keys is not a power of two of at least 16")
    k, v = (x.flatten(0, -3) if paged else x for x in (k, v))
    q, k, v = (x if x.stride(2) == 1 and x.stride(1) == d else x.contiguous() for x in (q, k, v))
    return run(q, k, v, *(x.contiguous() for x in spans), page, max_k, scale)


register(
    "decode_attention(Tensor q, Tensor k, Tensor v, Tensor? k_start, Tensor k_len, SymInt max_k, Tensor? block_table,"
    " float scale, str impl) -> Tensor",
    _run,
    lambda q, *_: q.new_empty(q.shape),
)
