"""Multi-view questions about a room: two to four solids on the floor, seen from two to four sides."""

from __future__ import annotations

import math
from functools import partial
from operator import mul
from random import Random

import numpy as np

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, number_images, say
from minilava.data.world.scene import NUMBERS
from minilava.data.world.solids import RADIUS, SOLIDS, Camera, Solid, View

SPACING = 1.3  # of the floor's 3 x 3 places
JITTER = 0.06
DISTANCE, HEIGHT, ZOOM = 6.0, 3.3, 2.8
ASIDE = (0.0, -1.2, 1.2, -1.6, 1.6, -2.0, 2.0)  # a camera looks at the room's middle or this far beside it
SHOWN, HIDDEN = 0.4, 0.04  # a solid shows in a view by at least, or at most, this share of its silhouette
NAMES = len(draw.COLORS) * len(SOLIDS)

PROMPTS = (
    "A room from {count} sides: {images}\n",
    "{images}\nThese are {count} views of a room.\n",
    "The same room, seen {count} times: {images}\n",
)
COUNT = ("How many solids are there in all?", "How many solids are in the room?", "Count the solids of the room.")
LEFT = ("What is left of the {name} in view {k}?", "In view {k}, what is to the left of the {name}?")
RIGHT = ("What is right of the {name} in view {k}?", "In view {k}, what is to the right of the {name}?")
NEAREST = ("What is nearest to the camera in view {k}?", "In view {k}, which solid is nearest?")
SHOWS = ("Which view shows the {name}?", "In which view can you see the {name}?", "Which view has the {name}?")
MISSES = ("Which view does not show the {name}?", "In which view is the {name} missing?")
BEHIND = ("Is the {a} behind the {b} in view {k}?", "In view {k}, is the {a} farther away than the {b}?")
COLOR = ("What color is the {kind}?", "Which color does the {kind} have?", "The {kind} is of which color?")
DESCRIBE = ("Describe view {k}.", "What does view {k} show?", "Tell what is in view {k}.")


def scene_vqa(rng: Random, size: int) -> Example:
    """Questions that need one certain view, or all of them."""
    questions = []
    while len(questions) < 3:
        solids, views = _room(rng)
        captions = [caption(v) for v in views]
        questions = _questions(rng, solids, views, captions)
    rng.shuffle(questions)
    frames, prompt = [v.draw(size) for v in views], _prompt(rng, len(views))
    more = partial(_questions, rng, solids, views, captions)
    return Example("views", frames, prompt, questions, captions, more=more)


def _questions(rng: Random, solids: list[Solid], views: list[View], captions: list[str]) -> list[Question]:
    k = rng.randrange(len(views))
    questions = [
        Question(say(rng, COUNT), NUMBERS[len(solids)], choices=3),
        Question(say(rng, DESCRIBE, k=k + 1), captions[k], "text"),
        *_colors(rng, solids),
        *_which(rng, views),
    ]
    for ask in (_beside, _nearest, _behind):
        k = rng.randrange(len(views))
        questions += ask(rng, views[k], k + 1)
    return questions


def shown(view: View) -> list[Solid]:
    """The solids that the view shows, from left to right."""
    seen = [s for s, share in zip(view.solids, view.shares, strict=True) if share >= SHOWN]
    return sorted(seen, key=lambda s: across(view, s))


def across(view: View, solid: Solid) -> float:
    """Where a solid's middle is in the picture: 0 at the left, 1 at the right."""
    return view.camera.project(np.array([[solid.x, solid.y, 0.45]]))[0, 0]


def caption(view: View) -> str:
    """From left to right: "a near red cube at the left, a far blue ball at the center"."""
    parts = []
    for solid in shown(view):
        beyond = view.camera.distance(solid) - math.hypot(view.camera.x, view.camera.y)
        depth = "near" if beyond < -SPACING / 2 else "far" if beyond > SPACING / 2 else "middle"
        side = ("left", "center", "right")[min(max(int(across(view, solid) * 3), 0), 2)]
        parts.append(f"a {depth} {solid.name} at the {side}")
    return ", ".join(parts) or "nothing"


