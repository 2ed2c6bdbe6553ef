"""What the runs' scores say: a mean and a deviation over seeds, and a difference with its 95 % interval and a verdict.

Two models differ for two reasons beside what was changed: the seed they were trained with, and the questions they
happened to be asked. The models of a pair share seeds and questions, so differences are taken seed by seed and question
by question; a resample draws seeds and, for every task, questions, independently of each other (the bootstrap of
crossed data; Owen 2007, "The pigeonhole bootstrap"). Three seeds are few: no resample shows more spread than they do,
so an interval is rather too narrow than too wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from minilava.eval.figures import PERCENTILES, RESAMPLES

Scores = dict[str, np.ndarray]  # task -> (N,) scores from 0 to 1, in the order of its questions

REPRODUCED, NOT_REPRODUCED, OTHER_WAY = "reproduced", "not reproduced", "the other way"


@dataclass(frozen=True)
class Cell:
    """Percent. deviation: the sample's, over seeds; None of one seed."""

    mean: float
    deviation: float | None
    seeds: list[float]


@dataclass(frozen=True)
class Difference:
    """Percent points. low, high: the 95 % interval."""

    value: float
    low: float
    high: float
    verdict: str


def scores(lines: Sequence[dict]) -> Scores:
    groups: dict[str, list[float]] = {}
    for line in lines:
        groups.setdefault(line["task"], []).append(line["score"])
    return {task: np.array(values) for task, values in groups.items()}


def cell(seeds: Sequence[Scores], tasks: Sequence[str]) -> Cell:
    """The mean over tasks of a model trained with each of these seeds."""
    values = [100 * float(np.mean([one[task].mean() for task in tasks])) for one in seeds]
    return Cell(mean(values), stdev(values) if len(values) > 1 else None, values)


def difference(
    better: Sequence[Scores], worse: Sequence[Scores], tasks: Sequence[str], within: float | None = None
) -> Difference:
    """better minus worse, both as seed -> Scores; the mean over tasks. within: see verdict."""
    rng, n = np.random.default_rng(0), len(better)
    seeds = rng.multinomial(n, [1 / n] * n, RESAMPLES) / n  # (R, S): how much every seed counts
    value, resampled = 0.0, np.zeros(RESAMPLES)
    for task in tasks:
        change = 100 * np.stack([b[task] - w[task] for b, w in zip(better, worse, strict=True)])  # (S, N)
        m = change.shape[1]
        value += float(change.mean()) / len(tasks)
        questions = rng.multinomial(m, [1 / m] * m, RESAMPLES) / m  # (R, N)
        resampled += ((seeds @ change) * questions).sum(1) / len(tasks)
    low, high = map(float, np.percentile(resampled, PERCENTILES))
    return Difference(value, low, high, verdict(low, high, within))


def verdict(low: float, high: float, within: float | None = None) -> str:
    """What an interval says of the claim that the difference is above 0, or, with ``within``, at most so far from 0:
    that it holds, that the contrary holds, or neither."""
    if within is None:
        holds, contrary = low > 0, high < 0
    else:
        holds, contrary = -within < low and high < within, low > within or high < -within
    return REPRODUCED if holds else OTHER_WAY if contrary else NOT_REPRODUCED
