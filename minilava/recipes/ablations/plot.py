"""One picture per table: what every row scores, each seed a dot, and every comparison with its interval."""

from __future__ import annotations

import io

from minilava.errors import UserError
from minilava.recipes.ablations.figures import NOT_REPRODUCED, OTHER_WAY, REPRODUCED

COLOURS = {REPRODUCED: "tab:green", NOT_REPRODUCED: "tab:gray", OTHER_WAY: "tab:red"}


def draw(table: dict) -> bytes:
    """PNG of one of report.json's tables."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'minilava[train]'") from None
    claims = table["claims"] + [c | {"column": f"{c['column']}, likelihood"} for c in table["likelihood_claims"]]
    height = 1.6 + 0.2 * max(len(table["rows"]), 3) + 0.55 * len(claims)
    figure = Figure(figsize=(13, max(4.2, height)), layout="constrained")
    figure.suptitle(table["title"], x=0.01, ha="left", fontsize=12)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _levels(left, table)
    _differences(right, claims)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    return held.getvalue()


def _levels(axis, table: dict) -> None:
    """Bars: columns side by side, a colour per row of the table."""
    columns, rows = list(table["columns"]), table["rows"]
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        places = [c + (i - (len(rows) - 1) / 2) * width for c in range(len(columns))]
        cells = [row["cells"][c] for c in columns]
        axis.bar(places, [c["mean"] for c in cells], 0.92 * width, color=f"C{i}", alpha=0.75,
                 label=" / ".join(row["labels"]))  # fmt: skip
        for x, c in zip(places, cells, strict=True):
            axis.plot([x] * len(c["seeds"]), c["seeds"], ".", color="black", markersize=4)
    for c, name in enumerate(columns):
        if name in table["chance"]:
            axis.hlines(table["chance"][name], c - 0.45, c + 0.45, color="black", linestyle=":", linewidth=1)
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_title("percent; a dot per seed, dotted: chance", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))


def _differences(axis, claims: list[dict]) -> None:
    """One line per comparison, from above, with its verdict's colour."""
    for i, c in enumerate(claims):
        colour = COLOURS[c["verdict"]]
        if c["within"]:  # where the interval should lie
            axis.barh(-i, 2 * c["within"], 0.25, -c["within"], color="black", alpha=0.08)
        axis.plot([c["low"], c["high"]], [-i, -i], color=colour, linewidth=2)
        axis.plot(c["value"], -i, "o", color=colour)
        axis.annotate(f"{c['claim']}\n({c['column']}): {c['verdict']}", (0, -i), (2, 7), textcoords="offset points",
                      xycoords=("axes fraction", "data"), fontsize=7.5,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_ylim(-len(claims) + 0.6, 0.9)
    axis.set_yticks([])
    axis.set_title("difference in points, 95 %", loc="left", fontsize=10)
    axis.spines[["top", "right", "left"]].set_visible(False)
