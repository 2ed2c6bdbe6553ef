"""Rotary embedding for the GPU, one program per token with all its heads; and the write of k and v to the cache."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, power_of_2, wide


@triton.jit
def _rotate(X, Y, heads, K, cos, sin, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Y = X rotated, both (heads, K) contiguous: the pairs are (j, j + K / 2)."""
    head = tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (at < K // 2)
    first = head * K + at
    a = wide(tl.load(X + first, mask=inside, other=0.0))
    b = wide(tl.load(X + first + K // 2, mask=inside, other=0.0))
    tl.store(Y + first, (a * cos - b * sin).to(Y.dtype.element_ty), mask=inside)
    tl.store(Y + first + K // 2, (b * cos + a * sin).to(Y.dtype.element_ty), mask=inside)


@triton.jit
def rope_kernel(
    Q, KEYS, VALUES, COS, SIN, POSITIONS, SLOTS, Q_OUT, K_OUT, V_OUT, H, G, K, stride_q, stride_k, stride_v,
    stride_q_out, sign, CACHE: tl.constexpr, Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    angle, slot = token, token
    if CACHE:
        angle = tl.load(POSITIONS + token)
        slot = tl.load(SLOTS + token)
    at = tl.arange(0, HALF)[None, :]
    cos = wide(tl.load(COS + angle * (K // 2) + at, mask=at < K // 2, other=0.0))
    sin = wide(tl.load(SIN + angle * (K // 2) + at, mask=at < K // 2, other=0.0)) * sign
    _rotate(Q + token * stride_q, Q_OUT + token * stride_q_out, H, K, cos, sin, Q_HEADS, HALF)
    _rotate(KEYS + token * stride_k, K_OUT + slot * G * K, G, K, cos, sin, KV_HEADS, HALF)
    if CACHE:
        at = tl.arange(0, KV_HEADS * HALF * 2)
        value = tl.load(VALUES + token * stride_v + at, mask=at < G * K)
        tl.store(V_OUT + slot * G * K + at, value, mask=at < G * K)


def rope(q, k, cos, sin, sign):
    """Rotated copies of q (T, H, K) and k (T, G, K), each row contiguous; cos and sin (T, K / 2)."""
    (t, h, d), g = q.shape, k.shape[1]
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    if t:
        rope_kernel[(t,)](
            q, k, None, cos, sin, None, None, q_out, k_out, None, h, g, d, q.stride(0), k.stride(0), 0, h * d, sign,
            CACHE=False, **_shape(h, g, d),
        )  # fmt: skip
    return q_out, k_out


def rope_kv(q, k, v, cos, sin, positions, k_cache, v_cache, slots):
    """Rotate q (T, H K) in place; write k, rotated, and v (T, G K) to rows ``slots`` of the caches (R, G, K)."""
    t, (_, g, d) = len(q), k_cache.shape
    if t:
        rope_kernel[(t,)](
            q, k, v, cos, sin, positions, slots, q, k_cache, v_cache, q.shape[1] // d, g, d,
            q.stride(0), k.stride(0), v.stride(0), q.stride(0), 1.0, CACHE=True, **_shape(q.shape[1] // d, g, d),
        )  # fmt: skip


def _shape(h: int, g: int, d: int) -> dict:
    return {"Q_HEADS": power_of_2(h), "KV_HEADS": power_of_2(g), "HALF": power_of_2(d // 2)}


def variants() -> Iterator[Variant]:
    numbers = dict.fromkeys("H G K stride_q stride_k stride_v stride_q_out".split(), "i32") | {"sign": "fp32"}
    for h, g, d in ((16, 16, 64), (28, 4, 128), (32, 32, 128)):
        shape = _shape(h, g, d)
        types = numbers | dict.fromkeys("Q KEYS COS SIN Q_OUT K_OUT".split(), "*bf16")
        absent = dict.fromkeys("VALUES POSITIONS SLOTS V_OUT".split())
        free = ("H", "G")
        yield Variant(f"rope {h}/{g} x {d}", rope_kernel, types, shape | absent | {"CACHE": False}, unaligned=free)
        types |= dict.fromkeys(("VALUES", "V_OUT"), "*bf16") | dict.fromkeys(("POSITIONS", "SLOTS"), "*i64")
        yield Variant(f"rope_kv {h}/{g} x {d}", rope_kernel, types, shape | {"CACHE": True}, unaligned=free)
