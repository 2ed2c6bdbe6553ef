"""Opens data sets: random access to the records of JSON, JSON lines and WebDataset files, never all in memory.

A record is the published dict (id or sample_id, image, video, conversations, metadata; for DPO prompt, chosen and
rejected). ``records[i]`` has its media resolved: ``image`` is a list of what inputs.media.load_image takes, ``video``
what inputs.video.load_video takes. ``records.read(i)`` is the dict as it was published.
"""

from __future__ import annotations

import glob
import itertools
import mmap
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from minilava.data.index import (
    MAX_RECORD,
    BadRecord,
    check_stamp,
    index_lines,
    index_list,
    load_index,
    map_file,
)
from minilava.data.record import Folder, Records, parse
from minilava.data.shards import Shard
from minilava.errors import UserError

__all__ = ["BadRecord", "Records", "data_files", "open_records"]

SUFFIXES = (".json", ".jsonl", ".tar")
MAX_FILES = 100_000


def open_records(path: str | os.PathLike, images: str | os.PathLike | None = None) -> Records:
    """The records of one or several files: .json (a list), .jsonl or .tar (WebDataset).

    path: a file, a brace list (``part{a,b}.json``, ``shard-{000..012}.tar``) or a glob. images: the folder that the
    media are named from, by default the record file's own; for a shard, where to look for what it does not hold.
    """
    if images is not None and not os.path.isdir(images):
        raise UserError(f"images folder {os.fspath(images)!r} does not exist; check the path")
    parts = [_open_one(name, images) for name in expand(os.fspath(path))]
    return parts[0] if len(parts) == 1 else Joined(parts)


def _open_one(path: str, images: str | os.PathLike | None) -> Records:
    suffix = os.path.splitext(path)[1]
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is not a data file: its name must end in {', '.join(SUFFIXES)}")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give a file")
    records = (Shard if suffix == ".tar" else TextFile)(path, images)
    if not len(records):
        raise UserError(f"{path} holds no record")
    return records


def data_files(path: str | os.PathLike) -> list[str]:
    """The data files directly inside a folder, sorted; or the files that a path, brace list or glob stands for."""
    if not os.path.isdir(path):
        return expand(os.fspath(path))
    found = sorted(str(p) for p in Path(path).iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise UserError(f"folder {os.fspath(path)!r} holds no data file ({', '.join(SUFFIXES)})")
    return found


def expand(path: str) -> list[str]:
    if os.path.exists(path):
        return [path]
    paths = []
    for name in expand_braces(path):
        found = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not found:
            raise UserError(f"{name} does not exist; check the path")
        paths += found
    return paths


def expand_braces(text: str) -> list[str]:
    """ "a{x,y}-{08..10}" -> ax-08, ax-09, ax-10, ay-08, ...; as a shell does it, without nesting."""
    choices, total = [], 1
    for i, part in enumerate(re.split(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", text)):
        run = re.fullmatch(r"(\d+)\.\.(\d+)", part) if i % 2 else None
        if run:
            width = len(run[1]) * run[1].startswith("0")
            choices.append(
                [f"{n:0{width}d}" for n in range(int(run[1]), min(int(run[2]), int(run[1]) + MAX_FILES) + 1)]
            )
        else:
            choices.append(part.split(",") if i % 2 else [part])
        total *= len(choices[-1])
    if total > MAX_FILES:
        raise UserError(f"{text} stands for more than {MAX_FILES:,} files")
    return ["".join(parts) for parts in itertools.product(*choices)]


class TextFile(Records):
    """A .json list or a .jsonl file, memory-mapped; only the index is held."""

    def __init__(self, path: str, images: str | os.PathLike | None):
        self.path, self.folder = path, Folder(path, images)
        self.stamp, self.rows = load_index(path, index_lines if path.endswith(".jsonl") else index_list)
        self.data: mmap.mmap | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"data": None}

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> tuple[str, int]:
        return self.path, int(self.rows[i, 2])

    def read(self, i: int) -> dict:
        if self.data is None:
            check_stamp(self.path, self.stamp)
            self.data = map_file(self.path)
        start, end, line = self.rows[i].tolist()
        return parse(self.data[start : min(end, start + MAX_RECORD + 1)], self.path, line)

    def places(self, i: int, record: dict) -> Callable[[str], object]:
        return self.folder


class Joined(Records):
    """Several files, one after the other."""

    def __init__(self, parts: Sequence[Records]):
        self.parts, self.ends = parts, np.cumsum([len(p) for p in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _find(self, i: int) -> tuple[Records, int]:
        i = self.position(i)
        part = int(np.searchsorted(self.ends, i, "right"))
        return self.parts[part], i - int(self.ends[part]) + len(self.parts[part])

    def __getitem__(self, i: int) -> dict:
        part, i = self._find(i)
        return part[i]

    def read(self, i: int) -> dict:
        part, i = self._find(i)
        return part.read(i)

    def where(self, i: int) -> tuple[str, int]:
        part, i = self._find(i)
        return part.where(i)

    def places(self, i: int, record: dict) -> Callable[[str], object]:
        part, i = self._find(i)
        return part.places(i, record)
