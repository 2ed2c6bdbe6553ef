"""Features of a frozen tower on disk, so that it runs once per view and not once per epoch.

    DIR/<hash of the tower>/ab/abcdef....safetensors    one view: its (P, Dv) tower outputs, before the projector

A view's key is the hash of the pixels that the tower reads, after all resizing, so no change of a picture, a recipe or
the geometry can find stale features; another tower, or another dtype to compute in, has a folder of its own. Files
appear whole or not at all: any number of runs, processes and workers may share a store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minilava.errors import UserError
from minilava.model.llava import LLaVA
from minilava.packed import Packed


class Features:
    """The store of one tower that computes in ``dtype``. folder: made at the first write."""

    def __init__(self, folder: str | Path, tower: nn.Module, dtype: torch.dtype):
        digest = hashlib.blake2b(str(dtype).encode(), digest_size=16)
        for name, tensor in sorted(tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(_bytes(tensor))
        self.folder = Path(folder) / digest.hexdigest()

    def load(self, packed: Packed) -> tuple[Packed, list[str]]:
        """For a worker: a pack with features in place of its pixels, if all its views are there; and the views' keys
        if they are not."""
        if packed.patches is None:
            return packed, []
        keys = [hashlib.blake2b(_bytes(view), digest_size=16).hexdigest() for view in packed.patches]
        if all(self._path(key).exists() for key in keys):
            found = [self._read(key) for key in keys]
            if all(view is not None for view in found):
                return replace(packed, patches=None, tower=torch.stack(found)), []
        return packed, keys

    def fill(self, packed: Packed, keys: Sequence[str], model: LLaVA) -> Packed:
        """For the loop: run the tower over the pixels that a pack still has, and store what it says under ``keys``."""
        if packed.patches is None:
            return packed
        tower = model.see(packed.patches)
        for key, view in zip(keys, tower.cpu(), strict=False):  # a blank view that stands in for none has no key
            if not self._path(key).exists():
                self._write(key, view)
        return replace(packed, patches=None, tower=tower)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Tensor | None:
        """None for a file that is damaged: it is removed, and the view counts as new."""
        try:
            return load_file(self._path(key))["view"]
        except (OSError, SafetensorError, KeyError):
            self._path(key).unlink(missing_ok=True)
            return None

    def _write(self, key: str, view: Tensor) -> None:
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"view": view.contiguous()}, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as e:
            if path.parent.is_dir():
                temporary.unlink(missing_ok=True)
            reason = e.strerror if isinstance(e, OSError) and e.strerror else e
            raise UserError(f"cannot write features to {self.folder}: {reason}") from None


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
