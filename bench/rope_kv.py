"""Rotary embedding with the write to the cache, and the rotary embedding of training. python -m bench.rope_kv"""

import torch

from bench import micro
from minilava_kernels.rope_kv import rope, rope_kv, rope_kv_reference


def cases(device: str, dtype: torch.dtype):
    for tokens, h, g, d in ((1, 16, 16, 64), (32, 16, 16, 64), (8192, 16, 16, 64), (8192, 28, 4, 128)):
        if device == "cpu" and tokens > 32:
            tokens = 512
        make = lambda *s: torch.randn(*s, device=device).to(dtype)  # noqa: E731
        angle = torch.rand(tokens, d // 2, device=device) * 6.28  # a rotation: q keeps its size however often it turns
        inputs = [make(tokens, n * d) for n in (h, g, g)] + [angle.cos().to(dtype), angle.sin().to(dtype)]
        at = torch.arange(tokens, device=device)
        caches = make(tokens, g, d), make(tokens, g, d)
        moved = 2 * sum(x.nbytes for x in inputs[:3])
        name = f"{tokens} tokens, {h}/{g} heads of {d}"
        yield micro.Case(f"with the cache, {name}", _returning(rope_kv), _returning(rope_kv_reference),
                         (*inputs, at, *caches, at), moved)  # fmt: skip
        q, k = make(tokens, h, d), make(tokens, g, d)
        yield micro.Case(f"alone, {name}", rope, lambda *x: rope(*x, impl="reference"), (q, k, *inputs[3:]),
                         2 * (q.nbytes + k.nbytes))  # fmt: skip


def _returning(function):
    """What the call wrote, for the check: q and the two caches."""

    def call(q, k, v, cos, sin, positions, k_cache, v_cache, slots):
        function(q, k, v, cos, sin, positions, k_cache, v_cache, slots)
        return q, k_cache, v_cache

    return call


if __name__ == "__main__":
    micro.main("rope_kv", cases)
