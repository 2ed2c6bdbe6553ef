"""python -m bench.evaluate: questions per second of minilava.eval on the M4 world, beside transformers one by one.

The same checkpoint (the embedded one, whose side of 128 pixels the pictures have), the same questions and greedy
answers, in turns, drawing included. No pooling and no tiles, which the reference has not. Answers are compared before
anything is timed: of two tokens that are equally likely, two float32 implementations may choose differently.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

import minilava
from bench.harness import in_turns, median, progress, report
from bench.world import replies
from minilava.data.world import TASKS
from minilava.errors import UserError, command
from minilava.eval.item import Item
from minilava.eval.world import MAX_NEW_TOKENS, items
from minilava.runtime.vlm import TINY

AGREE = 0.98
TARGET = 5.0


class OneByOne:
    """transformers as its documentation shows it: chat template, processor, generate."""

    def __init__(self, dtype: torch.dtype):
        import transformers

        self.version = transformers.__version__
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(TINY, dtype=dtype).eval()
        self.dtype = dtype
        self.patches = (self.model.config.vision_config.image_size // self.model.config.vision_config.patch_size) ** 2

    def answers(self, asked: Sequence[Item]) -> list[str]:
        return [self.answer(item) for item in asked]

    @torch.inference_mode()
    def answer(self, item: Item) -> str:
        ((question, _),) = item.turns
        pictures = [p for kind, source in item.media() for p in (source if kind == "video" else [source])]
        texts = question.replace("<video>", "<image>" * len(pictures)).split("<image>")
        content = [part for text in texts for part in ({"type": "image"}, {"type": "text", "text": text})][1:]
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        given = self.tokenizer(prompt.replace("<image>", "<image>" * self.patches), return_tensors="pt")
        pixels = np.stack([np.asarray(p, np.float32) for p in pictures])
        out = self.model.generate(
            **given, pixel_values=torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).to(self.dtype),
            max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
        )  # fmt: skip
        return self.tokenizer.decode(out[0, given.input_ids.shape[1] :], skip_special_tokens=True).strip()


def ours(vlm, asked: Sequence[Item]) -> list[str]:
    return [line["answer"] for line in replies(vlm, asked, pool="none", anyres=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-task", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="append the result to bench/results")
    args = parser.parse_args()
    asked = [item for task in TASKS for item in items(task, args.per_task) if not item.anyres]
    sides = {}
    for name in ("float32", "bfloat16"):
        peer = OneByOne(getattr(torch, name))
        sides[f"transformers {peer.version} {name}, one by one"] = partial(peer.answers, asked)
    for name, dtype, quant in (("float32", "float32", "none"), ("default", "auto", "none"), ("int8", "auto", "int8")):
        vlm = minilava.load(device="cpu", dtype=dtype, quant=quant, cache_bytes=0)
        sides[f"minilava {name}"] = partial(ours, vlm, asked)
    texts = {}
    for name, side in sides.items():
        progress(f"answers of {name}")
        texts[name] = side()
    reference, *_ = texts.values()
    same = {
        name: sum(a == b for a, b in zip(reference, said, strict=True)) / len(asked) for name, said in texts.items()
    }
    if same["minilava float32"] < AGREE:
        raise UserError(f"only {same['minilava float32']:.1%} of the float32 answers agree")
    seconds = {name: median(times) for name, times in in_turns(sides, args.repeats).items()}
    best = min(s for name, s in seconds.items() if not name.startswith("minilava"))
    rows = [
        {"what": name, "questions/s": len(asked) / s, "ratio": best / s, "same answers": same[name],
         "target": TARGET if name.startswith("minilava") else ""}
        for name, s in seconds.items()
    ]  # fmt: skip
    report("evaluate", rows, list(rows[0]), args.keep, model="embedded", questions=len(asked), repeats=args.repeats)


if __name__ == "__main__":
    sys.exit(command(main))
