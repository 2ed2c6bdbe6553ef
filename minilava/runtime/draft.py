"""Guesses of the next tokens from what was read and written so far: text that repeats itself is decoded several tokens
a step, because a step's time is that of reading the weights, for one token or for a few.

A guess decides nothing: every token is drawn as always, from logits that hold as long as the tokens before it were
guessed right (engine.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

LONGEST, SHORTEST = 4, 2  # tokens that must have occurred before in the same order


class Draft:
    """Guesses up to ``most`` tokens of one sequence. A negative token is a picture's row: it matches nothing."""

    def __init__(self, tokens: Iterable[int], most: int):
        self.most = most
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # a run of tokens -> where it was last followed by another
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            for run in self._runs():
                self.after[run] = len(self.tokens)
            self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """What followed the longest run that the sequence now ends with, at most so many tokens. Where they reach its
        end they go round: the sequence repeats itself already."""
        at = next((self.after[run] for run in self._runs() if run in self.after), None)
        if at is None:
            return []
        period = len(self.tokens) - at
        guesses = (self.tokens[at + i % period] for i in range(min(most, self.most)))
        return list(takewhile(lambda token: token >= 0, guesses))

    def _runs(self) -> list[tuple[int, ...]]:
        """The runs that the sequence ends with, longest first."""
        runs = (tuple(self.tokens[-n:]) for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1))
        return [run for run in runs if min(run) >= 0]
