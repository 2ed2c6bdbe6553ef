"""A run's lines -> report.md and report.json, in the layout of the paper's table and with its rows beside."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from minilava.eval.figures import RESAMPLES, tabulate
from minilava.eval.item import Layout
from minilava.eval.paper import tables

REPORT = "report.json"


def commit() -> str:
    """Of the source tree that runs, with a + where tracked files differ from it; "" outside a repository."""

    def git(*args: str) -> str:
        try:
            done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short", "HEAD")
    return name + ("+" if name and git("status", "--porcelain", "-uno") else "")


def report(layout: Layout, lines: Sequence[dict], settings: dict) -> dict:
    """Everything that report.json holds."""
    tasks, columns, averages = tabulate(layout, lines, pooled=settings.get("scorer") == "lmms-eval")
    chances: dict[str, list[float]] = {}
    for line in lines:
        if "chance" in line:
            chances.setdefault(line["task"], []).append(line["chance"])
    waiting = [line for line in lines if line["score"] is None and "error" not in line and "graded_with" not in line]
    return {
        "settings": settings,
        "averages": {name: asdict(f) for name, f in averages.items()},
        "columns": {name: asdict(f) for name, f in columns.items()},
        "tasks": {task: {name: asdict(f) for name, f in figures.items()} for task, figures in tasks.items()},
        "trained": {line["task"]: line["trained"] for line in lines if "trained" in line},
        "chance": {task: 100 * sum(c) / len(c) for task, c in chances.items()},
        "refused": dict(Counter(line["task"] for line in lines if "error" in line)),
        "unscored": dict(Counter(line["task"] for line in waiting)),
        "cut": sum(line.get("finish_reason") == "length" for line in lines),
        "paper": layout.table,
    }


def markdown(layout: Layout, made: dict) -> str:
    """The report for people."""
    s = made["settings"]
    stamp = ", ".join(f"{key} {value}" for key, value in s.items() if key not in ("suite", "model"))
    parts = [f"# {s['suite']}: {s['model']}", stamp]
    order = _order(layout, made)
    heads = {**made["averages"], **made["columns"]}
    grades = {c.name for c in layout.columns if c.graded}
    if layout.table:
        paper = tables()[layout.table]
        rows = [
            ["this run", *(_value(heads.get(c), c in grades) for c in order)],
            ["95 %", *(_span(heads.get(c), c in grades) for c in order)],
        ]
        for model in paper.rows:
            printed = paper.row(model)
            rows.append([f"{model} (paper)", *(_number(printed.get(c), c in grades) for c in order)])
        parts += [f"## {layout.table}: {paper.title}", table(["", *order], rows)]
    else:
        rows = [[name, _value(f), _span(f), _number(_chance(layout, made, name)), f["samples"]] for name, f in
                ((c, heads[c]) for c in order if c in heads)]  # fmt: skip
        columns = ["", "score", "95 %", "chance", "samples"]
        if made["trained"]:  # a suite of tasks that are not: what comes nearest
            columns, rows = [*columns, "trained on"], [[*row, made["trained"].get(row[0], "")] for row in rows]
        parts += ["## Accuracy", table(columns, rows)]
    if not layout.table:  # each column is one data set
        return "\n\n".join([*parts, *_remarks(made, heads)]) + "\n"
    judged = {task for c in layout.columns if c.graded for task in c.tasks}
    details = [
        [task, name, _value(f, grade := task in judged and name == "score"), _span(f, grade), f["samples"]]
        for task, figures in made["tasks"].items()
        for name, f in figures.items()
    ]
    parts += ["## Data sets", table(["data set", "figure", "value", "95 %", "samples"], details)]
    return "\n\n".join([*parts, *_remarks(made, heads)]) + "\n"


def _order(layout: Layout, made: dict) -> list[str]:
    """The paper's columns as it orders them, then what else the run holds."""
    own = [*(c.name for c in layout.columns), *layout.averages]
    printed = tables()[layout.table].columns if layout.table else []
    return printed + [c for c in own if c not in printed and (c in made["columns"] or c in made["averages"])]


def _chance(layout: Layout, made: dict, name: str) -> float | None:
    names = layout.averages.get(name, (name,))
    found = [made["chance"][n] for n in names if n in made["chance"]]
    return sum(found) / len(found) if found else None


def _remarks(made: dict, heads: dict[str, dict]) -> list[str]:
    """What a reader must know before comparing."""
    remarks = [f"Intervals: 95 %, bootstrap over samples within each data set, {RESAMPLES} resamples."]
    remarks += [f"{name}: without {', '.join(f['missing'])}." for name, f in heads.items() if f["missing"]]
    for what, counts in (("could not be asked", made["refused"]), ("have no score", made["unscored"])):
        if counts:
            each = ", ".join(f"{n} of {task}" for task, n in counts.items())
            remarks.append(f"Left out because they {what}: {each}.")
    if made["cut"]:
        remarks.append(f"{made['cut']} answers were cut at max_new_tokens.")
    if made["paper"] == "Table 1":
        remarks.append("The paper's in-domain averages are not the means of its columns; see tests/eval/test_paper.py.")
    return remarks


def table(heads: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table."""
    cells = [[str(c).replace("|", "\\|") for c in row] for row in [heads, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    cells.insert(1, ["-" * w for w in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells)


def _number(value: float | None, grade: bool = False) -> str:
    """With as many digits as the paper prints: percent 58.6, grades 3.57."""
    return "" if value is None else f"{value:.{1 + grade}f}"


def _value(figure: dict | None, grade: bool = False) -> str:
    return "" if figure is None else _number(figure["value"], grade)


def _span(figure: dict | None, grade: bool = False) -> str:
    return "" if figure is None else f"{_number(figure['low'], grade)} to {_number(figure['high'], grade)}"


def encode(made: dict) -> str:
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
