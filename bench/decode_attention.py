"""One new query per sequence over a cache. python -m bench.decode_attention"""

from functools import partial

import torch

from bench import micro
from minilava_kernels.decode_attention import decode_attention


def cases(device: str, dtype: torch.dtype):
    shapes = [(s, m, 16, 16, 64) for s in (1, 8, 32) for m in (512, 2048, 8192)] + [(8, 8192, 28, 4, 128)]
    for sequences, keys, heads, kv_heads, dim in shapes if device == "cuda" else shapes[:1]:
        q = torch.randn(sequences, heads, dim, device=device).to(dtype)
        k, v = (torch.randn(sequences * keys, kv_heads, dim, device=device).to(dtype) for _ in range(2))
        start = torch.arange(sequences, dtype=torch.int32, device=device) * keys
        inputs = q, k, v, start, torch.full_like(start, keys), keys
        yield micro.Case(f"{sequences} x {keys} keys, {heads}/{kv_heads} heads of {dim}", decode_attention,
                         partial(decode_attention, impl="reference"), inputs, k.nbytes + v.nbytes,
                         compiled=False)  # fmt: skip


if __name__ == "__main__":
    micro.main("decode_attention", cases)
