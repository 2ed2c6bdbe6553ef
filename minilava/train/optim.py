"""What learns and how fast: parts, parameter groups, schedule (spec 6.1 to 6.3)."""

from __future__ import annotations

import math

import torch
from torch import nn

from minilava.errors import UserError
from minilava.train.config import TrainConfig


def set_trainable(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze everything but ``parts``. ``text`` includes the newline vector, as published (spec 6.2)."""
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        parameter.requires_grad_(("text" if part == "newline" else part) in parts)


def make_optimizers(engine: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW over everything that learns; or Muon over the blocks' and the projector's matrices and AdamW over the rest.

    One group per rate and decay. No decay for biases and layer norms; RMS norms, embeddings and positions do decay,
    as published (spec 6.3). engine: an objective around the model, replicated or not. Muon learns a new model in a
    third of AdamW's steps (bench/JOURNAL.md); its update needs whole matrices: UserError where they are sharded.
    """
    no_decay = {
        f"{name}.{p}" if name else p
        for name, module in engine.named_modules()
        for p, _ in module.named_parameters(recurse=False)
        if isinstance(module, nn.LayerNorm) or "bias" in p
    }
    rates = {"vision": config.lr_vision, "projector": config.lr_projector}
    groups: dict[bool, dict[tuple, list]] = {True: {}, False: {}}
    for name, parameter in engine.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("module.").removeprefix("model.")
        rate = rates.get(inner.split(".")[0])
        key = (config.lr if rate is None else rate, 0.0 if name in no_decay else config.weight_decay)
        groups[config.optimizer == "muon" and takes_muon(inner, parameter.dim())].setdefault(key, []).append(parameter)
    if any(hasattr(p, "full_tensor") for found in groups[True].values() for p in found):
        raise UserError("optimizer muon needs whole matrices in every process: use shard: ddp, or optimizer: adamw")
    muon, adamw = (
        [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in found.items()]
        for found in groups.values()
    )
    made: list[torch.optim.Optimizer] = []
    if muon:  # scaled so that AdamW's rates and decays serve both
        made.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
    if adamw:
        made.append(torch.optim.AdamW(adamw, betas=config.betas, eps=config.eps, fused=True))
    return made


def takes_muon(name: str, dims: int) -> bool:
    """Whether Muon moves a parameter (canonical name, number of dimensions): a matrix of a block or the projector."""
    return dims == 2 and (".blocks." in name or name.startswith("projector."))


def scale(step: int, config: TrainConfig) -> float:
    """The share of the peak rate at a step (from 0): linear warm-up from 0, then the schedule's shape to 0."""
    warm = math.ceil(config.warmup * config.steps)
    if step < warm:
        return step / warm
    progress = (step - warm) / max(1, config.steps - warm)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "warmup_stable_decay":
        return min(1.0, (config.steps - step) / max(1, math.ceil(config.decay * config.steps)))
    return 1 - progress if config.schedule == "linear" else 1.0


def set_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
