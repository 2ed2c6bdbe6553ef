"""Packed attention: prompts against the FLOP peak, decoding against memory. python -m bench.attention

On a CPU beside PyTorch's SDPA per sequence; on a GPU the Triton kernel beside PyTorch's packed flash attention.
"""

from functools import partial

import torch
import torch.nn.functional as F

from bench import micro
from bench.harness import cpu_limits, in_turns, median, report
from minilava_kernels.attention import attention, attention_reference, implementation

# name, sequences, queries of each, keys of each, heads, kv heads, head dim, causal
CASES = [
    ("tower 1x729", 1, 729, 729, 16, 16, 72, False),
    ("tower 4x729", 4, 729, 729, 16, 16, 72, False),
    ("prompt 512", 1, 512, 512, 16, 16, 64, True),
    ("prompt 2048", 1, 2048, 2048, 16, 16, 64, True),
    ("chunk 512 of 2048", 1, 512, 2048, 16, 16, 64, True),
    ("decode 1000", 1, 1, 1000, 16, 16, 64, True),
    ("decode 4000", 1, 1, 4000, 16, 16, 64, True),
    ("decode 8x1000", 8, 1, 1000, 16, 16, 64, True),
    ("decode 4000 gqa", 1, 1, 4000, 32, 8, 128, True),
]


def sdpa(q, k, v, cu_q, k_start, k_len, causal):
    """What PyTorch offers for packed sequences on a CPU: one call for each."""
    out = []
    for s, n in enumerate(k_len.tolist()):
        one = q[cu_q[s] : cu_q[s + 1]], k[k_start[s] : k_start[s] + n], v[k_start[s] : k_start[s] + n]
        one = [x.transpose(0, 1)[None] for x in one]
        m = one[0].shape[2]
        mask = torch.ones(m, n, dtype=torch.bool).tril(n - m) if causal and 1 < m < n else None
        gqa = q.shape[1] != k.shape[1]
        y = F.scaled_dot_product_attention(*one, attn_mask=mask, is_causal=causal and m == n, enable_gqa=gqa)
        out.append(y[0].transpose(0, 1))
    return torch.cat(out)


def every_layer(f, q, caches, spans, causal):
    for k, v in caches:
        f(q, k, v, *spans, causal)


@torch.no_grad()
def rows():
    limits = cpu_limits()
    for name, s, n, m, heads, kv_heads, dim, causal in CASES:
        flops = 4 * s * heads * dim * n * (m - (n - 1) / 2 if causal else m)
        size = 8 * s * m * kv_heads * dim
        layers = max(1, int(3e8 / size)) if n == 1 else 1  # decoding: more cache than the last level holds
        q = torch.randn(s * n, heads, dim)
        caches = [torch.randn(2, s * m, kv_heads, dim).unbind() for _ in range(layers)]
        spans = [torch.arange(s + 1, dtype=torch.int32) * n, torch.arange(s, dtype=torch.int32) * m]
        spans.append(torch.full((s,), m, dtype=torch.int32))
        expected = attention_reference(q, *caches[0], *spans, causal)
        torch.testing.assert_close(attention(q, *caches[0], *spans, causal), expected, rtol=1e-4, atol=1e-5)
        calls = {f.__name__: partial(every_layer, f, q, caches, spans, causal) for f in (attention, sdpa)}
        ours, plain = (median(t) / layers for t in in_turns(calls, 7).values())
        rate = size / ours / 1e9 if n == 1 else flops / ours / 1e9
        yield {
            "case": name,
            "implementation": implementation("cpu", q.dtype),
            "ms": ours * 1e3,
            "SDPA ms": plain * 1e3,
            "ratio": plain / ours,
            "rate": rate,
            "unit": "GB/s" if n == 1 else "GFLOP/s",
            "% of limit": 100 * rate / limits["read_gbps" if n == 1 else "gflops"],
        }


def cases(device, dtype):
    """For a GPU: name, sequences, length, heads, kv heads, head dim, causal."""
    shapes = [
        ("tower, 64 views", 64, 729, 16, 16, 72, False),
        ("tower, 1 view", 1, 729, 16, 16, 72, False),
        ("causal, 16 x 2048", 16, 2048, 16, 16, 64, True),
        ("causal, 1 x 8192", 1, 8192, 16, 16, 64, True),
        ("causal, grouped heads", 4, 2048, 28, 4, 128, True),
    ]
    for name, s, n, heads, kv_heads, dim, causal in shapes:
        q, k, v = (torch.randn(s * n, h, dim, device=device).to(dtype) for h in (heads, kv_heads, kv_heads))
        cu = torch.arange(s + 1, dtype=torch.int32, device=device) * n
        inputs = q, k, v, cu, cu[:-1], cu.diff(), causal, n, n
        triton, plain, flash = (partial(attention, impl=impl) for impl in ("triton", "reference", "torch"))
        flops = 4 * s * heads * dim * n * n / (2 if causal else 1)
        moved = 2 * q.nbytes + 2 * k.nbytes
        yield micro.Case(name, triton, plain, inputs, moved, flops, peer=flash, compiled=False)


def main():
    if torch.cuda.is_available():
        return micro.main("attention", cases)
    results = list(rows())
    report("attention", results, list(results[0]))


if __name__ == "__main__":
    main()
