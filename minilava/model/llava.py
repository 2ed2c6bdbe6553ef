"""LLaVA: tower, projector, splice and decoder behind one forward(Packed) (spec 1, 5.6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minilava.config import IGNORE, ModelConfig
from minilava.model.linear import QuantizedEmbedding
from minilava.model.projector import Projector
from minilava.model.qwen import Qwen, Segments
from minilava.model.siglip import SigLIP
from minilava.packed import Packed
from minilava_kernels.cross_entropy import cross_entropy
from minilava_kernels.splice import splice

# Patches encoded at once: enough to fill the matrix units, few enough that 128 views do not need 128 views' memory.
PATCHES_PER_PASS = {"cpu": 4 * 729, "cuda": 64 * 729}


class LLaVA(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = SigLIP(config.vision)
        self.projector = Projector(config.vision.width, config.text.width)
        self.newline = nn.Parameter(torch.empty(config.text.width)) if config.newline else None
        self.text = Qwen(config.text)
        self.dtype: torch.dtype | None = None  # what to compute in where it is narrower than the parameters (training)

    def encode(self, patches: Tensor, progress: Callable = lambda items, _what: items) -> Tensor:
        """patches (V, P, C) -> projected features (V, P, D). progress wraps the loop over passes, as tqdm does."""
        patches = patches.to(self.dtype or self.text.norm.weight.dtype)
        if torch.is_grad_enabled():  # a training batch is one pass: its activations are kept in any case
            return self.projector(self.vision(patches))
        passes = progress(_passes(patches), "encoding pictures")
        return torch.cat([self.projector(self.vision(some)) for some in passes])

    @torch.no_grad()
    def see(self, patches: Tensor) -> Tensor:
        """patches (V, P, C) -> what a frozen tower says of them, (V, P, Dv): Packed.tower."""
        patches = patches.to(self.dtype or self.text.norm.weight.dtype)
        return torch.cat([self.vision(some) for some in _passes(patches)])

    def embed(self, packed: Packed) -> Tensor:
        """Token embeddings with the features spliced in: (T, D)."""
        if packed.splice_rows is None:
            x = self.text.embed(packed.ids)
            return x if self.dtype is None else x.to(self.dtype)
        features = packed.features
        if features is None:
            features = self.encode(packed.patches) if packed.tower is None else self.projector(packed.tower)
        table, ids = self.text.embed, packed.ids
        if isinstance(table, QuantizedEmbedding):
            table, ids = table(ids), torch.arange(len(ids))
        else:
            table = table.weight
        return splice(
            table, ids, packed.splice_rows, packed.splice_source, features.flatten(0, -2),
            packed.mix_taps, packed.mix_weights, packed.max_taps, self.newline,
        )  # fmt: skip

    def forward(self, packed: Packed, last_only: bool = False) -> Tensor:
        """Next-token logits of every row, (T, V), or of the last row of every sample, (S, V)."""
        last = packed.cu_seqlens[1:].long() - 1 if last_only else None
        return self.text.logits(self.hidden(packed, last))

    def hidden(self, packed: Packed, last: Tensor | None = None) -> Tensor:
        """Normed hidden rows (T, D), or those of the rows ``last``."""
        segments = Segments.of(packed)
        return self.text(self.embed(packed), packed.positions, segments, last=last)

    def losses(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of every labelled token, float32 (N,), and its row, int64 (N,).

        Logits exist for these rows alone, a chunk of the vocabulary at a time. A sample's first token has no
        predecessor and so no loss (spec 5.8).
        """
        rows = torch.nonzero((packed.labels != IGNORE) & (packed.positions > 0))[:, 0]
        hidden = self.hidden(packed)[rows - 1]
        return cross_entropy(hidden, self.text.output_weight, packed.labels[rows]), rows


def _passes(patches: Tensor) -> tuple[Tensor, ...]:
    """(V, P, C) in runs of views."""
    return patches.split(max(1, PATCHES_PER_PASS[patches.device.type] // patches.shape[1]))
