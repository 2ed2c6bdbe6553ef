"""Logits -> next token: repetition penalty, then temperature, top-k, top-p and the draw (kernels/sample.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minilava.errors import UserError
from minilava_kernels.sample import sample

BROKEN = (
    "the model computed NaN or infinity: its weights are broken (see python -m minilava.checkpoint inspect --check) "
    "or overflow in this dtype (try --dtype float32)"
)


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k 0 and top_p 1 are off. repetition_penalty touches generated tokens only, as the
    original's does because it generates from embeddings (spec 2.3). Draw n of a reply depends on seed, n and the
    logits alone."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for ok, what in (
            (0 <= self.temperature < math.inf, "temperature must be 0 or more, and finite"),
            (0 < self.top_p <= 1, "top-p must be above 0 and at most 1"),
            (0 <= self.top_k < 1 << 63, "top-k must be 0 or more"),
            (0 < self.repetition_penalty < math.inf, "repetition penalty must be above 0, and finite"),
            (-(1 << 63) <= self.seed < 1 << 63, "seed must fit in 64 bits, with its sign"),
        ):
            if not ok:
                raise UserError(what)


class Sampler:
    """Draws the tokens of one sequence; its state is the generated ids, so a sequence gets the same tokens alone and
    in any batch."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self.generated: list[int] = []

    def __call__(self, logits: Tensor) -> int:
        """logits: (V,), already cut to the usable ids and in float32. Returns the next id and remembers it."""
        s = self.sampling
        if s.repetition_penalty != 1.0 and self.generated:
            seen = torch.tensor(sorted(set(self.generated)), device=logits.device)
            values = logits[seen]
            logits = logits.clone()
            logits[seen] = torch.where(values < 0, values * s.repetition_penalty, values / s.repetition_penalty)
        settings = columns([s], logits.device)
        count = torch.tensor([len(self.generated)], device=logits.device)
        (token,) = checked(draw(logits[None], settings, settings["seed"], count).tolist())
        self.generated.append(token)
        return token


def columns(sampling: Sequence[Sampling], device: torch.device) -> dict[str, Tensor]:
    """What the draw takes of each sequence's settings, (S,) each."""
    return {
        name: torch.tensor([getattr(s, name) for s in sampling], device=device)
        for name in ("temperature", "top_k", "top_p", "seed")
    }


def draw(logits: Tensor, settings: dict[str, Tensor], seeds: Tensor, draws: Tensor) -> Tensor:
    """Next tokens int64 (B,) for logits (B, V); -1 where they are broken."""
    temperature, top_k, top_p = (settings[name] for name in ("temperature", "top_k", "top_p"))
    return sample(logits, temperature, top_k, top_p, torch.zeros_like(temperature), seeds, draws)


def checked(tokens: list[int]) -> list[int]:
    if min(tokens, default=0) < 0:
        raise UserError(BROKEN)
    return tokens
