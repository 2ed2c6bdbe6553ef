"""daily: two or three pictures of a day, of a street, a table, a garden or a beach, one of them at night."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from PIL import Image

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, a, in_each, number_images, say
from minilava.data.world.scene import JITTER, NUMBERS, Thing

SKY, WALL, PAVEMENT, ROAD = (200, 225, 250), (240, 225, 195), (190, 190, 190), (115, 115, 120)
LAWN, SEA, SAND, WOOD = (150, 205, 120), (110, 180, 235), (235, 215, 160), (150, 100, 60)
PAINT = (245, 245, 245)
MOON = (250, 245, 215)
MOST = 5  # things that have to be counted
CONTRAST = 100  # least distance in RGB between a thing and what it stands before

# place -> boxes (left, top, right, bottom, color) as shares of the side, painted one over the other.
BOXES = {
    "street": (
        (0, 0, 1, 0.55, SKY), (0, 0.55, 1, 0.66, PAVEMENT), (0, 0.66, 1, 1, ROAD), (0.05, 0.94, 0.25, 0.98, PAINT),
        (0.4, 0.94, 0.6, 0.98, PAINT), (0.75, 0.94, 0.95, 0.98, PAINT),
    ),
    "table": ((0, 0, 1, 1, WALL), (0, 0.65, 1, 0.78, WOOD), (0.08, 0.78, 0.18, 1, WOOD), (0.82, 0.78, 0.92, 1, WOOD)),
    "garden": ((0, 0, 1, 0.5, SKY), (0, 0.5, 1, 1, LAWN)),
    "beach": ((0, 0, 1, 0.36, SKY), (0, 0.36, 1, 0.67, SEA), (0, 0.67, 1, 1, SAND)),
}  # fmt: skip
# place -> what can be used there: its row of cells and how often. No place gives away what there is (boats are parked
# in the street, too), and each kind is about as frequent as the others.
USED = {
    "street": {"car": (2, 0.7), "boat": (2, 0.3)},
    "table": {"cup": (1, 0.55), "fish": (1, 0.45)},
    "garden": {"cup": (2, 0.35), "fish": (2, 0.4), "car": (2, 0.25)},
    "beach": {"boat": (1, 0.6), "fish": (1, 0.25), "car": (2, 0.15)},
}
# place -> what else stands or hangs there, and its row of cells.
AROUND = {
    "street": (("tree", "house"), 1),
    "table": (("heart", "star"), 0),
    "garden": (("tree", "house"), 1),
    "beach": (("tree", "house"), 2),
}
VERBS = {"car": "drive", "cup": "drink", "fish": "eat", "boat": "sail"}

SHOWS = ("Which picture shows a {place}?", "In which picture is a {place}?", "Which picture is of a {place}?")
PLACE = ("Which place does picture {n} show?", "Picture {n}: street, table, garden or beach?")
NIGHT = ("Which picture was taken at night?", "Which picture shows the night?", "In which picture is it dark?")
DO = ("What can you do in picture {n}: drive, drink, eat or sail?", "Drive, drink, eat or sail in picture {n}?")
WHERE_DO = ("In which picture can you {verb}?", "Which picture has something to {verb}?")
HOW_MANY = ("How many {kinds} are there in all pictures?", "How many {kinds} are there in all?")
COLOR = ("What color is the {kind} in picture {n}?", "Which color does the {kind} of picture {n} have?")
POST = ("Write a short post about the pictures.", "Write a post about this day.", "Tell about the day in one sentence.")


@dataclass(frozen=True)
class View:
    """One picture. used: the kind of thing that one can do something with there."""

    place: str
    night: bool
    used: str
    things: tuple[Thing, ...]

    def draw(self, size: int) -> Image.Image:
        picture = _background(self.place, self.night, size).copy()
        for t in self.things:
            x, y = (t.cell % 3 + 0.5) / 3 + t.dx, (t.cell // 3 + 0.5) / 3 + t.dy
            draw.place(picture, t.kind, t.color, x * size, y * size, round(draw.SIZES[t.size] * size))
        return picture

    def caption(self) -> str:
        things = ", ".join(f"{a(t.name)} at the {t.where}" for t in self.things)
        return f"a {self.place} {'at night' if self.night else 'by day'}: {things}"

    def count(self, kind: str) -> int:
        return sum(t.kind == kind for t in self.things)

    def post(self) -> str:
        """ "a street at night with two cars and one tree", the things to use first."""
        kinds = sorted({t.kind for t in self.things}, key=lambda k: (k != self.used, k))
        things = " and ".join(f"{NUMBERS[self.count(k)]} {k if self.count(k) == 1 else plural(k)}" for k in kinds)
        return f"a {self.place}{' at night' if self.night else ''} with {things}"


def plural(kind: str) -> str:
    return kind if kind == "fish" else kind + "s"


def post(views: list[View]) -> str:
    first, *middle, last = (v.post() for v in views)
    return f"My day: first {first}, {''.join(f'then {m}, ' for m in middle)}and last {last}."


def daily(rng: Random, size: int) -> Example:
    """Different places; exactly one picture is taken at night."""
    count = rng.choice((2, 3, 3))
    night = rng.randrange(count)
    views = [_view(rng, place, i == night) for i, place in enumerate(rng.sample(list(BOXES), count))]
    questions = _which(rng, views) + _about_one(rng, views) + _count(rng, views)[:1]
    questions.append(Question(say(rng, POST), post(views), "text"))
    rng.shuffle(questions)
    wrong = [replace(v, night=i == (night + 1) % count) for i, v in enumerate(views)]
    return Example(
        "image",
        [v.draw(size) for v in views],
        number_images(rng, count, rng.choice(("Picture", "Photo"))),
        questions,
        [v.caption() for v in views],
        preference=(say(rng, POST), post(views), post(wrong)),
        more=lambda: _which(rng, views) + _about_one(rng, views) + _count(rng, views),
    )


def _view(rng: Random, place: str, night: bool) -> View:
    (used,) = rng.choices(list(USED[place]), [share for _, share in USED[place].values()])
    row = USED[place][used][0]
    things = _row(rng, place, night, row, used, rng.randint(1, 3))
    kinds, around = AROUND[place]
    if around != row:
        things += _row(rng, place, night, around, rng.choice(kinds), rng.randint(0, 3))
    return View(place, night, used, tuple(sorted(things, key=lambda t: t.cell)))


def _row(rng: Random, place: str, night: bool, row: int, kind: str, count: int) -> list[Thing]:
    """``count`` things of one kind in one row of cells, of colours that can be seen there."""
    colors = _visible(place, night, row)
    return [
        Thing(rng.choice(colors), kind, "large", 3 * row + column, rng.uniform(-JITTER, JITTER))
        for column in rng.sample(range(3), count)
    ]


def _which(rng: Random, views: list[View]) -> list[Question]:
    """Questions that a picture's number answers."""
    n, count = rng.randrange(len(views)), len(views)
    night = [v.night for v in views].index(True)
    out = [
        Question(say(rng, SHOWS, place=views[n].place), NUMBERS[n + 1], choices=count),
        Question(say(rng, NIGHT), NUMBERS[night + 1], choices=count),
    ]
    used = [v.used for v in views]
    once = [i for i, kind in enumerate(used) if used.count(kind) == 1]
    if once:
        n = rng.choice(once)
        out.append(Question(say(rng, WHERE_DO, verb=VERBS[used[n]]), NUMBERS[n + 1], choices=count))
    return out


