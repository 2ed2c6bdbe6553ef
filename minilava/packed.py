"""Packed: the one batch type that the model accepts, for generation and for training alike.

All samples are concatenated; no padding token exists anywhere. Letters: T token rows, S samples, V views of P patches,
C = 3 * patch_size ** 2 values per patch, N spliced rows, M mixed rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """ids: int64 (T,), 0 on rows that a feature overwrites. positions: int64 (T,), restarting at 0 in every sample.
    cu_seqlens: int32 (S + 1,), the first row of each sample and T.

    patches: float (V, P, C), normalised pixels of every view of the batch, or None without media.
    features: (V, P, D) already projected features, or tower: (V, P, Dv) what the tower says of every view, still to be
    projected; either replaces patches.
    splice_rows: int64 (N,), token rows that a feature overwrites. splice_source: int64 (N,), the row of the feature
    bank that goes there. The bank is [features (V * P), weighted mixtures, maxima, the newline vector].
    mix_taps int64 (Mw, 4) and mix_weights float32 (Mw, 4); max_taps int64 (Mm, 4): spec 3.5 and 4.3.
    labels: int64 (T,), IGNORE where a token carries no loss, or None.

    Samples about the same pictures may share a prefix, whose rows then stand in the batch once, with the first of them.
    gather: int64 (A,), the rows that each sample attends to, prefix and all, one sample after the other, or None where
    nothing is shared. place: int64 (T,), where each row stands in gather as its own sample's. cu_spans: int32 (S + 1,),
    where each sample's part of gather begins. spans: how long it is, on the host.
    """

    ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]  # the same as cu_seqlens, on the host
    patches: Tensor | None = None
    features: Tensor | None = None
    tower: Tensor | None = None
    splice_rows: Tensor | None = None
    splice_source: Tensor | None = None
    mix_taps: Tensor | None = None
    mix_weights: Tensor | None = None
    max_taps: Tensor | None = None
    labels: Tensor | None = None
    gather: Tensor | None = None
    place: Tensor | None = None
    cu_spans: Tensor | None = None
    spans: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def image_tokens(self) -> int:
        return 0 if self.splice_rows is None else len(self.splice_rows)

    @property
    def views(self) -> int:
        given = (x for x in (self.patches, self.tower, self.features) if x is not None)
        return len(next(given, ()))

    def to(self, device: torch.device | str) -> Packed:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})
