"""Scored lines -> figures with bootstrap intervals: of data sets, of a table's columns, of its averages.

Every figure is a function of sums over units (samples; for MME, pictures). A resample of the units only changes how
often each counts, so all resamples of a data set are one product, (R, N) counts by (N, K) addends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minilava.eval.item import Layout

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MME_TOTAL = 2800  # the most that perception (2000) and cognition (800) can be together

Addends = np.ndarray  # (N, K)
Figures = dict[str, np.ndarray]  # name -> (R,); the first is the data set's score


@dataclass(frozen=True)
class Figure:
    """low, high: the 95 % bootstrap interval. samples: how many were scored."""

    value: float
    low: float
    high: float
    samples: int
    missing: tuple[str, ...] = ()  # what its layout names and the run does not hold


def _safe(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a, float), where=b != 0)


def _mean(lines: Sequence[dict]) -> tuple[Addends, Callable[[np.ndarray], Figures]]:
    addends = np.array([[line["score"], 1.0] for line in lines])
    return addends, lambda t: {"score": 100 * _safe(t[:, 0], t[:, 1])}


def _judged(lines: Sequence[dict]) -> tuple[Addends, Callable[[np.ndarray], Figures]]:
    """A judge's grades from 0 to 5 as they are, by name, and the share of answers it accepted."""
    names = list(lines[0]["grades"])
    addends = np.array([[*line["grades"].values(), line["score"], 1.0] for line in lines])

    def figures(t: np.ndarray) -> Figures:
        grades = {name: _safe(t[:, i], t[:, -1]) for i, name in enumerate(names)}
        return grades | {"accuracy": 100 * _safe(t[:, -2], t[:, -1])}

    return addends, figures


def _pope(lines: Sequence[dict]) -> tuple[Addends, Callable[[np.ndarray], Figures]]:
    """F1 with yes as the positive answer; an answer that is neither is wrong and counts as no yes."""
    yes = np.array([line["said"] == "yes" for line in lines])
    truth = np.array([line["reference"].lower() == "yes" for line in lines])
    right = np.array([line["score"] == 1 for line in lines])
    addends = np.stack([yes & truth, yes, truth, right, np.ones_like(yes)], 1).astype(float)

    def figures(t: np.ndarray) -> Figures:
        hit, said, there, correct, n = t.T
        return {
            "score": 100 * _safe(2 * hit, said + there),
            "accuracy": 100 * _safe(correct, n),
            "precision": 100 * _safe(hit, said),
            "recall": 100 * _safe(hit, there),
            "yes-ratio": 100 * _safe(said, n),
        }

    return addends, figures


def _mme(lines: Sequence[dict]) -> tuple[Addends, Callable[[np.ndarray], Figures]]:
    """A subtask's score is its accuracy over questions plus that over pictures, all of whose questions must be right;
    MME* is the total in percent of the most there is. A picture with both its questions is one unit."""
    subtasks = sorted({line["subtask"] for line in lines})
    pictures: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        pictures.setdefault((line["subtask"], line["picture"]), []).append(line["score"])
    addends = np.zeros((len(pictures), len(subtasks), 4))
    for unit, ((subtask, _), scores) in enumerate(pictures.items()):
        addends[unit, subtasks.index(subtask)] = sum(scores), len(scores), all(scores), 1

    def figures(t: np.ndarray) -> Figures:
        right, asked, whole, shown = np.moveaxis(t.reshape(len(t), len(subtasks), 4), 2, 0)
        points = 100 * (_safe(right, asked) + _safe(whole, shown))
        thinking = np.array([s.lower() in COGNITION for s in subtasks])
        parts = {"perception": points[:, ~thinking].sum(1), "cognition": points[:, thinking].sum(1)}
        return {"score": 100 * points.sum(1) / MME_TOTAL} | parts

    return addends.reshape(len(addends), -1), figures


def summary(metric: str) -> Callable:
    """How a data set with this metric is summed up."""
    return {"pope": _pope, "mme": _mme}.get(metric, _judged if metric.startswith("judge") else _mean)


def scored(lines: Sequence[dict]) -> list[dict]:
    return [line for line in lines if line.get("score") is not None]


def resampled(lines: Sequence[dict], seed: int = 0) -> tuple[np.ndarray, Callable[[np.ndarray], Figures]]:
    """(1 + RESAMPLES, K) sums of one data set's scored lines, the first row those of the data itself."""
    addends, figures = summary(lines[0]["metric"])(lines)
    n = len(addends)
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    counts = np.stack([np.bincount(d, minlength=n) for d in draws])
    return np.concatenate([addends.sum(0, keepdims=True), counts @ addends]), figures


def _figure(values: np.ndarray, samples: int, missing: Sequence[str] = ()) -> Figure:
    low, high = np.percentile(values[1:], PERCENTILES)
    return Figure(float(values[0]), float(low), float(high), samples, tuple(missing))


def tabulate(layout: Layout, lines: Sequence[dict], pooled: bool) -> tuple[dict, dict, dict]:
    """(data set -> its figures, column -> Figure, average -> Figure), of what the lines hold.

    A column is the plain mean over its data sets, or, pooled, one figure of all their samples (spec 7.6). An average is
    the plain mean of its columns. What is missing is left out and named.
    """
    groups: dict[str, list[dict]] = {}
    for line in scored(lines):
        groups.setdefault(line["task"], []).append(line)
    sums = {task: resampled(group, seed) for seed, (task, group) in enumerate(groups.items())}
    found = {task: figures(totals) for task, (totals, figures) in sums.items()}
    tasks = {
        task: {name: _figure(values, len(groups[task])) for name, values in figures.items()}
        for task, figures in found.items()
    }
    columns: dict[str, np.ndarray] = {}
    shown: dict[str, Figure] = {}
    for column in layout.columns:
        there = [t for t in column.tasks if t in found]
        if not there:
            continue
        if pooled:
            values = sums[there[0]][1](sum(sums[t][0] for t in there))[column.figure]
        else:
            values = np.mean([found[t][column.figure] for t in there], 0)
        columns[column.name] = values * (10 if column.graded else 1)
        missing = [t for t in column.tasks if t not in found] if len(column.tasks) > 1 else []
        shown[column.name] = _figure(values, sum(len(groups[t]) for t in there), missing)
    averages = {}
    for name, names in layout.averages.items():
        there = [c for c in names if c in columns]
        if there:
            samples = sum(shown[c].samples for c in there)
            missing = [c for c in names if c not in columns]
            averages[name] = _figure(np.mean([columns[c] for c in there], 0), samples, missing)
    return tasks, shown, averages
