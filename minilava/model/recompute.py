"""What a training step keeps of a block for the backward pass: everything, what was expensive, or its input alone.

"cheap" keeps the results of matrix products and attention and computes norms, activations, rotations and sums again:
about a third less memory for a few per cent of the time. "all" keeps the input and runs the whole block again: a third
more FLOPs. PyTorch's own (selective) activation checkpointing does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

RECOMPUTE = ("none", "cheap", "all")
_EXPENSIVE = {"mm", "addmm", "bmm", "_linear_pointwise", "attention", "linear"}


def run_block(block: Callable[..., Tensor], recompute: str, *args) -> Tensor:
    """block(*args), of which the backward pass will compute again what ``recompute`` says."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*args)
    contexts = {"context_fn": _contexts} if recompute == "cheap" else {}
    return checkpoint(block, *args, use_reentrant=False, **contexts)


def _policy(context, operation, *args, **kwargs) -> CheckpointPolicy:
    expensive = operation.__name__.split(".")[0] in _EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if expensive else CheckpointPolicy.PREFER_RECOMPUTE


_contexts = partial(create_selective_checkpoint_contexts, _policy)
