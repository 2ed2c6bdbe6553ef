"""Asks a trained model about the world's test split and keeps a line per answer, so that runs are compared in pairs.

FOLDER/run.json, samples.jsonl   as every suite leaves them (eval.run)
FOLDER/preferences.jsonl         a line per pair of descriptions, where the exam has them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.data.world import preference
from minilava.eval import world
from minilava.eval.item import Item
from minilava.eval.run import SAMPLES, Options, read_lines, run, same_settings, write_lines
from minilava.recipes.ablations.plan import DESCRIPTION, PREFERENCES, Exam
from minilava.runtime.vlm import load
from minilava.train.ranks import Ranks
from minilava.train.reference import prepare
from minilava.train.weights import load_for_training

PAIRS = "preferences.jsonl"
REPLY = 64  # tokens: a description of three events has about 50
BUDGET = 8192  # token rows of a pack of pairs


def sit(model: Path, folder: Path, exam: Exam, tasks: Sequence[str], questions: int) -> None:
    """Answer what is missing."""
    if not (folder / SAMPLES).exists():
        items = [i for task in tasks if task != PREFERENCES for i in asked(task, questions, exam.clip_frames)]
        asking = {"layout": exam.layout, "frames": exam.frames, "pool": exam.pool, "max_new_tokens": REPLY}
        vlm = load(model, cache_bytes=0)  # no picture is asked about twice
        run(vlm, iter(items), folder, _settings(exam, tasks, questions), Options(asking=asking), Ranks.start("auto"))
    if PREFERENCES in tasks and not (folder / PAIRS).exists():
        write_lines(folder / PAIRS, preferred(model, folder, exam, questions))


def done(folder: Path, exam: Exam, tasks: Sequence[str], questions: int) -> bool:
    """Whether every answer is there. UserError where the folder holds the answers to another exam."""
    same_settings(folder, _settings(exam, tasks, questions))
    return (folder / SAMPLES).exists() and (PREFERENCES not in tasks or (folder / PAIRS).exists())


def _settings(exam: Exam, tasks: Sequence[str], questions: int) -> dict:
    return asdict(exam) | {"tasks": list(tasks), "questions": questions}


def lines(folder: Path) -> list[dict]:
    """All lines of a finished exam."""
    return read_lines(folder / SAMPLES) + read_lines(folder / PAIRS)


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
