"""LLaVA: tower, projector, splice and decoder behind one forward(Packed) (spec 1, 5.6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minilava.config import ModelConfig
from minilava.model.projector import Projector
from minilava.model.qwen import Qwen, Segments
from minilava.model.siglip import SigLIP
from minilava.packed import Packed
from minilava_kernels.pool import mix_rows

# Views encoded at once: enough rows to fill the matrix units, few enough that 128 views do not need 128 views' memory.
VIEWS_PER_PASS = {"cpu": 4, "cuda": 64}


class LLaVA(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision = SigLIP(config.vision)
        self.projector = Projector(config.vision.width, config.text.width)
        self.newline = nn.Parameter(torch.empty(config.text.width)) if config.newline else None
        self.text = Qwen(config.text)

    def encode(self, patches: Tensor, progress: Callable = lambda items, _what: items) -> Tensor:
        """patches (V, P, C) -> projected features (V, P, D). progress wraps the loop over passes, as tqdm does."""
        step = VIEWS_PER_PASS[patches.device.type]
        passes = progress(range(0, len(patches), step), "encoding pictures")
        return torch.cat([self.projector(self.vision(patches[i : i + step])) for i in passes])

    def embed(self, packed: Packed) -> Tensor:
        """Token embeddings with the features spliced in: (T, D)."""
        x = nn.functional.embedding(packed.ids, self.text.embed.weight)
        if packed.splice_rows is None:
            return x
        features = packed.features if packed.features is not None else self.encode(packed.patches)
        bank = [features.reshape(-1, features.shape[-1])]
        if packed.mix_taps is not None:
            bank.append(mix_rows(bank[0], packed.mix_taps, packed.mix_weights))
        if packed.max_taps is not None:
            bank.append(mix_rows(bank[0], packed.max_taps, None))
        if self.newline is not None:
            bank.append(self.newline[None])
        rows = (torch.cat(bank) if len(bank) > 1 else bank[0])[packed.splice_source]
        return x.index_copy(0, packed.splice_rows, rows.to(x.dtype))

    def forward(self, packed: Packed, last_only: bool = False) -> Tensor:
        """Next-token logits of every row, (T, V), or of the last row of every sample, (S, V)."""
        segments = Segments.whole(packed.cu_seqlens, packed.lengths)
        last = packed.cu_seqlens[1:].long() - 1 if last_only else None
        hidden = self.text(self.embed(packed), packed.positions, segments, last=last)
        return self.text.logits(hidden)
