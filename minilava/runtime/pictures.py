"""Encoded pictures, kept by content: another question about the same picture does not run the tower.

A view's key is the hash of the patches that the tower reads, so nothing that comes before (file, decoder, recipe, size,
tile) can find the wrong features, and a tile or video frame that occurs twice is encoded once. Preprocessing is
therefore not skipped: from about a megapixel on, it and the hash of its patches take less time than a hash of all
decoded pixels.
Memory belongs to one set of weights; on disk every set, with its dtype, has a folder of its own.

V views of P patches, C values per patch, D width of the decoder.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minilava.model.llava import LLaVA
from minilava.store import Store, digest, fingerprint


class Pictures:
    """Features (P, D) of single views: up to ``limit`` bytes in memory, those used last, and all of them in ``folder``
    if there is one. Any number of threads may use it at once."""

    def __init__(self, model: LLaVA, limit: int, folder: str | Path | None = None):
        self.model, self.limit, self.folder = model, limit, folder
        self.views: OrderedDict[str, Tensor] = OrderedDict()  # the view used last at the end
        self.nbytes = 0
        self.lock = threading.Lock()
        self._store: Store | None = None

    def features(self, patches: Tensor, encode: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
        """patches (V, P, C) -> projected features (V, P, D), and how many of the views were not encoded for it. All
        others go through encode, LLaVA's, at once. Raises UserError where the folder cannot be written."""
        keys = [digest(view) for view in patches]
        found = {key: view for key in keys if (view := self._find(key)) is not None}
        new = {key: i for i, key in enumerate(keys) if key not in found}
        if new:
            whole = len(new) == len(patches)
            made = encode(patches if whole else patches[list(new.values())])
            for key, view in zip(new, made, strict=True):
                found[key] = view
                # A slice would keep all of its batch in memory.
                self._keep(key, view if len(made) == 1 else view.clone())
                if self.folder is not None:
                    self.store().write(key, view)
            if whole:
                return made, 0
        return torch.stack([found[key] for key in keys]), len(patches) - len(new)

    def forget(self) -> None:
        """After a change of the weights."""
        with self.lock:
            self.views.clear()
            self.nbytes, self._store = 0, None

    def store(self) -> Store:
        """The folder of these weights, whose hash is taken at the first use."""
        with self.lock:
            if self._store is None:
                name = fingerprint([self.model.vision, self.model.projector], self.model.text.norm.weight.dtype)
                self._store = Store(Path(self.folder) / name)
            return self._store

    def _find(self, key: str) -> Tensor | None:
        with self.lock:
            if key in self.views:
                self.views.move_to_end(key)
                return self.views[key]
        if self.folder is None or (view := self.store().read(key)) is None:
            return None
        view = view.to(self.model.text.norm.weight.device)
        self._keep(key, view)
        return view

    def _keep(self, key: str, view: Tensor) -> None:
        with self.lock:
            if key in self.views or view.nbytes > self.limit:
                return
            self.views[key] = view
            self.nbytes += view.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self.views.popitem(last=False)[1].nbytes
