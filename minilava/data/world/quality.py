"""Low-level perception: the same or different scenes with blur, noise or bad light, at clearly different levels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from minilava.data.world.example import Example, Question, say
from minilava.data.world.multi import ask_which, introduce
from minilava.data.world.scene import Scene, random_scene
from minilava.data.world.single import DESCRIBE, spoil

# fault -> what a picture with it is called, what has more of it, and what has less of it
FAULTS = {
    "blur": ("blurred", "more blurred", "sharper"),
    "noise": ("noisy", "noisier", "cleaner"),
    "dark": ("dark", "darker", "lighter"),
    "bright": ("bright", "brighter", "darker"),
    "faded": ("faded", "more faded", "stronger in contrast"),
}
STRENGTH = ("", "a little ", "very ")
NONE = "none"
WRONG = ("What is wrong with picture {k}?", "Which fault does picture {k} have?", "Name the fault of picture {k}.")
LISTED = ": blur, noise, dark, bright, faded or none?"
WHICH = ("Which picture is {more}?", "Find the picture that is {more}.")
THAN = ("Is picture {i} {more} than picture {j}?", "Compared with picture {j}, is picture {i} {more}?")
SAME = ("Do {both} pictures show the same scene?", "Are the same things in {both} pictures?")
LIKE = ("Which picture is more like picture 1, picture 2 or picture 3?", "Does picture 2 or picture 3 match picture 1?")
COMPARE = ("Compare the quality of the pictures.", "How good is each picture?")


@dataclass(frozen=True)
class Shot:
    """A scene as a bad camera sees it. level: 0 (as it is), 1 or 2."""

    scene: Scene
    fault: str = NONE
    level: int = 0

    @property
    def quality(self) -> str:
        """ "very blurred"; "clear" if nothing is wrong."""
        return STRENGTH[self.level] + FAULTS[self.fault][0] if self.level else "clear"

    def draw(self, rng: Random, size: int) -> Image.Image:
        picture = self.scene.draw(size)
        return _FILTERS[self.fault](rng, picture, self.level) if self.level else picture

    def caption(self) -> str:
        return f"{self.quality}: {self.scene.caption()}"


def low_level(rng: Random, size: int) -> Example:
    """Two or three shots: one fault at different levels, different faults, or one to be matched with another."""
    shots, questions = rng.choice((_levels, _levels, _faults, _faults, _match))(rng)
    k = _named(rng, shots)
    answer = shots[k].fault if shots[k].level else NONE
    wrong = say(rng, WRONG, k=k + 1)
    questions.append(Question(wrong[:-1] + LISTED if rng.random() < 0.3 else wrong, answer, choices=len(FAULTS) + 1))
    captions = [s.caption() for s in shots]
    summary = ", ".join(f"picture {i + 1} is {s.quality}" for i, s in enumerate(shots))
    questions.append(Question(say(rng, COMPARE), summary, "sentence"))
    rng.shuffle(questions)
    describe = say(rng, DESCRIBE, place=f"picture {k + 1}")
    preference = (describe, captions[k], replace(shots[k], scene=spoil(rng, shots[k].scene)).caption())
    frames = [s.draw(rng, size) for s in shots]
    return Example("image", frames, introduce(rng, len(shots)), questions, captions, preference=preference)


def _named(rng: Random, shots: list[Shot]) -> int:
    """The picture whose fault is to be named: no slight fault, and "none" as rarely as each of the others."""
    strong = [i for i, s in enumerate(shots) if s.level == 2]
    clear = [i for i, s in enumerate(shots) if s.level == 0]
    return rng.choice(clear if clear and (not strong or rng.random() < 0.2) else strong)


def _levels(rng: Random) -> tuple[list[Shot], list[Question]]:
    """One fault, every picture at another level of it."""
    fault = rng.choice(list(FAULTS))
    # A clear picture may well be brighter, or paler, than a faulty one of another scene.
    comparable = fault in ("bright", "faded")
    scenes, same = _scenes(rng, rng.choice((2, 2, 3)), comparable)
    levels = rng.sample((0, 1, 2), len(scenes))
    shots = [Shot(s, fault, level) for s, level in zip(scenes, levels, strict=True)]
    _, more, less = FAULTS[fault]
    i, j = rng.sample(range(len(shots)), 2)
    word, sign = rng.choice(((more, 1), (less, -1)))
    answer = "yes" if sign * levels[i] > sign * levels[j] else "no"
    questions = [
        Question(say(rng, THAN, i=i + 1, j=j + 1, more=word), answer, choices=2),
        *_which(rng, (more if len(shots) == 2 else f"the {_most(more)}"), levels.index(max(levels)), len(shots)),
    ]
    return shots, questions if comparable else [*questions, _same(rng, len(shots), same)]


def _faults(rng: Random) -> tuple[list[Shot], list[Question]]:
    """Every picture with a fault of its own, or with none."""
    scenes, same = _scenes(rng, rng.choice((2, 2, 3)))
    faults = rng.sample([*FAULTS, NONE], len(scenes))
    shots = [Shot(s, f, 0 if f == NONE else 2) for s, f in zip(scenes, faults, strict=True)]
    k = rng.randrange(len(shots))
    wanted = FAULTS[faults[k]][0] if shots[k].level else "without a fault"
    wanted = f"too {wanted}" if faults[k] in ("dark", "bright") else wanted
    return shots, [*_which(rng, wanted, k, len(shots)), _same(rng, len(shots), same)]


def _match(rng: Random) -> tuple[list[Shot], list[Question]]:
    """The scene of the first picture comes again, in another quality, beside another scene."""
    scene = random_scene(rng, 2, 4)
    pair = [Shot(scene, rng.choice(list(FAULTS)), 2), Shot(random_scene(rng, 2, 4), rng.choice(list(FAULTS)), 2)]
    again = rng.randrange(2)
    shots = [Shot(scene), pair[again], pair[1 - again]]
    return shots, ask_which(say(rng, LIKE), 1 + again, (1, 2))


def _scenes(rng: Random, count: int, always: bool = False) -> tuple[list[Scene], bool]:
    """As many scenes, all the same (or always so) or all different, and whether they are the same."""
    same = always or rng.random() < 0.5
    first = random_scene(rng, 1, 4)
    return [first if same or i == 0 else random_scene(rng, 1, 4) for i in range(count)], same


def _same(rng: Random, count: int, same: bool) -> Question:
    return Question(say(rng, SAME, both="both" if count == 2 else "all"), "yes" if same else "no", choices=2)


def _which(rng: Random, more: str, right: int, count: int) -> list[Question]:
    return ask_which(say(rng, WHICH, more=more), right, range(count))


def _most(more: str) -> str:
    """ "more blurred" -> "most blurred", "darker" -> "darkest"."""
    return more.replace("more ", "most ") if more.startswith("more ") else more.removesuffix("er") + "est"


def _blur(rng: Random, picture: Image.Image, level: int) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur((0.022, 0.06)[level - 1] * picture.width))


def _noise(rng: Random, picture: Image.Image, level: int) -> Image.Image:
    values = np.asarray(picture, np.int16)
    grain = np.frombuffer(rng.randbytes(values.size), np.int8).reshape(values.shape).astype(np.int16)
    return Image.fromarray(np.clip(values + grain * (1, 3)[level - 1] // 3, 0, 255).astype(np.uint8))


def _lift(black: float, white: float):
    """A filter that maps 0 to black and 255 to white; level 1 goes only part of the way."""

    def apply(rng: Random, picture: Image.Image, level: int) -> Image.Image:
        part = (0.45, 1)[level - 1]
        low, high = part * black, 255 + part * (white - 255)
        return picture.point([round(low + v * (high - low) / 255) for v in range(256)] * 3)

    return apply


_FILTERS = {"blur": _blur, "noise": _noise, "dark": _lift(0, 60), "bright": _lift(180, 255), "faded": _lift(95, 155)}
