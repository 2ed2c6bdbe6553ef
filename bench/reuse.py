"""python -m bench.reuse: what a second question saves (pictures and prompts that are known), and what drafts gain.

Time to first token counts everything from the picture files on. A first question decodes, encodes and reads; a second
one decodes the files, hashes the patches, and reads what is new. In a new process with --cache-dir the pictures are
read from disk, after the weights have been hashed. Drafts gain as much as a text repeats itself: a random model does
nothing else and shows the most there is to gain; the embedded one answers in its own words.
Answers are compared with those of a model that keeps nothing before anything is timed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import minilava
from bench.end_to_end import PHOTOS
from bench.harness import in_turns, median, progress, report
from minilava.data.world import make
from minilava.inputs.sample import Medium, place_media
from minilava.runtime.vlm import VLM, Request

COLUMNS = ["what", "before", "now", "unit", "ratio", "target", "guesses right"]
FIRST = "What do these two pictures have in common?"
SECOND = "Which of them shows an animal?"
WORDS = ("visual_story", "image_caption", "video_caption", "spot_difference")  # tasks with whole sentences for answers
DRAFTS = (2, 4, 8)


def chat(vlm: VLM, answer: str | None = None):
    """The first question, or with its answer the turn after it."""
    one, two = ({"type": "image", "image": photo} for photo in PHOTOS)
    messages = [{"role": "user", "content": [one, two, {"type": "text", "text": "What is new in the second?"}]}]
    if answer is not None:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Are you sure?"}]
    return vlm.chat(messages, max_new_tokens=16)


def questions(load: Callable[..., VLM], repeats: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        plain, vlm, disk = load(cache_bytes=0), load(), load(cache_dir=folder)

        def ask(model: VLM, prompt: str):
            return model.generate(prompt, PHOTOS, max_new_tokens=16)

        def fresh(model: VLM, reply: Callable):
            model.forget()
            return reply(model)

        answer = chat(plain).text
        for reply in (lambda m: ask(m, FIRST), lambda m: ask(m, SECOND), chat, lambda m: chat(m, answer)):
            wanted = reply(plain).token_ids
            for model in (vlm, disk):
                assert reply(model).token_ids == wanted, "a model that keeps something answers otherwise"
        known = [ask(vlm, FIRST).timings[key] for key in ("cached_views", "cached_prompt_tokens")]
        assert all(known), f"nothing was known: {known}"
        times = in_turns(
            {
                "disk": lambda: fresh(disk, lambda m: ask(m, FIRST)).timings["ttft_s"],
                "first": lambda: fresh(vlm, lambda m: ask(m, FIRST)).timings["ttft_s"],
                "second": lambda: ask(vlm, SECOND).timings["ttft_s"],
                "turn 1": lambda: fresh(vlm, chat).timings["ttft_s"],
                "turn 2": lambda: chat(vlm, answer).timings["ttft_s"],
            },
            repeats,
        )
    ms = {name: 1000 * median(values) for name, values in times.items()}
    return [
        row("another question about two pictures", ms["first"], ms["second"], "ms to first token", ">= 20"),
        row("the next turn about them", ms["turn 1"], ms["turn 2"], "ms to first token", ">= 20"),
        row("the first question, pictures on disk", ms["first"], ms["disk"], "ms to first token", ""),
    ]


def row(what: str, before: float, now: float, unit: str, target: str, right: float | str = "") -> dict:
    ratio = now / before if unit == "tokens/s" else before / now
    return dict(zip(COLUMNS, (what, before, now, unit, ratio, target, right), strict=True))


def stories(vlm: VLM, number: int) -> list[Request]:
    """Requests for an answer in sentences."""
    found = []
    for task in WORDS:
        records = (make(task, "test", index, seed=0) for index in count())
        for record, _ in zip(records, range(number), strict=False):
            frames = record.get("video") or record["image"]
            whole = [Medium("video", frames, vlm.config.asking.pool)]
            media = whole if "video" in record else [Medium("image", [frame]) for frame in frames]
            content = place_media(record["conversations"][0]["value"], media)
            found.append(vlm.request([{"role": "user", "content": content}], max_new_tokens=48))
    return found


def drafts(load: Callable[..., VLM], repeats: int, number: int) -> list[dict]:
    vlm = load(cache_bytes=1 << 28)
    requests, right = stories(vlm, number), {}

    def run(most: int):
        for request in requests:
            request.draft = most
        return [vlm.batch([request])[0] for request in requests]

    def decode(most: int) -> float:
        """Seconds per token after the first."""
        replies = run(most)
        guessed = sum(r.timings["draft_tokens"] for r in replies)
        right[most] = sum(r.timings["draft_accepted"] for r in replies) / guessed if guessed else 0.0
        return sum(r.timings["decode_s"] for r in replies) / sum(len(r.token_ids) - 1 for r in replies)

    wanted = [r.token_ids for r in run(0)]
    for most in DRAFTS:
        assert [r.token_ids for r in run(most)] == wanted, f"drafts of {most} change an answer"
    times = in_turns({most: lambda most=most: decode(most) for most in (0, *DRAFTS)}, repeats)
    speed = {most: 1 / median(values) for most, values in times.items()}
    return [row(f"decode, drafts of {n}", speed[0], speed[n], "tokens/s", "", right[n]) for n in DRAFTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the embedded model; the targets are for the 0.5B shape")
    parser.add_argument("--quant", choices=("none", "int8", "int4"), default="none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stories", type=int, default=6, help="texts per task to decode")
    parser.add_argument("--drafts", action=argparse.BooleanOptionalAction, default=True, help="long at 0.5B")
    args = parser.parse_args()

    def load(**options) -> VLM:
        return minilava.load(args.model, device="cpu", dtype="float32", quant=args.quant, **options)

    progress("questions")
    rows = questions(load, args.repeats)
    if args.drafts:
        progress("drafts")
        rows += drafts(load, args.repeats, args.stories)
    report("reuse", rows, COLUMNS, model=Path(args.model).name if args.model else "embedded", quant=args.quant)


if __name__ == "__main__":
    main()
