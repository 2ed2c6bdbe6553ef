"""Tasks that no stage trains, made of ones that it does: what carries over between scenarios (paper, section 6).

The paper shows a model trained on posts about pictures and on questions about videos write a post about a video, and
one that knows jokes in one picture explain one in several. Here questions of the M4 world's test split are asked of
media in another scenario's form. No mixture in minilava/recipes has these forms; every answer is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from PIL import Image

from minilava.data.world import example
from minilava.data.world.example import STYLES
from minilava.eval.item import Column, Item, Layout, Suite
from minilava.eval.world import EXACT, MAX_NEW_TOKENS

LABELS = re.compile(r"[A-H]\)?:? ?<image>")  # letters beside pictures, which frames of a video cannot have
WORDS = re.compile(r"(?i)picture|view(?=s?\b)")


@dataclass(frozen=True)
class Form:
    """How media are shown. of: how many records stand side by side, one of which the question is about."""

    kind: str  # of the medium: image or video
    of: int = 1

    def prompt(self, frames: int, asked: int) -> str:
        """What stands before the question. frames: of every record. asked: which record it is about."""
        if self.of > 1:
            word = "Video" if self.kind == "video" else "Picture"
            head = "".join(f"{word} {i + 1}: <{self.kind}>\n" for i in range(self.of))
            return f"{head}Look at {word.lower()} {asked + 1}. "
        if self.kind == "video":
            return "<video>\n"
        return "".join(f"Frame {i + 1}: <image>\n" for i in range(frames))

    def media(self, records: Sequence[list[Image.Image]]) -> list[tuple[str, Any]]:
        if self.kind == "video":
            return [("video", frames) for frames in records]
        return [("image", frame) for frames in records for frame in frames]


@dataclass(frozen=True)
class Task:
    """source: the world's task that is asked. trained: the tasks that each know one half of it."""

    source: str
    form: Form
    trained: tuple[str, ...]


AS_VIDEO, AS_PICTURES = Form("video"), Form("image")
TASKS = {
    "post_about_video": Task("daily", AS_VIDEO, ("daily", "video_qa")),
    "difference_in_video": Task("spot_difference", AS_VIDEO, ("spot_difference", "video_qa")),
    "edit_in_video": Task("image_edit", AS_VIDEO, ("image_edit", "video_qa")),
    "story_in_video": Task("visual_story", AS_VIDEO, ("visual_story", "video_qa")),
    "documents_in_video": Task("text_rich", AS_VIDEO, ("text_rich", "video_qa")),
    "faults_in_video": Task("low_level", AS_VIDEO, ("low_level", "video_qa")),
    "room_in_video": Task("scene_vqa", AS_VIDEO, ("scene_vqa", "video_qa")),
    "video_in_pictures": Task("video_qa", AS_PICTURES, ("video_qa", "visual_story")),
    "one_of_three_pictures": Task("single_image", Form("image", 3), ("single_image", "multi_image_vqa")),
    "one_of_two_videos": Task("video_qa", Form("video", 2), ("video_qa", "multi_image_vqa")),
}


def _items(data: Path | None, limit: int | None) -> Iterator[Item]:
    for name in TASKS:
        yield from items(name, limit)


def items(name: str, limit: int | None) -> Iterator[Item]:
    """The first questions of one task."""
    return islice((item for index in count() if (item := _item(name, index))), limit)


def _item(name: str, index: int) -> Item | None:
    """A question of record ``index``; None where it has none that can be asked in this form."""
    task = TASKS[name]
    made, rng = example(task.source, "test", index)
    questions = [q for q in made.questions if q.style in EXACT]
    if not questions or made.anyres or LABELS.search(made.prompt):
        return None
    question, place = rng.choice(questions), rng.randrange(task.form.of)
    text = question.text if task.form.of > 1 else WORDS.sub(_frame, question.text)
    prompt = f"{task.form.prompt(len(made.frames), place)}{text} {rng.choice(STYLES[question.style])}"
    extra = {"chance": 1 / question.choices if question.choices else 0.0, "trained": ", ".join(task.trained)}

    def media() -> list[tuple[str, Any]]:
        shown = [example(task.source, "test", index + (i - place) % task.form.of)[0] for i in range(task.form.of)]
        return task.form.media([one.frames for one in shown])

    return Item(f"emerging/{name}/{index}", name, "exact", [(prompt, question.answer)], media, extra)


def _frame(word: re.Match) -> str:
    return "Frame" if word[0][0].isupper() else "frame"


EMERGING = Suite(
    _items,
    Layout(tuple(Column(name, (name,)) for name in TASKS), {"all": tuple(TASKS)}),
    max_new_tokens=MAX_NEW_TOKENS,
    limit=200,
)
