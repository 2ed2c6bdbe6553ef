"""Keys and values at 8 bits, for a cache on a CPU: what a decoding step reads of it is half of float16's.

A head of K values is kept in groups of 32, of each a bfloat16 scale and int8 values, 34 bytes: (R, G, K) in float32
becomes int8 (R, G, row_bytes(K)). A value stands for scale * stored. The native kernels write this form in rope_kv()
and read it in attention(); here are its plain statement and the way back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minilava_kernels.linear_i8 import rounded_up

SIZE, BYTES = 32, 34  # values of a group, and what they take
SMALLEST = 2.0**-100  # a scale whose inverse is finite


def row_bytes(dim: int) -> int:
    return -(-dim // SIZE) * BYTES


def pack(x: Tensor) -> Tensor:
    """x float32 (..., K) -> int8 (..., row_bytes(K)). No value is off by more than half its group's scale, which is the
    largest magnitude over 127; one that is not finite makes its whole group NaN."""
    groups = F.pad(x, (0, -x.shape[-1] % SIZE)).unflatten(-1, (-1, SIZE))
    exact = groups.abs().amax(-1) * (1.0 / 127.0) + (groups * 0).sum(-1)
    scales = torch.where(exact < SMALLEST, 0, rounded_up(exact))
    inverse = torch.where(scales == 0, 0, 1 / scales.float())
    stored = (groups * inverse[..., None]).nan_to_num(0, 0, 0).round().to(torch.int8)
    return torch.cat([scales[..., None].view(torch.int8), stored], -1).flatten(-2)


def unpack(rows: Tensor, dim: int) -> Tensor:
    """int8 (..., row_bytes(K)) -> float32 (..., K), K = dim."""
    groups = rows.unflatten(-1, (-1, BYTES))
    scales = groups[..., :2].contiguous().view(torch.bfloat16).float()
    return (groups[..., 2:] * scales).flatten(-2)[..., :dim]
