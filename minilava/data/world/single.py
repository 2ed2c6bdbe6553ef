"""Single-image tasks: attributes, positions, counts, relations, yes/no questions and some reading of one flat scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random

from PIL import Image

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, a, lettered, say
from minilava.data.world.scene import ALL, CELLS, NUMBERS, Scene, Thing, other, random_scene
from minilava.data.world.words import WORDS

COLOR_CHOICES = len(draw.COLORS)
# {place} is "the picture", "the left half", "picture 2" ...; {where} is " in {place}", or nothing for "the picture".
COLOR = (
    "What color is the {kind}{where}?",
    "Which color does the {kind}{where} have?",
    "Name the color of the {kind}{where}.",
)
KIND = (
    "What is at the {spot}{where}?",
    "Which thing is at the {spot}{where}?",
    "What can you see at the {spot}{where}?",
)
WHERE = ("Where is the {name}{where}?", "In which place is the {name}{where}?", "Where can the {name} be found{where}?")
COUNT = ("How many things are there{where}?", "How many things are in {place}?", "Count the things{where}.")
COUNT_COLOR = ("How many {color} things are there{where}?", "Count the {color} things{where}.")
EXISTS = ("Is there {name} in {place}?", "Does {place} show {name}?", "Can you see {name}{where}?")
SIZE = ("Is the {name}{where} small or large?", "What size is the {name}{where}?")
SIDE = ("Is the {a} left of the {b}{where}?", "Is the {a} to the left of the {b}{where}?")
ABOVE = ("Is the {a} above the {b}{where}?", "Is the {a} higher than the {b}{where}?")
DESCRIBE = ("Describe {place}.", "Describe everything in {place}.", "What does {place} show?")
READ = ("What {what} is written in the picture?", "Which {what} can you read?", "Read the {what}.")
PLACE_TEXT = ("Where is the {what} written?", "In which place is the {what}?")
FITS = ('Does the caption "{caption}" fit?', "Does the picture show {caption}?", "Is there {caption}?")
HALF_MORE = (
    "Which half has more things, {first} or {second}?",
    "Are there more things in the {first} or {second} half?",
)
HALF_SHOWS = ("Is the {name} in the {first} or {second} half?", "Which half shows the {name}, {first} or {second}?")


def single_image(rng: Random, size: int) -> Example:
    """One to five things; every kind of question that has one right answer. Sometimes two scenes in a wide or tall
    picture, which needs tiles."""
    if rng.random() < 1 / 8:
        return _halves(rng, size)
    scene = random_scene(rng, 1, 5)
    picture, caption, wrong = scene.draw(size), scene.caption(), spoil(rng, scene).caption()
    questions = ask(rng, scene)
    if rng.random() < 1 / 4:
        reading, written = _inscribe(rng, scene, picture)
        questions += reading
        caption, wrong = f"{caption}, {written}", f"{wrong}, {written}"
    rng.shuffle(questions)
    describe = say(rng, DESCRIBE, place="the picture")
    questions.append(Question(describe, caption, "text"))
    preference = (describe, caption, wrong)
    more = partial(_more, rng, scene)
    return Example("image", [picture], "<image>\n", questions, [caption], preference=preference, more=more)


def _more(rng: Random, scene: Scene) -> list[Question]:
    """With what stands at every place, and captions of single things that fit or miss in one detail."""
    out = ask(rng, scene)
    for t in scene.things:
        right = rng.random() < 0.5
        shown = t if right else replace(t, **_miss(rng, scene, t))
        caption = f"{a(shown.name)} at the {shown.where}"
        out.append(Question(say(rng, FITS, caption=caption), "yes" if right else "no", choices=2))
        out.append(Question(say(rng, KIND, spot=t.where, where=""), t.name, "phrase"))
    rng.shuffle(out)
    return out


def _miss(rng: Random, scene: Scene, thing: Thing) -> dict:
    """One wrong detail of a thing: often what another thing of the scene has, so that only both together tell."""
    key, options = rng.choice((("color", ALL.colors), ("kind", ALL.kinds), ("cell", range(9))))
    others = [getattr(t, key) for t in scene.things if getattr(t, key) != getattr(thing, key)]
    here = {getattr(t, key) for t in scene.things}
    return {key: rng.choice(others if others and rng.random() < 0.6 else [v for v in options if v not in here])}


def ask(rng: Random, scene: Scene, place: str = "the picture") -> list[Question]:
    """Questions about one flat scene, one of each kind that it allows, in random order. place: what to call it."""
    at = {"place": place, "where": "" if place == "the picture" else f" in {place}"}
    out = [Question(say(rng, COUNT, **at), NUMBERS[len(scene.things)], choices=5)]
    out.append(_count_color(rng, scene, at))
    out.append(_exists(rng, scene, at))
    thing = rng.choice(scene.things)
    out.append(Question(say(rng, KIND, spot=thing.where, **at), thing.name, "phrase", COLOR_CHOICES * len(draw.KINDS)))
    named = [t for t in scene.things if scene.count(kind=t.kind) == 1]
    if named:
        out += ask_color(rng, rng.choice(named), at["where"])
    unique = scene.unique()
    if unique:
        t = rng.choice(unique)
        out.append(Question(say(rng, WHERE, name=t.name, **at), t.where, "phrase", len(CELLS)))
        out.append(Question(say(rng, SIZE, name=t.name, **at), t.size, choices=2))
    if len(unique) > 1:
        out += _relation(rng, *rng.sample(unique, 2), at)
    rng.shuffle(out)
    return out


def ask_color(rng: Random, thing: Thing, where: str = "", traps: Sequence[str] = ()) -> list[Question]:
    """The colour of a thing that its kind alone names: as a word, and as a letter. traps: wrong colours to offer."""
    out = [Question(say(rng, COLOR, kind=thing.kind, where=where), thing.color, choices=COLOR_CHOICES)]
    wrong = dict.fromkeys([*traps, *rng.sample(ALL.colors, len(ALL.colors))])
    listed, letter = lettered(rng, thing.color, [c for c in wrong if c != thing.color][:3])
    text = say(rng, COLOR, kind=thing.kind, where=where)
    return [*out, Question(f"{text} {listed}", letter, "letter", 4)]


def spoil(rng: Random, scene: Scene) -> Scene:
    """The scene with one thing of another colour, of another kind, in another place, or gone: for wrong captions."""
    thing = rng.choice(scene.things)
    change = rng.choice(("color", "kind", "cell", "gone") if len(scene.things) > 1 else ("color", "kind", "cell"))
    if change == "gone":
        return scene.without(thing)
    if change == "cell":
        free = [c for c in range(9) if scene.at(c) is None]
        return scene.without(thing).having(replace(thing, cell=rng.choice(free)))
    options = ALL.colors if change == "color" else ALL.kinds
    return scene.having(replace(thing, **{change: other(rng, options, getattr(thing, change))}))


def _count_color(rng: Random, scene: Scene, at: dict[str, str]) -> Question:
    """Numbers from two are rare and therefore asked for where there are any; zero and one alike."""
    totals: dict[int, list[str]] = {}
    for color in ALL.colors:
        totals.setdefault(scene.count(color=color), []).append(color)
    (total,) = rng.choices(sorted(totals), [1 if t < 2 else 3 for t in sorted(totals)])
    color = rng.choice(totals[total])
    return Question(say(rng, COUNT_COLOR, color=color, **at), NUMBERS[total], choices=3)


def _exists(rng: Random, scene: Scene, at: dict[str, str]) -> Question:
    """As in POPE: the absent thing is random, or one whose parts are in the picture."""
    t = rng.choice(scene.things)
    if rng.random() < 0.5:
        return Question(say(rng, EXISTS, name=a(t.name), **at), "yes", choices=2)
    color, kind = t.color, t.kind
    while scene.count(color=color, kind=kind):
        color = rng.choice(ALL.colors) if rng.random() < 0.5 else other(rng, ALL.colors, t.color)
        kind = t.kind if rng.random() < 0.5 else rng.choice(ALL.kinds)
    return Question(say(rng, EXISTS, name=a(f"{color} {kind}"), **at), "no", choices=2)


def _relation(rng: Random, first: Thing, second: Thing, at: dict[str, str]) -> list[Question]:
    out = []
    if first.cell % 3 != second.cell % 3:
        answer = "yes" if first.cell % 3 < second.cell % 3 else "no"
        out.append(Question(say(rng, SIDE, a=first.name, b=second.name, **at), answer, choices=2))
    if first.cell // 3 != second.cell // 3:
        answer = "yes" if first.cell // 3 < second.cell // 3 else "no"
        out.append(Question(say(rng, ABOVE, a=first.name, b=second.name, **at), answer, choices=2))
    return out


def _inscribe(rng: Random, scene: Scene, picture: Image.Image) -> tuple[list[Question], str]:
    """A short word or a number in a free cell: questions on it, and its part of the caption."""
    cell = rng.choice([c for c in range(9) if scene.at(c) is None])
    short = [w for w in WORDS if len(w) <= 3]
    what, text = rng.choice((("word", rng.choice(short)), ("number", str(rng.randint(10, 99)))))
    side = picture.width
    draw.write(picture, text, (cell % 3 + 0.5) / 3 * side, (cell // 3 + 0.5) / 3 * side, round(0.18 * side))
    questions = [
        Question(say(rng, READ, what=what), text, choices=len(short) if what == "word" else 90),
        Question(say(rng, PLACE_TEXT, what=what), CELLS[cell], "phrase", len(CELLS)),
    ]
    return questions, f"the {what} {text} at the {CELLS[cell]}"


def _halves(rng: Random, size: int) -> Example:
    """Two scenes side by side, or one above the other."""
    names = rng.choice((("left", "right"), ("top", "bottom")))
    wide = names[0] == "left"
    scenes = [random_scene(rng, 1, 4), random_scene(rng, 1, 4)]
    picture = draw.canvas((2 * size, size) if wide else (size, 2 * size))
    for i, scene in enumerate(scenes):
        picture.paste(scene.draw(size), (i * size, 0) if wide else (0, i * size))
    k = rng.randrange(2)
    questions = rng.sample(asked := ask(rng, scenes[k], f"the {names[k]} half"), min(5, len(asked)))
    slots = {"first": names[0], "second": names[1]}
    numbers = [len(s.things) for s in scenes]
    if numbers[0] != numbers[1]:
        answer = names[numbers.index(max(numbers))]
        questions.append(Question(say(rng, HALF_MORE, **slots), answer, choices=2))
    k = rng.randrange(2)
    alone = [t for t in scenes[k].unique() if not scenes[1 - k].count(color=t.color, kind=t.kind)]
    if alone:
        questions.append(Question(say(rng, HALF_SHOWS, name=rng.choice(alone).name, **slots), names[k], choices=2))
    rng.shuffle(questions)
    caption = _both(names, scenes)
    describe = say(rng, DESCRIBE, place="the picture")
    questions.append(Question(describe, caption, "text"))
    scenes[k] = spoil(rng, scenes[k])
    preference = (describe, caption, _both(names, scenes))
    return Example("image", [picture], "<image>\n", questions, [caption], anyres=True, preference=preference)


def _both(names: tuple[str, str], scenes: list[Scene]) -> str:
    return "; ".join(f"{name} half: {scene.caption()}" for name, scene in zip(names, scenes, strict=True))
