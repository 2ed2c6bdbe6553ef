"""A training step on mixed-length samples: packed, against the same model trained by transformers on padded batches.

    python -m bench.training [--model PATH] [--samples 16] [--steps 20] [--rounds 3]

Samples have 1 to 8 images and answers of 1 to 200 tokens. Both sides start from the same float32 weights, see the same
samples in the same order and use torch's AdamW; their loss curves are compared before any figure is printed. Each side
runs in a process of its own, in turns, so that its peak memory is its own: the growth of the resident size from just
before the first step.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench import harness
from minilava.config import IGNORE, IMAGE
from minilava.data.world import make
from minilava.inputs import geometry, pixels
from minilava.inputs.pack import pack
from minilava.inputs.sample import Recipe, Sample
from minilava.runtime.vlm import TINY
from minilava.train.config import TrainConfig
from minilava.train.objective import Supervised
from minilava.train.optim import make_optimizers
from minilava.train.weights import load_for_training

RATE = 1e-4
WARM = 5  # steps that are not timed
TOLERANCE = 1e-4  # relative, between the two loss curves


@dataclass
class Side:
    """What a child process reports."""

    losses: list[float]
    seconds: list[float]
    peak_bytes: int
    labelled: list[int]
    tokens: list[int]  # rows that the decoder computes, padding included


def batches(config, count: int, samples: int, seed: int = 0) -> list[list[tuple[Sample, list]]]:
    """``count`` batches of (Sample, its pictures)."""
    rng = random.Random(seed)
    image = Recipe("train", anyres=False).image_config(config, "image")
    pool = [make("single_image", "train", i, config.image.view)["image"][0].resize((config.image.view,) * 2)
            for i in range(64)]  # fmt: skip

    def one() -> tuple[Sample, list]:
        words = lambda least, most: [rng.randrange(300, 900) for _ in range(rng.randint(least, most))]  # noqa: E731
        ids: list[int] = words(5, 15)
        pictures = [rng.choice(pool) for _ in range(rng.randint(1, 8))]
        for _ in pictures:
            ids += [IMAGE, *words(0, 6)]
        answer = words(1, 200)
        labels = [IGNORE] * len(ids) + answer
        layouts = [geometry.image_layout(p.size, image) for p in pictures]
        patches = [pixels.patches(p, image, config.vision.patch_size) for p in pictures]
        return Sample(ids + answer, layouts, patches, labels), pictures

    return [[one() for _ in range(samples)] for _ in range(count)]


def run_ours(path: Path, data, config) -> Side:
    model, _ = load_for_training(path, torch.device("cpu"))
    model.vision.recompute, model.text.recompute = "all", "cheap"
    settings = TrainConfig(init="", out="", data={}, steps=1, lr=RATE)
    objective = Supervised(model)
    (optimizer,) = make_optimizers(objective, settings)

    def step(batch):
        packed = pack([s for s, _ in batch], config.vision.patches)
        labelled = int(((packed.labels != IGNORE) & (packed.positions > 0)).sum())
        loss = objective(packed)[0] / labelled
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), labelled, packed.tokens

    return _measure(step, data)


def run_peer(path: Path, data, config) -> Side:
    import numpy as np
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    marker = [config.image_token_id] * config.vision.patches

    def step(batch):
        rows = [_spread(s.ids, s.ids, marker) for s, _ in batch]
        marks = [_spread(s.ids, s.labels, [IGNORE] * len(marker)) for s, _ in batch]
        longest = max(map(len, rows))
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows])
        labels = torch.tensor([m + [IGNORE] * (longest - len(m)) for m in marks])
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows])
        pictures = np.stack([np.asarray(p) for _, ps in batch for p in ps])
        values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = model(input_ids=ids, attention_mask=mask, pixel_values=values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), int((labels[:, 1:] != IGNORE).sum()), ids.numel()

    return _measure(step, data)


def _spread(ids: list[int], values: list[int], image: list[int]) -> list[int]:
    """``values`` with every image placeholder's as wide as an image is in transformers' prompts."""
    return [v for i, value in zip(ids, values, strict=True) for v in (image if i == IMAGE else [value])]


def _measure(step, data) -> Side:
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    side = Side([], [], 0, [], [])
    for batch in data:
        began = time.perf_counter()
        loss, labelled, tokens = step(batch)
        side.seconds.append(time.perf_counter() - began)
        side.losses.append(loss)
        side.labelled.append(labelled)
        side.tokens.append(tokens)
    side.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return side


def child(args: argparse.Namespace) -> None:
    from minilava.config import ModelConfig

    config = ModelConfig.load(args.model)
    data = batches(config, args.steps, args.samples)
    print(json.dumps((run_ours if args.side == "minilava" else run_peer)(Path(args.model), data, config).__dict__))


def spawn(side: str, args: argparse.Namespace) -> Side:
    command = [sys.executable, "-m", "bench.training", "--side", side, "--model", str(args.model),
               "--samples", str(args.samples), "--steps", str(args.steps)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return Side(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a checkpoint of the hf dialect; default: the embedded model")
    parser.add_argument("--samples", type=int, default=16, help="per batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="append the result to bench/results")
    parser.add_argument("--side", choices=("minilava", "transformers"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return child(args)
    runs: dict[str, list[Side]] = {"minilava": [], "transformers": []}
    for _ in range(args.rounds):
        for side in runs:
            runs[side].append(spawn(side, args))
    ours, peer = runs["minilava"][0].losses, runs["transformers"][0].losses
    apart = max(abs(a - b) / abs(b) for a, b in zip(ours, peer, strict=True))
    if apart > TOLERANCE:
        raise SystemExit(f"the loss curves differ by {apart:.2e}, more than {TOLERANCE}: nothing is reported")
    rows = []
    for side, found in runs.items():
        rates = [n / s for f in found for n, s in zip(f.labelled[WARM:], f.seconds[WARM:], strict=True)]
        rows.append({
            "side": side,
            "labelled_per_s": harness.median(rates),
            "step_s": harness.median([s for f in found for s in f.seconds[WARM:]]),
            "rows_per_step": harness.median(found[0].tokens),
            "peak_mb": harness.median([f.peak_bytes for f in found]) / 2**20,
        })  # fmt: skip
    a, b = rows
    rows.append({"side": "ratio", **{k: a[k] / b[k] for k in list(a)[1:]}})
    print(f"loss curves of {args.steps} steps differ by at most {apart:.1e} (relative)")
    harness.report("training", rows, list(a), args.keep, loss_apart=apart, samples=args.samples, steps=args.steps)


if __name__ == "__main__":
    main()