def _about_one(rng: Random, views: list[View]) -> list[Question]:
    """Questions about the picture of a number."""
    n, m = rng.randrange(len(views)), rng.randrange(len(views))
    out = [
        Question(say(rng, PLACE, n=n + 1), views[n].place, choices=len(BOXES)),
        Question(say(rng, DO, n=m + 1), VERBS[views[m].used], choices=len(VERBS)),
    ]
    alone = [(i, t) for i, v in enumerate(views) for t in v.things if v.count(t.kind) == 1]
    if alone:
        i, t = rng.choice(alone)
        out.append(Question(say(rng, COLOR, kind=t.kind, n=i + 1), t.color, choices=len(draw.COLORS)))
    return out


def _count(rng: Random, views: list[View]) -> list[Question]:
    """Over all pictures, and picture by picture, a step for practice only; now and then of a kind that is in none."""
    kinds = [*VERBS, "tree", "house"]
    total = {k: sum(v.count(k) for v in views) for k in kinds}
    few = [k for k in kinds if 1 <= total[k] <= MOST]
    kind = rng.choice(few if few and rng.random() < 0.8 else [k for k in kinds if not total[k]])
    text = say(rng, HOW_MANY, kinds=plural(kind))
    counts = in_each(NUMBERS[v.count(kind)] for v in views)
    return [Question(text, NUMBERS[total[kind]], choices=4), Question(text, counts, "each")]  # four and five are rare


def _dark(color: tuple[int, int, int]) -> tuple[int, int, int]:
    r, g, b = color
    return r // 3, g // 3, b // 3 + 15


@lru_cache(64)
def _background(place: str, night: bool, size: int) -> Image.Image:
    picture = draw.canvas(size)
    for left, top, right, bottom, color in BOXES[place]:
        box = [round(v * size) for v in (left, top, right, bottom)]
        picture.paste(_dark(color) if night else color, tuple(box))
    if night and place != "table":
        draw.place(picture, "circle", MOON, 0.85 * size, 0.13 * size, round(0.14 * size))
    return picture


@lru_cache(64)
def _visible(place: str, night: bool, row: int) -> list[str]:
    """Colours that stand out against everything behind this row of cells."""
    top, bottom = row / 3 + 0.02, (row + 1) / 3 - 0.02
    behind = [_dark(c) if night else c for _, t, _, b, c in BOXES[place] if t < bottom and b > top]
    return [n for n, c in draw.COLORS.items() if all(_distance(c, b) >= CONTRAST for b in behind)]


def _distance(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    return sum((x - y) ** 2 for x, y in zip(first, second, strict=True)) ** 0.5
