"""Keeping little in memory: what only pictures need is let go as soon as they are encoded."""

from __future__ import annotations

from torch import nn

from minilava.checkpoint.shard import drop_pages, trim
from minilava.model.llava import LLaVA
from minilava_kernels.encoder_i8 import free_scratch


def let_go_of_pictures(model: LLaVA) -> None:
    """Of the mapped weights of tower and projector, idle while words are read and written, one block is resident at a
    time; after the projector the native blocks' scratch memory goes, too."""
    for module in (*model.vision.blocks, model.vision, model.projector):
        module.register_forward_hook(_LetGo(module))
    model.projector.register_forward_hook(_tidy)


class _LetGo:
    """Holds the mapped tensors themselves: memory that takes their place in the module has nothing behind it and must
    not be touched. For the same reason a copy holds none."""

    def __init__(self, module: nn.Module):
        self.mapped = [*module.parameters(), *module.buffers()]

    def __call__(self, *_: object) -> None:
        drop_pages(*self.mapped)

    def __reduce__(self) -> tuple:
        return _LetGo, (nn.Module(),)


def _tidy(*_: object) -> None:
    free_scratch()
    trim()
