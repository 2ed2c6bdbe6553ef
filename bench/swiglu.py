"""silu(gate) * up. python -m bench.swiglu"""

import torch

from bench import micro
from minilava_kernels.swiglu import swiglu, swiglu_reference


def cases(device: str, dtype: torch.dtype):
    shapes = ((1, 2816), (32, 2816), (2048, 2816), (8192, 2816), (8192, 11008))
    for rows, dim in shapes if device == "cuda" else shapes[:3]:
        gate, up = (torch.randn(rows, dim, device=device).to(dtype) for _ in range(2))
        yield micro.Case(f"{rows} x {dim}", swiglu, swiglu_reference, (gate, up), 3 * gate.nbytes)


if __name__ == "__main__":
    micro.main("swiglu", cases)
