"""Logits -> next token: repetition penalty, temperature, top-k, top-p, one seeded generator per sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minilava.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k 0 and top_p 1 are off. repetition_penalty touches generated tokens only, as the
    original's does because it generates from embeddings (spec 2.3)."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for ok, what in (
            (self.temperature >= 0, "temperature must be 0 or more"),
            (0 < self.top_p <= 1, "top-p must be above 0 and at most 1"),
            (self.top_k >= 0, "top-k must be 0 or more"),
            (self.repetition_penalty > 0, "repetition penalty must be above 0"),
        ):
            if not ok:
                raise UserError(what)


class Sampler:
    """Draws the tokens of one sequence; its state is the generated ids and a generator of its own, so a sequence
    gets the same tokens alone and in any batch."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self.generated: list[int] = []
        self.generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """logits: (V,), already cut to the usable ids and in float32. Returns the next id and remembers it."""
        s = self.sampling
        if s.repetition_penalty != 1.0 and self.generated:
            seen = torch.tensor(sorted(set(self.generated)), device=logits.device)
            values = logits[seen]
            logits = logits.clone()
            logits[seen] = torch.where(values < 0, values * s.repetition_penalty, values / s.repetition_penalty)
        token = int(logits.argmax())  # a NaN counts as the largest
        if not math.isfinite(logits[token]):
            raise UserError(
                "the model computed NaN or infinity: its weights are broken (see python -m minilava.checkpoint inspect "
                "--check) or overflow in this dtype (try --dtype float32)"
            )
        if s.temperature > 0:
            token = self._draw(logits.cpu())
        self.generated.append(token)
        return token

    def _draw(self, logits: Tensor) -> int:
        s = self.sampling
        logits, ids = (logits / s.temperature).sort(descending=True, stable=True)
        if s.top_k:
            logits = logits[: s.top_k]
        probabilities = logits.softmax(-1)
        if s.top_p < 1:  # keep the smallest head whose mass reaches top_p
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities[before < s.top_p]
        return int(ids[torch.multinomial(probabilities, 1, generator=self.generator)])
