"""Features of a frozen tower on disk, so that it runs once per view and not once per epoch.

    DIR/<hash of the tower>/ab/abcdef....safetensors    one view: its (P, Dv) tower outputs, before the projector

A view's key is the hash of the pixels that the tower reads, after all resizing, so no change of a picture, a recipe or
the geometry can find stale features; another tower, or another dtype to compute in, has a folder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minilava.model.llava import LLaVA
from minilava.packed import Packed
from minilava.store import Store, digest, fingerprint


class Features(Store):
    """The store of one tower that computes in ``dtype``."""

    def __init__(self, folder: str | Path, tower: nn.Module, dtype: torch.dtype):
        super().__init__(Path(folder) / fingerprint([tower], dtype))

    def load(self, packed: Packed) -> tuple[Packed, list[str]]:
        """For a worker: a pack with features in place of its pixels, if all its views are there; and the views' keys
        if they are not."""
        if packed.patches is None:
            return packed, []
        keys = [digest(view) for view in packed.patches]
        if all(self.path(key).exists() for key in keys):
            found = [self.read(key) for key in keys]
            if all(view is not None for view in found):
                return replace(packed, patches=None, tower=torch.stack(found)), []
        return packed, keys

    def fill(self, packed: Packed, keys: Sequence[str], model: LLaVA) -> Packed:
        """For the loop: run the tower over the pixels that a pack still has, and store what it says under ``keys``."""
        if packed.patches is None:
            return packed
        tower = model.see(packed.patches)
        for key, view in zip(keys, tower.cpu(), strict=False):  # a blank view that stands in for none has no key
            if not self.path(key).exists():
                self.write(key, view)
        return replace(packed, patches=None, tower=tower)
