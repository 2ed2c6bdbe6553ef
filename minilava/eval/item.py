"""What a suite is made of: items to answer, and the layout of the table that their scores make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minilava.errors import UserError

Reference = str | list[str]
LETTER = "Answer with the option's letter from the given choices directly."  # as the model family was trained on


@dataclass(frozen=True)
class Item:
    """One conversation: questions asked in turn about the same media, each answer scored against its reference.

    task: the data set. metric: a key of metrics.METRICS, of a scorer, or of judge.TASKS. media: makes the (kind,
    source) pairs that inputs.messages.load_media takes. extra: what figures and judge need, kept in every line.
    own_metric: where the scorer lmms-eval, which goes line by line, uses another metric than the authors.
    """

    id: str
    task: str
    metric: str
    turns: Sequence[tuple[str, Reference]]
    media: Callable[[], list[tuple[str, Any]]]
    extra: dict = field(default_factory=dict)
    anyres: bool | None = None
    own_metric: str | None = None


@dataclass(frozen=True)
class Column:
    """One column of a table: the mean over the data sets that are there. figure: which of a data set's figures.
    graded: it is a judge's grade from 0 to 5, which counts tenfold in an average (spec 7.7), not percent."""

    name: str
    tasks: tuple[str, ...]
    figure: str = "score"
    graded: bool = False


@dataclass(frozen=True)
class Layout:
    """averages: name -> the columns it is the plain mean of. table: the paper's table that stands beside."""

    columns: tuple[Column, ...]
    averages: dict[str, tuple[str, ...]]
    table: str | None = None


@dataclass(frozen=True)
class Suite:
    """items: (folder of the data, most samples of a data set) -> what to answer, in a fixed order."""

    items: Callable[[Path | None, int | None], Iterator[Item]]
    layout: Layout
    max_new_tokens: int
    limit: int | None = None  # where --limit is not given
    scorers: bool = False  # scored by the authors' script or by lmms-eval, which also asks for 16 tokens only


def find(data: Path | None, *names: str) -> Path:
    """The first of some files or folders of a data set's folder; UserError names what was looked for."""
    if data is None:
        raise UserError("this suite reads files: give their folder as --data DIR")
    for name in names:
        if (data / name).exists():
            return data / name
    raise UserError(f"{data} holds no {' or '.join(names)}; lay the folder out as the benchmark is published")


def choice(question: str, options: Sequence[str], right: int) -> tuple[str, str]:
    """(Prompt with lettered options, reference for the metric ``letter``)."""
    lettered = [f"{chr(65 + i)}. {option}" for i, option in enumerate(options)]
    return "\n".join([question, *lettered, LETTER]), lettered[right]
