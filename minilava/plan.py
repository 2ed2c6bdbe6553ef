"""python -m minilava.plan: what a model will need, in tokens and bytes, before anything is allocated.

Sizes of weights, cache, gradients and optimizer states are exact. Activations are what autograd keeps, counted per
operation for one process whose pack is full of the media with the fewest rows a view; FSDP divides the parameters'
share.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from minilava.checkpoint import expected
from minilava.config import ModelConfig, TextConfig, VisionConfig
from minilava.data.mixture import read_yaml
from minilava.device import DTYPES, pick_device, pick_dtype
from minilava.errors import Parser, UserError, command
from minilava.inputs.geometry import POOLS, Layout, image_layout, video_layout
from minilava.inputs.sample import Recipe
from minilava.train.config import TrainConfig, load_config
from minilava.train.optim import takes_muon
from minilava_kernels.cross_entropy import CHUNK

EXAMPLES = ((640, 480), (1920, 1080), (1080, 1920), (1000, 1000))  # pictures (width, height) to tile


@dataclass(frozen=True)
class Training:
    """Bytes of one process during a step of ``micro_batches`` packs of ``budget`` rows and ``views`` views, the
    most that fit of frames and of pictures as in EXAMPLES, tiled or not.

    copies: the weights in the dtype to compute in, where that is narrower. activations: kept for the backward pass;
    recomputed: the same with recompute: all
    (cheap lies between them). working: the largest temporary. disk: all checkpoints, one being written.
    """

    parts: tuple[str, ...]
    dtype: str
    budget: int
    views: int
    recompute: str
    trained: int  # parameters
    parameters: int
    copies: int
    gradients: int
    optimizer: int
    activations: int
    recomputed: int
    working: int
    checkpoint: int
    disk: int

    def total(self, recompute: bool) -> int:
        kept = self.recomputed if recompute else self.activations + self.copies
        return self.parameters + self.gradients + self.optimizer + self.working + kept


@dataclass(frozen=True)
class Plan:
    """tokens: what -> token rows. request: rows of the asked images and frames. weights, cache: bytes to generate
    with. cache_per_token: bytes of one row in all layers. memory: bytes of the machine or its GPU."""

    dtype: str
    parameters: dict[str, int]
    tokens: dict[str, int]
    request: int
    context: int
    batch: int
    weights: int
    cache_per_token: int
    cache: int
    memory: int
    training: Training

    @property
    def fits(self) -> dict[str, bool]:
        t = self.training
        return {
            "generate": self.weights + self.cache <= self.memory,
            "train": t.total(False) <= self.memory,
            "train_with_recompute": t.total(True) <= self.memory,
        }

    def to_json(self) -> dict:
        raw = asdict(self) | {"fits": self.fits}
        totals = {"total": self.training.total(False), "total_with_recompute": self.training.total(True)}
        return raw | {"training": raw["training"] | totals}


def plan(
    model: str | Path,
    config: TrainConfig | None = None,
    images: int = 1,
    video_frames: int = 0,
    pool: str | None = None,
    context: int | None = None,
    batch: int = 1,
    dtype: str = "auto",
    device: str = "auto",
) -> Plan:
    """The bill of a checkpoint directory, of which only config.json is read.

    config: a training stage; None is the default one, all parts. images, video_frames, pool: of a request. context,
    batch: rows of the cache, the model's own context if None, and sequences. Raises UserError.
    """
    shape = ModelConfig.load(model)
    context = shape.max_length if context is None else context
    if min(images, video_frames) < 0 or min(context, batch) < 1 or pool not in (None, *POOLS):
        raise UserError(f"counts are not below 0, context and batch at least 1, pool one of {', '.join(POOLS)}")
    target = pick_device(device)
    kind = pick_dtype(dtype, target)
    parts: dict[str, int] = {}
    for name, dims in expected(shape).items():
        parts[name.split(".")[0]] = parts.get(name.split(".")[0], 0) + math.prod(dims)
    pool = pool or shape.asking.pool
    tokens = _tokens(shape, pool)
    frames = _video(shape, pool, video_frames) if video_frames else 0
    per_token = 2 * shape.text.layers * shape.text.kv_heads * shape.text.head_dim * kind.itemsize
    config = config or TrainConfig(init=str(model), out="", data="", steps=1)
    return Plan(
        str(kind).removeprefix("torch."),
        parts,
        tokens,
        images * tokens["picture, one view"] + frames,
        context,
        batch,
        sum(parts.values()) * kind.itemsize,
        per_token,
        per_token * context * batch,
        machine_memory(target),
        _training(shape, parts, config, pick_dtype(config.dtype, target), pool, target.type == "cpu"),
    )


def _tokens(shape: ModelConfig, pool: str) -> dict[str, int]:
    tokens = {name: picture.tokens for name, picture in _pictures(shape).items()}
    frames = shape.asking.frames
    return tokens | {"video frame": _video(shape, pool, 1), f"video of {frames} frames": _video(shape, pool, frames)}


def _pictures(shape: ModelConfig) -> dict[str, Layout]:
    one, tiled = (Recipe(shape.recipe, anyres=anyres).image_config(shape) for anyres in (False, True))
    found = {"picture, one view": image_layout((1000, 1000), one)}
    return found | {f"picture of {w} x {h}, tiled": image_layout((w, h), tiled) for w, h in EXAMPLES}


def _video(shape: ModelConfig, pool: str, frames: int) -> int:
    image = Recipe(shape.recipe, anyres=False).image_config(shape, "video")
    if pool == "none":
        return frames * image_layout((1000, 1000), image).tokens
    return video_layout(frames, image, pool).tokens


def _rows_per_view(shape: ModelConfig, pools: set[str]) -> float:
    """The fewest: a tiled picture's padding has views but no rows, and pooling leaves a quarter of a frame's."""
    return min([x.tokens / x.views for x in _pictures(shape).values()] + [_video(shape, pool, 1) for pool in pools])


def _pools(data: object) -> set[str]:
    """That the sources of a mixture name, if it is there yet."""
    if isinstance(data, str):
        data = read_yaml(data) if data.endswith((".yaml", ".yml")) and os.path.exists(data) else {}
    sources = data.get("sources", data.get("datasets")) or []
    return {s["pool"] for s in sources if isinstance(s, dict) and s.get("pool") in POOLS}


def _training(
    shape: ModelConfig, parts: dict[str, int], c: TrainConfig, kind: torch.dtype, pool: str, native: bool
) -> Training:
    t, size, everything = shape.text, kind.itemsize, sum(parts.values())
    views = int(c.budget / _rows_per_view(shape, {pool, *_pools(c.data)}))
    linears = t.layers * sum(a * b for a, b in _linear_shapes(t))
    parts = parts | {"text": parts["text"] + parts.get("newline", 0)}
    trained, parameters = sum(parts[part] for part in c.train), 4 * everything
    if c.lora:
        adapters = t.layers * c.lora * sum(a + b for a, b in _linear_shapes(t))
        trained += adapters - parts["text"]
        parameters += 4 * adapters - (4 - size) * linears  # the frozen linears are kept in the narrow dtype
    # Copies live as long as the activations: of every linear through which a gradient flows.
    copied = (0 if c.lora else linears) + sum(parts[part] for part in c.train if part != "text")
    kept, recomputed, block = _activations(shape, c, views, size, native)
    logits = 3 * 4 * c.budget * min(CHUNK, t.vocab_rows)
    head = 4 * t.vocab_rows * t.width * ("text" in c.train and not c.lora)  # the gradient of its other use
    optimizer = 8 * trained - 4 * _one_moment(shape, c)
    state = parameters + optimizer
    return Training(
        parts=c.train,
        dtype=str(kind).removeprefix("torch."),
        budget=c.budget,
        views=views,
        recompute=c.recompute,
        trained=trained,
        parameters=parameters,
        copies=copied * size if size < 4 else 0,
        gradients=4 * trained,
        optimizer=optimizer,
        activations=kept,
        recomputed=recomputed,
        working=max(logits, block) + head,
        checkpoint=state,
        disk=state * (c.keep + 1) + 2 * everything,
    )


def _activations(shape: ModelConfig, c: TrainConfig, views: int, size: int, native: bool) -> tuple[int, int, int]:
    """Bytes that autograd keeps of a pack; the same with recompute, which keeps the blocks' inputs and has one block
    at a time whole; and those of the largest block."""
    t, v, rows = shape.text, shape.vision, views * shape.vision.patches
    see, project = "vision" in c.train, "vision" in c.train or "projector" in c.train
    text, vision = c.budget * _text_row(t, size, c, native), see * rows * _vision_row(v, size)
    ends = project * rows * (v.width + 2 * t.width) * size
    ends += see * rows * v.channels * v.patch_size**2 * size
    ends += c.budget * 3 * t.width * size  # the last norm's in- and output, and the labelled rows, here all
    inputs = (t.layers * c.budget * t.width + see * v.layers * rows * v.width) * size
    block = max(text, vision)
    return t.layers * text + v.layers * vision + ends, inputs + ends + block, block


def _one_moment(shape: ModelConfig, c: TrainConfig) -> int:
    """Values of the matrices that Muon moves, for which it keeps one average where AdamW keeps two."""
    if c.optimizer != "muon":
        return 0
    found = {name: math.prod(size) for name, size in expected(shape).items() if takes_muon(name, len(size))}
    adapters = shape.text.layers * c.lora * sum(a + b for a, b in _linear_shapes(shape.text))
    plain = [part for part in c.train if not (part == "text" and c.lora)]
    return adapters + sum(n for name, n in found.items() if name.split(".")[0] in plain)


def _linear_shapes(t: TextConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of a block's seven linears."""
    d, q, kv, m = t.width, t.heads * t.head_dim, t.kv_heads * t.head_dim, t.mlp_width
    return [(d, q), (d, kv), (d, kv), (q, d), (d, m), (d, m), (m, d)]


