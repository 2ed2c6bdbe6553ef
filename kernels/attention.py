"""Packed variable-length attention with grouped heads, for prompts, chunks of prompts and cached decoding.

A sequence of n queries and m keys costs 4 n m H K FLOPs (half when causal and n = m). Prompts are bound by FLOPs:
scores stay on chip, block by block, so bytes are q, k, v and the output. One query (decode) is bound by bytes: its
2 m G K cached elements are read once. Natively each result is added in an order fixed by its own sequence: alone,
in a batch, and with any number of threads the bits are the same. Training on a CPU goes through PyTorch's flash
attention, sequence by sequence, or all at once where they are equally long, as the views of the tower are.

T query rows, R key rows, S sequences, H heads, G kv heads, K head dim.
"""

import importlib.util
import inspect

import torch
import torch.nn.functional as F

try:
    from minilava import _C
except ImportError:
    _C = None


def attention_reference(q, k, v, cu_q, k_start, k_len, causal, scale=None):
    """One sequence after the other: scores in q's dtype, softmax in float32. A query that sees no key gives zeros."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    share = q.shape[1] // k.shape[1]
    ends, starts, lengths = cu_q.tolist(), k_start.tolist(), k_len.tolist()
    outputs = []
    for first, end, start, length in zip(ends, ends[1:], starts, lengths, strict=False):
        n = end - first
        qs = q[first:end].transpose(0, 1)
        ks = k[start : start + length].transpose(0, 1).repeat_interleave(share, 0)
        vs = v[start : start + length].transpose(0, 1).repeat_interleave(share, 0)
        scores = (qs @ ks.transpose(1, 2)) * scale
        if causal:
            hidden = torch.ones(n, length, dtype=torch.bool, device=q.device).triu(length - n + 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        wide = scores.dtype if scores.dtype == torch.float64 else torch.float32
        weights = scores.softmax(-1, dtype=wide).to(q.dtype)
        if causal and n > length:
            weights = weights.masked_fill(hidden.all(1)[:, None], 0)
        outputs.append((weights @ vs).transpose(0, 1))
    return torch.cat(outputs) if outputs else torch.empty_like(q)


def attention(q, k, v, cu_q, k_start, k_len, causal, max_q=None, max_k=None, scale=None, impl=None):
    """q (T, H, K), k and v (R, G, K) -> (T, H, K).

    Sequence s has queries cu_q[s]:cu_q[s + 1] and keys k_start[s]:k_start[s] + k_len[s], all int32. Causal is aligned
    to the end: query i of n sees the keys up to k_len - n + i. max_q and max_k spare the GPU a synchronisation.
    impl forces "reference", "native", "sdpa", "flash" or "torch".
    """
    if impl is None:
        impl = implementation(q.device, q.dtype)
        if q.device.type == "cpu" and torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
            impl = "sdpa" if _packed(q, k, cu_q, k_start) else "reference"
    if impl == "native":
        return _native(q, k, v, cu_q, k_start, k_len, causal, scale)
    if impl == "reference":
        return attention_reference(q, k, v, cu_q, k_start, k_len, causal, scale)
    if impl == "sdpa":
        return _sdpa(q, k, v, cu_q, causal, scale)
    max_q = int(cu_q.diff().max()) if max_q is None else max_q
    max_k = int(k_len.max()) if max_k is None else max_k
    if impl == "flash" and _packed(q, k, cu_q, k_start):
        return _flash(q, k, v, cu_q, max_q, causal, scale)
    return _torch_varlen(q, k, v, cu_q, k_start, k_len, max_q, max_k, causal, scale)


def implementation(device, dtype) -> str:
    """Which implementation attention() uses there."""
    if torch.device(device).type == "cpu":
        return "native" if _C is not None and dtype in (torch.float32, torch.bfloat16) else "reference"
    if torch.device(device).type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "reference"
    return "flash" if importlib.util.find_spec("flash_attn") else "torch"


def _packed(q, k, cu_q, k_start) -> bool:
    """Keys are packed as queries are: a caller without a cache passes k_start = cu_q[:-1], the same memory."""
    return k_start.data_ptr() == cu_q.data_ptr() and len(q) == len(k)


def _sdpa(q, k, v, cu, causal, scale):
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    lengths = cu.diff().tolist()

    def attend(q, k, v):  # each (..., n, H, K)
        q, k, v = (t.transpose(-2, -3) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(-2, -3)

    if len(set(lengths)) == 1:
        return attend(*(t.unflatten(0, (len(lengths), -1)) for t in (q, k, v))).flatten(0, 1)
    pieces = zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    return torch.cat([attend(*(t[None] for t in piece))[0] for piece in pieces])


def _native(q, k, v, cu_q, k_start, k_len, causal, scale):
    t, h, d = q.shape
    r, g, _ = k.shape
    s = k_len.shape[0]
    if k.shape != v.shape or k.shape[2] != d or h % g or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit")
    if cu_q.shape[0] != s + 1 or k_start.shape[0] != s or not cu_q.dtype == k_start.dtype == k_len.dtype == torch.int32:
        raise ValueError("attention: cu_q (S + 1), k_start (S) and k_len (S) must be int32")
    cu_q, k_start, k_len = cu_q.contiguous(), k_start.contiguous(), k_len.contiguous()
    q, k, v = _rows(q, d), _rows(k, d), _rows(v, d)
    out = q.new_empty(t, h, d)
    _C.attention(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        cu_q.data_ptr(),
        k_start.data_ptr(),
        k_len.data_ptr(),
        t,
        r,
        s,
        h,
        g,
        d,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        causal,
        d**-0.5 if scale is None else scale,
        q.dtype is torch.bfloat16,
    )
    return out


def _rows(x, dim):
    """x with contiguous rows; the stride between rows is free."""
    _, heads, inner = x.stride()
    return x if inner == 1 and heads == dim else x.contiguous()


def _flash(q, k, v, cu, longest, causal, scale):
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, softmax_scale=scale, causal=causal)


def _torch_varlen(q, k, v, cu_q, k_start, k_len, max_q, max_k, causal, scale):
    from torch.nn.attention.varlen import varlen_attn

    # seqused_k keeps the gap between a cache slot's last key and the next slot out, at the price of gradients.
    packed = _packed(q, k, cu_q, k_start)
    cu_k = cu_q if packed else torch.cat([k_start, (k_start[-1:] + k_len[-1:])])
    options = {} if packed else {"seqused_k": k_len}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    window = (-1, 0) if causal else (-1, -1)
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=window, **options)
