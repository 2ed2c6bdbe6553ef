"""Drawing the next token of every row of a batch, each row with settings and random numbers of its own.

Order: temperature, then top-k, then top-p over what top-k left and renormalised, then min-p, then the draw. Values that
equal a threshold are kept. A row's token depends on its own logits and settings alone: masses are summed as integers
(exactly, in any order), and its uniform number is a function of its seed and counter, Philox 4x32-10.

The GPU reads a row once from memory and up to 35 times more from L2 (with both top-k and top-p), 600 KB each time at
V = 151,936 in float32. One multiprocessor gets about 100 GB/s from L2: a reading takes some 6 us, and a batch some
0.2 ms as long as it has no more rows than the GPU has multiprocessors. FLOPs: some 15 a value and reading.
"""

from __future__ import annotations

import numpy as np
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
    settings = zip(temperature, top_k.tolist(), top_p, min_p, seed.tolist(), counter.tolist(), strict=True)
    tokens = [_draw(x, *s) for x, s in zip(logits.float(), settings, strict=True)]
    return torch.tensor(tokens, dtype=torch.int64, device=logits.device)


def _draw(x, temperature, top_k, top_p, min_p, seed, counter) -> int:
    """The token of one row x (V,)."""
    best = int(x.argmax())  # a NaN is the maximum of its row
    peak, ids = x[best], None
    if not peak.isfinite():
        return -1
    if temperature <= 0:
        return best
    slope = 1 / temperature.clamp(min=1e-30)

    def probability(x):  # relative to the largest
        return ((x - peak) * slope).exp()

    k = top_k if 0 < top_k < len(x) else len(x)
    if k < len(x) or top_p < 1:
        ordered = _descending(x)
        ordered = ordered[: int((ordered >= ordered[k - 1]).sum())]
        head = (probability(ordered) * UNIT).long().cumsum(0)
        total = head[-1]
        target = (total.float() * top_p).long().minimum(total) if top_p < 1 else total
        ids = (x >= ordered[int((head < target).sum())]).nonzero()[:, 0]
        x = x[ids]
    share = probability(x)
    mass = (share * UNIT).long()
    if min_p > 0:
        mass = mass.where(share >= min_p.clamp(max=1), 0)
    reached = mass.cumsum(0)
    total, uniform = int(reached[-1]), philox(seed, counter) >> 1
    at = int((reached <= (total * uniform >> 31)).sum())
    return at if ids is None else int(ids[at])


def _descending(x):
    """The values of x, largest first. Of 151,936 NumPy sorts in 0.4 ms on a CPU, PyTorch in 13."""
    if x.device.type != "cpu":
        return x.sort(descending=True).values
    return torch.from_numpy(np.sort(x.numpy())[::-1].copy())


def philox(seed, counter):
    """The first of the four 32-bit words of Philox 4x32-10 with the key seed and the counter (counter, 0): of ints, or
    of int64 tensors."""
    low = 0xFFFFFFFF
    k0, k1, c0, c1, c2, c3 = seed & low, seed >> 32 & low, counter & low, counter >> 32 & low, 0, 0
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # of a tensor the low 64 bits, which are all of them
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
