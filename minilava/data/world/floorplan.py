"""A house of 4 x 4 cells with inner walls and things on the floor: where one can walk, and what one sees from a cell.

Headings are 0 to 3, clockwise; x grows along heading 1 and y along heading 2. Walls have one tint for each heading they
are looked at from, the same in every house, so that pictures tell which way one looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from minilava.data.world import draw

SIDE = 4
STEPS = ((0, -1), (1, 0), (0, 1), (-1, 0))
TURNS = {"left": 3, "right": 1}
TINTS = ((216, 184, 146), (146, 194, 218), (172, 206, 150), (204, 168, 208))
FLOOR, CEILING = (128, 122, 118), (244, 244, 240)
ZOOM = 1.2  # focal length over half the picture's side
BACK = 0.3  # the eye is this far behind its cell's middle, halfway up the walls, which are as high as a cell is wide
THING = 0.8  # height of a thing
ID_SIDE = 96  # pixels of the pictures that visibility is counted in, whatever size is drawn
OVERSAMPLE = 2

Cell = tuple[int, int]
Pose = tuple[Cell, int]  # where one stands, and the heading


@dataclass(frozen=True)
class House:
    """walls: (cell, heading) of every inner wall, from both sides. things: cell -> (color, kind)."""

    walls: frozenset[Pose]
    things: Mapping[Cell, tuple[str, str]]

    def blocked(self, cell: Cell, heading: int) -> bool:
        """Whether a wall stands on that side of a cell."""
        return (cell, heading) in self.walls or not inside(step(cell, heading))

    def open(self, cell: Cell, heading: int) -> bool:
        """Whether one can walk that way: no wall, and no thing in the next cell."""
        return not self.blocked(cell, heading) and step(cell, heading) not in self.things

    def ahead(self, pose: Pose) -> tuple[int, Cell | None]:
        """Free cells straight ahead, and the cell of the thing that ends them, None for a wall."""
        (cell, heading), free = pose, 0
        while not self.blocked(cell, heading):
            cell = step(cell, heading)
            if cell in self.things:
                return free, cell
            free += 1
        return free, None

    def next_actions(self, pose: Pose, goal: Cell) -> set[str]:
        """First actions of all shortest ways to stand in front of the goal and face it: a search from there."""
        far = {p: 0 for p in self._arrivals(goal)}
        queue = list(far)
        for p in queue:
            for q in self._before(p):
                if q not in far:
                    far[q] = far[p] + 1
                    queue.append(q)
        if pose not in far:
            return set()
        if far[pose] == 0:
            return {"stop"}
        return {action for action, p in self._after(pose) if far.get(p) == far[pose] - 1}

    def _arrivals(self, goal: Cell) -> list[Pose]:
        sides = [h for h in range(4) if self.open(goal, h)]
        return [(step(goal, h), (h + 2) % 4) for h in sides]

    def _after(self, pose: Pose) -> list[tuple[str, Pose]]:
        cell, heading = pose
        out = [(turn, (cell, (heading + by) % 4)) for turn, by in TURNS.items()]
        return out + [("forward", (step(cell, heading), heading))] * self.open(cell, heading)

    def _before(self, pose: Pose) -> list[Pose]:
        cell, heading = pose
        out = [(cell, (heading + by) % 4) for by in TURNS.values()]
        return out + [(step(cell, heading, -1), heading)] * self.open(cell, (heading + 2) % 4)


def inside(cell: Cell) -> bool:
    return 0 <= cell[0] < SIDE and 0 <= cell[1] < SIDE


def step(cell: Cell, heading: int, count: int = 1) -> Cell:
    dx, dy = STEPS[heading]
    return cell[0] + count * dx, cell[1] + count * dy


class Sight:
    """What one sees from a pose. shares: cell of each thing in front -> how much of its silhouette shows, 0 to 1."""

    def __init__(self, house: House, pose: Pose):
        self.house, self.pose = house, pose
        self.parts = list(self._parts())  # from the farthest to the nearest: walls (tint, quad) and things (cell, box)
        self.shares = self._shares()

    def draw(self, size: int) -> Image.Image:
        side = size * OVERSAMPLE
        picture = Image.new("RGB", (side, side), FLOOR)
        picture.paste(CEILING, (0, 0, side, side // 2))
        pen = ImageDraw.Draw(picture)
        for tint, thing, quad in self.parts:
            if thing is None:
                pen.polygon([(x * side, y * side) for x, y in quad], tint, tuple(c - 40 for c in tint))
                continue
            color, kind = self.house.things[thing]
            (left, top), (right, bottom) = quad
            middle = (left + right) / 2 * side, (top + bottom) / 2 * side
            draw.place(picture, kind, color, *middle, round((right - left) * side))
        return picture.reduce(OVERSAMPLE)

    def _shares(self) -> dict[Cell, float]:
        """Counted in a small picture of things' numbers; one may see through a ring."""
        ids, areas = Image.new("L", (ID_SIDE, ID_SIDE)), {}
        pen = ImageDraw.Draw(ids)
        for _, thing, quad in self.parts:
            if thing is None:
                pen.polygon([(x * ID_SIDE - 0.5, y * ID_SIDE - 0.5) for x, y in quad], 0)
                continue
            (left, top), (right, _) = quad
            mask, areas[thing] = _stencil(self.house.things[thing][1], round((right - left) * ID_SIDE))
            ids.paste(len(areas), (round(left * ID_SIDE), round(top * ID_SIDE)), mask)
        counts = ids.histogram()
        return {thing: counts[i + 1] / areas[thing] for i, thing in enumerate(areas)}

    def _parts(self):
        """Per row of cells: walls at its far end, its things, walls along it from the outermost inwards."""
        (cell, heading), right = self.pose, (self.pose[1] + 1) % 4
        for depth in range(SIDE - 1, -1, -1):
            row = [(a, step(step(cell, heading, depth), right, a)) for a in range(1 - SIDE, SIDE)]
            row = [(a, c) for a, c in sorted(row, key=lambda r: -abs(r[0])) if inside(c)]
            for aside, c in row:
                if self.house.blocked(c, heading) and _in_view(abs(aside) - 0.5, depth + 0.5):
                    yield _tint(heading, depth), None, front(depth, aside)
            for aside, c in row:
                if c in self.house.things and depth and _in_view(abs(aside) - THING / 2, depth):
                    yield None, c, box(depth, aside)
            for aside, c in row:
                for side in (1, -1):  # seen from inside the cell if it is on the far side of the cell
                    if aside * side >= 0 and _in_view(abs(aside) + 0.5, depth + 0.5):
                        if self.house.blocked(c, (heading + side) % 4):
                            yield _tint((heading + side) % 4, depth), None, flank(depth, aside + side * 0.5)


