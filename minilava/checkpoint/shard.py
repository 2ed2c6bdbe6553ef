"""One safetensors file: its checked header, and its tensors mapped or streamed within a memory bound."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minilava.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PIECE = 64 << 20  # bytes of a streamed piece: pages that stay resident at most, small beside any model


@dataclass(frozen=True)
class Entry:
    """One stored tensor."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pieces(self) -> Iterator[Tensor]:
        """The values in order, as 1-D CPU tensors of about PIECE bytes, to be used before the next is asked for.

        Every piece comes from a map of its own: the pages of a map that were read stay resident until it is closed.
        """
        step = max(PIECE // max(math.prod(self.shape[1:]) * self.dtype.itemsize, 1), 1)
        for first in range(0, self.shape[0], step):
            with opened(self.file) as f:
                piece = f.get_slice(self.key)[first : first + step]
            yield piece.reshape(-1)
            del piece


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """The file through the safetensors package; whatever is wrong with it becomes a UserError that names it."""
    try:
        with safe_open(path, "pt") as f:
            yield f
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from None
    except (SafetensorError, RuntimeError) as e:  # torch raises the latter for data that it cannot view
        reason = str(e).splitlines()[0]
        raise UserError(f"{path} is truncated, corrupt or not a safetensors file ({reason}): fetch it again") from None


def read_header(path: Path) -> dict[str, Entry]:
    """Stored key -> Entry. Raises UserError, naming the file, for anything that is not a whole safetensors file."""
    entries = {}
    with opened(path) as f:
        for key in f.keys():  # noqa: SIM118  safe_open is no mapping
            part = f.get_slice(key)
            kind = part.get_dtype()
            if kind not in DTYPES:
                raise UserError(f"{path} stores tensor {key!r} as {kind}, which is not supported")
            entries[key] = Entry(path, key, tuple(part.get_shape()), DTYPES[kind])
    return entries


def map_entries(path: Path, entries: dict[str, Entry]) -> dict[str, Tensor]:
    """Tensors of one file as views of a private map: no copy, pages come in on first use, writes never reach disk."""
    with opened(path) as f:
        return {name: f.get_tensor(e.key) for name, e in entries.items()}


def drop_pages(*tensors: Tensor) -> None:
    """Let go of the resident memory of tensors of map_entries that were only read: it stays in the file's cache, from
    which the next use takes it again. What was written to them is lost."""
    for tensor in tensors if hasattr(mmap, "MADV_DONTNEED") else ():
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = tensor.data_ptr() + tensor.nbytes - first
        if length > 0:
            _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def trim() -> None:
    """Give back the memory that C's allocator holds free, where it can (glibc)."""
    if release := getattr(_libc(), "malloc_trim", None):
        release(0)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
