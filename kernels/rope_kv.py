"""Rotary embedding of q and k, and the write of k and v to the cache, in one call.

Reads and writes q in place (T H K elements), reads k and v and writes them to the cache (T G K each): bound by
memory, or for one token by the cost of the call, which is why it is one call instead of a dozen.

T tokens, H heads, G kv heads, K head dim, P positions in the tables, R rows of the cache.
"""

import torch
from torch.autograd.function import once_differentiable

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)  # of rope; rope_kv takes float32


def rotate_reference(x, cos, sin):
    """x (T, heads, K); cos and sin (T, K / 2). Pairs are (j, j + K / 2)."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rope(q, k, cos, sin, impl=None):
    """Rotated copies of q (T, H, K) and k (T, G, K) for training; cos and sin (T, K / 2), one row per token.

    Differentiable in q and k: the gradient is rotated back. impl forces "reference" or "native".
    """
    t, _, d = q.shape
    if k.shape[::2] != (t, d) or d % 2 or not cos.shape == sin.shape == (t, d // 2):
        shapes = tuple(q.shape), tuple(k.shape), tuple(cos.shape), tuple(sin.shape)
        raise ValueError(f"rope: q, k, cos and sin {shapes} do not fit")
    if impl is None:
        native = _C is not None and q.device.type == "cpu" and q.dtype == k.dtype and q.dtype in _DTYPES
        impl = "native" if native else "reference"
    if impl == "native":
        if q.dtype != k.dtype or q.dtype not in _DTYPES:
            raise ValueError(f"rope: the native kernel takes float32 or bfloat16, not {q.dtype} and {k.dtype}")
        return _Rope.apply(q, k, cos.to(q.dtype).contiguous(), sin.to(q.dtype).contiguous())
    return rotate_reference(q, cos, sin), rotate_reference(k, cos, sin)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(q, k, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq, dk):
        return *_rotate(dq, dk, *ctx.saved_tensors, -1), None, None


def _rotate(q, k, cos, sin, sign):
    t, h, d = q.shape
    q, k = (x if x.stride()[1:] == (d, 1) else x.contiguous() for x in (q, k))
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    addresses = (x.data_ptr() for x in (q, k, cos, sin, q_out, k_out))
    _C.rope(*addresses, t, h, k.shape[1], d, q.stride(0), k.stride(0), sign, q.dtype is torch.bfloat16)
    return q_out, k_out


def rope_kv_reference(q, k, v, cos, sin, positions, k_cache, v_cache, slots):
    t, (_, g, d) = q.shape[0], k_cache.shape
    cos, sin = cos[positions], sin[positions]
    q.copy_(rotate_reference(q.reshape(t, q.shape[1] // d, d), cos, sin).flatten(1))
    k_cache[slots] = rotate_reference(k.reshape(t, g, d), cos, sin).to(k_cache.dtype)
    v_cache[slots] = v.reshape(t, g, d).to(v_cache.dtype)


def rope_kv(q, k, v, cos, sin, positions, k_cache, v_cache, slots, impl=None):
    """Rotates q (T, H K) in place; writes k, rotated, and v (T, G K) to rows `slots` of the caches (R, G, K).

    cos and sin (P, K / 2) are indexed by positions (T). Slots must differ. impl forces "reference" or "native".
    """
    if impl is None:
        impl = implementation(q, k_cache)
    if impl == "reference":
        return rope_kv_reference(q, k, v, cos, sin, positions, k_cache, v_cache, slots)
    t, width = q.shape
    rows, g, d = k_cache.shape
    if d % 2 or width % d or k.shape != (t, g * d) or k.shape != v.shape or k_cache.shape != v_cache.shape:
        raise ValueError(f"rope_kv: q {tuple(q.shape)}, k {tuple(k.shape)} and cache {tuple(k_cache.shape)} do not fit")
    if cos.shape[1] != d // 2 or cos.shape != sin.shape or positions.shape != (t,) or slots.shape != (t,):
        raise ValueError("rope_kv: cos and sin must be (P, K / 2), positions and slots (T)")
    if not q.dtype == k.dtype == v.dtype == cos.dtype == sin.dtype == k_cache.dtype == v_cache.dtype == torch.float32:
        raise ValueError("rope_kv: the native kernel takes float32 only")
    if not positions.dtype == slots.dtype == torch.int64:
        raise ValueError("rope_kv: positions and slots must be int64")
    if not (q.stride(1) == k.stride(1) == v.stride(1) == 1 and k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("rope_kv: rows of q, k and v and the caches must be contiguous")
    cos, sin, positions, slots = cos.contiguous(), sin.contiguous(), positions.contiguous(), slots.contiguous()
    _C.rope_kv(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        t,
        width // d,
        g,
        d,
        cos.shape[0],
        rows,
        q.stride(0),
        k.stride(0),
        v.stride(0),
    )


def implementation(q, k_cache) -> str:
    """Which implementation rope_kv() uses for these tensors."""
    native = _C is not None and q.device.type == "cpu" and q.dtype == k_cache.dtype == torch.float32
    return "reference" if not native or (torch.is_grad_enabled() and q.requires_grad) else "native"
