"""The finished queue -> report.json, report.md and a plot per table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from minilava.eval.figures import RESAMPLES
from minilava.eval.paper import tables as paper_tables
from minilava.eval.report import commit
from minilava.eval.report import table as markdown_table
from minilava.eval.run import read_lines, write
from minilava.recipes.ablations import exam, plan
from minilava.recipes.ablations.figures import NOT_REPRODUCED, OTHER_WAY, REPRODUCED, Scores, cell, difference, scores
from minilava.recipes.ablations.plan import PREFERENCES, Claim, Row, Table, likelihood
from minilava.recipes.ablations.plot import draw
from minilava.recipes.tiny.__main__ import machine

JOURNAL = "queue.jsonl"  # what the queue did: {run, seed, work, seconds} a line


def write_report(out: Path, dst: Path, tables: Sequence[Table], seeds: int, questions: int, scale: float) -> str:
    """Write report.json, report.md and TABLE.png into ``dst``. Returns the text of report.md."""
    made = report(out, tables, seeds, questions, scale)
    dst.mkdir(parents=True, exist_ok=True)
    write(dst / "report.json", json.dumps(made, indent=1) + "\n")
    for name, table in made["tables"].items():
        write(dst / f"{name}.png", draw(table))
    text = markdown(made)
    write(dst / "report.md", text)
    return text


def report(out: Path, tables: Sequence[Table], seeds: int, questions: int, scale: float) -> dict:
    """Everything that report.json holds."""
    return {
        "machine": machine() | {"commit": commit(), "date": time.strftime("%Y-%m-%d")},
        "seeds": seeds,
        "questions": questions,
        "scale": scale,
        "tables": {table.name: _table(out, table, seeds) for table in tables},
        "runs": _runs(out, tables, seeds, scale),
    }


def _table(out: Path, table: Table, seeds: int) -> dict:
    of = table.seeds(seeds)
    lines = [[exam.lines(plan.RUNS[r.run].folder(out, seed) / "exams" / r.exam) for seed in of] for r in table.rows]
    found: list[list[Scores]] = [[scores(one) for one in row] for row in lines]
    chance: dict[str, list[float]] = {}
    for line in lines[0][0]:
        if "chance" in line:
            chance.setdefault(line["task"], []).append(100 * line["chance"])
    # A second measure of the same columns; that two models are as likely to within some points would say nothing.
    likely = {name: tuple(map(likelihood, tasks)) for name, tasks in table.columns.items() if PREFERENCES not in tasks}
    claims = [_claim(table, claim, found, table.columns) for claim in table.claims]
    likelier = [_claim(table, c, found, likely) for c in table.claims if c.column in likely and c.within is None]
    rows = [
        {"labels": list(row.labels), "run": row.run, "exam": row.exam}
        | {"cells": {name: asdict(cell(one, tasks)) for name, tasks in table.columns.items()}}
        | {"likelihood": {name: asdict(cell(one, tasks)) for name, tasks in likely.items()}}
        for row, one in zip(table.rows, found, strict=True)
    ]
    return {
        "title": f"Table {table.number}: {table.title}",
        "says": table.says,
        "note": table.note,
        "seeds": list(of),
        "heads": list(table.heads),
        "columns": table.columns,
        "rows": rows,
        "chance": {
            name: float(np.mean([np.mean(chance[task]) for task in tasks]))
            for name, tasks in table.columns.items()
            if all(task in chance for task in tasks)
        },
        "claims": claims,
        "likelihood_claims": likelier,
        "verdicts": _verdicts(claims),
        "likelihood_verdicts": _verdicts(likelier),
    }


def _verdicts(claims: Sequence[dict]) -> dict[str, int]:
    return {v: sum(c["verdict"] == v for c in claims) for v in (REPRODUCED, NOT_REPRODUCED, OTHER_WAY)}


def _claim(table: Table, claim: Claim, found: Sequence[Sequence[Scores]], columns: dict[str, tuple[str, ...]]) -> dict:
    better, worse = (table.rows[i] for i in (claim.better, claim.worse))
    sign = ">" if claim.within is None else f"within {claim.within:g} points of"
    made = difference(found[claim.better], found[claim.worse], columns[claim.column], claim.within)
    said = {"claim": f"{_name(better)} {sign} {_name(worse)}", "column": claim.column, "within": claim.within}
    return said | asdict(made)


def _name(row: Row) -> str:
    return " / ".join(row.labels)


def _runs(out: Path, tables: Sequence[Table], seeds: int, scale: float) -> list[dict]:
    """Every run with its seconds, training and exams, as the queue wrote them down."""
    spent: dict[tuple[str, int], dict[str, float]] = {}
    for line in read_lines(out / JOURNAL):
        times = spent.setdefault((line["run"], line["seed"]), {"train": 0.0, "exams": 0.0})
        times["train" if line["work"] == "train" else "exams"] += line["seconds"]
    return [
        {"run": run.name, "recipe": f"{run.recipe.parent.name}/{run.recipe.name}", "start": run.start, "seed": seed}
        | {"seconds": spent.get((run.name, seed), {}), "settings": run.settings(out, seed, scale)}
        for run, seed in plan.jobs(tables, seeds)
    ]


# --- for people -------------------------------------------------------------------------------------------------------


def markdown(made: dict) -> str:
    m, runs = made["machine"], made["runs"]
    spent = {what: sum(run["seconds"].get(what, 0) for run in runs) for what in ("train", "exams")}
    parts = [
        "# Ablations",
        "The paper's ablations on the M4 world with the tiny shape (`make ablations`). Percent right on the test "
        "split's questions, video_description in ROUGE-L; mean ± standard deviation over seeds. Likelihood is the "
        "probability that the model gives the tokens of the reference answer, their geometric mean, in percent: a weak "
        "model moves there long before its answers turn right. A difference is taken "
        f"seed by seed and question by question; its 95 % interval resamples both ({RESAMPLES} times; with so few "
        "seeds it is rather too narrow). A direction is "
        f"*{REPRODUCED}* if the interval lies on the paper's side of 0, *{OTHER_WAY}* if on the other side, else "
        f"*{NOT_REPRODUCED}*.",
        f"{m['cpu']}, {m['threads']} threads, {m['gpu'] or 'no GPU'}, torch {m['torch']}; commit {m['commit']}, "
        f"{m['date']}. {made['seeds']} seeds, {made['questions']} questions per task. {len(runs)} runs: "
        f"{_hours(spent['train'])} of training, {_hours(spent['exams'])} of questions.",
    ]
    if made["scale"] != 1:
        parts.append(
            f"**At {made['scale']:g} of the planned steps: this shows that the queue runs, and nothing else.**"
        )
    summary = [
        [t["title"], t["says"], _counts(t["verdicts"]), _counts(t["likelihood_verdicts"])]
        for t in made["tables"].values()
    ]
    parts.append(markdown_table(["", "the paper", "here, percent right", "here, likelihood"], summary))
    for name, table in made["tables"].items():
        parts += _section(name, table)
    parts += ["## Runs", _run_table(runs), f"Seconds in brackets are of questions. {_paper()}"]
    return "\n\n".join(parts) + "\n"


def _section(name: str, table: dict) -> list[str]:
    rows = [[*row["labels"], *(_cell(row["cells"][c]) for c in table["columns"])] for row in table["rows"]]
    blank = [""] * (len(table["heads"]) - 1)
    rows.append(["chance", *blank, *(_number(table["chance"].get(c)) for c in table["columns"])])
    likely = [[*row["labels"], *map(_cell, row["likelihood"].values())] for row in table["rows"]]
    measured = [("percent right", c) for c in table["claims"]] + [("likelihood", c) for c in table["likelihood_claims"]]
    claims = [
        [c["claim"], c["column"], of, f"{c['value']:+.1f}", f"{c['low']:+.1f} to {c['high']:+.1f}", c["verdict"]]
        for of, c in measured
    ]
    low = [c for c in {c["column"]: 0 for c in table["claims"]} if _at_chance(table, c)]
    warning = [f"No row is above chance in {', '.join(low)}: those comparisons say nothing."] if low else []
    return [
        f"## {table['title']}",
        f"The paper: {table['says']}",
        markdown_table([*table["heads"], *table["columns"]], rows),
        "Likelihood:",
        markdown_table([*table["heads"], *table["rows"][0]["likelihood"]], likely),
        f"Of its {len(table['claims'])} comparisons: {_counts(table['verdicts'])}; in likelihood: "
        f"{_counts(table['likelihood_verdicts'])} ({len(table['seeds'])} seeds).",
        markdown_table(["claim", "column", "measure", "difference", "95 %", "verdict"], claims),
        *warning,
        table["note"],
        f"![{table['title']}]({name}.png)",
    ]


def _counts(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items() if n)


def _at_chance(table: dict, column: str) -> bool:
    return max(row["cells"][column]["mean"] for row in table["rows"]) <= table["chance"].get(column, -1)


def _run_table(runs: Sequence[dict]) -> str:
    rows: dict[str, list] = {}
    for run in runs:
        row = rows.setdefault(run["run"], [run["run"], run["recipe"], run["start"], run["settings"]["steps"], "", ""])
        train, exams = (run["seconds"].get(what, 0.0) for what in ("train", "exams"))
        row[4] = f"{row[4]} {run['seed']}".strip()
        row[5] = f"{row[5]} {train:.0f} ({exams:.0f})".strip()
    return markdown_table(["run", "recipe", "goes on from", "steps", "seeds", "seconds"], list(rows.values()))


def _paper() -> str:
    """The paper's own figures that are at hand."""
    before, after = (paper_tables()["Table 2"].row(f"Interleave 7B{x}")["NExT-QA"] for x in ("", " DPO"))
    return (
        "The paper's figures of these tables are not in this repository, so none stand beside. Its Table 2 prints "
        f"{before} and {after} on NExT-QA for the 7B model before and after DPO. Settings of every run: report.json."
    )


def _cell(c: dict) -> str:
    return _number(c["mean"]) + ("" if c["deviation"] is None else f" ± {c['deviation']:.1f}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
