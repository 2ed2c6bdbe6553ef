"""The M4 world: procedural pictures with exact answers, one generator for each of the paper's tasks (Table 15).

    make(task, split, index)    one record in the M4-Instruct form, its media being PIL pictures
    World(task, ...)            a sequence of them

Sample i of a split depends on (seed, split, task, i) alone, so nothing is stored and any position can be resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from random import Random

from minilava.data.world.example import STYLES, Example, Question
from minilava.data.world.practice import asked as asked_often
from minilava.errors import UserError

SPLITS = ("train", "validation", "test")
DESCRIBED = 0.6  # share of conversations in which one frame is described
FRAMES = {"image": "picture", "views": "view", "video": "frame"}
# task -> (module, scenario); the function in the module has the task's name.
TASKS = {
    "spot_difference": ("difference", "multi-image"),
    "image_edit": ("editing", "multi-image"),
    "visual_story": ("story", "multi-image"),
    "text_rich": ("text", "multi-image"),
    "multi_image_vqa": ("multi", "multi-image"),
    "low_level": ("quality", "multi-image"),
    "image_caption": ("captions", "multi-image"),
    "daily": ("daily", "multi-image"),
    "puzzle": ("puzzle", "multi-image"),
    "video_qa": ("video", "video"),
    "video_caption": ("video", "video"),
    "scene_vqa": ("rooms", "multi-view"),
    "embodied_vqa": ("house", "multi-view"),
    "single_image": ("single", "single-image"),
}


def example(
    task: str, split: str, index: int, size: int = 128, seed: int = 0, clip_frames: int | None = None
) -> tuple[Example, Random]:
    """The media and all questions of one sample, and the generator for whatever is still to be chosen.

    clip_frames: how many frames a video is drawn in, which shows the same events; None: its own six.
    """
    if task not in TASKS or split not in SPLITS:
        raise UserError(f"{task!r} of {split!r}: tasks are {', '.join(TASKS)}; splits {', '.join(SPLITS)}")
    digest = hashlib.blake2b(f"{seed}:{split}:{task}:{index}".encode(), digest_size=8).digest()
    rng = Random(int.from_bytes(digest, "little"))
    generator = getattr(import_module(f"minilava.data.world.{TASKS[task][0]}"), task)
    more = (clip_frames,) if clip_frames and TASKS[task][1] == "video" else ()
    return generator(rng, size, *more), rng


def make(
    task: str,
    split: str,
    index: int,
    size: int = 128,
    seed: int = 0,
    turns: int = 1,
    clip_frames: int | None = None,
    practice: bool = False,
) -> dict:
    """One record: at most ``turns`` questions as one conversation. ``image`` or ``video`` holds PIL pictures.

    Of several turns one is often the dense description of one frame: it ties every word to a picture, where an answer
    of one word says little. practice: instead, more questions on the same media, some of them with lettered options.
    """
    made, rng = example(task, split, index, size, seed, clip_frames)
    asked = asked_often(rng, made, turns) if practice else rng.sample(made.questions, min(turns, len(made.questions)))
    if not practice and turns > 1 and len(made.frames) > 1 and made.captions and rng.random() < DESCRIBED:
        frame = rng.randrange(len(made.frames))
        question = f"Describe {FRAMES[made.kind]} {frame + 1}."
        asked[rng.randrange(len(asked))] = Question(question, made.captions[frame], "text")
    messages = []
    for i, q in enumerate(asked):
        hint = " " + rng.choice(STYLES[q.style]) if STYLES[q.style] else ""
        messages.append({"from": "human", "value": (made.prompt if i == 0 else "") + q.text + hint})
        messages.append({"from": "gpt", "value": q.answer})
    return _record(made, task, split, index, messages, asked[0].style, asked[0].choices)


def caption(task: str, split: str, index: int, size: int = 128, seed: int = 0) -> dict | None:
    """One frame of a sample with its dense description, for the stages that align pictures and words."""
    made, rng = example(task, split, index, size, seed)
    if not made.captions:
        return None
    frame = rng.randrange(len(made.frames))
    picture = Example("image", [made.frames[frame]], "<image>\n", [], anyres=made.anyres)
    messages = [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": made.captions[frame]}]
    return _record(picture, task, split, index, messages, "text", None)


def preference(
    task: str, split: str, index: int, size: int = 128, seed: int = 0, clip_frames: int | None = None
) -> dict | None:
    """One DPO record: prompt, chosen and rejected, the wrong one differing in a detail."""
    made, _ = example(task, split, index, size, seed, clip_frames)
    if made.preference is None:
        return None
    question, chosen, rejected = made.preference
    record = _record(made, task, split, index, [], "text", None)
    del record["conversations"]
    return record | {"prompt": made.prompt + question, "chosen": chosen, "rejected": rejected}


def _record(
    made: Example, task: str, split: str, index: int, messages: list[dict], style: str, choices: int | None
) -> dict:
    media = {"video" if made.kind == "video" else "image": made.frames}
    metadata = {
        "dataset": "world",
        "split": split,
        "task": task,
        "scenario": TASKS[task][1],
        "question_type": style,
        "choices": choices,
        "anyres": made.anyres,
    }
    return {
        "id": f"world/{split}/{task}/{index}",
        **media,
        "conversations": messages,
        "metadata": metadata | made.extra,
    }


class World(Sequence):
    """``samples`` records of one task, or of all tasks in turn. what: "questions", "captions" or "preferences"."""

    def __init__(
        self,
        task: str = "all",
        split: str = "train",
        samples: int = 1000,
        turns: int = 1,
        size: int = 128,
        seed: int = 0,
        what: str = "questions",
        clip_frames: int | None = None,
        practice: bool = False,
    ):
        self.tasks = tuple(TASKS) if task == "all" else tuple(task.split(","))
        unknown = [t for t in self.tasks if t not in TASKS]
        if unknown or split not in SPLITS or what not in ("questions", "captions", "preferences"):
            raise UserError(f"world: no task {unknown}, split {split!r} or kind {what!r}; tasks: {', '.join(TASKS)}")
        self.split, self.samples, self.turns, self.size, self.seed, self.what = split, samples, turns, size, seed, what
        self.clip_frames, self.practice = clip_frames, practice

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.samples:
            raise IndexError(i)
        task, index = self.tasks[i % len(self.tasks)], i // len(self.tasks)
        if self.what == "questions":
            return make(task, self.split, index, self.size, self.seed, self.turns, self.clip_frames, self.practice)
        if self.what == "captions":
            record = caption(task, self.split, index, self.size, self.seed)
        else:
            record = preference(task, self.split, index, self.size, self.seed, self.clip_frames)
        if record is None:
            raise UserError(f"world: {task} has no {self.what}")
        return record
