"""What a training mixture is made of: the paper's Table 15, and which scenario and data set a record belongs to."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minilava.data.record import media_of

SCENARIOS = ("multi-image", "video", "multi-view", "single-image", "text-only")
PAPER_THOUSANDS, PAPER_DATASETS, PAPER_TASKS = 1177.6, 41, 14  # what the paper's text says of the table


@dataclass(frozen=True)
class Row:
    scenario: str
    task: str
    dataset: str
    thousands: float
    also: str = ""  # another name of the same data set in published files


@cache
def table15() -> tuple[Row, ...]:
    """The rows in the paper's order. They are 40 and sum to 1172.7k, where its text says 41 and 1177.6k."""
    with open(Path(__file__).with_name("table15.csv"), newline="", encoding="utf-8") as file:
        return tuple(Row(**row | {"thousands": float(row["thousands"])}) for row in csv.DictReader(file))


@cache
def _by_name() -> dict[str, Row]:
    return {_plain(name): row for row in table15() for name in (row.dataset, row.also) if name}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _metadata(record: dict) -> dict:
    metadata = record.get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def dataset_of(record: dict) -> str:
    """metadata.dataset, with the task after it where the record names one; "(unnamed)" without."""
    metadata = _metadata(record)
    name = metadata.get("dataset")
    if not isinstance(name, str):
        return "(unnamed)"
    return f"{name}/{metadata['task']}" if isinstance(metadata.get("task"), str) else name


def scenario_of(record: dict) -> str:
    """One of SCENARIOS: what the record's metadata says, else what its data set is known as, else by its media.

    Several views of one scene look like several images, so multi-view can only come from the metadata.
    """
    metadata = _metadata(record)
    if metadata.get("scenario") in SCENARIOS:
        return metadata["scenario"]
    images, video = media_of(record)
    if video is not None:
        return "video"
    row = _by_name().get(_plain(str(metadata.get("dataset"))))
    if images and row is not None and row.scenario == "multi-view":
        return "multi-view"
    return "multi-image" if len(images) > 1 else "single-image" if images else "text-only"


def compare(counts: Counter[str]) -> str:
    """Table 15 as text, beside the number of records on disk of each data set."""
    rows, names = table15(), _by_name()
    found = Counter()
    for name, count in counts.items():
        if _plain(name) in names:
            found[names[_plain(name)].dataset] += count
    line = "{:<13} {:<23} {:<29} {:>9} {:>10}".format
    lines = [line("scenario", "task", "data set", "paper", "on disk")]
    for row in rows:
        lines.append(line(row.scenario, row.task, row.dataset, f"{row.thousands:.1f}k", f"{found[row.dataset]:,}"))
    total = sum(row.thousands for row in rows)
    tasks = len({row.task for row in rows})
    lines.append(line("total", f"{tasks} tasks", f"{len(rows)} data sets", f"{total:.1f}k", f"{found.total():,}"))
    if (round(total, 1), len(rows), tasks) != (PAPER_THOUSANDS, PAPER_DATASETS, PAPER_TASKS):
        lines.append(
            f"note: the paper's text says {PAPER_DATASETS} data sets, {PAPER_TASKS} tasks and {PAPER_THOUSANDS}k; "
            f"the rows of its table come to {len(rows)}, {tasks} and {total:.1f}k"
        )
    others = {name: count for name, count in counts.items() if _plain(name) not in names}
    if others:
        lines.append("\non disk, not in the table:")
        lines += [f"  {name:<64} {count:>12,}" for name, count in sorted(others.items())]
    return "\n".join(lines)
