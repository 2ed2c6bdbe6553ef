"""Questions over two to four flat scenes: counts over all, which picture, and NLVR2-like statements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from minilava.data.world import draw
from minilava.data.world.captions import showing
from minilava.data.world.example import Example, Question, a, in_each, number_images, say, yes
from minilava.data.world.scene import ALL, NUMBERS, Palette, Scene, Thing, random_scene, random_thing
from minilava.data.world.single import DESCRIBE, ask_color, spoil

COUNT = ("How many {things} are in all pictures together?", "Count the {things} in all pictures.")
MOST = (
    "Which picture has the most things?",
    "Which picture shows the most things?",
    "In which picture are most things?",
)
SHOWS = ("Which picture shows {name}?", "In which picture is {name}?", "Which picture has {name}?")
EVERY = ("Do {all} pictures contain {thing}?", "Is there {thing} in {each} picture?", "Do {all} pictures show {thing}?")
STATEMENT = ("True or false: {each} picture shows {thing}.", "{Each} picture contains {thing}. True or false?")
COMMON = ("Which thing is in {each} picture?", "What do {all} pictures have in common?")
EQUAL = (
    "Do picture {i} and picture {j} have the same number of things?",
    "Are there as many things in picture {i} as in picture {j}?",
)
OPENINGS = ("Look at ", "Here are ", "These are the pictures: ", "Compare ")


def multi_image_vqa(rng: Random, size: int) -> Example:
    """Scenes that share few colours and kinds, so that one picture alone rarely tells the answer."""
    count = rng.choice((2, 2, 3, 3, 4))
    scenes, shared = _scenes(rng, count)
    questions = _questions(rng, scenes, shared)
    k = rng.randrange(count)
    wanted = say(rng, DESCRIBE, place=f"picture {k + 1}")
    captions = [s.caption() for s in scenes]
    questions.append(Question(wanted, captions[k], "text"))
    rng.shuffle(questions)
    preference = (wanted, captions[k], spoil(rng, scenes[k]).caption())
    frames = [s.draw(size) for s in scenes]

    def more() -> list[Question]:
        return [*_questions(rng, scenes, shared), *_steps(rng, scenes, shared)]

    return Example("image", frames, introduce(rng, count), questions, captions, preference=preference, more=more)


def _steps(rng: Random, scenes: Sequence[Scene], shared: str) -> list[Question]:
    """For practice only: picture by picture, what is asked about all of them."""
    k = rng.randrange(len(scenes))
    thing = rng.choice(scenes[k].things)
    kind, color = shared if rng.random() < 0.5 else thing.kind, thing.color
    things, wanted = rng.choice(((plural(kind), {"kind": kind}), (f"{color} things", {"color": color})))
    part, parts = rng.choice(((a(kind), {"kind": kind}), (a(thing.name), {"kind": thing.kind, "color": color})))
    return [
        *showing(rng, part, [s.count(**parts) > 0 for s in scenes], k),
        Question(
            say(rng, (*EVERY, *STATEMENT), **_in_words(len(scenes), shared)),
            in_each(yes(s.count(kind=shared) > 0) for s in scenes),
            "each",
        ),
        Question(say(rng, COUNT, things=things), in_each(NUMBERS[s.count(**wanted)] for s in scenes), "each"),
        Question(say(rng, MOST), in_each(NUMBERS[len(s.things)] for s in scenes), "each"),
    ]


def _questions(rng: Random, scenes: Sequence[Scene], shared: str) -> list[Question]:
    return [
        _count(rng, scenes),
        *_most(rng, scenes),
        *_shows(rng, scenes),
        *_shared(rng, scenes, shared),
        *_color(rng, scenes),
        _equal(rng, scenes),
    ]


def introduce(rng: Random, count: int) -> str:
    """A prompt with the pictures numbered, or in the flow of a sentence."""
    if rng.random() < 0.7 or count < 2:
        return number_images(rng, count)
    listed = ", ".join(["<image>"] * (count - 1)) + " and <image>"
    return f"{rng.choice(OPENINGS)}{listed}.\n"


def plural(kind: str) -> str:
    return {"fish": "fish", "cross": "crosses"}.get(kind, kind + "s")


def ask_which(text: str, right: int, among: Sequence[int]) -> list[Question]:
    """A question whose answer is one of the pictures ``among``, counted from 0: as a word, and as a letter."""
    listed = " ".join(f"({'ABCD'[n]}) picture {i + 1}" for n, i in enumerate(among))
    letter = "ABCD"[list(among).index(right)]
    return [
        Question(text, NUMBERS[right + 1], choices=len(among)),
        Question(f"{text} {listed}", letter, "letter", len(among)),
    ]


def _scenes(rng: Random, count: int) -> tuple[list[Scene], str]:
    """The scenes, and a kind that is in all of them or, as often, missing from some."""
    palette = Palette(rng.sample(ALL.colors, 4), rng.sample(ALL.kinds, 5))
    shared = palette.kinds[0]
    holders = count if rng.random() < 0.5 else rng.randint(1, count - 1)
    holding = set(rng.sample(range(count), holders))
    without = replace(palette, kinds=palette.kinds[1:])
    scenes = []
    for i, n in enumerate(_sizes(rng, count)):
        scene = random_scene(rng, n, n, without, distinct=True)
        if i in holding:
            cell = rng.choice(scene.things).cell
            scene = scene.having(replace(random_thing(rng, cell, palette), kind=shared))
        scenes.append(scene)
    return scenes, shared


def _sizes(rng: Random, count: int) -> list[int]:
    """How many things each picture gets, such that "equal" and "not equal" can be asked for alike."""
    if count == 2:
        few = rng.randint(1, 3)
        return rng.choice(([few, few], rng.sample((few, rng.randint(few + 1, 4)), 2)))
    few = rng.randint(1, 2)
    sizes = [few, few, *(rng.randint(few + 1, 4) for _ in range(count - 2))]
    rng.shuffle(sizes)
    return sizes


def _count(rng: Random, scenes: Sequence[Scene]) -> Question:
    """Of a kind or colour, taken such that all totals are about equally frequent."""
    totals: dict[int, list[str]] = {}
    for kind in ALL.kinds:
        totals.setdefault(sum(s.count(kind=kind) for s in scenes), []).append(plural(kind))
    for color in ALL.colors:
        totals.setdefault(sum(s.count(color=color) for s in scenes), []).append(f"{color} things")
    total = rng.choice([t for t in sorted(totals) if t <= 5])
    return Question(say(rng, COUNT, things=rng.choice(totals[total])), NUMBERS[total], choices=5)


def _most(rng: Random, scenes: Sequence[Scene]) -> list[Question]:
    numbers = [len(s.things) for s in scenes]
    if numbers.count(max(numbers)) > 1:
        return []
    return ask_which(say(rng, MOST), numbers.index(max(numbers)), range(len(scenes)))


def _shows(rng: Random, scenes: Sequence[Scene]) -> list[Question]:
    """One thing that is in one picture only."""
    k = rng.randrange(len(scenes))
    alone = [t for t in scenes[k].things if sum(s.count(color=t.color, kind=t.kind) for s in scenes) == 1]
    if not alone:
        return []
    return ask_which(say(rng, SHOWS, name=f"the {rng.choice(alone).name}"), k, range(len(scenes)))


def _shared(rng: Random, scenes: Sequence[Scene], kind: str) -> list[Question]:
    """The NLVR2-like ones: is the kind in every picture?"""
    words = _in_words(len(scenes), kind)
    everywhere = all(s.count(kind=kind) for s in scenes)
    questions = [
        Question(say(rng, EVERY, **words), yes(everywhere), choices=2),
        Question(say(rng, STATEMENT, **words), "true" if everywhere else "false", choices=2),
    ]
    common = set.intersection(*({t.kind for t in s.things} for s in scenes))
    if len(common) == 1:
        questions.append(Question(say(rng, COMMON, **words), common.pop(), choices=len(draw.KINDS)))
    return questions


def _in_words(count: int, kind: str) -> dict[str, str]:
    """What stands for all pictures, each picture and the kind in a statement."""
    word = "each" if count == 2 else "every"
    return {"all": "both" if count == 2 else "all", "each": word, "Each": word.capitalize(), "thing": a(kind)}


def _color(rng: Random, scenes: Sequence[Scene]) -> list[Question]:
    """Of a thing in one picture; best one that the other pictures have in other colours."""
    cases = [(k, t) for k, s in enumerate(scenes) for t in s.things if s.count(kind=t.kind) == 1]
    if not cases:
        return []
    hard = [(k, t) for k, t in cases if _elsewhere(scenes, k, t)]
    k, thing = rng.choice(hard or cases)
    return ask_color(rng, thing, f" in picture {k + 1}", _elsewhere(scenes, k, thing))


def _elsewhere(scenes: Sequence[Scene], k: int, thing: Thing) -> list[str]:
    """Other colours that things of this kind have in the other pictures."""
    others = (t for i, s in enumerate(scenes) if i != k for t in s.things)
    return sorted({t.color for t in others if t.kind == thing.kind and t.color != thing.color})


def _equal(rng: Random, scenes: Sequence[Scene]) -> Question:
    numbers = [len(s.things) for s in scenes]
    pairs = [(i, j) for i in range(len(scenes)) for j in range(i + 1, len(scenes))]
    same = rng.random() < 0.5
    fitting = [(i, j) for i, j in pairs if (numbers[i] == numbers[j]) == same] or pairs
    i, j = rng.choice(fitting)
    return Question(say(rng, EQUAL, i=i + 1, j=j + 1), "yes" if numbers[i] == numbers[j] else "no", choices=2)
