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
        yield from items(task, limit)


def items(task: str, limit: int | None, clip_frames: int | None = None) -> Iterator[Item]:
    """The first questions of one task. clip_frames: see data.world.example."""
    found = 0
    for index in count():
        if found == limit:
            break
        record = make(task, "test", index, clip_frames=clip_frames)
        metadata = record["metadata"]
        if metadata["question_type"] not in EXACT:
            continue
        found += 1
        question, answer = (m["value"] for m in record["conversations"])
        extra = {"chance": 1 / metadata["choices"] if metadata["choices"] else 0.0}
        media = Media(task, index, clip_frames)
        yield Item(record["id"], task, "exact", [(question, answer)], media, extra, metadata["anyres"] or None)


class Media:
    """The pictures of a test record, drawn again when they are wanted: a list of items then holds none."""

    def __init__(self, task: str, index: int, clip_frames: int | None = None):
        self.task, self.index, self.clip_frames = task, index, clip_frames

    def __call__(self) -> list[tuple[str, Any]]:
        record = make(self.task, "test", self.index, clip_frames=self.clip_frames)
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
