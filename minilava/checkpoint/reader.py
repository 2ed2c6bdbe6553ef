"""Open a checkpoint directory of either dialect, check it whole, and load its tensors within a memory bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minilava.checkpoint.names import canonical, expected, ignorable, stored
from minilava.checkpoint.shard import Entry, map_entries, read_header
from minilava.config import ModelConfig, read_json
from minilava.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NEWLINE = "minilava_newline.safetensors"  # beside an hf checkpoint: its format has no place for the newline
WEIGHTS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """An opened and checked checkpoint. ``entries`` holds every tensor on disk, by canonical name."""

    path: Path
    config: ModelConfig
    files: tuple[Path, ...]
    entries: dict[str, Entry]

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Canonical name -> (shape, dtype as stored)."""
        return {name: (e.shape, e.dtype) for name, e in self.entries.items()}

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor's values in small 1-D pieces, (name, piece); a piece is overwritten by the next."""
        return ((name, piece) for name, e in self.entries.items() for piece in e.pieces())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the configuration and all headers; no tensor data is touched.

    Raises UserError if the files are unreadable, or if the tensors are not exactly those of the configuration
    (spec 2.1, 2.4). Only the count of vocabulary rows may differ from config.json: the rows on disk win, and
    ``config.text.vocab_rows`` of the result says how many there are.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a checkpoint directory: pass the folder that holds config.json")
    files = tuple(find_files(path))
    config = ModelConfig.load(path)
    if "quantization" in read_json(path / "config.json").get("minilava", {}):
        raise UserError(f"{path} is quantised, which generation alone can use: pass the float checkpoint it came from")
    entries: dict[str, Entry] = {}
    unknown = []
    for file in files:
        for key, entry in read_header(file).items():
            name = canonical(key)
            if name is None:
                unknown.append(key)
            elif name in entries:
                raise UserError(f"{path} stores {key} twice, in {entries[name].file.name} and {file.name}")
            else:
                entries[name] = entry
    embed = entries.get("text.embed.weight")
    if embed and embed.shape:
        rows = embed.shape[0]
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_rows=rows))
    _check(path, config, entries, unknown)
    return Checkpoint(path, config, files, entries)


def find_files(path: Path) -> list[Path]:
    """The safetensors files of a directory: the single file, else those in the index, else all there are."""
    if (path / SINGLE).exists():
        return [path / SINGLE]
    if (path / INDEX).exists():
        weight_map = read_json(path / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(n, str) and Path(n).name == n for n in weight_map.values()
        ):
            raise UserError(f"{path / INDEX} has no weight_map of file names: delete it to read all shards instead")
        files = [path / name for name in sorted(set(weight_map.values()))]
        if absent := [f.name for f in files if not f.exists()]:
            raise UserError(f"{path} lacks {', '.join(absent)}, which its index names: fetch the missing shards")
        return files
    if files := sorted(f for f in path.glob("*.safetensors") if f.name != NEWLINE):
        return files
    if pickles := sorted(f.name for s in ("bin", "pt", "pth", "ckpt") for f in path.glob(f"*.{s}")):
        raise UserError(f"{path} holds pickle weights ({pickles[0]}), which can run code: convert them to safetensors")
    raise UserError(f"{path} holds no .safetensors file")


def _check(path: Path, config: ModelConfig, entries: dict[str, Entry], unknown: list[str]) -> None:
    need = expected(config)
    missing = [stored(name, config.dialect) for name in need if name not in entries]
    extra = unknown + [stored(n, config.dialect) for n in entries if n not in need and not ignorable(n, config)]
    wrong = []
    for name, shape in need.items():
        if name in entries and (entries[name].shape != shape or entries[name].dtype not in WEIGHTS):
            kind = str(entries[name].dtype).removeprefix("torch.")
            wrong.append(f"{stored(name, config.dialect)} is {kind} {entries[name].shape}, not {shape}")
    faults = [(missing, "missing"), (extra, "not part of this model"), (wrong, "of the wrong shape or type")]
    if lines := [_few(names, what) for names, what in faults if names]:
        raise UserError(f"{path} does not match its config.json: {'; '.join(lines)}")


def _few(names: list[str], what: str) -> str:
    count = f"{len(names)} tensor{' is' if len(names) == 1 else 's are'} {what}"
    return f"{count} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def load_tensors(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """The tensors that the model needs, by canonical name, in ``dtype`` (None: as stored) on ``device``.

    On the CPU a tensor whose stored dtype matches is a view of the mapped file: nothing is read until it is used, and
    writing to it changes this process's copy only. All else is converted through a small buffer, so the resident
    memory stays within the size of the result plus a few pieces.
    """
    device = torch.device(device)
    need = expected(checkpoint.config)
    _check_tie(checkpoint)
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.files:
        here = {n: e for n, e in checkpoint.entries.items() if e.file == file and n in need}
        mapped = {n: e for n, e in here.items() if device.type == "cpu" and dtype in (None, e.dtype)}
        tensors |= map_entries(file, mapped) if mapped else {}
        for name, e in here.items():
            if name not in mapped:
                tensors[name] = _converted(e, dtype or e.dtype, device)
    return {name: tensors[name] for name in need}


def _converted(entry: Entry, dtype: torch.dtype, device: torch.device) -> Tensor:
    out = torch.empty(entry.shape, dtype=dtype, device=device)
    flat, done = out.view(-1), 0
    for piece in entry.pieces():
        flat[done : done + len(piece)].copy_(piece)
        done += len(piece)
    return out


def _check_tie(checkpoint: Checkpoint) -> None:
    """A tied checkpoint may repeat the embedding as a head. Another head would be dropped in silence: compare the
    first rows, which is enough to tell a copy from a trained matrix and costs no pass over memory."""
    head = checkpoint.entries.get("text.head.weight")
    if not checkpoint.config.text.tied or head is None:
        return
    embed = checkpoint.entries["text.embed.weight"]
    same = (embed.shape, embed.dtype) == (head.shape, head.dtype)
    if not same or not torch.equal(next(embed.pieces())[: 1 << 20], next(head.pieces())[: 1 << 20]):
        raise UserError(
            f"{checkpoint.path}: config.json says tie_word_embeddings, but the stored lm_head differs from the "
            "embedding: set tie_word_embeddings to false in config.json"
        )


def find_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in order. Takes ``dict.items()`` or ``Checkpoint.pieces()``."""
    bad: dict[str, None] = {}
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            bad[name] = None
    return list(bad)
