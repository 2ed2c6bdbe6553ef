"""What learns and how fast: parts, parameter groups, schedule (spec 6.1 to 6.3)."""

from __future__ import annotations

import math

import torch
from torch import nn

from minilava.train.config import TrainConfig


def set_trainable(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze everything but ``parts``. ``text`` includes the newline vector, as published (spec 6.2)."""
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        parameter.requires_grad_(("text" if part == "newline" else part) in parts)


def make_optimizer(engine: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with one group per part and per decay. No decay for biases and layer norms; RMS norms, embeddings and
    positions do decay, as published (spec 6.3). engine: an objective around the model, replicated or not."""
    no_decay = {
        f"{name}.{p}" if name else p
        for name, module in engine.named_modules()
        for p, _ in module.named_parameters(recurse=False)
        if isinstance(module, nn.LayerNorm) or "bias" in p
    }
    rates = {"vision": config.lr_vision, "projector": config.lr_projector}
    groups: dict[tuple, list] = {}
    for name, parameter in engine.named_parameters():
        if parameter.requires_grad:
            rate = rates.get(name.removeprefix("module.").removeprefix("model.").split(".")[0])
            key = (config.lr if rate is None else rate, 0.0 if name in no_decay else config.weight_decay)
            groups.setdefault(key, []).append(parameter)
    listed = [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    return torch.optim.AdamW(listed, betas=config.betas, eps=config.eps, fused=True)


def scale(step: int, config: TrainConfig) -> float:
    """The share of the peak rate at a step (from 0): linear warm-up from 0, then the schedule's shape to 0."""
    warm = math.ceil(config.warmup * config.steps)
    if step < warm:
        return step / warm
    progress = (step - warm) / max(1, config.steps - warm)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if config.schedule == "linear" else 1.0


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
