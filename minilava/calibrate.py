"""What the inputs of a model's weights look like on real records: the mean square of each, for quantisation to 4 bits.

With y = W x and independent errors of W, the squared error of y is the sum over k of error_k^2 E[x_k^2]: a weight that
meets large inputs deserves the smaller error (the diagonal of GPTQ's Hessian, arXiv 2210.17323).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.errors import UserError
from minilava.model.linear import Linear
from minilava.model.llava import LLaVA
from minilava.packed import Packed
from minilava.runtime.vlm import load

RECORDS, BUDGET = 128, 4096  # a mean of squares settles after some ten thousand tokens


class _Watched(Linear):
    """A Linear that sums up the squares of its inputs."""

    def __call__(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        rows = x.detach().flatten(0, -2)
        self.seen += rows.square().sum(0, dtype=torch.float64)
        self.rows += len(rows)
        return super().__call__(x, residual, activation)


@torch.inference_mode()
def mean_squares(model: LLaVA, packs: Iterable[Packed]) -> dict[str, Tensor]:
    """Canonical name of every Linear, and of the head where it is the embedding -> float32 (K,).

    A module that no pack has reached is left out."""
    linears = {name: m for name, m in model.named_modules() if type(m) is Linear}
    for m in linears.values():
        m.__class__, m.seen, m.rows = _Watched, torch.zeros(m.in_features, dtype=torch.float64), 0
    head, rows = torch.zeros(model.config.text.width, dtype=torch.float64), 0
    try:
        for packed in packs:
            hidden = model.hidden(packed)
            head += hidden.square().sum(0, dtype=torch.float64)
            rows += len(hidden)
        found = {name: (m.seen / m.rows).float() for name, m in linears.items() if m.rows}
    finally:
        for m in linears.values():
            m.__class__ = Linear
            del m.seen, m.rows
    if rows:
        found["text.embed" if model.text.head is None else "text.head"] = (head / rows).float()
    return found


def calibrate(checkpoint: str | Path, records: str | Path, number: int = RECORDS) -> dict[str, Tensor]:
    """mean_squares of a checkpoint over the first ``number`` samples of shuffled records (a data file or a mixture).

    UserError where the records cannot be read or used."""
    vlm = load(checkpoint, device="cpu", dtype="float32", cache_bytes=0)
    mixture = load_mixture(records)
    stream = Stream(mixture, vlm.tokenizer, vlm.config, min(BUDGET, vlm.config.max_length))
    number = min(number, len(mixture))

    def packs() -> Iterable[Packed]:
        read = 0
        for batch in stream:
            if isinstance(batch, UserError):
                raise batch
            yield batch.packed
            read += len(batch.names)
            if read >= number:
                return

    return mean_squares(vlm.model, packs())
