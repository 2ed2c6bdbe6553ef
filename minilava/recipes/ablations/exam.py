"""Asks a trained model about the world's test split and keeps a line per answer, so that runs are compared in pairs.

FOLDER/run.json, samples.jsonl   as every suite leaves them (eval.run)
FOLDER/likelihood.jsonl          a line per question: how likely the model finds its reference answer
FOLDER/preferences.jsonl         a line per pair of descriptions, where the exam has them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch

from minilava.config import IGNORE
from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.data.world import preference
from minilava.eval import world
from minilava.eval.item import Item
from minilava.eval.run import SAMPLES, Options, read_lines, run, same_settings, start, write_lines
from minilava.inputs.pack import pack
from minilava.inputs.sample import Sample
from minilava.recipes.ablations.plan import DESCRIPTION, PREFERENCES, Exam, likelihood
from minilava.runtime.vlm import VLM, load
from minilava.train.objective import log_probabilities
from minilava.train.ranks import Ranks
from minilava.train.reference import prepare
from minilava.train.weights import load_for_training

PAIRS, LIKELIHOODS = "preferences.jsonl", "likelihood.jsonl"
REPLY = 64  # tokens: a description of three events has about 50
BUDGET = 8192  # token rows of a pack


def sit(model: Path, folder: Path, exam: Exam, tasks: Sequence[str], questions: int) -> None:
    """Answer what is missing."""
    if not ((folder / SAMPLES).exists() and (folder / LIKELIHOODS).exists()):
        items = [i for task in tasks if task != PREFERENCES for i in asked(task, questions, exam.clip_frames)]
        asking = {"layout": exam.layout, "frames": exam.frames, "pool": exam.pool, "max_new_tokens": REPLY}
        vlm, options = load(model, cache_bytes=0), Options(asking=asking)  # no picture is asked about twice
        run(vlm, iter(items), folder, _settings(exam, tasks, questions), options, Ranks.start("auto"))
        write_lines(folder / LIKELIHOODS, list(likely(vlm, items, options)))
    if PREFERENCES in tasks and not (folder / PAIRS).exists():
        write_lines(folder / PAIRS, preferred(model, folder, exam, questions))


def done(folder: Path, exam: Exam, tasks: Sequence[str], questions: int) -> bool:
    """Whether every answer is there. UserError where the folder holds the answers to another exam."""
    same_settings(folder, _settings(exam, tasks, questions))
    wanted = [SAMPLES, LIKELIHOODS, *([PAIRS] if PREFERENCES in tasks else [])]
    return all((folder / name).exists() for name in wanted)


def _settings(exam: Exam, tasks: Sequence[str], questions: int) -> dict:
    return asdict(exam) | {"tasks": list(tasks), "questions": questions}


def lines(folder: Path) -> list[dict]:
    """All lines of a finished exam."""
    return [line for name in (SAMPLES, LIKELIHOODS, PAIRS) for line in read_lines(folder / name)]


@cache
def asked(task: str, questions: int, clip_frames: int | None) -> tuple[Item, ...]:
    """The questions of a task, the same for every model; DESCRIPTION has fewer, as their replies are long."""
    if task != DESCRIPTION:
        return tuple(world.items(task, questions, clip_frames))
    return tuple(_describe(index, clip_frames) for index in range(-(-questions // 4)))


def _describe(index: int, clip_frames: int | None) -> Item:
    """A clip to be described, scored by ROUGE-L against the right description of its preference record."""
    task = "video_caption"
    record = preference(task, "test", index, clip_frames=clip_frames)
    turn = (record["prompt"], record["chosen"])
    return Item(f"{record['id']}/description", DESCRIPTION, "open-ended", [turn], world.Media(task, index, clip_frames))


@torch.inference_mode()
def likely(vlm: VLM, items: Iterable[Item], options: Options) -> Iterator[dict]:
    """For every question the probability of the reference answer's tokens, their geometric mean: a weak model moves
    there long before its answers turn right."""
    held: list[tuple[Item, Sample]] = []

    def measured() -> Iterator[dict]:
        packed = pack([sample for _, sample in held], vlm.config.vision.patches).to(vlm.engine.device)
        sums, counts = log_probabilities(vlm.model, packed)
        for (item, _), score in zip(held, (sums / counts).exp().tolist(), strict=True):
            yield {"id": item.id, "turn": 0, "task": likelihood(item.task), "score": score}

    for item in items:
        turn = start(item, vlm, options).ask(vlm, options)
        reply = [*vlm.tokenizer.encode(turn.line["reference"], specials=False), vlm.tokenizer.im_end]
        labels = [IGNORE] * len(turn.sample.ids) + reply
        sample = replace(turn.sample, ids=turn.sample.ids + reply, labels=labels)
        if held and sample.tokens + sum(s.tokens for _, s in held) > BUDGET:
            yield from measured()
            held = []
        held.append((item, sample))
    yield from measured()


def preferred(model: Path, folder: Path, exam: Exam, pairs: int) -> list[dict]:
    """For every pair of descriptions whether the right one has the higher log-probability."""
    source = {
        "name": "test", "world": "video_qa,video_caption", "split": "test", "what": "preferences", "samples": pairs,
        "frames": exam.frames, "pool": exam.pool,
    }  # fmt: skip
    ranks = Ranks.start("auto")
    net, tokenizer = load_for_training(model, ranks.device)
    stream = Stream(load_mixture({"sources": [source]}), tokenizer, net.config, BUDGET, "pairs")
    values = prepare(folder, model, net.eval(), stream, ranks).values.tolist()
    return [
        {"id": f"{PREFERENCES}/{i}", "turn": 0, "task": PREFERENCES, "score": float(right > wrong), "chance": 0.5}
        for i, (right, wrong) in enumerate(values)
    ]