@lru_cache
def _stencil(kind: str, pixels: int) -> tuple[Image.Image, int]:
    """A silhouette without soft edges, and its area."""
    mask = draw.sprite(kind, pixels).point([0] * 128 + [255] * 128)
    return mask, mask.histogram()[255]


def _in_view(aside: float, depth: float) -> bool:
    return aside * ZOOM < depth + BACK


def _tint(heading: int, depth: int) -> tuple[int, ...]:
    return tuple(round(c * (1 - 0.05 * depth)) for c in TINTS[heading])


def _flat(x: float, y: float, z: float) -> tuple[float, float]:
    """Where a point is in the picture: x to the right of the eye, y below it, z before it."""
    return 0.5 + 0.5 * ZOOM * x / z, 0.5 + 0.5 * ZOOM * y / z


@lru_cache
def front(depth: int, aside: int) -> tuple[tuple[float, float], ...]:
    """The wall at the far end of a cell: ``depth`` cells ahead and ``aside`` to the right."""
    z = depth + 0.5 + BACK
    return tuple(_flat(aside + dx, dy, z) for dx, dy in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)))


@lru_cache
def flank(depth: int, aside: float) -> tuple[tuple[float, float], ...]:
    """The wall along a cell, ``aside`` to the right."""
    near, far = max(depth - 0.5 + BACK, 0.1), depth + 0.5 + BACK
    return tuple(_flat(aside, y, z) for y, z in ((-0.5, near), (-0.5, far), (0.5, far), (0.5, near)))


@lru_cache
def box(depth: int, aside: int) -> tuple[tuple[float, float], ...]:
    """Top left and bottom right corner of a thing that stands in the middle of a cell."""
    z = depth + BACK
    return _flat(aside - THING / 2, 0.5 - THING, z), _flat(aside + THING / 2, 0.5, z)
