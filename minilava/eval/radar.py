"""A radar chart of a run's columns, with rows of the paper where it prints them (the paper's Figure 1), PNG and SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from minilava.errors import UserError
from minilava.eval.item import Layout
from minilava.eval.paper import tables

PAPER_ROWS = ("Interleave 0.5B", "Interleave 7B", "Interleave 14B")
LEAST_AXES = 3


def radar(layout: Layout, made: dict) -> dict[str, bytes]:
    """{"png": ..., "svg": ...} of what report.report made; {} where there are too few columns to draw.

    Beside the paper every axis ends at the largest value on it, as in its Figure 1, and is marked with that; alone all
    end at 100 and are marked with the run's own value."""
    axes = [c.name for c in layout.columns if c.name in made["columns"]]
    if len(axes) < LEAST_AXES:
        return {}
    rows = {"this run": [made["columns"][a]["value"] for a in axes]}
    if layout.table:
        paper = tables()[layout.table]
        for model in (m for m in PAPER_ROWS if m in paper.rows):
            rows[f"{model} (paper)"] = [paper.row(model).get(a) for a in axes]
    else:
        chance = [made["chance"].get(a) for a in axes]
        rows |= {"chance": chance} if any(v is not None for v in chance) else {}
    return _draw(axes, rows, f"{made['settings']['suite']}: {made['settings']['model']}", layout.table is not None)


def _draw(axes: Sequence[str], rows: dict[str, list[float | None]], title: str, beside: bool) -> dict[str, bytes]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError:
        raise UserError("the radar chart needs matplotlib: pip install 'minilava[train]'") from None
    marks = ends = [max([v for row in rows.values() if (v := row[i]) is not None] + [1e-9]) for i in range(len(axes))]
    if not beside:
        marks, ends = rows["this run"], [100.0] * len(axes)
    angles = [2 * math.pi * i / len(axes) for i in range(len(axes))]
    with rc_context({"svg.hashsalt": "minilava", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 8), layout="constrained")
        polar = figure.add_subplot(projection="polar", theta_offset=math.pi / 2, theta_direction=-1)
        for number, (name, values) in enumerate(rows.items()):
            radii = [math.nan if v is None else v / end for v, end in zip(values, ends, strict=True)]
            style = {"linewidth": 2.2} if number == 0 else {"linewidth": 1.2, "linestyle": "--"}
            polar.plot([*angles, angles[0]], [*radii, radii[0]], color=f"C{number}", label=name, **style)
            if number == 0:
                polar.fill(angles, radii, color="C0", alpha=0.15)
        polar.set_xticks(angles, [f"{a}\n{mark:.1f}" for a, mark in zip(axes, marks, strict=True)], fontsize=9)
        for angle, label in zip(angles, polar.get_xticklabels(), strict=True):  # away from the circle
            side = "left" if angle < math.pi else "right"
            label.set_horizontalalignment("center" if abs(math.sin(angle)) < 0.2 else side)
        polar.tick_params(axis="x", pad=8)
        polar.set_yticks([0.25, 0.5, 0.75, 1.0], [])
        polar.set_ylim(0, 1.0)
        polar.spines["polar"].set_visible(False)
        polar.set_title(title, fontsize=11)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return {kind: _save(figure, kind) for kind in ("png", "svg")}


def _save(figure, kind: str) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return held.getvalue()