def _text_row(t: TextConfig, size: int, c: TrainConfig, native: bool) -> int:
    """Bytes that autograd keeps of one token row in one block. native: with the kernels for a CPU."""
    q, kv = t.heads * t.head_dim, t.kv_heads * t.head_dim
    attention = 2 * (q + kv) * size + 4 * t.heads  # q, k, v, the output, log-sums
    norms, mlp = 4 * t.width * size, 3 * t.mlp_width * size  # two norms' in- and output; gate, up and their product
    if not native:  # composed: x in float32, the factor of a weight that learns; silu(gate)
        learns = "text" in c.train and not c.lora
        norms += 2 * t.width * (4 - size + size * learns)
        mlp += t.mlp_width * size
    adapters = 2 * c.lora * len(_linear_shapes(t)) * size
    dropped = sum(a for a, _ in _linear_shapes(t)) * 2 * size if c.lora and c.lora_dropout else 0
    return norms + attention + mlp + adapters + dropped


def _vision_row(v: VisionConfig, size: int) -> int:
    """The same for one patch in one block of the tower: both norms' in- and outputs, q, k, v, output; the MLP's two."""
    return (8 * v.width + 2 * v.mlp_width) * size + 4 * v.heads


def machine_memory(device: torch.device) -> int:
    """Bytes of the GPU, or of the machine's memory and what a container may use of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def render(p: Plan) -> str:
    """The bill for people."""
    t, word = p.training, {True: "fits", False: "DOES NOT FIT"}
    parts = ", ".join(f"{name} {count:,}" for name, count in p.parameters.items())
    trained = f"{', '.join(t.parts)}: {t.trained:,} parameters in {t.dtype}"
    lines = [
        ("parameters", f"{sum(p.parameters.values()):,} ({parts})"),
        *((what, f"{count:,} tokens") for what, count in p.tokens.items()),
        ("this request's media", f"{p.request:,} tokens of a context of {p.context:,}"),
        ("", ""),
        (f"to generate, {p.dtype}", ""),
        ("  weights", _bytes(p.weights)),
        ("  cache per token", _bytes(p.cache_per_token)),
        (f"  cache, {p.batch} x {p.context:,}", _bytes(p.cache)),
        ("  together", f"{_bytes(p.weights + p.cache)} of {_bytes(p.memory)}: {word[p.fits['generate']]}"),
        ("", ""),
        ("to train", f"{trained}; packs of {t.budget:,} rows, up to {t.views} views"),
        ("  parameters", _bytes(t.parameters)),
        ("  gradients", _bytes(t.gradients)),
        ("  optimizer states", _bytes(t.optimizer)),
        ("  copies to compute with", _bytes(t.copies)),
        ("  activations", f"{_bytes(t.activations)}; with recompute: all {_bytes(t.recomputed)}"),
        ("  largest temporary", _bytes(t.working)),
        ("  together", f"{_bytes(t.total(False))} of {_bytes(p.memory)}: {word[p.fits['train']]}"),
        (
            "  with recompute: all",
            f"{_bytes(t.total(True))} of {_bytes(p.memory)}: {word[p.fits['train_with_recompute']]}",
        ),
        ("  a checkpoint", f"{_bytes(t.checkpoint)}; the run on disk at most {_bytes(t.disk)}"),
    ]
    return "\n".join(f"{what:38}{value}".rstrip() for what, value in lines)


def _bytes(count: int) -> str:
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= step:
            return f"{count / step:,.1f} {unit}"
    return f"{count} bytes"


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m minilava.plan", description="Tokens and bytes of a model, before anything is loaded.",
                formatter_class=argparse.ArgumentDefaultsHelpFormatter)  # fmt: skip
    p.add_argument("--model", metavar="DIR", help="a checkpoint, or a folder with its config.json alone")
    p.add_argument("--config", metavar="TRAIN.yaml", help="a training stage; its init is the model if none is given")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one of its settings")
    p.add_argument("--images", type=int, default=1, metavar="N", help="of a request")
    p.add_argument("--video-frames", type=int, default=0, metavar="N", help="of a request")
    p.add_argument("--pool", choices=POOLS, help="of video frames; default: the checkpoint's")
    p.add_argument("--context", type=int, metavar="N", help="rows of the cache; default: the model's context")
    p.add_argument("--batch", type=int, default=1, metavar="N", help="sequences in the cache")
    p.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="to generate in")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def run(argv: list[str] | None) -> None:
    args = parser().parse_args(argv)
    config = load_config(args.config, args.set) if args.config else None
    if args.set and not config:
        raise UserError("--set changes a training stage: give --config as well")
    model = args.model or (config and config.init)
    if not model:
        raise UserError("nothing to plan: give --model or --config")
    p = plan(model, config, args.images, args.video_frames, args.pool, args.context, args.batch, args.dtype,
             args.device)  # fmt: skip
    print(json.dumps(p.to_json()) if args.json else render(p))


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 for what the user can fix, with one line on stderr."""
    return command(lambda: run(argv))


if __name__ == "__main__":
    import sys

    sys.exit(main())
