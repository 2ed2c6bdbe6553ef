"""Write a checkpoint directory tensor by tensor: headers are computed from shapes, values stream in small pieces."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minilava.checkpoint.reader import INDEX, SINGLE
from minilava.checkpoint.shard import DTYPES
from minilava.errors import UserError

CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Source:
    """A tensor to write under ``key``. ``pieces()`` gives its values in order, as CPU tensors of any split."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterable[Tensor]]

    @staticmethod
    def of(key: str, tensor: Tensor) -> Source:
        """A tensor in memory, on any device."""
        return Source(key, tuple(tensor.shape), tensor.dtype, lambda: [tensor.detach().cpu()])

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    dst: str | Path, config: dict, sources: Iterable[Source], shard_bytes: int = 5 * 10**9, progress: bool = False
) -> list[Path]:
    """Write config.json and the tensors: one file, or shards of at most ``shard_bytes`` with an index.

    Returns the files of tensors. Holds one piece in memory at a time. Every file appears whole or not at all,
    and config.json last. Raises UserError if ``dst`` already holds a checkpoint: shards of two must not mix.
    """
    dst = Path(dst)
    refuse_existing(dst)
    dst.mkdir(parents=True, exist_ok=True)
    shards = _split(list(sources), shard_bytes)
    names = [f"model-{k:05}-of-{len(shards):05}.safetensors" for k in range(1, len(shards) + 1)]
    files = [dst / name for name in (names if len(shards) > 1 else [SINGLE])]
    total = sum(s.bytes for shard in shards for s in shard)
    temporary = [file.with_suffix(".tmp") for file in files]
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=None if progress else True) as bar:
            for file, shard in zip(temporary, shards, strict=True):
                write_shard(file, shard, bar.update)
        for file, final in zip(temporary, files, strict=True):
            os.replace(file, final)
    except OSError as e:
        raise UserError(f"cannot write {dst}: {e.strerror or e}") from None
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)
    if len(shards) > 1:
        where = {s.key: file.name for file, shard in zip(files, shards, strict=True) for s in shard}
        write_json(dst / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    write_json(dst / "config.json", config)
    return files


def refuse_existing(dst: Path) -> None:
    """UserError if a checkpoint lies in ``dst``, or if it is not a directory."""
    if dst.exists() and not dst.is_dir():
        raise UserError(f"{dst} is a file: name a new directory")
    if any(dst.glob("*.safetensors*")) or (dst / "config.json").exists():
        raise UserError(f"{dst} already holds a checkpoint: name a new directory")


def write_shard(path: Path, sources: list[Source], wrote: Callable[[int], object] = lambda _: None) -> None:
    """One safetensors file. Wide types come first and the data starts at a multiple of 64: every tensor is aligned."""
    sources = sorted(sources, key=lambda s: -s.dtype.itemsize)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for s in sources:
        header[s.key] = {"dtype": CODES[s.dtype], "shape": list(s.shape), "data_offsets": [end, end + s.bytes]}
        end += s.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for s in sources:
            for data in _bytes(s):
                f.write(data)
                wrote(len(data))


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file in one step: readers see the old content or the new."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)


def _bytes(source: Source) -> Iterator[memoryview]:
    """The raw bytes of a source, held to its announced dtype and count: the header is already on disk."""
    left = source.bytes
    for piece in source.pieces():
        if piece.dtype != source.dtype:
            raise ValueError(f"{source.key} announced {source.dtype} and gave {piece.dtype}")
        data = memoryview(piece.contiguous().view(-1).view(torch.uint8).numpy())
        left -= len(data)
        yield data
    if left:
        raise ValueError(f"{source.key} gave {source.bytes - left} of {source.bytes} bytes")


def _split(sources: list[Source], limit: int) -> list[list[Source]]:
    shards: list[list[Source]] = [[]]
    filled = 0
    for s in sources:
        if shards[-1] and filled + s.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(s)
        filled += s.bytes
    return shards
