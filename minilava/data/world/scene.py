"""Flat scenes: a few things on a 3 x 3 grid, drawn, named and described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from PIL import Image

from minilava.data.world import draw

CELLS = (
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
JITTER = 0.03  # of the picture's side: a thing's centre is off its cell's centre by at most this


@dataclass(frozen=True)
class Thing:
    """color, kind and size: keys of draw.COLORS, draw.KINDS and draw.SIZES. cell: 0 to 8, row by row.
    dx, dy: offset from the cell's centre, as a share of the picture's side."""

    color: str
    kind: str
    size: str
    cell: int
    dx: float = 0.0
    dy: float = 0.0

    @property
    def name(self) -> str:
        """Colour and kind: "red car"."""
        return f"{self.color} {self.kind}"

    @property
    def where(self) -> str:
        return CELLS[self.cell]

    @property
    def full(self) -> str:
        return f"{self.size} {self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Things in cell order, at most one per cell."""

    things: tuple[Thing, ...]
    background: str = "white"

    def draw(self, size: int) -> Image.Image:
        picture = draw.canvas(size, self.background)
        for t in self.things:
            x = ((t.cell % 3) + 0.5) / 3 + t.dx
            y = ((t.cell // 3) + 0.5) / 3 + t.dy
            draw.place(picture, t.kind, t.color, x * size, y * size, round(draw.SIZES[t.size] * size))
        return picture

    def caption(self) -> str:
        """Everything in reading order: "a large red car at the top left, a small blue star at the center"."""
        if not self.things:
            return "nothing"
        return ", ".join(f"a {t.full} at the {t.where}" for t in self.things)

    def count(self, **wanted: str) -> int:
        """How many things have these attributes."""
        return sum(all(getattr(t, k) == v for k, v in wanted.items()) for t in self.things)

    def unique(self) -> list[Thing]:
        """Things whose colour and kind name them alone."""
        return [t for t in self.things if self.count(color=t.color, kind=t.kind) == 1]

    def at(self, cell: int) -> Thing | None:
        return next((t for t in self.things if t.cell == cell), None)

    def without(self, thing: Thing) -> Scene:
        return replace(self, things=tuple(t for t in self.things if t != thing))

    def having(self, thing: Thing) -> Scene:
        """The scene with one more thing, or with another thing in its cell."""
        kept = [t for t in self.things if t.cell != thing.cell]
        return replace(self, things=tuple(sorted([*kept, thing], key=lambda t: t.cell)))


@dataclass(frozen=True)
class Palette:
    """What random things may be."""

    colors: Sequence[str] = tuple(draw.COLORS)
    kinds: Sequence[str] = draw.KINDS
    sizes: Sequence[str] = tuple(draw.SIZES)
    cells: Sequence[int] = field(default=tuple(range(9)))


ALL = Palette()


def random_thing(rng: Random, cell: int, palette: Palette = ALL, jitter: float = JITTER) -> Thing:
    return Thing(
        rng.choice(palette.colors),
        rng.choice(palette.kinds),
        rng.choice(palette.sizes),
        cell,
        rng.uniform(-jitter, jitter),
        rng.uniform(-jitter, jitter),
    )


def random_scene(
    rng: Random, least: int, most: int, palette: Palette = ALL, jitter: float = JITTER, distinct: bool = False
) -> Scene:
    """least to most things in free cells. distinct: no two of the same colour and kind."""
    cells = sorted(rng.sample(list(palette.cells), rng.randint(least, most)))
    things, names = [], set()
    for cell in cells:
        thing = random_thing(rng, cell, palette, jitter)
        while distinct and thing.name in names:
            thing = random_thing(rng, cell, palette, jitter)
        names.add(thing.name)
        things.append(thing)
    return Scene(tuple(things), rng.choice(list(draw.BACKGROUNDS)))


def other(rng: Random, options: Sequence[str], *not_these: str) -> str:
    """A random option that is none of the given ones."""
    return rng.choice([o for o in options if o not in not_these])
