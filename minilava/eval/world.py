"""The M4 world's test split as a benchmark: questions with one exact answer, drawn on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from minilava.data.world import TASKS, make
from minilava.eval.item import Column, Item, Layout, Suite

EXACT = ("word", "phrase", "letter")
MAX_NEW_TOKENS = 32
SCENARIOS = tuple(dict.fromkeys(scenario for _, scenario in TASKS.values()))


def _items(data: Path | None, limit: int | None) -> Iterator[Item]:
    for task in TASKS:
        yield from items(task, limit)


def items(task: str, limit: int | None, clip_frames: int | None = None, seed: int = 0) -> Iterator[Item]:
    """The first questions of one task. clip_frames: see data.world.example. seed: of other questions of the split."""
    for index, record in records(task, limit, clip_frames, seed):
        metadata = record["metadata"]
        question, answer = (m["value"] for m in record["conversations"])
        extra = {"chance": 1 / metadata["choices"] if metadata["choices"] else 0.0}
        media = Media(task, index, clip_frames, seed)
        yield Item(record["id"], task, "exact", [(question, answer)], media, extra, metadata["anyres"] or None)


def records(
    task: str, limit: int | None, clip_frames: int | None = None, seed: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(Index in the split, record) of the questions that ``items`` asks."""
    made = ((index, make(task, "test", index, clip_frames=clip_frames, seed=seed)) for index in count())
    return islice(((i, record) for i, record in made if record["metadata"]["question_type"] in EXACT), limit)


class Media:
    """The pictures of a test record, drawn again when they are wanted: a list of items then holds none."""

    def __init__(self, task: str, index: int, clip_frames: int | None = None, seed: int = 0):
        self.task, self.index, self.clip_frames, self.seed = task, index, clip_frames, seed

    def __call__(self) -> list[tuple[str, Any]]:
        record = make(self.task, "test", self.index, clip_frames=self.clip_frames, seed=self.seed)
        return [("video", record["video"])] if "video" in record else [("image", p) for p in record["image"]]


WORLD = Suite(
    _items,
    Layout(
        tuple(Column(task, (task,)) for task in TASKS),
        {s: tuple(t for t in TASKS if TASKS[t][1] == s) for s in SCENARIOS} | {"all": tuple(TASKS)},
    ),
    max_new_tokens=MAX_NEW_TOKENS,
    limit=200,
)
