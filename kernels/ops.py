"""How the operations of this package are registered with PyTorch, namespace ``minilava``.

An operation names its implementation in its last argument, so that tests can force any of them on any device. Eager
inference calls the implementations directly: the dispatcher costs more than a small kernel on a CPU. Training and
torch.compile go through the registered form, which knows shapes without data (fake) and gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import library

LIBRARY = library.Library("minilava", "DEF")


def register(
    schema: str, run: Callable, fake: Callable, backward: Callable | None = None, keep: Callable | None = None
):
    """Define ``minilava::schema``: run computes it on any device; fake gives empty outputs of the right shapes.

    keep(ctx, inputs, output) saves what backward(ctx, *gradients) needs; without them there are no gradients.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    library.register_fake(f"minilava::{name}", fake, lib=LIBRARY)
    if backward is not None:
        library.register_autograd(f"minilava::{name}", backward, setup_context=keep, lib=LIBRARY)


def registered(*tensors: torch.Tensor | None) -> bool:
    """Whether a call with these tensors must take the registered form: something learns, or the call is traced."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return True
    return torch.compiler.is_compiling()
