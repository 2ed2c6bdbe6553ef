"""image_caption: pictures that differ in single details, and captions of which each fits one of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, a, in_each, lettered, number_images, say, yes
from minilava.data.world.scene import ALL, NUMBERS, Scene, Thing, random_thing

PROMPTS = (
    "Here are {count} pictures: {images}\n",
    "{images}\nThese are {count} pictures.\n",
    "The pictures: {images}\n",
)
PICTURE = (
    'Which picture fits the caption "{caption}"?',
    'To which picture does the caption "{caption}" belong?',
    "Which picture shows {caption}?",
)
CAPTION = ("Which caption fits picture {n}?", "Choose the caption of picture {n}.", "What does picture {n} show?")
FITS = ('Does the caption "{caption}" fit picture {n}?', "Does picture {n} show {caption}?")
COUNT_COLOR = ("How many pictures show something {value}?", "In how many pictures is something {value}?")
COUNT_KIND = ("How many pictures show {value}?", "In how many pictures is {value}?")
# For practice only: the steps to what a whole caption asks.
SHOWING = ("Which pictures show {part}?", "In which pictures is {part}?")
SHOWN = ("Does picture {n} show {part}?", "Is {part} in picture {n}?")
WRITE = ("Write a caption for picture {n}.", "Describe picture {n}.", "Write a full caption of picture {n}.")


def image_caption(rng: Random, size: int) -> Example:
    """Three or four pictures of two things: one is the same in all, one differs in its colour, kind or place."""
    count = rng.randint(3, 4)
    cells, colors, kinds = rng.sample(range(9), 3), rng.sample(ALL.colors, 3), rng.sample(ALL.kinds, 3)
    same = replace(random_thing(rng, cells[0]), color=colors[0], kind=kinds[0])
    base = random_thing(rng, cells[1])
    counted = rng.choice(("color", "kind"))
    often = rng.randint(0, count)  # how many pictures have the first of its two values
    variants = [replace(base, color=c, kind=k, cell=p) for c, k, p in product(colors[1:], kinds[1:], cells[1:])]
    value = colors[1] if counted == "color" else kinds[1]
    having = [v for v in variants if getattr(v, counted) == value]
    differing = rng.sample(having, often) + rng.sample([v for v in variants if v not in having], count - often)
    rng.shuffle(differing)
    background = rng.choice(list(draw.BACKGROUNDS))
    scenes = [Scene((same,), background).having(t) for t in differing]
    counting = _count(rng, differing, counted, value)
    captions = [s.caption() for s in scenes]
    questions = [counting, *_fitting(rng, differing, captions)]
    rng.shuffle(questions)
    n = rng.randrange(count)
    preference = (say(rng, WRITE, n=n + 1), captions[n], captions[n - 1])
    frames, prompt = [s.draw(size) for s in scenes], _prompt(rng, count)

    def more() -> list[Question]:
        what, values = rng.choice((("color", colors[1:]), ("kind", kinds[1:])))
        again = _count(rng, differing, what, rng.choice(values))
        return [again, *_fitting(rng, differing, captions), *_steps(rng, differing)]

    return Example("image", frames, prompt, questions, captions, preference=preference, more=more)


def _prompt(rng: Random, count: int) -> str:
    if rng.random() < 0.7:
        return number_images(rng, count)
    return say(rng, PROMPTS, count=NUMBERS[count], images="<image>" * count)


def brief(thing: Thing) -> str:
    """What tells a picture from the others: "a red car at the top"."""
    return f"{a(thing.name)} at the {thing.where}"


def _count(rng: Random, differing: list[Thing], what: str, value: str) -> Question:
    """In how many pictures a thing has this color, or is of this kind."""
    often = sum(getattr(t, what) == value for t in differing)
    text = say(rng, COUNT_COLOR, value=value) if what == "color" else say(rng, COUNT_KIND, value=a(value))
    return Question(text, NUMBERS[often], choices=len(differing) + 1)


def _fitting(rng: Random, differing: list[Thing], full: list[str]) -> list[Question]:
    """Captions to pictures and pictures to captions."""
    count = len(full)
    short = [brief(t) for t in differing]
    n, m = rng.randrange(count), rng.randrange(count)
    caption = full[n] if rng.random() < 0.3 else short[n]
    wrong = [s for i, s in enumerate(short) if i != m]
    listed, letter = lettered(rng, short[m], rng.sample(wrong, 2))
    k = rng.randrange(count)
    shown, answer = (short[k], "yes") if rng.random() < 0.5 else (rng.choice(short[:k] + short[k + 1 :]), "no")
    j = rng.randrange(count)
    return [
        Question(say(rng, PICTURE, caption=caption), NUMBERS[n + 1], choices=count),
        Question(f"{say(rng, CAPTION, n=m + 1)} {listed}", letter, "letter", 3),
        Question(say(rng, FITS, caption=shown, n=k + 1), answer, choices=2),
        Question(say(rng, WRITE, n=j + 1), full[j], "text"),
    ]


def _steps(rng: Random, differing: list[Thing]) -> list[Question]:
    """Which pictures show one, two or three of the color, kind and place of a thing, and whether a picture does."""
    by_color, by_kind, by_cell = (rng.random() < 0.6 for _ in range(3))
    by_color = by_color or not (by_kind or by_cell)

    def part(t: Thing) -> str:
        color, kind = t.color if by_color else "", t.kind if by_kind else "thing"
        return a(f"{color} {kind}".strip()) + (f" at the {t.where}" if by_cell else "")

    parts, k = [part(t) for t in differing], rng.randrange(len(differing))
    asked = rng.choice(parts)
    return showing(rng, asked, [p == asked for p in parts], k)


def showing(rng: Random, part: str, shown: list[bool], k: int) -> list[Question]:
    """Which pictures show something, told as a list and picture by picture, and whether picture k does. shown: in
    which it is."""
    return [
        Question(say(rng, SHOWING, part=part), numbered([i for i, right in enumerate(shown) if right]), "phrase"),
        Question(say(rng, SHOWING, part=part), in_each(map(yes, shown)), "each"),
        Question(say(rng, SHOWN, part=part, n=k + 1), yes(shown[k]), choices=2),
    ]


def numbered(pictures: list[int]) -> str:
    """Pictures counted from 0, in words: "one, two and four"; "none"."""
    if not pictures:
        return "none"
    *first, last = (NUMBERS[i + 1] for i in pictures)
    return f"{', '.join(first)} and {last}" if first else last
