"""The model's way in and out of a run: load a checkpoint to train, write one that every reader takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minilava.checkpoint import Source, load_tensors, open_checkpoint, stored, write_checkpoint
from minilava.checkpoint.companions import write_companions
from minilava.checkpoint.names import expected
from minilava.config import ModelConfig, read_json
from minilava.errors import UserError
from minilava.model.llava import LLaVA
from minilava.tokenizer import Tokenizer
from minilava.train.state import sync


def load_for_training(path: str | Path, device: torch.device) -> tuple[LLaVA, Tokenizer]:
    """The model of a checkpoint directory with float32 parameters."""
    checkpoint = open_checkpoint(path)
    with torch.device("meta"):
        model = LLaVA(checkpoint.config)
    tensors = load_tensors(checkpoint, torch.float32, device)
    # Not the mapped file's own pages: an optimizer writes to them, and the file may be replaced meanwhile.
    model.load_state_dict({name: tensors.pop(name).clone() for name in list(tensors)}, assign=True)
    return model.train(), Tokenizer.load(path)


def write_model(tensors: Mapping[str, Tensor], like: str | Path, dst: str | Path, dtype: torch.dtype) -> None:
    """Write a checkpoint with these tensors (canonical names) and the config, tokenizer and dialect of ``like``.

    It says that it was trained by recipe ``train``, in minilava's own block of config.json and, for transformers, in
    its chat template."""
    source = open_checkpoint(like)
    raw = read_json(Path(like) / "config.json")
    own = raw.get("minilava", {})
    raw["minilava"] = own | {"asking": {"recipe": "train"} | own.get("asking", {})}
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    tensors = with_unused(tensors, source.config)
    dst = Path(dst)
    dst.mkdir(parents=True, exist_ok=True)
    tok, recipe = Tokenizer.load(like).raw, raw["minilava"]["asking"]["recipe"]
    write_companions(dst, source.config.dialect, tok, source.config.vision, Path(like), recipe)
    ordered = [Source.of(stored(name, source.config.dialect), t.to(dtype)) for name, t in tensors.items()]
    write_checkpoint(dst, raw, ordered)


def replace_model(tensors: Mapping[str, Tensor], like: str | Path, dst: Path, dtype: torch.dtype) -> None:
    """write_model into ``dst``, which holds the old checkpoint, none or the whole new one at any moment."""
    new = dst.with_suffix(".tmp")
    shutil.rmtree(new, ignore_errors=True)
    try:
        write_model(tensors, like, new, dtype)
        for path in (*new.iterdir(), new):
            sync(path)
        shutil.rmtree(dst, ignore_errors=True)  # of the same run with fewer steps
        os.replace(new, dst)
    except OSError as e:
        raise UserError(f"cannot write {dst}: {e.strerror or e}; run again to write it alone") from None


def with_unused(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The tensors in file order, with the tower's post_layernorm, which files hold and nothing applies."""
    shapes = expected(config, unused=True)
    fresh = {
        n: torch.ones(s) if n.endswith("weight") else torch.zeros(s) for n, s in shapes.items() if n not in tensors
    }
    return {name: tensors[name] if name in tensors else fresh[name] for name in shapes}
