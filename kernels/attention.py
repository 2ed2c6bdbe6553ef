"""Packed variable-length attention with grouped heads, for prompts, chunks of prompts and cached decoding.

A sequence of n queries and m keys costs 4 n m H K FLOPs (half when causal and n = m). Prompts are bound by FLOPs:
scores stay on chip, block by block, so bytes are q, k, v and the output. One query (decode) is bound by bytes: its
2 m G K cached elements are read once. Natively each result is added in an order fixed by its own sequence: alone,
in a batch, and with any number of threads the bits are the same. Backward costs 2.5 times the forward FLOPs: the
scores again, and four products for the gradients; the forward pass keeps its output and a log-sum-exp per (row, head).

T query rows, R key rows, S sequences, H heads, G kv heads, K head dim.
"""

import importlib.util
import inspect

import torch
from torch.autograd.function import once_differentiable

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)  # of the native kernels


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
    impl forces "reference", "native", "flash" or "torch". On a CPU, gradients are native where keys are packed as
    queries are.
    """
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if impl is None:
        impl = implementation(q.device, q.dtype)
        if impl == "native" and learning and not _packed(q, k, cu_q, k_start):
            impl = "reference"
    if impl == "native":
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return (_Packed.apply if learning else _native)(q, k, v, cu_q, k_start, k_len, causal, scale)
    if impl == "reference":
        return attention_reference(q, k, v, cu_q, k_start, k_len, causal, scale)
    max_q = int(cu_q.diff().max()) if max_q is None else max_q
    max_k = int(k_len.max()) if max_k is None else max_k
    if impl == "flash" and _packed(q, k, cu_q, k_start):
        return _flash(q, k, v, cu_q, max_q, causal, scale)
    return _torch_varlen(q, k, v, cu_q, k_start, k_len, max_q, max_k, causal, scale)


def implementation(device, dtype) -> str:
    """Which implementation attention() uses there."""
    if torch.device(device).type == "cpu":
        return "native" if _C is not None and dtype in _DTYPES else "reference"
    if torch.device(device).type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "reference"
    return "flash" if importlib.util.find_spec("flash_attn") else "torch"


def _packed(q, k, cu_q, k_start) -> bool:
    """Keys are packed as queries are: a caller without a cache passes k_start = cu_q[:-1], the same memory."""
    same = k_start.data_ptr() == cu_q.data_ptr() or not len(k_start)  # an empty view has no address
    return same and len(q) == len(k)


def _native(q, k, v, cu_q, k_start, k_len, causal, scale, lse=None):
    t, h, d = q.shape
    r, g, _ = k.shape
    s = k_len.shape[0]
    dtypes = q.dtype == k.dtype == v.dtype and q.dtype in _DTYPES
    if k.shape != v.shape or k.shape[2] != d or h % g or not dtypes:
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
        scale,
        q.dtype is torch.bfloat16,
        0 if lse is None else lse.data_ptr(),
    )
    return out


class _Packed(torch.autograd.Function):
    """Sequence s has the rows cu[s]:cu[s + 1] of q, k and v alike."""

    @staticmethod
    def forward(ctx, q, k, v, cu, k_start, k_len, causal, scale):
        if not (_packed(q, k, cu, k_start) and torch.equal(cu.diff(), k_len)):
            raise ValueError(
                "attention: native gradients need keys packed as queries: k_start = cu_q[:-1], k_len alike"
            )
        lse = q.new_empty(q.shape[:2], dtype=torch.float32)
        out = _native(q, k, v, cu, k_start, k_len, causal, scale, lse)
        ctx.save_for_backward(q, k, v, cu, out, lse)
        ctx.options = causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, cu, out, lse = ctx.saved_tensors
        t, h, d = q.shape
        q, k, v, cu, grad = _rows(q, d), _rows(k, d), _rows(v, d), cu.contiguous(), grad.contiguous()
        dq, dk, dv = q.new_empty(t, h, d), k.new_empty(k.shape), v.new_empty(v.shape)
        _C.attention_backward(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            grad.data_ptr(),
            lse.data_ptr(),
            dq.data_ptr(),
            dk.data_ptr(),
            dv.data_ptr(),
            cu.data_ptr(),
            t,
            len(cu) - 1,
            h,
            k.shape[1],
            d,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            *ctx.options,
            q.dtype is torch.bfloat16,
        )
        return dq, dk, dv, None, None, None, None, None


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
