"""KV cache: every sequence owns one contiguous run of rows, as long as it may ever get, and no padding lies between."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor

from minilava.config import TextConfig
from minilava.model.qwen import Segments
from minilava_kernels.cached8 import row_bytes


class KVCache:
    """keys and values of all layers for S sequences: per layer (R, G, K) each, or with int8 what cached8 makes of them,
    R = the sum of the capacities, or more in ``layers`` that are lent to it."""

    def __init__(
        self,
        config: TextConfig,
        capacities: list[int],
        dtype: torch.dtype,
        device: torch.device,
        layers: list[tuple[Tensor, Tensor]] | None = None,
    ):
        head = row_bytes(config.head_dim) if dtype == torch.int8 else config.head_dim
        shape = (sum(capacities), config.kv_heads, head)
        self.layers = layers or [
            (torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.layers)
        ]
        self.capacities = capacities
        self.starts = [sum(capacities[:s]) for s in range(len(capacities))]
        self.lengths = [0] * len(capacities)
        self.device = device

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def begin_like(self, other: KVCache, rows: int) -> None:
        """Copy the first rows of another cache, each of one sequence."""
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            for mine, copied in zip(ours, theirs, strict=True):
                mine[:rows] = copied[:rows]
        self.lengths[0] = rows

    def extend(self, sequences: list[int], counts: list[int], apart: bool = False) -> tuple[Tensor, Segments]:
        """Make room for counts[i] new rows of sequences[i]. Returns the new rows' positions, int64 (sum(counts),),
        and the segments under which they attend to everything cached so far and to themselves. apart: every new row is
        a segment of its own, which gives it the bits that it gets in a step of one row."""
        positions, slots, spans = [], [], []  # spans: (sequence, its keys, its queries)
        for s, n in zip(sequences, counts, strict=True):
            length = self.lengths[s]
            if length + n > self.capacities[s]:
                raise ValueError(f"sequence {s} outgrows its {self.capacities[s]} cache rows")
            positions.append(torch.arange(length, length + n))
            slots.append(positions[-1] + self.starts[s])
            self.lengths[s] = length + n
            spans += [(s, length + i + 1, 1) for i in range(n)] if apart else [(s, length + n, n)]

        def int32(values: Iterable[int]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.int32).to(self.device, non_blocking=True)

        owners, lengths, queries = zip(*spans, strict=True)
        starts = int32(self.starts[s] for s in owners)
        cu = int32(accumulate(queries, initial=0))
        rows = torch.cat(slots).to(self.device)
        segments = Segments(cu, starts, int32(lengths), max(queries), max(lengths), rows, prompt=not apart)
        return torch.cat(positions).to(self.device), segments
