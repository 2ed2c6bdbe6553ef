"""All blocks of a quantised decoder in one call, for a CPU: norms, products, rotary embedding, attention and SwiGLU.

A step of one row at 0.5B reads about 310 MB of weights at 8 bits, 6 ms at 50 GB/s; called from Python one by one, its
360 operations cost as much again. The kernels are those of linear_i8, norm, rope_kv, attention and swiglu, in the same
order on the same numbers: the plain PyTorch statement is Qwen's own blocks (minilava/model/qwen.py), and both give the
same bits. Rows are rounded once for all matrices that multiply them, and SwiGLU is the end of the product with up.

T rows, D width, H heads and G key-value heads of K, R cache rows, S sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from minilava_kernels.cached8 import row_bytes
from minilava_kernels.linear_i8 import Matrix, address

try:
    from minilava import _C
except ImportError:
    _C = None

Block = tuple[Tensor, Tensor, Sequence[Matrix]]


class Decoder:
    """blocks: of each, its two norm weights (D) and q, k, v, o, gate, up and down. ValueError where the three that
    read one input, or the two, differ in bits or groups. The tensors must not change afterwards."""

    def __init__(self, blocks: Sequence[Block], heads: int, kv_heads: int, eps: float):
        first = blocks[0][2][0][0]
        self.width, self.kv_heads, self.dim = first.k, kv_heads, first.n // heads
        self.held, self.native = [], _C.DecoderI8(heads, kv_heads, self.dim, eps)
        for norm1, norm2, matrices in blocks:
            forms = [(p.bits, p.group, p.k) for p, _ in matrices]
            if len(set(forms[:3])) > 1 or forms[4] != forms[5]:
                raise ValueError(f"Decoder: matrices of one input differ in their format: {forms}")
            floats = [norm1, norm2, *(b for _, b in matrices if b is not None)]
            if any(t.dtype != torch.float32 or not t.is_contiguous() for t in floats):
                raise ValueError("Decoder: norms and biases must be float32")
            d, q, kv, hidden = self.width, heads * self.dim, kv_heads * self.dim, matrices[4][0].n
            whole = [(q, d), (kv, d), (kv, d), (d, q), (hidden, d), (hidden, d), (d, hidden)]
            biases = all(b is None or b.shape == (p.n,) for p, b in matrices)
            if [(p.n, p.k) for p, _ in matrices] != whole or not norm1.shape == norm2.shape == (d,) or not biases:
                raise ValueError(f"Decoder: a block's tensors do not fit width {d} and heads of {self.dim}")
            self.held.append((norm1, norm2, matrices))
            self.native.add(norm1.data_ptr(), norm2.data_ptr(), [address(*m) for m in matrices])

    def __reduce__(self) -> tuple:
        """A copy, or what is loaded again, would hold addresses of other tensors: None, and its owner makes another."""
        return type(None), ()

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        slots: Tensor,
        cu: Tensor,
        starts: Tensor,
        lengths: Tensor,
        cache: Sequence[tuple[Tensor, Tensor]],
        last: Tensor | None = None,
        prompt: bool = False,
    ) -> Tensor:
        """x float32 (T, D) -> the residual stream after the last block, (T, D) or, of the rows ``last`` int64 (S,),
        which must ascend, (S, D). cos and sin (P, K / 2); positions and slots int64 (T); cu int32 (S + 1), starts and
        lengths int32 (S) as for attention(); cache: pairs, written at the slots, all float32
        (R, G, K) or at 8 bits, int8 (R, G, bytes of a head), see cached8.
        prompt: attention may be narrow, see there."""
        rows, sequences = len(x), len(lengths)
        if x.shape != (rows, self.width) or x.dtype != torch.float32:
            raise ValueError(f"Decoder: x {x.dtype} {tuple(x.shape)} is not float32 (T, {self.width})")
        if len(cache) != len(self.held):
            raise ValueError("Decoder: every block needs a cache")
        dtype = cache[0][0].dtype
        shape = len(cache[0][0]), self.kv_heads, row_bytes(self.dim) if dtype == torch.int8 else self.dim
        for t in itertools.chain.from_iterable(cache):
            if t.shape != shape or t.dtype != dtype or not t.is_contiguous():
                raise ValueError(f"Decoder: a cache is {t.dtype} {tuple(t.shape)}, not {dtype} {shape}")
        if dtype not in (torch.float32, torch.int8):
            raise ValueError(f"Decoder: a cache is float32 or int8, not {dtype}")
        counts = (positions, rows), (slots, rows), (cu, sequences + 1), (starts, sequences), (lengths, sequences)
        if any(t.shape != (n,) for t, n in counts):
            raise ValueError("Decoder: positions and slots are (T), cu (S + 1), starts and lengths (S)")
        if (
            not positions.dtype == slots.dtype == torch.int64
            or not cu.dtype == starts.dtype == lengths.dtype == torch.int32
        ):
            raise ValueError("Decoder: positions and slots are int64, cu, starts and lengths int32")
        if cos.shape != sin.shape or cos.shape[1:] != (self.dim // 2,) or not cos.dtype == sin.dtype == torch.float32:
            raise ValueError(f"Decoder: cos and sin are float32 (P, {self.dim // 2})")
        if last is not None and not _ascend(last, sequences, rows):
            raise ValueError("Decoder: last has one row for every sequence, ascending, int64")
        x = x.clone(memory_format=torch.contiguous_format)
        whole = [t.contiguous() for t in (cos, sin, positions, slots, cu, starts, lengths)]
        last = None if last is None else last.contiguous()
        self.native.run(
            x.data_ptr(), *(t.data_ptr() for t in whole), 0 if last is None else last.data_ptr(), rows, sequences,
            0 if last is None else sequences, len(cos), shape[0], self.dim**-0.5, dtype is torch.int8, prompt,
            [k.data_ptr() for k, _ in cache], [v.data_ptr() for _, v in cache],
        )  # fmt: skip
        return x if last is None else x[:sequences]


def _ascend(last: Tensor, sequences: int, rows: int) -> bool:
    """Whether last is int64 (sequences,), each row greater than the one before and all of them below ``rows``."""
    if last.shape != (sequences,) or last.dtype != torch.int64:
        return False
    ends = [-1, *last.tolist(), rows]
    return all(a < b for a, b in itertools.pairwise(ends))
