"""python -m bench.end_to_end --peer transformers: every phase against the reference, in turns, on the same weights.

A random 0.5B-shaped checkpoint in the Hugging Face dialect is written once into a cache folder and loaded by both.
Answers are compared before anything is timed.

Cost model of the 0.5B shape in float32, whose limits the last column refers to:
    decode   reads 464 M parameters and 196,608 bytes of keys and values per cached token: bound by memory
    prefill  2 x 308 M FLOPs a token in the blocks, 4 x 24 x 1024 x L / 2 in causal attention: bound by arithmetic
    encode   2 x 15.2 M x 26 FLOPs a patch, 4 x 26 x 1152 x 729 in attention: bound by arithmetic
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import minilava
from bench import preprocess
from bench.harness import cpu_limits, in_turns, median, progress, report
from bench.transformers_peer import Transformers
from minilava.checkpoint import write_random
from minilava.inputs.pack import pack
from minilava.inputs.pixels import patches
from minilava.inputs.sample import Recipe, Sample
from minilava.runtime.engine import Clock
from minilava.runtime.sampling import Sampling
from minilava.runtime.vlm import VLM

CACHE = Path.home() / ".cache" / "minilava"
PHOTOS = [Path(minilava.__file__).parent / "assets" / name for name in ("cat.jpg", "rocket.jpg")]
PROMPT = "What do these two pictures have in common?"
COLUMNS = ["what", "minilava", "other", "unit", "other is", "ratio", "target", "% of limit"]
# Eight sequences of different lengths, mean 294 tokens.
LENGTHS = (512, 64, 300, 450, 128, 380, 200, 320)


class Ours:
    def __init__(self, path: Path):
        began = time.perf_counter()
        self.vlm: VLM = minilava.load(path, device="cpu", dtype="float32", cache_bytes=0)
        self.load_s = time.perf_counter() - began

    def decode(self, prompts: list[list[int]], steps: int) -> tuple[list[list[int]], float]:
        """Greedy tokens of every prompt and the seconds per step after the first token."""
        packed = pack([Sample(p, []) for p in prompts], self.vlm.config.vision.patches)
        clock, out = Clock(), [[] for _ in prompts]
        limits, sampling = [steps + 1] * len(prompts), [Sampling()] * len(prompts)
        for step in self.vlm.engine.generate(packed, sampling, limits, eos_ids=(), clock=clock):
            for s, token in step:
                out[s].append(token)
        return out, clock.decode_s / steps

    def prefill(self, prompt: list[int]) -> float:
        clock = Clock()
        packed = pack([Sample(prompt, [])], self.vlm.config.vision.patches)
        for _ in self.vlm.engine.generate(packed, [Sampling()], [1], eos_ids=(), clock=clock):
            pass
        return clock.prefill_s

    @torch.inference_mode()
    def encode(self, views: torch.Tensor) -> torch.Tensor:
        return self.vlm.model.encode(views)

    def answer(self) -> list[int]:
        return self.vlm.generate(PROMPT, PHOTOS, recipe="hf", max_new_tokens=32).token_ids


def row(
    what: str, ours: float, other: float, unit: str, ratio: float, target: str, limit: float | str,
    against: str = "transformers",
) -> dict:  # fmt: skip
    return dict(zip(COLUMNS, (what, ours, other, unit, against, ratio, target, limit), strict=True))


def phases(ours: Ours, theirs: Transformers, limits: dict[str, float], repeats: int) -> list[dict]:
    """Check, then time, every phase; limits as cpu_limits() gives them."""
    text, rng = ours.vlm.config.text, np.random.default_rng(0)
    prompts = [rng.integers(0, 151000, n).tolist() for n in (*LENGTHS, 2048)]
    rows = []

    progress("decode")
    steps = 16
    assert ours.decode(prompts[:1], steps)[0][0] == theirs.decode(prompts[0], steps)[0], "decode: tokens differ"
    times = in_turns(
        {
            "one": lambda: ours.decode(prompts[:1], steps)[1],
            "eight": lambda: ours.decode(prompts[:8], steps)[1],
            "peer": lambda: theirs.decode(prompts[0], steps)[1],
        },
        repeats,
    )
    one, eight, peer = (median(times[k]) for k in ("one", "eight", "peer"))
    weights = 4 * sum(p.numel() for p in ours.vlm.model.text.parameters())
    kv = 2 * 4 * text.layers * text.kv_heads * text.head_dim
    floor = (weights + kv * (LENGTHS[0] + steps / 2)) / limits["read_gbps"] / 1e9
    floor8 = (weights + kv * (sum(LENGTHS) + 8 * steps / 2)) / limits["read_gbps"] / 1e9
    percent = 100 * floor / one
    rows.append(row("decode, 512 tokens of context", 1 / one, 1 / peer, "tokens/s", peer / one, ">= 1.5", percent))
    rows.append(
        row("decode, 8 sequences packed", 8 / eight, 1 / one, "tokens/s", 8 * one / eight, ">= 5", 100 * floor8 / eight,
            "minilava, one sequence")
    )  # fmt: skip

    progress("prefill")
    times = in_turns({"ours": lambda: ours.prefill(prompts[8]), "peer": lambda: theirs.prefill(prompts[8])}, repeats)
    a, b = median(times["ours"]), median(times["peer"])
    block = sum(p.numel() for p in ours.vlm.model.text.blocks.parameters())
    flops = 2 * block * 2048 + 4 * text.layers * text.heads * text.head_dim * 2048 * 2048 / 2
    floor = flops / limits["gflops"] / 1e9
    rows.append(row("prefill, 2048 tokens", 2048 / a, 2048 / b, "tokens/s", b / a, ">= 1.3", 100 * floor / a))

    progress("encode")
    photo = Image.open(PHOTOS[0]).convert("RGB")
    image = Recipe("hf").image_config(ours.vlm.config)
    view = patches(photo, image, ours.vlm.config.vision.patch_size)
    pixels = theirs.processor([photo])
    mine, reference = ours.encode(view)[0], theirs.encode(pixels)[0]
    error = ((mine - reference).norm() / reference.norm()).item()
    assert error < 1e-4, f"encode: features differ by {error:.1e}"
    times = in_turns({"ours": lambda: ours.encode(view), "peer": lambda: theirs.encode(pixels)}, repeats)
    a, b = median(times["ours"]), median(times["peer"])
    v = ours.vlm.config.vision
    blocks = sum(p.numel() for p in ours.vlm.model.vision.blocks.parameters())
    floor = v.patches * (2 * blocks + 4 * v.layers * v.width * v.patches) / limits["gflops"] / 1e9
    rows.append(row("encode one view", 1 / a, 1 / b, "views/s", b / a, ">= 1.15", 100 * floor / a))

    progress("two images and 32 tokens")
    peer_answer = partial(theirs.answer, PROMPT, PHOTOS, 32)
    assert ours.answer() == peer_answer(), "end to end: tokens differ"
    times = in_turns({"ours": ours.answer, "peer": peer_answer}, max(repeats // 2, 2))
    a, b = median(times["ours"]), median(times["peer"])
    rows.append(row("two images + 32 tokens", a, b, "s", b / a, ">= 1.4", ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("transformers",), default="transformers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, default=CACHE / "random-0.5b-hf-float32", help="written when absent")
    args = parser.parse_args()
    if not (args.model / "config.json").exists():
        progress(f"writing a random 0.5B checkpoint to {args.model}")
        write_random(args.model, shape="0.5b", dialect="hf", seed=0, dtype="float32")
    limits = cpu_limits()
    progress(f"limits: {limits}")
    theirs = Transformers(args.model)
    ours = Ours(args.model)
    rows = phases(ours, theirs, limits, args.repeats)
    picture = preprocess.rows([(1920, 1080)])[0]
    for peer, target in (("HF processor", ">= 5"), ("Pillow resize", ">= 3")):
        a, b = picture["ours ms"], picture[f"{peer} ms"]
        rows.append(row("preprocess 1920x1080", a, b, "ms", b / a, target, picture["% of limit"], peer))
    loads = in_turns(
        {"ours": lambda: Ours(args.model).load_s, "theirs": lambda: Transformers(args.model).load_s}, args.repeats
    )
    a, b = (median(loads[side]) for side in ("ours", "theirs"))
    rows.append(row("load, float32, page cache", a, b, "s", b / a, "<= 2 s", ""))
    report("end_to_end", rows, COLUMNS, peer=f"transformers {theirs.version}", dtype="float32", limits=limits)


if __name__ == "__main__":
    main()
