"""Curves of runs from their logs: every step light, their running mean dark; one picture per run, or one for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minilava.errors import UserError
from minilava.train.log import LOG, read_log

# key in the log -> (title, logarithmic axis); a panel appears where a run has the key
PANELS = {
    "loss": ("loss", False),
    "accuracy": ("preference accuracy", False),
    "margin": ("reward margin", False),
    "lr": ("learning rate", False),
    "grad_norm": ("gradient norm, before clipping", True),
    "tokens_per_s": ("tokens per second", False),
}
SMOOTH = 40  # the running mean is over about a 40th of a run, on either side
PICTURE = "curves.png"


def plot(runs: Sequence[str | Path], out: str | Path | None = None) -> list[Path]:
    """Draw RUN/curves.png for every run directory, or with ``out`` one PNG for all. Returns the files written.

    Raises UserError where a run has no step in its log yet, or matplotlib is not installed.
    """
    rows = {Path(run): read_log(Path(run)) for run in runs}
    if empty := [run for run, lines in rows.items() if not lines]:
        raise UserError(f"{empty[0] / LOG} holds no step yet: name the directory of a run that has begun")
    if out is not None:
        return [_draw(rows, Path(out))]
    return [_draw({run: lines}, run / PICTURE) for run, lines in rows.items()]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential running mean, forwards and backwards so that it does not lag; NaN counts as missing."""
    return (_running(values) + _running(values[::-1])[::-1]) / 2


def _running(values: np.ndarray) -> np.ndarray:
    """Exponential running mean, unbiased from the first value on."""
    keep = 1 - 1 / max(1.0, len(values) / SMOOTH)
    total = weight = 0.0
    result = np.empty(len(values))
    for i, value in enumerate(values):
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        result[i] = total / weight if weight else np.nan
    return result


def _draw(rows: dict[Path, list[dict]], path: Path) -> Path:
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'minilava[train]'") from None
    keys = [key for key in PANELS if any(key in row for lines in rows.values() for row in lines)]
    columns = 2
    height = -(-len(keys) // columns)
    figure = Figure(figsize=(12, 3.2 * height), layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).ravel()
    for axis, key in zip(axes, keys, strict=False):
        _panel(axis, key, rows)
    for axis in axes[len(keys) :]:
        axis.remove()
    if len(rows) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False)
    else:
        figure.suptitle(str(next(iter(rows))))
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", dpi=120)
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from None
    return path


def _panel(axis, key: str, rows: dict[Path, list[dict]]) -> None:
    title, logarithmic = PANELS[key]
    for number, (run, lines) in enumerate(rows.items()):
        points = [(row["step"], row[key]) for row in lines if isinstance(row.get(key), int | float)]
        if not points:
            continue
        steps, values = np.array(points, float).T
        colour = f"C{number}"
        marker = "." if len(points) == 1 else None
        if key == "lr":  # nothing to smooth
            axis.plot(steps, values, color=colour, marker=marker, label=str(run))
            continue
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps, smoothed(values), color=colour, linewidth=1.6, marker=marker, label=str(run))
    if logarithmic and all(line.get_ydata().min() > 0 for line in axis.lines):
        axis.set_yscale("log")
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
