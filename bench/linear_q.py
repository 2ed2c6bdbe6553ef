"""Products with int8 and int4 weights for 1 to 32 rows. python -m bench.linear_q"""

import torch
import torch.nn.functional as F

from bench import micro
from minilava_kernels.linear_q import Quantized, dequantize, linear_q, quantize

SHAPES = ((1024, 1024), (2816, 1024), (1024, 2816), (11008, 4096), (151_936, 1024))


def cases(device: str, dtype: torch.dtype):
    for n, k in SHAPES if device == "cuda" else SHAPES[:1]:
        weight = torch.randn(n, k, device=device) / k**0.5
        for bits, group in ((8, 0), (4, 32)):
            q = quantize(weight, bits, group)
            dense = dequantize(q, dtype)
            for rows in (1, 8, 32):
                x = torch.randn(rows, k, device=device).to(dtype)
                moved = q.values.nbytes + q.scales.nbytes
                yield micro.Case(f"int{bits}, {rows} x {n} x {k}", _ours(q), F.linear, (x, dense), moved)


def _ours(q: Quantized):
    """Takes the dense weight too, as the plain version does, and leaves it alone."""
    return lambda x, dense: linear_q(x, q)


if __name__ == "__main__":
    micro.main("linear_q", cases)
