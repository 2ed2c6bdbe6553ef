"""image_edit: a picture before and after an edit, and the instruction that turns the first into the second."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from minilava.data.world import draw
from minilava.data.world.difference import NAMES, Change, larger, pair_prompt, random_change
from minilava.data.world.example import Example, Question, a, lettered, say
from minilava.data.world.scene import CELLS, Scene, other, random_scene

# The edits of a thing and the change that each makes; "background" is an edit of the whole picture.
CHANGE_OF = {"color": "color", "kind": "kind", "size": "size", "move": "moved", "remove": "removed", "add": "added"}
ALL_EDITS = (*CHANGE_OF, "background")

WRITE = (
    "Which instruction turns picture 1 into picture 2?",
    "Write the instruction for this edit.",
    "How was picture 1 edited to get picture 2?",
)
PICK = ("Which instruction was followed?", "Which edit turns picture 1 into picture 2?", "Choose the edit.")
FITS = ('Does "{instruction}" describe the edit?', 'Was the instruction "{instruction}"?')
KIND = ("Which kind of edit is it?", "What kind of edit was made?")
CHOOSE = " Choose from color, kind, size, move, remove, add, background."
THING = ("Which thing of picture 1 was edited?", "Which thing of picture 1 did the edit change?")
NEW_COLOR = ("Which color did it get?", "Which color was it given?", "What is the new color?")
NEW_KIND = ("What was it turned into?", "Which kind of thing did it become?")
NEW_SIZE = ("Was it made larger or smaller?", "Did the edit make it larger or smaller?")
NEW_PLACE = ("Where was it put?", "To which place did the edit put it?", "What is its new place?")
REMOVED = ("What was removed?", "What did the edit remove?")
ADDED = ("What was added?", "What did the edit add?")


def instruction(change: Change, short: bool = False) -> str:
    """The one regular wording. short: without the place of the thing, which its name already tells."""
    old, new = change.before, change.after
    thing = f"the {old.name}" + ("" if short else f" at the {old.where}") if old else ""
    match change.what:
        case "color":
            return f"change {thing} to {new.color}"
        case "kind":
            return f"change {thing} into {a(new.kind)}"
        case "size":
            return f"make {thing} {larger(new)}"
        case "moved":
            return f"move {thing} to the {new.where}"
        case "removed":
            return f"remove {thing}"
        case _:
            return f"add {a(new.name if short else new.full)} at the {new.where}"


def recolor(background: str) -> str:
    return f"change the background to {background}"


def image_edit(rng: Random, size: int) -> Example:
    """Two to four things; one edit of a thing, or of the background."""
    first = random_scene(rng, 2, 4, distinct=True)
    edit = rng.choice(ALL_EDITS)
    if edit == "background":
        second = replace(first, background=other(rng, list(draw.BACKGROUNDS), first.background))
        right = brief = recolor(second.background)
        asked = [(NEW_COLOR, second.background, "word", len(draw.BACKGROUNDS) - 1)]
    else:
        change = random_change(rng, first, CHANGE_OF[edit])
        second, right, brief = change.apply(first), instruction(change), instruction(change, short=True)
        asked = _details(change)

    def about() -> list[Question]:
        return [Question(say(rng, forms), answer, style, choices) for forms, answer, style, choices in asked]

    wrong = _wrong(rng, first, edit, brief)
    questions = [
        *about(),
        Question(say(rng, WRITE), right, "text"),
        _kind(rng, edit),
        *_judge(rng, brief, [w[1] for w in wrong]),
    ]
    rng.shuffle(questions)
    frames = [first.draw(size), second.draw(size)]
    captions = [first.caption(), second.caption()]
    preference = (say(rng, WRITE), right, wrong[0][0])

    def more() -> list[Question]:
        details, wrong = about(), [w[1] for w in _wrong(rng, first, edit, brief)]
        return [*details, _kind(rng, edit), *_judge(rng, brief, rng.sample(wrong, 2))]

    return Example("image", frames, pair_prompt(rng), questions, captions, preference=preference, more=more)


def _wrong(rng: Random, scene: Scene, edit: str, right: str) -> list[tuple[str, str]]:
    """Two instructions, long and short, that were not followed: one of the same kind of edit, one of any kind."""
    wrong: list[tuple[str, str]] = []
    while len(wrong) < 2:
        kind = edit if not wrong else rng.choice(ALL_EDITS)
        if kind == "background":
            texts = (recolor(other(rng, list(draw.BACKGROUNDS), scene.background)),) * 2
        else:
            change = random_change(rng, scene, CHANGE_OF[kind])
            texts = (instruction(change), instruction(change, short=True))
        if texts[1] != right and texts not in wrong:
            wrong.append(texts)
    return wrong


def _kind(rng: Random, edit: str) -> Question:
    text = say(rng, KIND) + rng.choice(("", CHOOSE))
    return Question(text, edit, choices=len(ALL_EDITS))


def _judge(rng: Random, right: str, wrong: list[str]) -> list[Question]:
    """Choose an instruction by its letter; accept or refuse one."""
    listed, letter = lettered(rng, right, wrong)
    shown, answer = (right, "yes") if rng.random() < 0.5 else (wrong[0], "no")
    return [
        Question(f"{say(rng, PICK)} {listed}", letter, "letter", 1 + len(wrong)),
        Question(say(rng, FITS, instruction=shown), answer, choices=2),
    ]


def _details(change: Change) -> list[tuple]:
    """(forms, answer, style, choices) of what an edit changed and to what."""
    old, new = change.before, change.after
    thing = [(THING, old.name, "phrase", NAMES)] if old else []
    match change.what:
        case "color":
            return [*thing, (NEW_COLOR, new.color, "word", len(draw.COLORS))]
        case "kind":
            return [*thing, (NEW_KIND, new.kind, "word", len(draw.KINDS))]
        case "size":
            return [*thing, (NEW_SIZE, larger(new), "word", 2)]
        case "moved":
            return [*thing, (NEW_PLACE, new.where, "phrase", len(CELLS))]
        case "removed":
            return [(REMOVED, old.name, "phrase", NAMES)]
        case _:
            return [(ADDED, new.name, "phrase", NAMES), (NEW_PLACE, new.where, "phrase", len(CELLS))]
