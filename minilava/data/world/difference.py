"""spot_difference: two pictures that are the same, or differ in exactly one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, a, lettered, number_images, say, yes
from minilava.data.world.scene import ALL, CELLS, Scene, Thing, other, random_scene, random_thing

CHANGES = ("color", "kind", "size", "moved", "removed", "added")
NAMES = len(draw.COLORS) * len(draw.KINDS)  # how many things can be named by colour and kind
IDENTICAL = 0.2  # of all pairs

PAIRS = (
    "First <image> then <image>\n",
    "Before: <image>\nAfter: <image>\n",
    "Here are picture 1 <image> and picture 2 <image>\n",
    "<image>\nThis was picture 1. Now picture 2:\n<image>\n",
)
SAME = ("Are the two pictures the same?", "Are both pictures the same?", "Is picture 2 the same as picture 1?")
WHAT = ("What kind of change is it?", "Which kind of difference is there?", "How do the pictures differ?")
CHOOSE = " Choose from color, kind, size, moved, removed, added, none."
PLACE = ("Where is the difference?", "At which place do the pictures differ?", "Where did something change?")
AT = ("Is there a difference at the {where}?", "Do the pictures differ at the {where}?")
SENTENCE = ("Describe the difference.", "What is the difference between the pictures?", "What changed?")
COLOR_WAS = ("Which color did the changed thing have in picture 1?", "What color was the changed thing before?")
COLOR_IS = ("Which color does the changed thing have in picture 2?", "What color did it become?")
KIND_WAS = ("Which kind of thing was it in picture 1?", "What kind was the changed thing before?")
KIND_IS = ("Which kind of thing is it in picture 2?", "What kind did the changed thing become?")
LARGER = ("Did the changed thing become larger or smaller?", "Is the changed thing larger or smaller in picture 2?")
RESIZED = ("Which thing changed its size?", "Which thing has another size in picture 2?")
MOVED = ("What moved?", "Which thing moved?", "Which thing is in another place in picture 2?")
CAME_FROM = ("Where was the moved thing in picture 1?", "From which place did the thing move?")
WENT_TO = ("Where is the moved thing in picture 2?", "To which place did the thing move?")
REMOVED = ("What was removed?", "What is missing in picture 2?", "Which thing is only in picture 1?")
ADDED = ("What was added?", "What is new in picture 2?", "Which thing is only in picture 2?")


@dataclass(frozen=True)
class Change:
    """what: one of CHANGES. before: the thing in picture 1 (None where one was added), after: in picture 2."""

    what: str
    before: Thing | None
    after: Thing | None

    def apply(self, scene: Scene) -> Scene:
        if self.before:
            scene = scene.without(self.before)
        return scene.having(self.after) if self.after else scene

    def sentence(self) -> str:
        """The difference in its one regular wording."""
        old, new = self.before, self.after
        match self.what:
            case "color":
                return f"The {old.name} at the {old.where} became {new.color}."
            case "kind":
                return f"The {old.name} at the {old.where} became {a(new.kind)}."
            case "size":
                return f"The {old.name} at the {old.where} became {larger(new)}."
            case "moved":
                return f"The {old.name} moved from the {old.where} to the {new.where}."
            case "removed":
                return f"The {old.name} at the {old.where} was removed."
            case _:
                return f"{a(new.name).capitalize()} was added at the {new.where}."


def larger(thing: Thing) -> str:
    """What a thing became that now has this size."""
    return "larger" if thing.size == "large" else "smaller"


def random_change(rng: Random, scene: Scene, what: str) -> Change:
    """A change after which colour and kind still name each thing alone."""
    while True:
        change = _change(rng, scene, what)
        if len(change.apply(scene).unique()) == len(change.apply(scene).things):
            return change


def _change(rng: Random, scene: Scene, what: str) -> Change:
    free = [c for c in range(9) if not scene.at(c)]
    if what == "added":
        return Change(what, None, random_thing(rng, rng.choice(free)))
    old = rng.choice(scene.things)
    match what:
        case "color":
            new = replace(old, color=other(rng, ALL.colors, old.color))
        case "kind":
            new = replace(old, kind=other(rng, ALL.kinds, old.kind))
        case "size":
            new = replace(old, size=other(rng, ALL.sizes, old.size))
        case "moved":
            new = replace(old, cell=rng.choice(free))
        case _:
            new = None
    return Change(what, old, new)


def pair_prompt(rng: Random) -> str:
    return rng.choice(PAIRS) if rng.random() < 0.5 else number_images(rng, 2)


def unlike(make: Callable[[], str], answer: str) -> str:
    """What ``make`` gives at the first time that it is not the answer."""
    while (text := make()) == answer:
        pass
    return text


def spot_difference(rng: Random, size: int) -> Example:
    """Two to four things; a fifth of the pairs are identical.

    The shares below balance the answers, both over all questions and over one drawn from each sample (an identical
    pair has fewer): yes against no, and "none" against each kind of change.
    """
    scene = random_scene(rng, 2, 4, distinct=True)
    if rng.random() < IDENTICAL:
        return _example(rng, size, scene, scene, _identical(rng, scene), None, lambda: _identical(rng, scene))
    what = rng.choice(CHANGES)
    change = random_change(rng, scene, what)
    sentence = change.sentence()
    wrong = unlike(lambda: random_change(rng, scene, what).sentence(), sentence)

    def about() -> list[Question]:
        questions = _general(rng, scene, change) + _details(rng, change)
        if rng.random() < 0.35:
            questions.append(Question(say(rng, SAME), "no", choices=2))
        return questions

    questions = about()
    return _example(rng, size, scene, change.apply(scene), questions, (say(rng, SENTENCE), sentence, wrong), about)


def _example(
    rng: Random,
    size: int,
    first: Scene,
    second: Scene,
    questions: list[Question],
    preference: tuple | None,
    about: Callable[[], list[Question]],
) -> Example:
    rng.shuffle(questions)
    frames = [first.draw(size), second.draw(size)]
    captions = [first.caption(), second.caption()]

    def more() -> list[Question]:
        """With every place where a thing is in either picture."""
        cells = sorted({t.cell for s in (first, second) for t in s.things})
        differ = {c: first.at(c) != second.at(c) for c in rng.sample(cells, len(cells))}
        places = [Question(say(rng, AT, where=CELLS[c]), yes(d), choices=2) for c, d in differ.items()]
        return [*about(), *places]

    return Example("image", frames, pair_prompt(rng), questions, captions, preference=preference, more=more)


def _identical(rng: Random, scene: Scene) -> list[Question]:
    out = [
        Question(say(rng, SAME), "yes", choices=2),
        Question(say(rng, AT, where=rng.choice(scene.things).where), "no", choices=2),
        Question(say(rng, SENTENCE), "There is no difference.", "sentence"),
    ]
    return [*out, _what(rng, "none")] if rng.random() < 0.5 else out


def _what(rng: Random, what: str) -> Question:
    """The kind of change as a word or a letter."""
    text, answers = say(rng, WHAT), (*CHANGES, "none")
    if rng.random() < 0.5:
        return Question(text + rng.choice(("", CHOOSE)), what, choices=len(answers))
    listed, letter = lettered(rng, what, rng.sample([c for c in answers if c != what], 3))
    return Question(f"{text} {listed}", letter, "letter", 4)


def _general(rng: Random, scene: Scene, change: Change) -> list[Question]:
    """What can be asked about every change."""
    old, new = change.before, change.after
    out = [_what(rng, change.what), Question(say(rng, SENTENCE), change.sentence(), "sentence")]
    cells = {t.cell for t in (old, new) if t}
    if len(cells) == 1:
        out.append(Question(say(rng, PLACE), CELLS[min(cells)], "phrase", len(CELLS)))
    same = [t.cell for t in scene.things if t.cell not in cells]
    if rng.random() < 0.7:
        out.append(Question(say(rng, AT, where=CELLS[rng.choice(sorted(cells))]), "yes", choices=2))
    else:
        out.append(Question(say(rng, AT, where=CELLS[rng.choice(same)]), "no", choices=2))
    return out


def _details(rng: Random, change: Change) -> list[Question]:
    """What the changed thing was and has become, asked without naming it."""
    old, new = change.before, change.after
    match change.what:
        case "color":
            asked = ((COLOR_WAS, old.color, "word", len(draw.COLORS)), (COLOR_IS, new.color, "word", len(draw.COLORS)))
        case "kind":
            asked = ((KIND_WAS, old.kind, "word", len(draw.KINDS)), (KIND_IS, new.kind, "word", len(draw.KINDS)))
        case "size":
            asked = ((LARGER, larger(new), "word", 2), (RESIZED, old.name, "phrase", NAMES))
        case "moved":
            asked = (
                (MOVED, old.name, "phrase", NAMES),
                (CAME_FROM, old.where, "phrase", len(CELLS)),
                (WENT_TO, new.where, "phrase", len(CELLS)),
            )
        case "removed":
            asked = ((REMOVED, old.name, "phrase", NAMES),)
        case _:
            asked = ((ADDED, new.name, "phrase", NAMES),)
    return [Question(say(rng, forms), answer, style, choices) for forms, answer, style, choices in asked]
