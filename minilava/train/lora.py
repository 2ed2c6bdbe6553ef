"""LoRA: low-rank adapters on the text model's linears, in PEFT's files, merged into plain weights at the end.

y = x W^T + (alpha / rank) (dropout(x) A^T) B^T with W frozen: A is (rank, inputs), drawn; B is (outputs, rank), 0 at
first, so that training starts at the model as it was. The decoder's other weights and the newline stay frozen as
well; a projector or tower that is listed in ``train`` learns as usual (spec 6.2).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from minilava.checkpoint import canonical, open_checkpoint, stored
from minilava.checkpoint.shard import opened
from minilava.checkpoint.writer import write_json
from minilava.config import read_json
from minilava.errors import UserError
from minilava.model.linear import Linear
from minilava.model.llava import LLaVA
from minilava.train.weights import load_for_training, with_unused, write_model

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
LEAVES = (".a.weight", ".b.weight")  # of an adapted linear, beside its own weight
PEFT = (".lora_A.weight", ".lora_B.weight")  # the same in PEFT's files
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."  # what PEFT puts in front of the base model's own names
# Module names of transformers >= 5, on which PEFT works, for those that the files on the hub have.
MODULES = {
    "language_model.model.": "model.language_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "vision_tower.vision_model.": "model.vision_tower.",
}
WHOLE = {
    "hf": {"projector": "multi_modal_projector", "vision": "vision_tower"},
    "original": {"projector": "mm_projector", "vision": "vision_tower"},
}


class Adapted(Linear):
    """A frozen linear with an adapter; weight and bias keep their names."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight of its own
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.dropout = alpha / rank, dropout
        self.out_features, self.in_features = base.weight.shape
        with torch.device("meta"):
            self.a, self.b = (
                Linear(i, o, bias=False) for i, o in ((self.in_features, rank), (rank, self.out_features))
            )
        for factor in (self.a, self.b):
            factor.weight = nn.Parameter(base.weight.new_zeros(factor.weight.shape, dtype=torch.float32))

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        low = self.a(F.dropout(x, self.dropout, self.training)) * self.scale
        return self.b(low, residual=super().__call__(x, residual))


def attach(model: LLaVA, rank: int, alpha: float, dropout: float = 0.0, seed: int = 0, names: tuple = ()) -> None:
    """Freeze the decoder and the newline, and put fresh adapters on its linears, or on those of ``names`` alone
    ("text.blocks.0.q"). The frozen weights are kept in the dtype to compute in."""
    for name, p in model.named_parameters():
        if name.startswith("text.") or name == "newline":
            p.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)  # the same adapters in every process
    for i, block in enumerate(model.text.blocks):
        for target in TARGETS:
            if names and f"text.blocks.{i}.{target}" not in names:
                continue
            base = getattr(block, target)
            base.weight.data = base.weight.data.to(model.dtype or base.weight.dtype)
            adapted = Adapted(base, rank, alpha, dropout)
            a, bound = adapted.a.weight.data, adapted.in_features**-0.5
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            setattr(block, target, adapted)


def merge(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Canonical tensors with adapters -> plain ones: W + scale B A, added in float32."""
    plain = {name: t for name, t in tensors.items() if not _is_adapter(name)}
    for name in tensors:
        if name.endswith(LEAVES[0]):
            stem = name.removesuffix(LEAVES[0])
            weight, a, b = (tensors[stem + leaf] for leaf in (".weight", *LEAVES))
            plain[stem + ".weight"] = torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)
    return plain


def write_adapter(
    tensors: Mapping[str, Tensor], init: str | Path, dst: str | Path, rank: int, alpha: float, dropout: float,
    parts: tuple[str, ...],
) -> None:  # fmt: skip
    """Write PEFT's folder: the adapters among ``tensors`` (canonical names), and the whole projector and tower where
    they are among the trained ``parts``."""
    source, dst = open_checkpoint(init).config, Path(dst)
    dialect = source.dialect
    whole = {part: module for part, module in WHOLE[dialect].items() if part in parts}
    saved = {n: t for n, t in tensors.items() if _is_adapter(n)}
    saved |= {n: t for n, t in with_unused(tensors, source).items() if n.split(".")[0] in whole}
    layers = r"model\.language_model" if dialect == "hf" else "model"
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(init),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        # A pattern, not a list of names: the tower has a q_proj, too.
        "target_modules": layers + r"\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "modules_to_save": list(whole.values()) or None,
    }
    temporary = dst / (TENSORS + ".tmp")
    try:
        dst.mkdir(parents=True, exist_ok=True)
        save_file({_key(n, dialect): t.contiguous() for n, t in saved.items()}, temporary, {"format": "pt"})
        os.replace(temporary, dst / TENSORS)
        write_json(dst / CONFIG, config)
    except OSError as e:
        raise UserError(f"cannot write {dst}: {e.strerror or e}") from None


def load_adapter(model: LLaVA, folder: str | Path) -> float:
    """Put a PEFT folder's adapters, and the modules that it saves whole, on a model. Returns their scale.

    Raises UserError where the folder holds anything but plain LoRA on this model's linears.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    odd = [k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias") if config.get(k)]
    if odd or config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise UserError(
            f"{folder} is not plain LoRA ({', '.join(odd) or 'peft_type or bias'}): merge it with PEFT first"
        )
    with opened(folder / TENSORS) as f:
        found = {_name(key): f.get_tensor(key) for key in f.keys()}  # noqa: SIM118  safe_open is no mapping
    adapted = tuple(name.removesuffix(LEAVES[0]) for name in found if name and name.endswith(LEAVES[0]))
    if not adapted:
        raise UserError(f"{folder / TENSORS} holds no adapter of this model's linears")
    attach(model, config["r"], config["lora_alpha"], names=adapted)
    own = dict(model.named_parameters())
    for name, tensor in found.items():
        if name and name.startswith("vision.post_norm."):  # stored, never applied
            continue
        if name not in own or own[name].shape != tensor.shape:
            raise UserError(f"{folder / TENSORS}: {name or 'a tensor'} {tuple(tensor.shape)} does not fit the model")
        own[name].data.copy_(tensor)
    return config["lora_alpha"] / config["r"]


def merge_adapter(
    base: str | Path, adapter: str | Path, dst: str | Path, dtype: torch.dtype = torch.bfloat16
) -> Path:  # fmt: skip
    """Write the plain checkpoint of a base and a PEFT folder into the new directory ``dst``."""
    model, _ = load_for_training(base, torch.device("cpu"))
    scale = load_adapter(model, adapter)
    write_model(merge(model.state_dict(), scale), base, dst, dtype)
    return Path(dst)


def _is_adapter(name: str) -> bool:
    return name.endswith(LEAVES)


def _key(name: str, dialect: str) -> str:
    """PEFT's key of a canonical name."""
    leaf = next((leaf for leaf in LEAVES if name.endswith(leaf)), None)
    key = stored(name.removesuffix(leaf) + ".weight" if leaf else name, dialect)
    for old, new in MODULES.items() if dialect == "hf" else ():
        key = new + key[len(old) :] if key.startswith(old) else key
    return ROOT + (key.removesuffix(".weight") + PEFT[LEAVES.index(leaf)] if leaf else key)


def _name(key: str) -> str | None:
    """The canonical name of one of PEFT's keys, or None."""
    key = key.removeprefix(ROOT)
    for kind, leaf in zip(PEFT, LEAVES, strict=True):
        if key.endswith(kind):
            name = canonical(key.removesuffix(kind) + ".weight")
            return name and name.removesuffix(".weight") + leaf
    return canonical(key)
