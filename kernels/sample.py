"""Drawing the next token of every row of a batch, each row with settings and random numbers of its own.

Order: temperature, then top-k, then top-p over what top-k left and renormalised, then min-p, then the draw. Values that
equal a threshold are kept. A row's token depends on its own logits and settings alone: masses are summed as integers
(exactly, in any order), and its uniform number is a function of its seed and counter, Philox 4x32-10.

The GPU reads a row once from memory and up to 35 times more from L2 (with both top-k and top-p), 600 KB each time at
V = 151,936 in float32. One multiprocessor gets about 100 GB/s from L2: a reading takes some 6 us, and a batch some
0.2 ms as long as it has no more rows than the GPU has multiprocessors. FLOPs: some 15 a value and reading.
"""

from __future__ import annotations

import torch

from minilava_kernels.ops import register

UNIT = 1 << 40  # the largest probability's mass; sums stay below 2^62
MOST = 1 << 22  # values of a row


def sample(logits, temperature, top_k, top_p, min_p, seed, counter, impl=None):
    """logits (B, V) in float32, bfloat16 or float16, and (B,) tensors -> tokens int64 (B,).

    temperature: 0 takes the largest value, the first among equals. top_k: 0, or V and more, is off. top_p: the smallest
    set of largest probabilities that reaches it; 1 is off. min_p: the least probability relative to the largest; 0 is
    off. seed and counter, int64: which random number. A row that holds NaN or infinity, or nothing above minus
    infinity, gives -1. impl forces "reference" or "triton" (CUDA's default).
    """
    settings = (temperature, top_k, top_p, min_p, seed, counter)
    if logits.dim() != 2 or not 0 < logits.shape[1] <= MOST or any(s.shape != logits.shape[:1] for s in settings):
        shapes = tuple(logits.shape), *(tuple(s.shape) for s in settings)
        raise ValueError(f"sample: logits (B, V) with V from 1 to {MOST} and settings (B,), not {shapes}")
    dtypes = (torch.float32, torch.int64, torch.float32, torch.float32, torch.int64, torch.int64)
    settings = (s.to(dtype).contiguous() for s, dtype in zip(settings, dtypes, strict=True))
    run = torch.ops.minilava.sample if torch.compiler.is_compiling() else _run
    return run(logits, *settings, impl or implementation(logits.device))


def implementation(device) -> str:
    """Which implementation sample() uses there."""
    return "triton" if torch.device(device).type == "cuda" else "reference"


def sample_reference(logits, temperature, top_k, top_p, min_p, seed, counter):
    x, size = logits.float(), logits.shape[1]
    best, peak = x.argmax(1), x.amax(1, keepdim=True)
    good = peak.isfinite()  # a NaN is the maximum of its row
    x, peak = x.where(good, -torch.inf), peak.where(good, 0.0)
    slope = 1 / temperature.clamp(min=1e-30)[:, None]
    probability = ((x - peak) * slope).exp()
    mass = (probability * UNIT).long()
    ordered, order = x.sort(1, descending=True)
    k = top_k.where((top_k > 0) & (top_k < size), size)[:, None]
    mass = mass.where(x >= ordered.gather(1, k - 1), 0)
    head = mass.gather(1, order).cumsum(1)
    total = head[:, -1:]
    target = (total.float() * top_p[:, None]).long().minimum(total).where(top_p[:, None] < 1, total)
    last = (head < target).sum(1, keepdim=True)
    mass = mass.where((x >= ordered.gather(1, last)) & (probability >= min_p.clamp(max=1)[:, None]), 0)
    reached = mass.cumsum(1)
    total, uniform = reached[:, -1], philox(seed, counter) >> 1
    drawn = (total >> 31) * uniform + ((total & 0x7FFFFFFF) * uniform >> 31)
    token = (reached <= drawn[:, None]).sum(1).where(temperature > 0, best)
    return token.where(good[:, 0], -1)


def philox(seed, counter):
    """The first of the four 32-bit words of Philox 4x32-10 with the key seed and the counter (counter, 0), as int64."""
    low = 0xFFFFFFFF
    k0, k1, c0, c1 = seed & low, seed >> 32 & low, counter & low, counter >> 32 & low
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # the low 64 bits, which are all of them
        c0, c1, c2, c3 = (b >> 32 & low) ^ c1 ^ k0, b & low, (a >> 32 & low) ^ c3 ^ k1, a & low
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return c0


def _run(logits, temperature, top_k, top_p, min_p, seed, counter, impl):
    settings = (temperature, top_k, top_p, min_p, seed, counter)
    if impl == "reference":
        return sample_reference(logits, *settings)
    from minilava_kernels.gpu.sample import sample

    return sample(logits if logits.stride(1) == 1 else logits.contiguous(), *settings)


register(
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seed, Tensor counter,"
    " str impl) -> Tensor",
    _run,
    lambda logits, temperature, top_k, top_p, min_p, seed, counter, impl: seed.new_empty(len(logits)),
)
