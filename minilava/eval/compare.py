"""Two runs sample by sample: who wins where, whether that can be chance, and by how much the mean moved."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np

from minilava.errors import UserError
from minilava.eval.figures import PERCENTILES, RESAMPLES
from minilava.eval.report import table
from minilava.eval.run import read_run

SHOWN = 20


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p of McNemar's test: the chance that, of the samples on which the runs differ, so few or
    fewer go one way if either way is equally likely. For scores that are not 0 or 1 it is the sign test."""
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)


def compare(a: Sequence[dict], b: Sequence[dict]) -> dict:
    """Lines of two runs, paired by sample and turn. wins: samples on which B scores more than A."""
    first = {(line["id"], line["turn"]): line for line in a if line["score"] is not None}
    second = {(line["id"], line["turn"]): line for line in b if line["score"] is not None}
    pairs = [(first[key], line) for key, line in second.items() if key in first]
    if not pairs:
        raise UserError("the runs have no scored sample in common")
    groups: dict[str, list[tuple[dict, dict]]] = {}
    for pair in pairs:
        groups.setdefault(pair[1]["task"], []).append(pair)
    differ = [(x, y) for x, y in pairs if x["score"] != y["score"]]
    return {
        "all": _row(pairs),
        "tasks": {task: _row(group) for task, group in groups.items()},
        "unpaired": [len(a) - len(pairs), len(b) - len(pairs)],
        "other_prompt": sum(x["prompt_sha"] != y["prompt_sha"] for x, y in pairs),
        "differ": sorted(differ, key=lambda p: p[0]["score"] - p[1]["score"]),
    }


def _row(pairs: Sequence[tuple[dict, dict]]) -> dict:
    scores = np.array([[x["score"], y["score"]] for x, y in pairs])
    change = scores[:, 1] - scores[:, 0]
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    draws = np.random.default_rng(0).integers(len(change), size=(RESAMPLES, len(change)))
    low, high = np.percentile(change[draws].mean(1), PERCENTILES)
    mean = scores.mean(0)
    return {
        "samples": len(pairs), "a": 100 * mean[0], "b": 100 * mean[1], "change": 100 * change.mean(),
        "low": 100 * low, "high": 100 * high, "wins": wins, "losses": losses, "p": mcnemar(wins, losses),
    }  # fmt: skip


def diff(a: Path, b: Path) -> str:
    """What ``python -m minilava.eval diff A B`` prints."""
    (set_a, lines_a), (set_b, lines_b) = read_run(a), read_run(b)
    made = compare(lines_a, lines_b)
    other = [f"{k}: {set_a.get(k)} -> {set_b.get(k)}" for k in set_a if set_a.get(k) != set_b.get(k)]
    rows = [
        [name, r["samples"], *(f"{r[k]:.1f}" for k in ("a", "b")), f"{r['change']:+.1f}",
         f"{r['low']:+.1f} to {r['high']:+.1f}", r["wins"], r["losses"], f"{r['p']:.3g}"]
        for name, r in [*made["tasks"].items(), ("all", made["all"])]
    ]  # fmt: skip
    heads = ["", "samples", "A", "B", "change", "95 %", "wins of B", "losses", "p (McNemar)"]
    parts = [f"# A: {a}, B: {b}", "; ".join(other) or "The same settings.", table(heads, rows)]
    if made["other_prompt"]:
        parts.append(f"{made['other_prompt']} of the pairs were asked with other prompt ids.")
    if any(made["unpaired"]):
        parts.append("Not compared, scored in one run only: {} lines of A, {} of B.".format(*made["unpaired"]))
    losses, wins = made["differ"][::-1], made["differ"]
    for what, pairs in (("B wins", [p for p in wins if p[1]["score"] > p[0]["score"]]),
                        ("B loses", [p for p in losses if p[1]["score"] < p[0]["score"]])):  # fmt: skip
        shown = [[y["id"], y["reference"], x["answer"], y["answer"]] for x, y in pairs[:SHOWN]]
        shown = [[" ".join(str(c).split())[:60] for c in row] for row in shown]
        if shown:
            parts.append(f"## {what}\n\n" + table(["sample", "reference", "A", "B"], shown))
            if len(pairs) > SHOWN:
                parts.append(f"... and {len(pairs) - SHOWN} more.")
    return "\n\n".join(parts)
