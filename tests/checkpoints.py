"""Helpers of the checkpoint tests: read, change and compare files of tensors."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path / "model.safetensors")


def resave(path: Path, change) -> None:
    """Rewrite the tensors of a single-file checkpoint with the safetensors package, after change(tensors)."""
    tensors = {k: v.clone() for k, v in tensors_of(path).items()}
    change(tensors)
    safetensors.torch.save_file(tensors, path / "model.safetensors")


def edit_json(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)
