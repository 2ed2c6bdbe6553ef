"""Samples -> Packed: concatenate everything and say which feature row goes to which token row (spec 5.6).

Unlike upstream, nothing is truncated, nothing is padded, and a count that does not match is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minilava.config import IGNORE, IMAGE
from minilava.errors import UserError
from minilava.inputs.geometry import NEWLINE
from minilava.inputs.sample import Sample
from minilava.packed import Packed


def check_length(sample: Sample, max_length: int, reserve: int = 0) -> None:
    """Refuse a sample that does not fit the context together with ``reserve`` tokens still to be generated."""
    if sample.tokens + reserve > max_length:
        room = f" and {reserve} new tokens" if reserve else ""
        raise UserError(
            f"the prompt's {sample.tokens} tokens ({sample.image_tokens} of them from "
            f"{len(sample.layouts)} images){room} exceed the context of {max_length}: "
            "use fewer images or frames, or pooling"
        )


def pack(samples: Sequence[Sample], patches_per_view: int) -> Packed:
    """One batch of all samples in order. patches_per_view: P, the feature rows of one view.

    Of samples right behind their leader the pictures are encoded once, and what they share with it is computed once.
    """
    samples = _behind_leaders(samples)
    own_layouts = [s.layouts[len(s.shared_layouts) :] for s in samples]
    total_views = sum(layout.views for s in samples if s.leader is None for layout in s.layouts)
    weighted = [la for own in own_layouts for la in own if la.weights is not None]
    maxima = [la for own in own_layouts for la in own if la.taps is not None and la.weights is None]
    # The bank's sections: features, weighted mixtures, maxima, newline.
    mix_at = total_views * patches_per_view
    max_at = mix_at + sum(len(la.taps) for la in weighted)
    newline_at = max_at + sum(len(la.taps) for la in maxima)

    ids, positions, labels, rows, source, lengths = [], [], [], [], [], []
    mix_taps, max_taps, gather, place, token, view, gathered, first_view, first_row = [], [], [], [], 0, 0, 0, 0, 0
    for sample, layouts in zip(samples, own_layouts, strict=True):
        if sample.leader is None:
            first_view, first_row = view, token  # where what may be shared begins
        view = first_view + sum(la.views for la in sample.shared_layouts)
        shared = sample.shared_tokens
        at = np.asarray(sample.ids[sample.shared :], np.int64)
        holes = np.flatnonzero(at == IMAGE)
        if len(holes) != len(layouts):
            raise UserError(f"{sample.ids.count(IMAGE)} image placeholders but {len(sample.layouts)} images")
        widths = np.ones(len(at), np.int64)
        widths[holes] = [la.tokens for la in layouts]
        starts = np.cumsum(widths) - widths  # the first packed row of every prompt token
        length = int(widths.sum())
        ids.append(np.repeat(np.where(at == IMAGE, 0, at), widths))
        positions.append(shared + np.arange(length))
        if sample.labels is not None:
            marks = np.asarray(sample.labels[sample.shared :], np.int64)
            labels.append(np.repeat(np.where(at == IMAGE, IGNORE, marks), widths))
        for hole, la in zip(holes, layouts, strict=True):
            rows.append(token + starts[hole] + np.arange(la.tokens))
            own, base = la.views * patches_per_view, view * patches_per_view
            where = la.source + base
            if la.taps is not None:
                section, offset = (max_taps, max_at) if la.weights is None else (mix_taps, mix_at)
                mixed = la.source >= own
                where = np.where(mixed, la.source - own + offset + sum(map(len, section)), where)
                section.append(la.taps + base)
            source.append(np.where(la.source == NEWLINE, newline_at, where))
            view += la.views
        place.append(gathered + shared + np.arange(length))
        gathered += shared + length
        gather.append(np.r_[first_row : first_row + shared, token : token + length])
        lengths.append(length)
        token += length

    def cat(parts: list[np.ndarray]) -> Tensor | None:
        return torch.from_numpy(np.concatenate(parts)) if parts else None

    patches = [p for s in samples if s.leader is None for p in s.patches]
    sharing = any(s.shared for s in samples)
    spans = [len(rows) for rows in gather]
    mix_weights = cat([la.weights.astype(np.float32) for la in weighted])
    return Packed(
        ids=cat(ids),
        positions=cat(positions),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        lengths=tuple(lengths),
        patches=None if not patches else patches[0] if len(patches) == 1 else torch.cat(patches),
        splice_rows=cat(rows),
        splice_source=cat(source),
        mix_taps=cat(mix_taps),
        mix_weights=mix_weights,
        max_taps=cat(max_taps),
        labels=cat(labels),
        gather=cat(gather) if sharing else None,
        place=cat(place) if sharing else None,
        cu_spans=torch.tensor([0, *np.cumsum(spans)], dtype=torch.int32) if sharing else None,
        spans=tuple(spans) if sharing else None,
    )


def _behind_leaders(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, of which those that do not stand right behind their leader, or behind others of it, follow none."""
    out: list[Sample] = []
    for i, sample in enumerate(samples):
        leader = sample.leader
        behind = i > 0 and leader is not None and (samples[i - 1] is leader or out[-1].leader is leader)
        out.append(sample if behind else replace(sample, leader=None, shared=0))
    return out
