"""python -m bench.end_to_end_gpu: first token and decoding on a GPU against transformers, same weights, same card.

Random weights of the 0.5B shape (or --shape 7b) in bfloat16. Before anything is timed, the first logits are compared
with the peer's and the tokens of the captured steps with those decoded from the host; both sides start from the same
pixels on the host. Decoding is bound by memory: the weights are read once a step and the keys and values of every
sequence, at the copy rate measured in the same run.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import minilava
from bench.end_to_end import CACHE
from bench.harness import in_turns, median, progress, report
from bench.micro import limits
from bench.transformers_peer import USABLE, Transformers
from minilava.checkpoint import write_random
from minilava.errors import UserError
from minilava.inputs.pack import pack
from minilava.inputs.sample import Sample
from minilava.runtime.engine import Clock, Engine
from minilava.runtime.sampling import Sampling

DECODE = [(batch, context) for batch in (1, 8, 32) for context in (512, 2048, 8192) if batch * context <= 65536]
PICTURES = (1, 2, 8, 16)
STEPS = 64
AGREE = "first tokens as the peer's"
COLUMNS = ["what", "minilava", "transformers", "unit", "ratio", "target", "% of limit"]


class Ours:
    def __init__(self, path: Path):
        self.vlm = minilava.load(path, device="cuda", dtype="bfloat16")
        self.engine = Engine(self.vlm.model, USABLE)

    def decode(self, prompts: list[list[int]], steps: int) -> tuple[list[list[int]], float]:
        packed = pack([Sample(p, []) for p in prompts], self.vlm.config.vision.patches)
        clock, out = Clock(), [[] for _ in prompts]
        limit = [steps + 1] * len(prompts)
        for step in self.engine.generate(packed, [Sampling()] * len(prompts), limit, eos_ids=(), clock=clock):
            for s, token in step:
                out[s].append(token)
        return out, clock.decode_s / steps

    @torch.inference_mode()
    def first_token(self, ids: list[int], pixels: np.ndarray) -> torch.Tensor:
        """The last logits of a prompt, (V,), from pixels (n, 3, 384, 384) on the host, through embed and prefill."""
        vision = self.vlm.config.vision
        side = vision.patch_size * (vision.image_size // vision.patch_size)
        views = torch.from_numpy(pixels[:, :, :side, :side]).cuda()
        patches = torch.nn.functional.unfold(views, vision.patch_size, stride=vision.patch_size).transpose(1, 2)
        sample = Sample(ids, [])
        rows = torch.tensor([i for i, t in enumerate(ids) if t == self.vlm.config.image_token_id])
        packed = pack([sample], vision.patches)
        packed = replace(packed, patches=patches, splice_rows=rows, splice_source=torch.arange(len(rows)))
        return self.vlm.model(packed.to("cuda"), last_only=True)[0].float().cpu()


def decoding(ours: Ours, theirs: Transformers, roof: dict, repeats: int) -> list[dict]:
    text, rng, rows = ours.vlm.config.text, np.random.default_rng(0), []
    weights = 2 * sum(p.numel() for p in ours.vlm.model.text.parameters())
    per_token = 2 * 2 * text.layers * text.kv_heads * text.head_dim
    for batch, context in DECODE:
        progress(f"decode {batch} x {context}")
        prompts = rng.integers(0, 151000, (batch, context)).tolist()
        agree = check_tokens(ours, theirs, prompts)
        times = in_turns(
            {
                "ours": lambda p=prompts: ours.decode(p, STEPS)[1],
                "peer": lambda p=prompts: theirs.decode_batch(p, STEPS)[1],
            },
            repeats,
        )
        a, b = median(times["ours"]), median(times["peer"])
        floor = (weights + per_token * batch * (context + STEPS / 2)) / roof["bytes"]
        target = ">= 5" if (batch, context) == (1, 2048) else ""
        name = f"decode, {batch} x {context} tokens of context"
        values = (name, batch / a, batch / b, "tokens/s", b / a, target, 100 * floor / a)
        rows.append(dict(zip(COLUMNS, values, strict=True)) | {AGREE: agree})
    return rows


def check_tokens(ours: Ours, theirs: Transformers, prompts: list[list[int]]) -> float:
    """The captured steps give the tokens that decoding from the host gives, but for ties within rounding: at least nine
    rows of ten over eight tokens. Returns the share of rows whose first token is the peer's too."""
    mine = ours.decode(prompts, 8)[0]
    assert all(step.graph is not None for step in ours.engine.graphs.steps.values()), "decoding was not captured"
    captured, ours.engine.graphs = ours.engine.graphs, None
    host = ours.decode(prompts, 8)[0]
    ours.engine.graphs = captured
    alike = sum(a == b for a, b in zip(mine, host, strict=True)) / len(prompts)
    assert alike >= 0.9, f"only {alike:.0%} of the rows have the same tokens captured and from the host"
    peer = theirs.decode_batch(prompts, 1)[0]
    return sum(a[0] == b[0] for a, b in zip(mine, peer, strict=True)) / len(prompts)


def first_tokens(ours: Ours, theirs: Transformers, repeats: int) -> list[dict]:
    rng, rows = np.random.default_rng(1), []
    image = ours.vlm.config.image_token_id
    for pictures in PICTURES:
        progress(f"first token, {pictures} pictures")
        pixels = rng.standard_normal((pictures, 3, 384, 384), np.float32).clip(-1, 1)
        text = rng.integers(0, 256, 60).tolist()
        ids = [*text[:30], *([image] * 729 * pictures), *text[30:]]
        mine, reference = ours.first_token(ids, pixels), theirs.first_token(ids, pixels)
        alike = torch.cosine_similarity(mine[:USABLE], reference[:USABLE], dim=0).item()
        assert alike > 0.999, f"the logits of {pictures} pictures have a cosine of {alike:.5f}"
        times = in_turns(
            {"ours": partial(ours.first_token, ids, pixels), "peer": partial(theirs.first_token, ids, pixels)}, repeats
        )
        a, b = (1e3 * median(times[k]) for k in ("ours", "peer"))
        target = ">= 2" if pictures == 8 else ""
        rows.append(
            dict(zip(COLUMNS, (f"first token, {pictures} pictures", a, b, "ms", b / a, target, ""), strict=True))
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("0.5b", "7b"), default="0.5b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="append the result to bench/results")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("this benchmark needs a CUDA device; python -m bench.end_to_end runs on a CPU")
    path = CACHE / f"random-{args.shape}-hf-bfloat16"
    if not (path / "config.json").exists():
        progress(f"writing random weights to {path}")
        write_random(path, shape=args.shape, dialect="hf", seed=0, dtype="bfloat16", tokenizer="byte")
    roof = limits("cuda")
    ours, theirs = Ours(path), Transformers(path, "cuda", torch.bfloat16)
    began = time.perf_counter()
    settings = {"shape": args.shape, "peer": f"transformers {theirs.version}", "limits": roof}
    for name, measure, columns in (
        ("first_token_gpu", lambda: first_tokens(ours, theirs, args.repeats), COLUMNS),
        ("end_to_end_gpu", lambda: decoding(ours, theirs, roof, args.repeats), [*COLUMNS, AGREE]),
    ):
        report(name, measure(), columns, args.keep, **settings)  # kept before the next begins, which may fail
    progress(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
