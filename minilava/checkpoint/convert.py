"""Convert a checkpoint to the other dialect: same bits, other names, and a round trip that restores everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minilava.checkpoint.companions import with_image_token, without_image_token, write_companions
from minilava.checkpoint.dialects import to_hf, to_original
from minilava.checkpoint.names import expected, stored
from minilava.checkpoint.reader import NEWLINE, Checkpoint, find_non_finite, open_checkpoint
from minilava.checkpoint.shard import Entry, read_header
from minilava.checkpoint.writer import Source, refuse_existing, write_checkpoint, write_shard
from minilava.config import ModelConfig, read_json
from minilava.errors import UserError
from minilava.tokenizer import Tokenizer

VOCABULARY = ("text.embed.weight", "text.head.weight")


def convert(src: str | Path, dst: str | Path, to: str, progress: bool = False) -> list[str]:
    """Write ``src`` into ``dst`` in dialect ``to`` ("original" or "hf"). Returns warnings, one line each.

    Tensors keep their bits and dtype. The newline, which hf cannot hold, goes into a side file, and fields of
    config.json into a block of the new one: converting back restores both. Raises UserError for anything that is not
    a whole checkpoint, or holds NaN or infinity; ``dst`` then has no config.json.
    """
    ck, dst = open_checkpoint(src), Path(dst)
    if to == ck.config.dialect:
        raise UserError(f"{src} is already in the {to} dialect")
    refuse_existing(dst)
    raw, warnings = read_json(ck.path / "config.json"), []
    entries = _carried(ck, warnings)
    tok = Tokenizer.load(src).raw
    tok = with_image_token(tok) if to == "hf" else without_image_token(tok)
    rows = _rows(ck.config, raw, Tokenizer(tok), to)
    config = dataclasses.replace(ck.config, text=dataclasses.replace(ck.config.text, vocab_rows=rows))
    aside = entries.pop("newline", None) if to == "hf" else None
    if aside:
        warnings.append(f"the hf dialect has no place for the newline vector: it is kept beside it, in {NEWLINE}")
    if to == "hf":
        out = to_hf(raw, config, Tokenizer(tok).image)
        out["minilava"]["vocab_rows"] = ck.config.text.vocab_rows
    else:
        out = to_original(raw, config, "newline" in entries)
    dst.mkdir(parents=True, exist_ok=True)
    write_companions(dst, to, tok, ck.config.vision, ck.path)
    write_checkpoint(dst, out, [_source(n, e, rows, to) for n, e in entries.items()], progress=progress)
    if aside:
        write_shard(dst / NEWLINE, [_source("newline", aside, rows, to)])
    return warnings


def _carried(ck: Checkpoint, warnings: list[str]) -> dict[str, Entry]:
    """The entries to write, in file order, with the newline from its side file. What never runs is dropped (1.1)."""
    text = dataclasses.replace(ck.config.text, tied=False)
    order = expected(dataclasses.replace(ck.config, text=text, newline=True), unused=True)
    entries = dict(ck.entries)
    side = ck.path / NEWLINE
    if ck.config.dialect == "hf" and "newline" not in entries and side.exists():
        entries["newline"] = read_header(side).get(stored("newline", "hf"))
        if entries["newline"] is None or entries["newline"].shape != order["newline"]:
            raise UserError(f"{side} does not hold a newline of {ck.config.text.width} values: delete it to go without")
    if dropped := len(entries.keys() - order.keys()):
        warnings.append(f"{dropped} tensors that never run are dropped (late vision blocks, SigLIP's pooling head)")
    return {name: entries[name] for name in order if name in entries}


def _rows(config: ModelConfig, raw: dict, tok: Tokenizer, to: str) -> int:
    """Vocabulary rows of the result. Kept, except that hf needs a row for the id of ``<image>``."""
    rows = config.text.vocab_rows
    if to == "hf":
        return rows if rows > tok.image else (tok.image // 64 + 1) * 64
    before = raw.get("minilava", {}).get("vocab_rows", rows)
    return before if tok.size <= before < rows else rows


def _source(name: str, entry: Entry, rows: int, to: str) -> Source:
    shape = (rows, *entry.shape[1:]) if name in VOCABULARY else entry.shape
    return Source(stored(name, to), shape, entry.dtype, partial(_values, name, entry, rows))


def _values(name: str, entry: Entry, rows: int) -> Iterator[Tensor]:
    """The pieces of a tensor, checked; vocabulary tensors are cut or padded with zeros to ``rows``."""
    width = entry.shape[-1]
    left = rows * width if name in VOCABULARY else None
    for piece in entry.pieces():
        if find_non_finite([(name, piece)]):
            raise UserError(f"{entry.file} holds NaN or infinity in {name}: the checkpoint is broken")
        piece = piece[:left]
        yield piece
        left = left - len(piece) if left is not None else None
    if left:
        yield torch.zeros(left, dtype=entry.dtype)
