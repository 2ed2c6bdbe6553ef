"""Where the records of a file are: byte ranges found in one streaming pass, kept beside a large file as <file>.idx.

Every index is an int64 array (n, 3) of (start, end, number). Of JSON lines number is the 1-based line; a list, which
may well be one line, and a tar shard count their records from 1.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import tarfile
from array import array
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from minilava.errors import UserError

MAX_RECORD = 64 * 2**20  # bytes of one record's text: beyond it the file is not what its name says
CACHE_FROM = 4 * 2**20  # smaller files are indexed in milliseconds and are not worth a second file
CHUNK = 4 * 2**20
WINDOW = 256 * 2**10
MAGIC = b"minilava.index.1"
SPACE = b" \t\r\n"
BOM = b"\xef\xbb\xbf"
_SPACES = re.compile(rb"[ \t\r\n]*")
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # WebDataset: the key ends at the first dot of the file name


class BadRecord(UserError):
    """One damaged record. line: its 1-based line, or its number in a list or shard; reason: what is wrong with it."""

    def __init__(self, file: str, line: int, reason: str):
        super().__init__(f"{file}:{line}: {reason}")
        self.file, self.line, self.reason = file, line, reason

    def __reduce__(self):
        return BadRecord, (self.file, self.line, self.reason)  # so that it survives the way out of a worker process


def stamp(path: str) -> tuple[int, int]:
    """(Size, time of the last change): two equal stamps mean the same contents."""
    try:
        status = os.stat(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the path and its permissions") from None
    return status.st_size, status.st_mtime_ns


def check_stamp(path: str, expected: tuple[int, int]) -> None:
    if stamp(path) != expected:
        raise UserError(f"{path} changed while it was in use: start again")


def load_index(path: str, build: Callable[[str], np.ndarray]) -> tuple[tuple[int, int], np.ndarray]:
    """(The file's stamp, its index), from <path>.idx while that still fits the file, else from ``build(path)``."""
    now = stamp(path)
    if now[0] < CACHE_FROM:
        return now, build(path)
    rows = _read_cache(path, now)
    if rows is None:
        rows = build(path)
        _write_cache(path, now, rows)
    return now, rows


def _read_cache(path: str, now: tuple[int, int]) -> np.ndarray | None:
    with suppress(OSError, ValueError), open(path + ".idx", "rb") as file:
        if file.read(len(MAGIC)) != MAGIC or tuple(np.frombuffer(file.read(16), np.int64)) != now:
            return None
        rows = np.frombuffer(file.read(), np.int64).reshape(-1, 3)
        if len(rows) and (rows[:, 0] < rows[:, 1]).all() and rows[0, 0] >= 0 and rows[-1, 1] <= now[0]:
            return rows
    return None


def _write_cache(path: str, now: tuple[int, int], rows: np.ndarray) -> None:
    """Silent where the folder is read-only: the index is then built again next time."""
    part = f"{path}.idx.{os.getpid()}"
    try:
        with open(part, "wb") as file:
            file.write(MAGIC + np.array(now, np.int64).tobytes() + rows.tobytes())
        os.replace(part, path + ".idx")
    except OSError:
        with suppress(OSError):
            os.unlink(part)


def map_file(path: str) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check its permissions") from None
    except ValueError:
        raise UserError(f"{path} is empty, 0 bytes: write or download it again") from None


def index_lines(path: str) -> np.ndarray:
    """JSON lines: every line that holds more than spaces."""
    data = map_file(path)
    view = np.frombuffer(data, np.uint8)
    found, start, line = [], len(BOM) * (data[: len(BOM)] == BOM), 1
    for at in range(0, len(view), CHUNK):
        ends = np.flatnonzero(view[at : at + CHUNK] == ord("\n")) + at
        if at + CHUNK >= len(view) and view[-1] != ord("\n"):
            ends = np.append(ends, len(view))
        if len(ends):
            starts = np.append(start, ends[:-1] + 1)
            rows = np.stack([starts, ends, np.arange(line, line + len(ends))], 1)
            start, line = int(ends[-1]) + 1, line + len(ends)
            found.append(rows[_filled(rows, view, data)])
    return np.concatenate(found)


def _filled(rows: np.ndarray, view: np.ndarray, data: mmap.mmap) -> np.ndarray:
    """Mask of the lines that are not blank. Only lines that begin with a space need a look."""
    filled = rows[:, 0] < rows[:, 1]
    doubtful = np.flatnonzero(filled & np.isin(view[np.minimum(rows[:, 0], len(view) - 1)], list(SPACE)))
    for i in doubtful:
        filled[i] = bool(data[rows[i, 0] : rows[i, 1]].strip(SPACE))
    return filled


def index_list(path: str) -> np.ndarray:
    """A JSON list: parsed element by element and forgotten, so that a list of any size takes little memory."""
    data = map_file(path)
    pos = _skip(data, len(BOM) * (data[: len(BOM)] == BOM))
    if data[pos : pos + 1] != b"[":
        hint = "; if it holds one record per line, call it .jsonl" if data[pos : pos + 1] == b"{" else ""
        raise UserError(f"{path} is not a JSON list of records{hint}")
    rows, elements, number = array("q"), _Elements(data), 1
    pos = _skip(data, pos + 1)
    while data[pos : pos + 1] != b"]" or number > 1:  # a list may be empty, but may not end in a comma
        try:
            end = elements.end(pos)
        except (ValueError, RecursionError) as e:
            reason = json_reason(e, elements.text, elements.at_end)
            raise BadRecord(path, number, f"{reason} (line {_line(data, pos)})") from None
        rows.extend((pos, end, number))
        pos, number = _skip(data, end), number + 1
        if data[pos : pos + 1] != b",":
            break
        pos = _skip(data, pos + 1)
    if data[pos : pos + 1] != b"]" or _skip(data, pos + 1) != len(data):
        what = "cut short: the list has no end" if pos == len(data) else "not JSON: expected a comma or the list's end"
        raise BadRecord(path, number, f"{what} (line {_line(data, pos)})")
    return np.frombuffer(rows, np.int64).reshape(-1, 3)


def _line(data: mmap.mmap, pos: int) -> int:
    return 1 + sum(data[at : min(at + CHUNK, pos)].count(b"\n") for at in range(0, pos, CHUNK))


def _skip(data: mmap.mmap, pos: int) -> int:
    return _SPACES.match(data, pos).end()


class _Elements:
    """Finds where a JSON value ends, with a window of the file as text.

    Latin-1, in which one byte is one character: the structure of JSON is ASCII, so the boundaries are right.
    """

    def __init__(self, data: mmap.mmap):
        self.data, self.base, self.text = data, 0, ""
        self.decode = json.JSONDecoder().raw_decode

    @property
    def at_end(self) -> bool:
        return self.base + len(self.text) == len(self.data)

    def end(self, pos: int) -> int:
        size = WINDOW
        while True:
            try:
                end = self.base + self.decode(self.text, pos - self.base)[1]
                if self.at_end or end < self.base + len(self.text):  # a number at the edge might go on
                    return end
            except (ValueError, RecursionError):
                if self.base == pos and (self.at_end or len(self.text) > MAX_RECORD):
                    raise
            self.base, self.text = pos, self.data[pos : pos + size].decode("latin-1")
            size *= 4


def json_reason(error: Exception, text: str, at_end: bool = True) -> str:
    """One line about a parser's error. An error at the very end of the text means that the rest is missing."""
    if isinstance(error, json.JSONDecodeError):
        if at_end and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")):
            return "cut short: the text ends in the middle of a record"
        return f"not JSON: {error.msg} at character {error.pos + 1} of the record"
    if isinstance(error, RecursionError):
        return "not JSON: nested too deeply"
    return "not JSON: " + " ".join(str(error).split())


def index_shard(path: str) -> np.ndarray:
    """A tar shard: the byte range of each sample, which is a run of members with one key."""
    rows, key = array("q"), None
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep every header
                match = _MEMBER.fullmatch(member.name)
                if not member.isfile() or not match:
                    continue
                if match[1] == key:
                    rows[-2] = tar.offset
                else:
                    key = match[1]
                    rows.extend((member.offset, tar.offset, len(rows) // 3 + 1))
    except tarfile.TarError as e:
        raise UserError(f"{path} is not an uncompressed tar file, or was cut short ({e})") from None
    return np.frombuffer(rows, np.int64).reshape(-1, 3)


def split_member(name: str) -> tuple[str, str] | None:
    """ "a/0001.cam.jpg" -> ("a/0001", "cam.jpg"), as WebDataset cuts names; None for what is no part of a sample."""
    match = _MEMBER.fullmatch(name)
    return (match[1], match[2]) if match else None