def _room(rng: Random) -> tuple[list[Solid], list[View]]:
    """Solids of different names, and views from different sides in which every solid clearly shows or does not, and
    that together show all."""
    while True:
        solids, names = [], set()
        for cell in rng.sample(range(9), rng.randint(2, 4)):
            color, kind = rng.choice(list(draw.COLORS)), rng.choice(SOLIDS)
            x, y = ((i - 1) * SPACING + rng.uniform(-JITTER, JITTER) for i in divmod(cell, 3))
            solids.append(Solid(color, kind, x, y, rng.uniform(0, math.pi / 2)))
            names.add(solids[-1].name)
        if len(names) < len(solids):
            continue
        views = [_view(rng, solids, side) for side in rng.sample(range(4), rng.randint(2, 4))]
        if None not in views and all(any(v.shares[i] >= SHOWN for v in views) for i in range(len(solids))):
            return solids, views


def _view(rng: Random, solids: list[Solid], side: int) -> View | None:
    """From one of four sides; None if a few cameras found no clear view."""
    for _ in range(8):
        angle = side * math.pi / 2 + rng.uniform(-0.17, 0.17)
        c, s = math.cos(angle), math.sin(angle)
        aside = rng.choice(ASIDE)
        distance, height = DISTANCE + rng.uniform(-0.2, 0.2), HEIGHT + rng.uniform(-0.2, 0.2)
        camera = Camera(distance * c, distance * s, height, -aside * s, aside * c, 0.3, ZOOM)
        if any(_cut(camera, s) for s in solids):
            continue
        view = View(camera, solids)
        if max(view.shares) >= SHOWN and not any(HIDDEN < share < SHOWN for share in view.shares):
            return view
    return None


def _cut(camera: Camera, solid: Solid) -> bool:
    """Whether the picture's side cuts a solid in two, by a quick estimate of where it is."""
    forward, right = camera.axes[2].tolist(), camera.axes[0].tolist()
    offset = (solid.x - camera.x, solid.y - camera.y, 0.45 - camera.z)
    depth = sum(map(mul, offset, forward))
    middle, half = camera.zoom * sum(map(mul, offset, right)) / depth, camera.zoom * RADIUS / depth
    return 1 - 0.5 * half < abs(middle) < 1 + 0.8 * half


def _prompt(rng: Random, count: int) -> str:
    if rng.random() < 0.7:
        return number_images(rng, count, "View")
    return say(rng, PROMPTS, count=NUMBERS[count], images="<image>" * count)


def _colors(rng: Random, solids: list[Solid]) -> list[Question]:
    kinds = [s.kind for s in solids]
    alone = [s for s in solids if kinds.count(s.kind) == 1]
    if not alone:
        return []
    solid = rng.choice(alone)
    return [Question(say(rng, COLOR, kind=solid.kind), solid.color, choices=len(draw.COLORS))]


def _which(rng: Random, views: list[View]) -> list[Question]:
    """The only view that shows a solid, or the only one that does not."""
    out = []
    for i, solid in enumerate(views[0].solids):
        there = [v.shares[i] >= SHOWN for v in views]
        for forms, wanted in ((SHOWS, True), (MISSES, False)):
            if there.count(wanted) == 1:
                answer = NUMBERS[there.index(wanted) + 1]
                out.append(Question(say(rng, forms, name=solid.name), answer, choices=len(views)))
    return rng.sample(out, min(len(out), 2))


def _beside(rng: Random, view: View, k: int) -> list[Question]:
    """The only solid on one side of another."""
    out, row = [], shown(view)
    for a, b, forms, alone in ((0, 1, LEFT, row[:1]), (-1, -2, RIGHT, row[-1:])):
        if len(row) > 1 and abs(across(view, row[a]) - across(view, row[b])) > 0.15:
            out.append(Question(say(rng, forms, name=row[b].name, k=k), alone[0].name, "phrase", NAMES))
    return out[:1] if rng.random() < 0.5 else out[-1:]


def _nearest(rng: Random, view: View, k: int) -> list[Question]:
    row = sorted(shown(view), key=view.camera.distance)
    if len(row) < 2 or view.camera.distance(row[1]) - view.camera.distance(row[0]) < 0.6 * SPACING:
        return []
    return [Question(say(rng, NEAREST, k=k), row[0].name, "phrase", NAMES)]


def _behind(rng: Random, view: View, k: int) -> list[Question]:
    row = shown(view)
    pairs = [(a, b) for a in row for b in row if abs(view.camera.distance(a) - view.camera.distance(b)) > 0.6 * SPACING]
    if not pairs:
        return []
    a, b = rng.choice(pairs)
    answer = "yes" if view.camera.distance(a) > view.camera.distance(b) else "no"
    return [Question(say(rng, BEHIND, a=a.name, b=b.name, k=k), answer, choices=2)]
