"""Short clips: things of a 3 x 3 grid that move, meet, appear, disappear, change colour or change size, in order.

Every event takes its own steps between frames, things stand near cell centres in every frame and no two clips' things
share a kind, so that a clip has one right description.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from minilava.data.world import draw
from minilava.data.world.example import a
from minilava.data.world.scene import CELLS, JITTER, Scene, Thing, other

FRAMES = 6
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "grow": "shrink", "shrink": "grow"}
CHANGES = ("appear", "disappear", "recolor", "resize")
TOUCH = 1 / 3 - draw.SIZES["large"] + 0.01  # what a large thing moves beyond its cell's centre to touch the next one


@dataclass(frozen=True)
class Event:
    """verb: move, meet (and stop), bounce (meet and go back), appear, disappear, recolor, grow or shrink.
    name: of the thing before the event. detail: direction, place or new colour. partner: name of what is met."""

    verb: str
    name: str
    detail: str = ""
    partner: str = ""

    def text(self) -> str:
        """The event as a clause: "a red car moves right"."""
        clauses = {
            "move": f" moves {self.detail}",
            "meet": f" moves {self.detail} and meets {a(self.partner or ' ')}",
            "bounce": f" moves {self.detail}, meets {a(self.partner or ' ')} and moves back",
            "appear": f" appears at the {self.detail}",
            "disappear": " disappears",
            "recolor": f" turns {self.detail}",
            "grow": " grows",
            "shrink": " shrinks",
        }
        return a(self.name) + clauses[self.verb]

    def brief(self) -> str:
        """The event without what questions ask for."""
        if self.verb in ("appear", "disappear"):
            return f"something {self.verb}s"
        if self.verb in ("grow", "shrink"):
            return f"the {self.name.split()[1]} changes size"
        return f"the {self.name.split()[1]} " + ("changes color" if self.verb == "recolor" else "moves")


@dataclass(frozen=True)
class Clip:
    """tracks: for every thing its state in each frame, None where it is absent. events: in order of time."""

    tracks: tuple[tuple[Thing | None, ...], ...]
    events: tuple[Event, ...]
    background: str

    def scene(self, frame: float) -> Scene:
        """Between two frames things glide to where they are next; all else changes at a frame."""
        i = int(frame)
        then = min(i + 1, FRAMES - 1)
        there = [_glide(t[i], t[then], frame - i) for t in self.tracks if t[i] is not None]
        return Scene(tuple(sorted(there, key=lambda t: t.cell)), self.background)

    def draw(self, size: int, frames: int = FRAMES) -> list[Image.Image]:
        """The clip in another number of frames: its own each last the same time."""
        return [self.scene(i * FRAMES / frames).draw(size) for i in range(frames)]

    def captions(self) -> list[str]:
        return [self.scene(i).caption() for i in range(FRAMES)]

    def describe(self) -> str:
        return describe(self.events)

    def gap(self, first: int, second: int) -> int:
        """The least distance in cells, along rows and columns, between two things at any time."""
        pairs = zip(self.tracks[first], self.tracks[second], strict=True)
        return min((_distance(s.cell, t.cell) for s, t in pairs if s and t), default=FRAMES)


def describe(events: tuple[Event, ...] | list[Event]) -> str:
    return ", then ".join(e.text() for e in events)


def random_clip(rng: Random, events: int, meet: bool) -> Clip:
    """A clip of one to three events and up to two things that only stand there. meet: whether two things meet."""
    while True:
        verbs = [rng.choice(("meet", "bounce"))] if meet else ["move"] if rng.random() < 0.8 else []
        verbs += rng.sample([*CHANGES, "move"] if meet else CHANGES, events - len(verbs))
        rng.shuffle(verbs)
        made = _attempt(rng, verbs)
        if made is not None:
            return made


def _attempt(rng: Random, verbs: list[str]) -> Clip | None:
    """Give every event its own cells; None if they do not fit."""
    kinds = rng.sample(draw.KINDS, len(verbs) + 3)
    free, acts, standing, ahead = set(range(9)), [], [], []
    for verb in verbs:
        thing = _thing(rng, kinds.pop(), rng.randrange(9))
        partner = _thing(rng, kinds.pop(), 0) if verb in ("meet", "bounce") else None
        event, states, cells, following = _act(rng, verb, thing, partner)
        if not free.issuperset(cells):
            return None
        free -= set(cells)
        ahead += following
        acts.append((event, states))
        if partner is not None:
            standing.append(replace(partner, cell=cells[-1], size="large", dx=0.0, dy=0.0))
    if not free.issuperset(ahead):
        return None  # a moving thing would stop right in front of another: did they meet?
    free -= set(ahead)
    for cell in rng.sample(sorted(free), min(rng.randint(0, 2), len(free), 4 - len(acts) - len(standing))):
        standing.append(_thing(rng, kinds.pop(), cell))
    tracks = _schedule(rng, [states for _, states in acts]) + [(t,) * FRAMES for t in standing]
    if not all(any(t[f] for t in tracks) for f in range(FRAMES)):
        return None  # an empty frame
    return Clip(tuple(tracks), tuple(e for e, _ in acts), rng.choice(list(draw.BACKGROUNDS)))


def _thing(rng: Random, kind: str, cell: int) -> Thing:
    jitter = (rng.uniform(-JITTER, JITTER), rng.uniform(-JITTER, JITTER))
    return Thing(rng.choice(list(draw.COLORS)), kind, rng.choice(list(draw.SIZES)), cell, *jitter)


def _act(rng: Random, verb: str, thing: Thing, partner: Thing | None) -> tuple[Event, list, list[int], list[int]]:
    """(event, the thing's states step by step, cells that are used, cell that must stay free)."""
    if verb in ("move", "meet", "bounce"):
        direction = rng.choice(list(DIRECTIONS))
        path = _path(rng, direction, 2 if partner else rng.choice((1, 2, 2)))
        if partner is None:
            return Event(verb, thing.name, direction), [replace(thing, cell=c) for c in path], path, _next(path)
        dx, dy = (TOUCH * v for v in DIRECTIONS[direction])
        start = replace(thing, cell=path[0], size="large", dx=0.0, dy=0.0)
        states = [start, replace(start, cell=path[1], dx=dx, dy=dy)] + [start] * (verb == "bounce")
        return Event(verb, thing.name, direction, partner.name), states, path, []
    event, after = Event(verb, thing.name), thing
    if verb == "recolor":
        after = replace(thing, color=other(rng, tuple(draw.COLORS), thing.color))
        event = Event(verb, thing.name, after.color)
    elif verb == "resize":
        after = replace(thing, size=other(rng, tuple(draw.SIZES), thing.size))
        event = Event("grow" if after.size == "large" else "shrink", thing.name)
    states = [thing, after]
    if verb == "appear":
        event, states = Event(verb, thing.name, thing.where), [None, thing]
    elif verb == "disappear":
        states = [thing, None]
    return event, states, [thing.cell], []


def _path(rng: Random, direction: str, steps: int) -> list[int]:
    """Cells from a random start, ``steps`` in the direction."""
    dx, dy = DIRECTIONS[direction]
    first = rng.randint(0, 2 - steps)  # how far from the edge it starts
    along = [first + i if dx + dy > 0 else 2 - first - i for i in range(steps + 1)]
    across = rng.randrange(3)
    return [across * 3 + i if dx else i * 3 + across for i in along]


def _next(path: list[int]) -> list[int]:
    """The cell after the last one in the same direction, if the grid has it."""
    step, last = path[1] - path[0], path[-1]
    cell = last + step
    return [cell] if 0 <= cell < 9 and _distance(last, cell) == 1 else []


def _glide(now: Thing, then: Thing | None, share: float) -> Thing:
    """The thing a share of the way to where it is next, if it is still there."""
    if then is None or not share:
        return now
    x, y = (then.cell % 3 - now.cell % 3) / 3, (then.cell // 3 - now.cell // 3) / 3
    return replace(now, dx=now.dx + share * (x + then.dx - now.dx), dy=now.dy + share * (y + then.dy - now.dy))


def _distance(first: int, second: int) -> int:
    return abs(first % 3 - second % 3) + abs(first // 3 - second // 3)


def _schedule(rng: Random, acts: list[list]) -> list[tuple]:
    """Tracks of all frames: the acts one after the other, the spare steps at random between them."""
    spare = FRAMES - 1 - sum(len(states) - 1 for states in acts)
    cuts = sorted(rng.randint(0, spare) for _ in acts)
    tracks, used = [], 0
    for cut, states in zip(cuts, acts, strict=True):
        start, last = cut + used, len(states) - 1
        tracks.append(tuple(states[min(max(f - start, 0), last)] for f in range(FRAMES)))
        used += last
    return tracks


def wrong(rng: Random, events: tuple[Event, ...]) -> list[Event]:
    """The events with one mistake: a wrong direction, colour, kind or order, a missing event or an invented one.

    An event is missing only where there are three and invented only where there are two, so that length tells nothing.
    """
    ways = ["detail", "name"] + ["order"] * (2 * (len(events) > 1)) + ["number"] * (len(events) > 1)
    way, out, i = rng.choice(ways), list(events), rng.randrange(len(events))
    if way == "order":
        i = rng.randrange(len(events) - 1)
        out[i : i + 2] = out[i + 1], out[i]
    elif way == "number" and len(events) > 2:
        del out[i]
    elif way == "number":
        out.insert(rng.randint(0, 2), _invented(rng, events))
    else:
        out[i] = altered(rng, events[i], events) if way == "detail" else renamed(rng, events[i], events)
    return out


def altered(rng: Random, event: Event, events: tuple[Event, ...]) -> Event:
    """The same thing does something else."""
    if event.verb in ("move", "meet", "bounce"):
        return replace(event, detail=OPPOSITE[event.detail])
    if event.verb in ("grow", "shrink"):
        return replace(event, verb=OPPOSITE[event.verb])
    if event.verb == "appear":
        return replace(event, detail=other(rng, CELLS, event.detail))
    if event.verb == "recolor":
        return replace(event, detail=other(rng, tuple(draw.COLORS), event.detail, event.name.split()[0]))
    return renamed(rng, event, events)


def renamed(rng: Random, event: Event, events: tuple[Event, ...]) -> Event:
    """Another thing does the same: one of another colour or kind."""
    color, kind = event.name.split()
    if rng.random() < 0.5:
        barred = (color, event.detail) if event.verb == "recolor" else (color,)
        return replace(event, name=f"{other(rng, tuple(draw.COLORS), *barred)} {kind}")
    return replace(event, name=f"{color} {other(rng, draw.KINDS, *_kinds(events))}")


def four(rng: Random, event: Event, events: tuple[Event, ...]) -> list[Event]:
    """The event and three that did not happen: two details, each right or wrong, so that no option is closer to all
    others than another one is."""
    barred = {event.name.split()[0]}
    if event.verb == "disappear":
        changed = replace(event, name=f"{other(rng, tuple(draw.COLORS), *barred)} {event.name.split()[1]}")
        kind = " " + other(rng, draw.KINDS, *_kinds(events))
        return [event, changed] + [replace(e, name=e.name.split()[0] + kind) for e in (event, changed)]
    changed = altered(rng, event, events)
    if event.verb == "recolor":
        barred |= {event.detail, changed.detail}
    color, kind = event.name.split()
    if rng.random() < 0.5:
        color = other(rng, tuple(draw.COLORS), *barred)
    else:
        kind = other(rng, draw.KINDS, *_kinds(events))
    return [event, changed] + [replace(e, name=f"{color} {kind}") for e in (event, changed)]


def _kinds(events: tuple[Event, ...]) -> set[str]:
    return {n.split()[1] for e in events for n in (e.name, e.partner) if n}


def _invented(rng: Random, events: tuple[Event, ...]) -> Event:
    verbs = {"resize" if e.verb in ("grow", "shrink") else e.verb for e in events}
    verb = rng.choice([v for v in (*CHANGES, "move") if v not in verbs])
    return _act(rng, verb, _thing(rng, other(rng, draw.KINDS, *_kinds(events)), rng.randrange(9)), None)[0]
