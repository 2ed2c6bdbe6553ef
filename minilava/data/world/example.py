"""What a generator returns: media, questions about them with exact answers, and a dense description of each frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from PIL import Image

STYLES = {
    "word": ("Answer with one word.", "One word only.", "Use a single word."),
    "phrase": ("Answer with a short phrase.", "Answer briefly.", "Give a short answer."),
    "letter": ("Answer with the letter.", "Give the letter of the right answer.", "Choose one letter."),
    "option": ("Answer with the option and its letter.", "Give the right answer and its letter."),
    "each": ("Answer for each one.", "Go through all of them."),
    "sentence": ("Answer in a sentence.", "Answer with a full sentence."),
    "text": (),  # open answers: captions, stories, posts; the question says what is wanted
}


@dataclass(frozen=True)
class Question:
    """answer is exact but for the styles sentence and text, where it is one right wording.
    choices: how many answers a guess would choose from, None where a guess is hopeless."""

    text: str
    answer: str
    style: str = "word"
    choices: int | None = None


@dataclass
class Example:
    """kind: image, video or views. prompt: what stands before the first question, one <image> per frame, or one
    <video>. captions: a dense description per frame, for pre-training, or None. more: draws further questions of the
    same forms, for training."""

    kind: str
    frames: list[Image.Image]
    prompt: str
    questions: list[Question]
    captions: list[str] | None = None
    anyres: bool = False  # a picture that needs tiles
    preference: tuple[str, str, str] | None = None  # (question, right answer, subtly wrong answer) for DPO
    extra: dict = field(default_factory=dict)  # further metadata
    more: Callable[[], list[Question]] | None = None


def each(answers: Mapping[str, str]) -> str:
    """ "A yes, B no": an answer of the style "each"."""
    return ", ".join(f"{name} {answer}" for name, answer in answers.items())


def in_each(answers: Iterable[str]) -> str:
    """ "1 yes, 2 no": the same for pictures, in order."""
    return each({str(i): answer for i, answer in enumerate(answers, 1)})


def yes(right: bool) -> str:
    return "yes" if right else "no"


def say(rng: Random, forms: Sequence[str], **slots: object) -> str:
    """One of the forms with its {slots} filled."""
    return rng.choice(forms).format(**slots)


def a(name: str) -> str:
    """ "a red car", "an orange car"."""
    return ("an " if name[0] in "aeiou" else "a ") + name


def number_images(rng: Random, count: int, name: str = "Picture") -> str:
    """A prompt that names pictures: "Picture 1: <image>\nPicture 2: <image>\n", or without names."""
    if rng.random() < 0.8:
        return "".join(f"{name} {i + 1}: <image>\n" for i in range(count))
    return "<image>" * count + "\n"


def lettered(rng: Random, answer: str, wrong: Sequence[str]) -> tuple[str, str]:
    """(" (A) red (B) blue", letter of the answer): options in random order, the answer among the wrong ones."""
    options = [answer, *wrong]
    rng.shuffle(options)
    listed = " ".join(f"({'ABCDEFGH'[i]}) {o}" for i, o in enumerate(options))
    return listed, "ABCDEFGH"[options.index(answer)]
