"""What a training run is: one flat dataclass from a YAML file, with ``--set key=value`` on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minilava.data.convert import FORMS
from minilava.data.mixture import import_yaml, read_yaml
from minilava.errors import UserError
from minilava.model.recompute import RECOMPUTE

PATHS = ("path", "json_path", "images")  # what names files in a mixture
PARTS = ("vision", "projector", "text")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "constant", "warmup_stable_decay")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """One stage. Paths are relative to the YAML file, ``init`` and ``out`` to the working directory.

    init: checkpoint directory to start from. out: the run's directory. data: a mixture (see data.mixture), inline or
    a file. form: chat, plain (stage 1) or pairs (DPO). train: the parts that learn (spec 6.2); rates: lr, or
    lr_vision and lr_projector where given (spec 6.3). budget: token rows of a pack; micro_batches: packs of a step.
    dtype: to compute in; parameters and optimizer states are float32. warmup, decay: shares of the steps; decay is the
    end of warmup_stable_decay, whose runs can be made longer later, from a checkpoint before the decay.
    """

    init: str
    out: str
    data: Any
    steps: int
    form: str = "chat"
    train: tuple[str, ...] = PARTS
    budget: int = 4096
    micro_batches: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-5
    lr_vision: float | None = None
    lr_projector: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.03
    decay: float = 0.2
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0
    dtype: str = "auto"
    device: str = "auto"
    recompute: str = "none"  # cheap or all: keep fewer activations (see model.recompute)
    recompute_vision: str | None = None  # the tower, where not as recompute says
    seed: int = 42
    workers: int = 1
    strict: bool = False  # stop at the first record that cannot be used
    save_every: int = 500
    keep: int = 2  # checkpoints of a run that stay on disk
    tensorboard: bool = False
    features: str | None = None  # directory of the store of frozen-tower features
    lora: int = 0  # rank of the adapters on the text model's linears; 0: none
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    shard: str = "auto"  # several processes: fsdp or ddp; auto: ddp where a whole model fits easily
    beta: float = 0.1  # DPO (spec 6.7)
    sft_weight: float = 0.0  # DPO: gamma, the weight of the chosen answers' cross-entropy

    def __post_init__(self):
        checks = [
            (self.form in FORMS, f"form is one of {', '.join(FORMS)}"),
            (set(self.train) <= set(PARTS) and bool(self.train), f"train names parts of {', '.join(PARTS)}"),
            (self.optimizer in OPTIMIZERS, f"optimizer is one of {', '.join(OPTIMIZERS)}"),
            (self.schedule in SCHEDULES, f"schedule is one of {', '.join(SCHEDULES)}"),
            ({self.recompute, self.recompute_vision or "none"} <= set(RECOMPUTE),
             f"recompute and recompute_vision are of {', '.join(RECOMPUTE)}"),
            (self.dtype in DTYPES, f"dtype is one of {', '.join(DTYPES)}"),
            (self.shard in ("auto", "fsdp", "ddp"), "shard is auto, fsdp or ddp"),
            (min(self.steps, self.budget, self.micro_batches, self.keep, self.save_every) >= 1,
             "steps, budget, micro_batches, keep and save_every are at least 1"),
            (isinstance(self.data, str | dict), "data is a mixture or the name of its file"),
            (self.device in ("auto", "cpu", "cuda"), "device is auto, cpu or cuda"),
            (min(self.lr, self.clip, self.eps, self.beta) > 0, "lr, clip, eps and beta are above 0"),
            (min(self.lr_vision or 0, self.lr_projector or 0, self.weight_decay, self.sft_weight) >= 0,
             "lr_vision, lr_projector, weight_decay and sft_weight are not below 0"),
            (0 <= min(self.warmup, self.decay) and self.warmup + self.decay <= 1 or self.schedule != SCHEDULES[-1],
             "warmup and decay are at least 0 and together at most 1"),
            (0 <= self.warmup <= 1, "warmup is from 0 to 1"),
            (len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas are two numbers from 0 to below 1"),
            (0 <= self.seed < 2**32 and self.workers >= 0, "seed and workers are not below 0, seed is below 2^32"),
            (self.lora == 0 or self.lora > 0 and "text" in self.train, "lora is a rank, and needs text in train"),
            (not self.features or "vision" not in self.train, "features need a frozen tower: train without vision"),
            (0 <= self.lora_dropout < 1, "lora_dropout is from 0 to below 1"),
            (self.form != "pairs" or not self.lora_dropout, "preferences are learned without lora_dropout (spec 6.7)"),
        ]  # fmt: skip
        for holds, wanted in checks:
            if not holds:
                raise UserError(f"training config: {wanted}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply ``key=value`` overrides, whose values are YAML too. Raises UserError."""
    yaml, path = import_yaml(), Path(path)
    raw = read_yaml(path)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise UserError(f"--set {override!r}: write key=value")
        try:
            raw[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {override!r}: the value is not valid YAML") from None
    return parse(raw | ({"data": _placed(raw["data"], path.parent)} if "data" in raw else {}))


def _placed(data: Any, folder: Path) -> Any:
    """A mixture, inline or a file's name, with its paths seen from the YAML file's folder."""
    if isinstance(data, str):
        return str(folder / data)
    if isinstance(data, dict):
        data = {k: str(folder / v) if k in PATHS and isinstance(v, str) else v for k, v in data.items()}
        return {k: [_placed(x, folder) for x in v] if isinstance(v, list) else v for k, v in data.items()}
    return data


def parse(raw: dict) -> TrainConfig:
    """A TrainConfig from plain values, with every wrong key and type named."""
    known = {f.name: f for f in fields(TrainConfig)}
    if unknown := sorted(map(str, set(raw) - set(known))):
        raise UserError(f"training config: unknown settings {', '.join(unknown)}; known: {', '.join(known)}")
    if missing := [n for n in ("init", "out", "data", "steps") if n not in raw]:
        raise UserError(f"training config: {', '.join(missing)} must be given")
    return TrainConfig(**{name: _typed(name, known[name].type, value) for name, value in raw.items()})


def _typed(name: str, kind: str, value: Any) -> Any:
    """The value as its field's type; YAML reads 1e-5 as text, and a list where a tuple is meant."""
    if kind == "Any" or (value is None and "None" in kind):
        return value
    try:
        if kind.startswith("tuple"):
            items = value.split(",") if isinstance(value, str) else value
            return tuple(float(x) if "float" in kind else str(x).strip() for x in items)
        if kind == "bool" and isinstance(value, bool) or kind.startswith("str") and isinstance(value, str):
            return value
        if kind.startswith("float") and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
        if kind == "int" and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"training config: {name} must be {kind.removesuffix(' | None')}, not {value!r}")
