"""One record: from bytes to a dict, and from the names of its media to what can be opened.

Names of media come from a stranger. They are joined to the images folder (or to the record file's own folder) and may
not leave it through ``..``. An absolute name is taken as it is when no images folder was given, since some published
files have them; with an images folder it has to lie inside.
"""

from __future__ import annotations

import json
import operator
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from minilava.data.index import MAX_RECORD, BadRecord, json_reason
from minilava.errors import UserError


class Records(Sequence):
    """Read-only and picklable; a worker process opens the files again when it first reads."""

    def __getitem__(self, i: int) -> dict:
        """Record i with its media resolved. Raises BadRecord."""
        i = self.position(i)
        record = self.read(i)
        try:
            return resolve(record, self.places(i, record))
        except BadRecord:
            raise
        except UserError as e:
            raise BadRecord(*self.where(i), str(e)) from None

    def position(self, i: int) -> int:
        i = operator.index(i)
        i += len(self) * (i < 0)
        if not 0 <= i < len(self):
            raise IndexError(i)
        return i

    @abstractmethod
    def read(self, i: int) -> dict:
        """Record i as it was published. Raises BadRecord where that is not a JSON object."""

    @abstractmethod
    def where(self, i: int) -> tuple[str, int]:
        """(File, line, or number in the list or shard) of record i."""

    @abstractmethod
    def places(self, i: int, record: dict) -> Callable[[str], object]:
        """What turns a name in record i into a source; it raises UserError."""


def parse(raw: bytes, file: str, line: int) -> dict:
    """One record's bytes as a dict; BadRecord says what they are instead."""
    if len(raw) > MAX_RECORD:
        raise BadRecord(file, line, f"more than {MAX_RECORD:,} bytes for one record")
    if b"\0" in raw:
        raise BadRecord(file, line, f"a NUL byte at column {raw.index(0) + 1}: the file is damaged or was cut short")
    try:
        text = raw.decode("utf-8")
        record = json.loads(text)
    except UnicodeDecodeError as e:
        raise BadRecord(file, line, f"not UTF-8: byte 0x{raw[e.start]:02x} at column {e.start + 1}") from None
    except (ValueError, RecursionError) as e:
        raise BadRecord(file, line, json_reason(e, text)) from None
    if not isinstance(record, dict):
        raise BadRecord(file, line, f"a record must be a JSON object, not a {type(record).__name__}")
    return record


def media_of(record: dict) -> tuple[list, object | None]:
    """(Pictures, video or None) as the record names them: one picture or several, null or empty for none."""
    images, video = record.get("image"), record.get("video")
    images = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
    return images, None if video is None or isinstance(video, list) and not video else video


def media_problem(record: dict) -> str | None:
    """What is wrong with the types of ``image`` and ``video``. A video may also be a list of its frames."""
    images, video = media_of(record)
    frames = video if isinstance(video, list) else [] if video is None else [video]
    for field, names in (("image", images), ("video", frames)):
        for name in names:
            if not isinstance(name, str | bytes | os.PathLike | Image.Image | np.ndarray):
                return f"{field} must be a path or a list of paths, not a {type(name).__name__}"
            if isinstance(name, str) and not name.strip():
                return f"{field} holds an empty path"
    return None


def resolve(record: dict, place: Callable[[str], object]) -> dict:
    """The record with every name of a picture or video replaced by ``place(name)``, and ``image`` a list."""
    problem = media_problem(record)
    if problem:
        raise UserError(problem)

    def source(x: object) -> object:
        return place(x) if isinstance(x, str) else x

    images, video = media_of(record)
    out = {k: v for k, v in record.items() if k not in ("image", "video")}
    if images:
        out["image"] = [source(x) for x in images]
    if video is not None:
        out["video"] = [source(x) for x in video] if isinstance(video, list) else source(video)
    return out


class Folder:
    """Names -> paths, by the rule at the top of this file."""

    def __init__(self, path: str, images: str | os.PathLike | None):
        self.root = os.path.abspath(os.path.dirname(path) if images is None else images)
        self.absolute = images is None

    def __call__(self, name: str) -> str:
        if "\0" in name:
            raise UserError(f"the path {name!r} holds a NUL byte")
        path = os.path.normpath(os.path.join(self.root, name))
        if os.path.isabs(name) and self.absolute:
            return path
        if os.path.commonpath([self.root, path]) != self.root:
            raise UserError(f"{name!r} is outside the images folder {self.root}: move it in, or give another --images")
        return path
