"""Rotary embedding of q and k, and the write of k and v to the cache, in one call.

Reads and writes q in place (T H K elements), reads k and v and writes them to the cache (T G K each): bound by
memory, or for one token by the cost of the call, which is why it is one call instead of a dozen.

T tokens, H heads, G kv heads, K head dim, P positions in the tables, R rows of the cache, C what a head takes there: K,
or its bytes at 8 bits (cached8).
"""

import torch

from minilava_kernels.cached8 import pack, row_bytes
from minilava_kernels.ops import register, registered

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)  # of the native rope
_KINDS = {  # of the native rope_kv: (dtype, that of the cache)
    (torch.float32, torch.float32): "float32",
    (torch.bfloat16, torch.bfloat16): "bfloat16",
    (torch.float32, torch.int8): "i8_cache",
}


def rotate_reference(x, cos, sin):
    """x (T, heads, K); cos and sin (T, K / 2). Pairs are (j, j + K / 2)."""
    a, b = x.chunk(2, -1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rope(q, k, cos, sin, impl=None):
    """Rotated copies of q (T, H, K) and k (T, G, K) for training; cos and sin (T, K / 2), one row per token.

    Differentiable in q and k: the gradient is rotated back. impl forces "reference", "native" or "triton".
    """
    t, _, d = q.shape
    if k.ndim != 3 or k.shape[::2] != (t, d) or d % 2 or not cos.shape == sin.shape == (t, d // 2):
        shapes = tuple(q.shape), tuple(k.shape), tuple(cos.shape), tuple(sin.shape)
        raise ValueError(f"rope: q, k, cos and sin {shapes} do not fit")
    if impl is None:
        same = q.dtype == k.dtype
        impl = "triton" if q.device.type == "cuda" and same and q.dtype != torch.float64 else "reference"
        if _C is not None and q.device.type == "cpu" and same and q.dtype in _DTYPES:
            impl = "native"
    if impl == "reference":
        return rotate_reference(q, cos, sin), rotate_reference(k, cos, sin)
    if q.dtype != k.dtype or (impl == "native" and q.dtype not in _DTYPES):
        raise ValueError(f"rope: the native kernel takes float32 or bfloat16, not {q.dtype} and {k.dtype}")
    run = torch.ops.minilava.rope if registered(q, k) else _rope
    return run(q, k, cos.to(q.dtype).contiguous(), sin.to(q.dtype).contiguous(), 1, impl)


def _rope(q, k, cos, sin, sign, impl):
    t, h, d = q.shape
    q, k = (x if x.stride()[1:] == (d, 1) else x.contiguous() for x in (q, k))
    if impl == "triton":
        from minilava_kernels.gpu.rope_kv import rope as run

        return run(q, k, cos, sin, sign)
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    addresses = (x.data_ptr() for x in (q, k, cos, sin, q_out, k_out))
    _C.rope(*addresses, t, h, k.shape[1], d, q.stride(0), k.stride(0), sign, q.dtype is torch.bfloat16)
    return q_out, k_out


def _keep(ctx, inputs, output):
    _, _, cos, sin, ctx.sign, ctx.impl = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, dq, dk):
    return *torch.ops.minilava.rope(dq, dk, *ctx.saved_tensors, -ctx.sign, ctx.impl), None, None, None, None


def rope_kv_reference(q, k, v, cos, sin, positions, k_cache, v_cache, slots):
    t, g = q.shape[0], k_cache.shape[1]
    d = k.shape[1] // g
    cos, sin = cos[positions], sin[positions]
    q.copy_(rotate_reference(q.reshape(t, q.shape[1] // d, d), cos, sin).flatten(1))
    keys, values = rotate_reference(k.reshape(t, g, d), cos, sin), v.reshape(t, g, d)
    if k_cache.dtype == torch.int8:
        keys, values = pack(keys), pack(values)
    k_cache[slots], v_cache[slots] = keys.to(k_cache.dtype), values.to(v_cache.dtype)


def rope_kv(q, k, v, cos, sin, positions, k_cache, v_cache, slots, impl=None):
    """Rotates q (T, H K) in place; writes k, rotated, and v (T, G K) to rows `slots` of the caches (R, G, C).

    cos and sin (P, K / 2) are indexed by positions (T). Slots must differ. The native kernel checks positions and slots
    before it writes; on a GPU that would wait for the device, and the caller answers for them.
    impl forces "reference", "native" or "triton".
    """
    impl = impl or implementation(q, k_cache)
    if impl == "reference":
        return rope_kv_reference(q, k, v, cos, sin, positions, k_cache, v_cache, slots)
    t, width = q.shape
    _, g, c = k_cache.shape
    d = 2 * cos.shape[1]
    fit = c == (row_bytes(d) if k_cache.dtype == torch.int8 else d) and k_cache.shape == v_cache.shape
    if not d or width % d or k.shape != (t, g * d) or k.shape != v.shape or not fit:
        raise ValueError(f"rope_kv: q {tuple(q.shape)}, k {tuple(k.shape)} and cache {tuple(k_cache.shape)} do not fit")
    if cos.shape != sin.shape or positions.shape != (t,) or slots.shape != (t,):
        raise ValueError("rope_kv: cos and sin must be (P, K / 2), positions and slots (T)")
    given, caches = {x.dtype for x in (q, k, v, cos, sin)}, {k_cache.dtype, v_cache.dtype}
    good = (q.dtype, k_cache.dtype) in _KINDS if impl == "native" else given == caches
    if not good or len(given) > 1 or len(caches) > 1:
        raise ValueError("rope_kv: one dtype for all, natively float32 or bfloat16; or float32 with a cache of 8 bits")
    if not positions.dtype == slots.dtype == torch.int64:
        raise ValueError("rope_kv: positions and slots must be int64")
    if not (q.stride(1) == k.stride(1) == v.stride(1) == 1 and k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("rope_kv: rows of q, k and v and the caches must be contiguous")
    cos, sin, positions, slots = cos.contiguous(), sin.contiguous(), positions.contiguous(), slots.contiguous()
    run = torch.ops.minilava.rope_kv if torch.compiler.is_compiling() else _rope_kv
    run(q, k, v, cos, sin, positions, k_cache, v_cache, slots, impl)


def implementation(q, k_cache) -> str:
    """Which implementation rope_kv() uses for these tensors."""
    if torch.is_grad_enabled() and q.requires_grad:
        return "reference"
    if q.device.type == "cuda" and q.dtype == k_cache.dtype != torch.float64:
        return "triton"
    native = (q.dtype, k_cache.dtype) in _KINDS and _C is not None and q.device.type == "cpu"
    return "native" if native else "reference"


def _rope_kv(q, k, v, cos, sin, positions, k_cache, v_cache, slots, impl):
    if impl == "triton":
        from minilava_kernels.gpu.rope_kv import rope_kv as run

        return run(q, k, v, cos, sin, positions, k_cache, v_cache, slots)
    (rows, g, _), d = k_cache.shape, 2 * cos.shape[1]
    addresses = (x.data_ptr() for x in (q, k, v, cos, sin, positions, slots, k_cache, v_cache))
    strides = q.stride(0), k.stride(0), v.stride(0)
    kind = _KINDS[q.dtype, k_cache.dtype]
    _C.rope_kv(*addresses, len(q), q.shape[1] // d, g, d, len(cos), rows, *strides, getattr(_C.Kind, kind))


register(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, float sign, str impl) -> (Tensor, Tensor)",
    _rope,
    lambda q, k, cos, sin, sign, impl: (q.new_empty(q.shape), k.new_empty(k.shape)),
    _backward,
    _keep,
)
register(
    "rope_kv(Tensor(a!) q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor positions, Tensor(b!) k_cache,"
    " Tensor(c!) v_cache, Tensor slots, str impl) -> ()",
    _rope_kv,
    lambda *arguments: None,
)
