"""The M4 world's test split as a benchmark: questions with one exact answer, drawn on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from minilava.data.world import TASKS, make
from minilava.eval.item import Column, Item, Layout, Suite

EXACT = ("word", "phrase", "letter")
SCENARIOS = tuple(dict.fromkeys(scenario for _, scenario in TASKS.values()))


def _items(data: Path | None, limit: int | None) -> Iterator[Item]:
    for task in TASKS:
        found = 0
        for index in count():
            if found == limit:
                break
            record = make(task, "test", index)
            metadata = record["metadata"]
            if metadata["question_type"] not in EXACT:
                continue
            found += 1
            question, answer = (m["value"] for m in record["conversations"])
            chance = 1 / metadata["choices"] if metadata["choices"] else 0.0
            media, extra = _Media(task, index), {"chance": chance}
            yield Item(record["id"], task, "exact", [(question, answer)], media, extra, metadata["anyres"] or None)


class _Media:
    """The pictures, drawn again when they are wanted: a list of items then holds none."""

    def __init__(self, task: str, index: int):
        self.task, self.index = task, index

    def __call__(self) -> list[tuple[str, Any]]:
        record = make(self.task, "test", self.index)
        return [("video", record["video"])] if "video" in record else [("image", p) for p in record["image"]]


WORLD = Suite(
    _items,
    Layout(
        tuple(Column(task, (task,)) for task in TASKS),
        {s: tuple(t for t in TASKS if TASKS[t][1] == s) for s in SCENARIOS} | {"all": tuple(TASKS)},
    ),
    max_new_tokens=32,
    limit=200,
)
