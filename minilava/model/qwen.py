"""Qwen1.5 / Qwen2 decoder over packed rows, with an optional KV cache (spec 1.3).

T packed rows, D width, H heads and G key-value heads of K, R cache rows, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilava.config import TextConfig
from minilava.model.linear import Linear, QuantizedEmbedding, QuantizedLinear, coarse
from minilava.model.recompute import run_block
from minilava.packed import Packed
from minilava_kernels.attention import attention
from minilava_kernels.decoder_i8 import Decoder
from minilava_kernels.linear import linear
from minilava_kernels.linear_i8 import implementation, linear_i8
from minilava_kernels.norm import rms_norm
from minilava_kernels.rope_kv import rope, rope_kv
from minilava_kernels.swiglu import swiglu

MIN_POSITIONS = 1024  # that rotary tables are made for


@dataclass(frozen=True)
class Segments:
    """Which rows attend to which: sequence s's queries are rows cu[s]:cu[s + 1], its keys rows
    starts[s]:starts[s] + lengths[s] of the cache (or of the batch itself), causal up to the last key.

    cu: int32 (S + 1,). starts, lengths: int32 (S,). slots: int64 (T,), the cache row of each new row, None without
    a cache. max_q, max_k: the longest of each, on the host, so that nothing waits for the device.
    gather, place: of a batch whose samples share prefixes (Packed); cu, starts and lengths then count rows of gather.
    """

    cu: Tensor
    starts: Tensor
    lengths: Tensor
    max_q: int
    max_k: int
    slots: Tensor | None = None
    prompt: bool = True  # read many rows at a time; else steps, which have the same bits however many there are
    gather: Tensor | None = None
    place: Tensor | None = None

    @staticmethod
    def whole(cu: Tensor, lengths: tuple[int, ...]) -> Segments:
        """Every sequence attends to itself; no cache."""
        longest = max(lengths)
        return Segments(cu, cu[:-1], cu[1:] - cu[:-1], longest, longest)

    @staticmethod
    def of(packed: Packed) -> Segments:
        """The samples of a batch, without a cache."""
        if packed.gather is None:
            return Segments.whole(packed.cu_seqlens, packed.lengths)
        return replace(Segments.whole(packed.cu_spans, packed.spans), gather=packed.gather, place=packed.place)

    def last_rows(self, rows: Tensor) -> Segments:
        """The same keys, but one query per sequence in ``rows``: the last row of each."""
        cu = torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device)
        return Segments(cu, self.starts, self.lengths, 1, self.max_k, prompt=self.prompt)


class Block(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        d, h, g, k = config.width, config.heads, config.kv_heads, config.head_dim
        self.eps, self.shape = config.eps, (h, g, k)
        self.norm1, self.norm2 = (nn.RMSNorm(d, config.eps) for _ in range(2))
        self.q, self.k, self.v = (Linear(d, n * k) for n in (h, g, g))
        self.o = Linear(h * k, d, bias=False)
        self.gate, self.up = (Linear(d, config.mlp_width, bias=False) for _ in range(2))
        self.down = Linear(config.mlp_width, d, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        segments: Segments,
        kv: tuple[Tensor, Tensor] | None,
        last: Tensor | None = None,
    ) -> Tensor:
        """x: (T, D). kv: this layer's cache, each (R, G, K), with cos and sin the tables that positions index; or None,
        with cos and sin already one row per token. last: only these rows are wanted (int64 (S,)),
        so keys and values are made for all rows and everything after them for these alone."""
        h, g, k = self.shape
        n = rms_norm(x, self.norm1.weight, self.eps)
        query, key, value = self.q(n), self.k(n), self.v(n)
        if kv is None:
            query, key = rope(query.view(-1, h, k), key.view(-1, g, k), cos, sin)
            kv = (key, value.view(-1, g, k))
        else:
            rope_kv(query, key, value, cos, sin, positions, *kv, segments.slots)
            query = query.view(-1, h, k)
        gather = segments.gather
        if gather is not None:  # every sample's prefix beside its own rows
            query, *kv = (_rows(t, gather) for t in (query, *kv))
        elif last is not None:
            query, x, segments = query[last], x[last], segments.last_rows(last)
        a = attention(
            query, *kv, segments.cu, segments.starts, segments.lengths, causal=True,
            max_q=segments.max_q, max_k=segments.max_k, narrow=segments.prompt and coarse(self.q, x),
        )  # fmt: skip
        if gather is not None:
            rows = segments.place if last is None else segments.place[last]
            a, x = _rows(a, rows), x if last is None else x[last]
        x = self.o(a.reshape(len(x), h * k), residual=x)
        n = rms_norm(x, self.norm2.weight, self.eps)
        n = swiglu(self.gate(n), self.up(n))
        return self.down(n, residual=x)


class Qwen(nn.Module):
    """Token embeddings, blocks, final norm and head (the embedding itself when tied)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        # Given a weight it draws none: on the meta device a draw imports torch's compiler, a second of every start.
        self.embed = nn.Embedding(config.vocab_rows, config.width, _weight=torch.empty(config.vocab_rows, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.eps)
        self.head = None if config.tied else Linear(config.width, config.vocab_rows, bias=False)
        self.recompute = "none"  # see model.recompute
        self._tables: tuple[Tensor, Tensor] | None = None
        self._decoder: Decoder | None = None  # quantised blocks in one call, made at the first
        self.register_load_state_dict_post_hook(_renew)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Segments,
        cache: list[tuple[Tensor, Tensor]] | None = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """x: embeddings (T, D); positions: int64 (T,). Returns the normed hidden rows, (T, D), or (S, D) for ``last``.
        ``last`` must hold the last row of every sequence of the segments."""
        cos, sin = self.rotary_tables(x, segments.max_k)
        if cache is not None and (native := self._native(x)) is not None:
            s = segments
            x = native(x, cos, sin, positions, s.slots, s.cu, s.starts, s.lengths, cache, last, s.prompt)
            return rms_norm(x, self.norm.weight, self.config.eps)
        if cache is None:
            cos, sin = cos[positions], sin[positions]
        for i, block in enumerate(self.blocks):
            final = i + 1 == len(self.blocks)
            kv = None if cache is None else cache[i]
            args = (x, cos, sin, positions, segments, kv, last if final else None)
            x = run_block(block, self.recompute, *args)
        return rms_norm(x, self.norm.weight, self.config.eps)

    def _native(self, x: Tensor) -> Decoder | None:
        """All blocks in one call, where they are quantised and this machine has the kernels."""
        if torch.compiler.is_compiling():
            return None
        if self._decoder is None and implementation() == "native":
            linears = [[getattr(b, n) for n in ("q", "k", "v", "o", "gate", "up", "down")] for b in self.blocks]
            if all(isinstance(m, QuantizedLinear) for row in linears for m in row):
                blocks = [
                    (b.norm1.weight, b.norm2.weight, [(m.panels, m.bias) for m in row])
                    for b, row in zip(self.blocks, linears, strict=True)
                ]
                self._decoder = Decoder(blocks, self.config.heads, self.config.kv_heads, self.config.eps)
        return self._decoder

    def _apply(self, fn, recurse=True):
        _renew(self, None)  # .to() and its like move the weights
        return super()._apply(fn, recurse)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) in the weights' dtype; V counts the rows on disk."""
        if self.head is not None:
            return self.head(hidden)
        if isinstance(self.embed, QuantizedEmbedding):
            return linear_i8(hidden, self.embed.panels)
        return linear(hidden, self.embed.weight)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values: 8 bits (cached8) beside quantised weights, whose errors are larger; else as computed."""
        quantised = len(self.blocks) and isinstance(self.blocks[0].q, QuantizedLinear)
        return torch.int8 if quantised else self.norm.weight.dtype

    @property
    def output_weight(self) -> Tensor:
        """(V, D)."""
        return self.embed.weight if self.head is None else self.head.weight

    def rotary_tables(self, like: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin of position * theta^(-2j / K), each (positions or more, K / 2): angles in float32, cast to the
        dtype of ``like``. On a GPU they are made once for all positions, where captured graphs may go on reading."""
        tables, most = self._tables, self.config.max_positions
        fit = tables is not None and tables[0].device == like.device and tables[0].dtype == like.dtype
        if not fit or len(tables[0]) < min(positions, most):
            k = self.config.head_dim
            count = most if like.is_cuda else min(most, max(MIN_POSITIONS, 1 << (positions - 1).bit_length()))
            exponent = torch.arange(0, k, 2, dtype=torch.float32, device=like.device) / k
            frequency = 1.0 / self.config.rope_theta**exponent
            angle = torch.arange(count, device=like.device).float()[:, None] * frequency
            self._tables = tables = (angle.cos().to(like.dtype), angle.sin().to(like.dtype))
        return tables


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] of (T, H, K). As an embedding, whose gradient has a fast kernel where that of an index has none."""
    return F.embedding(rows, x.flatten(1)).view(len(rows), *x.shape[1:])


def _renew(model: Qwen, _keys: object) -> None:
    model._decoder = None  # it holds the weights that were there before
