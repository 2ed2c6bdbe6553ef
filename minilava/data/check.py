"""Checks whole data sets: every record's structure and media, with statistics of what is sound."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minilava.data.composition import SCENARIOS, dataset_of, scenario_of
from minilava.data.record import Records, media_of
from minilava.data.records import BadRecord, open_records
from minilava.data.validate import check_media, in_front, length, problems, too_long
from minilava.errors import UserError

BLOCK = 256  # records in flight


@dataclass(frozen=True)
class Options:
    """media: open the pictures and videos; decode: read their pixels; tokenizer: count tokens, not words."""

    images: str | None = None
    media: bool = True
    decode: bool = True
    tokenizer: Any = None
    max_tokens: int | None = None
    workers: int = 0  # threads; 0: one per core, at most 8


@dataclass
class Report:
    """records and bad are counts; the rest describes the sound records."""

    records: int = 0
    bad: int = 0
    front: int = 0
    unit: str = "words"
    scenarios: Counter = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)

    def as_dict(self) -> dict:
        return {
            "records": self.records,
            "bad": self.bad,
            "front": self.front,
            "scenarios": {name: self.scenarios[name] for name in SCENARIOS},
            "text": {"unit": self.unit, **_spread(self.lengths)},
            "images_per_record": _spread(self.images),
        }

    def __str__(self) -> str:
        rows = [("records", f"{self.records:,}, of which {self.bad:,} bad")]
        rows += [(name, f"{self.scenarios[name]:,}") for name in SCENARIOS]
        for name, values in ((f"text {self.unit}", self.lengths), ("images per record", self.images)):
            rows.append((name, "  ".join(f"{k} {v:,.1f}".removesuffix(".0") for k, v in _spread(values).items())))
        if self.front:
            rows.append(("no placeholder", f"{self.front:,}; their media go in front"))
        return "\n".join(f"{name:<18} {text}" for name, text in rows)


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {"mean": 0, "p50": 0, "p95": 0, "max": 0}
    p50, p95 = np.percentile(values, (50, 95), method="nearest")
    return {"mean": round(float(np.mean(values)), 1), "p50": int(p50), "p95": int(p95), "max": int(max(values))}


def check(
    files: Sequence[str],
    options: Options,
    tell: Callable[[str, int, str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Check all files. ``tell(file, line, reason)`` is called for every fault, in order; one record may have several.

    A file that cannot be opened as records counts as one bad record, at the line of the damage, or 0.
    """
    report = Report(unit="words" if options.tokenizer is None else "tokens")
    opened = []
    for file in files:
        try:
            opened.append(open_records(file, options.images))
        except UserError as e:
            bad = e if isinstance(e, BadRecord) else BadRecord(file, 0, str(e).removeprefix(f"{file} "))
            tell(bad.file, bad.line, bad.reason)
            report.records, report.bad = report.records + 1, report.bad + 1
    total = sum(len(records) for records in opened)
    for records in opened:
        _check_file(records, options, tell, report, lambda: progress(report.records, total))
    return report


def _check_file(
    records: Records,
    options: Options,
    tell: Callable[[str, int, str], None],
    report: Report,
    progress: Callable[[], None],
) -> None:
    first: dict[tuple, int] = {}
    for i, (reasons, facts) in enumerate(_results(records, options)):
        file, line = records.where(i)
        report.records += 1
        key = facts.get("id")
        if key is not None and first.setdefault(key, line) != line:
            reasons = [*reasons, f"duplicate id {key[1]!r}, first on line {first[key]}"]
        for reason in reasons:
            tell(file, line, reason)
        report.bad += bool(reasons)
        if not reasons:
            report.scenarios[facts["scenario"]] += 1
            report.lengths.append(facts["length"])
            report.images.append(facts["images"])
            report.front += facts["front"]
        progress()


def _results(records: Records, options: Options) -> Iterator[tuple[list[str], dict]]:
    """check_one of every record, in order. Threads: Pillow and the tokenizer let go of Python's lock."""
    workers = options.workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for at in range(0, len(records), BLOCK):
            yield from pool.map(lambda i: check_one(records, i, options), range(at, min(at + BLOCK, len(records))))


def check_one(records: Records, i: int, options: Options) -> tuple[list[str], dict]:
    """(What is wrong with record i, facts about it for the statistics)."""
    try:
        record = records.read(i)
    except BadRecord as e:
        return [e.reason], {}
    reasons, facts = problems(record), {}
    name = record.get("id", record.get("sample_id"))
    if isinstance(name, str | int):
        facts["id"] = (dataset_of(record), name)  # published files number every data set from 0
    if not reasons:
        facts |= {"scenario": scenario_of(record), "front": in_front(record), "images": len(media_of(record)[0])}
        facts["length"] = length(record, options.tokenizer)
        if options.max_tokens is not None:
            reasons += too_long(record, facts["length"], options.max_tokens)
    try:
        resolved = records[i]  # also without media: a name that leaves the folder is a fault of the record
        if options.media:
            reasons += check_media(resolved, options.decode)
    except BadRecord as e:
        reasons += [e.reason] * (e.reason not in reasons)
    return reasons, facts
