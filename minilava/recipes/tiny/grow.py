"""A deeper decoder of the same size: blocks that begin as the identity, paid for with the inner width of all."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from minilava.checkpoint import Source, write_checkpoint
from minilava.config import read_json

TEXT, VISION = "language_model.model.layers", "vision_tower.vision_model.encoder.layers"
# Of which old block each new one is a copy. Every further copy begins as the identity: what it would add to the
# stream is zero, while its attention already looks where the first one does.
ORDER = (0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5)
TEXT_WIDTH, VISION_WIDTH = 288, 384


def grow(src: Path, dst: Path, text_width: int = TEXT_WIDTH, vision_width: int = VISION_WIDTH) -> None:
    """Write the checkpoint at ``src`` with the blocks of ORDER and MLPs of these inner widths to ``dst``."""
    config = read_json(src / "config.json")
    old = load_file(src / "model.safetensors")
    new = {name: t for name, t in old.items() if not name.startswith((TEXT, VISION))}
    for i, source in enumerate(ORDER):
        block = _block(old, f"{TEXT}.{source}.")
        _narrow(block, ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", text_width)
        if i and ORDER[i - 1] == source:
            for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                block[name] = torch.zeros_like(block[name])
        new |= {f"{TEXT}.{i}.{name}": t for name, t in block.items()}
    for i in range(config["vision_config"]["num_hidden_layers"]):
        block = _block(old, f"{VISION}.{i}.")
        _narrow(block, ("mlp.fc1",), "mlp.fc2", vision_width)
        new |= {f"{VISION}.{i}.{name}": t for name, t in block.items()}
    config["text_config"] |= {"num_hidden_layers": len(ORDER), "intermediate_size": text_width}
    config["vision_config"]["intermediate_size"] = vision_width
    left = shutil.ignore_patterns("*.safetensors", "config.json", "training")
    shutil.copytree(src, dst, ignore=left, dirs_exist_ok=True)
    write_checkpoint(dst, config, [Source.of(name, t.contiguous()) for name, t in new.items()])


def _block(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


def _narrow(block: dict[str, torch.Tensor], ins: tuple[str, ...], out: str, width: int) -> None:
    """Keep the inner units whose weights, in and out, are the largest by the product of their norms."""
    norms = [block[f"{name}.weight"].float().norm(dim=1) for name in ins]
    norms.append(block[f"{out}.weight"].float().norm(dim=0))
    kept = torch.stack(norms).log().sum(0).topk(width).indices.sort().values
    for name in ins:
        for part in ("weight", "bias"):
            if f"{name}.{part}" in block:
                block[f"{name}.{part}"] = block[f"{name}.{part}"][kept]
    block[f"{out}.weight"] = block[f"{out}.weight"][:, kept]
