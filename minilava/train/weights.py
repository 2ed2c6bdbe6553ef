"""The model's way in and out of a run: load a checkpoint to train, write one that every reader takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minilava.checkpoint import Source, load_tensors, open_checkpoint, stored, write_checkpoint
from minilava.checkpoint.companions import write_companions
from minilava.checkpoint.names import expected
from minilava.config import read_json
from minilava.model.llava import LLaVA
from minilava.tokenizer import Tokenizer


def load_for_training(path: str | Path, device: torch.device) -> tuple[LLaVA, Tokenizer]:
    """The model of a checkpoint directory with float32 parameters."""
    checkpoint = open_checkpoint(path)
    with torch.device("meta"):
        model = LLaVA(checkpoint.config)
    tensors = load_tensors(checkpoint, torch.float32, device)
    # Not the mapped file's own pages: an optimizer writes to them, and the file may be replaced meanwhile.
    model.load_state_dict({name: t.clone() for name, t in tensors.items()}, assign=True)
    return model.train(), Tokenizer.load(path)


def write_model(tensors: dict[str, Tensor], like: str | Path, dst: str | Path, dtype: torch.dtype) -> None:
    """Write a checkpoint with these tensors (canonical names) and the config, tokenizer and dialect of ``like``."""
    source = open_checkpoint(like)
    raw = read_json(Path(like) / "config.json")
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    tensors = dict(tensors)
    shapes = expected(source.config, unused=True)
    for name in set(shapes) - set(tensors):  # post_layernorm, which is stored and never applied
        tensors[name] = torch.ones(shapes[name]) if name.endswith("weight") else torch.zeros(shapes[name])
    dst = Path(dst)
    dst.mkdir(parents=True, exist_ok=True)
    write_companions(dst, source.config.dialect, Tokenizer.load(like).raw, source.config.vision, Path(like))
    ordered = [Source.of(stored(name, source.config.dialect), tensors[name].to(dtype)) for name in shapes]
    write_checkpoint(dst, raw, ordered)
