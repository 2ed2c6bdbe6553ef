"""Multi-view tasks of the world: an independent ray caster and an independent walker find what the answers say."""

import math
import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from minilava.data.world import draw, house, make, rooms, solids
from minilava.data.world.scene import NUMBERS
from tests.data.look import every

TASKS = {"scene_vqa": rooms.scene_vqa, "embodied_vqa": house.embodied_vqa}
NAME = re.compile(rf"((?:{'|'.join(draw.COLORS)}) (?:{'|'.join((*solids.SOLIDS, *draw.KINDS))}))\b")
AT = {"ahead": 0, "in front": 0, "forward": 0, "right": 1, "back": 2, "behind": 2, "left": 3}


@pytest.mark.parametrize("task", TASKS)
def test_form(task):
    assert make(task, "train", 3, turns=5) == make(task, "train", 3, turns=5)
    a, b = make(task, "train", 3), make(task, "test", 3)
    assert [f.tobytes() for f in a["image"]] != [f.tobytes() for f in b["image"]]
    for size in (64, 128, 200):
        made = TASKS[task](Random(1), size)
        assert all(f.size == (size, size) and f.mode == "RGB" for f in made.frames)
        assert [q.answer for q in made.questions] == [q.answer for q in TASKS[task](Random(1), 128).questions]
    for i in range(150):
        made = TASKS[task](Random(i), 64)
        assert made.kind == "views" and made.prompt.endswith("\n")
        assert made.prompt.count("<image>") == len(made.frames) == len(made.captions) in (2, 3, 4)
        assert 3 <= len(made.questions) <= 8
        assert len({q.text for q in made.questions}) == len(made.questions)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_balanced(task):
    groups = {}
    for i in range(700):
        made = TASKS[task](Random(f"balance{i}"), 64)
        for q in made.questions:
            if q.choices and q.choices <= 4:
                which = q.answer not in ("yes", "no") and "hich view" in q.text
                group = ("forward" in made.prompt, which, "stop" in q.text, q.choices, q.answer in ("yes", "no"))
                groups.setdefault(group, Counter())[q.answer] += 1
    for (*_, choices, _), counts in groups.items():
        assert max(counts.values()) / counts.total() <= {2: 0.6, 3: 0.5, 4: 0.4}[choices], counts


# Rooms


def rays(camera, side, margin):
    """(origin, directions) through all pixels of a picture that goes on beyond its borders; from first principles."""
    eye = np.array([camera.x, camera.y, camera.z])
    forward = np.array([camera.to_x, camera.to_y, camera.to_z]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    n = side + 2 * margin
    steps = ((np.arange(n) - margin + 0.5) / side * 2 - 1) / camera.zoom
    directions = forward + steps[None, :, None] * right - steps[:, None, None] * up
    return eye, directions.reshape(-1, 3)


def hit(solid, eye, directions):
    """Distance along each ray to a solid, inf where it misses: the equations of each kind."""
    c, s = math.cos(solid.turn), math.sin(solid.turn)
    turned = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) if solid.kind == "cube" else np.eye(3)
    o, d = (eye - (solid.x, solid.y, 0)) @ turned, directions @ turned
    h, r = solids.HEIGHTS[solid.kind], solids.RADIUS
    with np.errstate(all="ignore"):
        if solid.kind == "cube":
            low, high = np.array([-solids.HALF_CUBE] * 2 + [0]), np.array([solids.HALF_CUBE] * 2 + [h])
            t = np.sort(np.stack([(low - o) / d, (high - o) / d]), axis=0)
            enter, leave = t[0].max(1), t[1].min(1)
            return np.where((enter <= leave) & (enter > 0), enter, np.inf)
        if solid.kind == "ball":
            o = o - (0, 0, r)
            return quadratic((d * d).sum(1), d @ o, o @ o - r * r)[0]
        if solid.kind == "cylinder":
            ts = quadratic((d[:, :2] ** 2).sum(1), d[:, :2] @ o[:2], o[:2] @ o[:2] - r * r)
            top = (h - o[2]) / d[:, 2]
            on_top = ((o[:2] + top[:, None] * d[:, :2]) ** 2).sum(1) <= r * r
            side = np.where((0 <= o[2] + ts[0] * d[:, 2]) & (o[2] + ts[0] * d[:, 2] <= h), ts[0], np.inf)
            return np.minimum(side, np.where(on_top & (top > 0), top, np.inf))
        k, oz = r / h, o[2] - h
        a = (d[:, :2] ** 2).sum(1) - (k * d[:, 2]) ** 2
        b = d[:, :2] @ o[:2] - k * k * d[:, 2] * oz
        ts = quadratic(a, b, o[:2] @ o[:2] - (k * oz) ** 2)
        good = [np.where((0 <= o[2] + t * d[:, 2]) & (o[2] + t * d[:, 2] <= h) & (t > 0), t, np.inf) for t in ts]
        return np.minimum(*good)


def quadratic(a, b, c):
    """The two roots of a t^2 + 2 b t + c, the smaller first; inf where there are none."""
    root = np.sqrt(b * b - a * c)
    ts = np.nan_to_num(np.sort(np.stack([(-b - root) / a, (-b + root) / a]), axis=0), nan=np.inf)
    return ts[0], ts[1]


def visible_shares(camera, things, side=64):
    margin = 2 * side
    eye, directions = rays(camera, side, margin)
    far = np.stack([hit(s, eye, directions) for s in things])
    first = np.where(np.isfinite(far.min(0)), far.argmin(0), -1).reshape(side + 2 * margin, -1)
    inside = first[margin:-margin, margin:-margin]
    return [float((inside == i).sum() / max(np.isfinite(far[i]).sum(), 1)) for i in range(len(things))], inside


def some_rooms(count):
    return [rooms._room(Random(f"room{i}")) for i in range(count)]


def test_visibility_is_what_a_ray_caster_finds():
    seen = Counter()
    for things, views in some_rooms(8):
        for view in views:
            shares, _ = visible_shares(view.camera, things)
            assert np.allclose(shares, view.shares, atol=0.09)
            for a, b in zip(shares, view.shares, strict=True):
                assert (a >= 0.3) == (b >= rooms.SHOWN)
                assert not 0.05 < b < 0.35
                seen[b >= rooms.SHOWN] += 1
    assert seen[True] > 20 and seen[False] > 5


def test_pixels_have_the_colour_of_the_solid_a_ray_meets():
    """Wherever the ray caster meets a solid, away from edges, the picture has its hue; elsewhere it is pale."""
    for things, views in some_rooms(3):
        for view in views:
            _, ids = visible_shares(view.camera, things, 128)
            pixels = np.asarray(view.draw(128)).astype(float)
            blocks = np.lib.stride_tricks.sliding_window_view(ids, (5, 5))
            same = (blocks == blocks[..., 2:3, 2:3]).all((2, 3))
            for i in (-1, *range(len(things))):
                inner = same & (ids[2:-2, 2:-2] == i)
                named = names_of(pixels[2:-2, 2:-2][inner][::7])
                if i < 0:
                    assert all(n == "" for n in named)
                elif named:
                    assert named.count(things[i].color) >= 0.85 * len(named)  # the rest: bright spots


def names_of(pixels):
    """The colours' names, whatever the light; nothing for the room."""
    pale = [(rgb, w) for w in np.arange(0.02, 0.12, 0.02) for rgb in draw.COLORS.values()]
    names = list(draw.COLORS) * (len(pale) // len(draw.COLORS))
    table = [np.array(rgb) * (1 - w) + 255 * w for rgb, w in pale]
    for light in np.arange(0.7, 1.01, 0.02):
        table += [np.array(rgb) * light for rgb in draw.COLORS.values()]
        names += list(draw.COLORS)
    distances = np.abs(pixels[:, None] - np.array(table)).max(2)
    return [names[i] if d < 30 else "" for i, d in zip(distances.argmin(1), distances.min(1), strict=True)]


def test_projection():
    for i in range(20):
        (view, *_) = some_rooms(1)[0][1]
        rng = Random(i)
        point = np.array([rng.uniform(-2, 2), rng.uniform(-2, 2), rng.uniform(0, 1)])
        x, y = view.camera.project(point[None])[0]
        eye, directions = rays(view.camera, 200, 200)
        column, row = int(x * 200 + 200), int(y * 200 + 200)
        d = directions.reshape(600, 600, 3)[row, column]
        toward = point - eye
        assert d @ toward / np.linalg.norm(d) / np.linalg.norm(toward) > 0.99999


def test_answers_about_rooms(monkeypatch):
    made, original = [], rooms._room
    monkeypatch.setattr(rooms, "_room", lambda rng: made.append(original(rng)) or made[-1])
    kinds = Counter()
    for i in range(300):
        example = rooms.scene_vqa(Random(f"ask{i}"), 64)
        things, views = made[-1]
        named = {s.name: k for k, s in enumerate(things)}
        for q in every(example):
            number = re.search(r"view (\d)", q.text)
            view = views[int(number[1]) - 1] if number else None
            kinds[check_room(q, view, things, views, [named[n] for n in NAME.findall(q.text)], example)] += 1
    assert len(kinds) == 8 and min(kinds.values()) > 40


def check_room(q, view, things, views, asked, example):
    """Whether the answer is right; returns the kind of question."""
    there = [[share >= 0.35 for share in v.shares] for v in views]
    if "ount" in q.text or "How many" in q.text:
        assert q.answer == NUMBERS[len(things)] and all(any(t) for t in zip(*there, strict=True))
        return "count"
    if q.text.startswith(("Which view", "In which view")):
        wanted = not ("not" in q.text or "missing" in q.text)
        assert [NUMBERS[k + 1] for k, t in enumerate(there) if t[asked[0]] == wanted] == [q.answer]
        return "which" if wanted else "missing"
    if "color" in q.text:
        assert [s.color for s in things if s.kind in q.text] == [q.answer]
        return "color"
    here = [s for s, t in zip(things, there[views.index(view)], strict=True) if t]
    place = {s.name: view.camera.project(np.array([[s.x, s.y, 0.4]]))[0, 0] for s in here}
    far = {s.name: math.hypot(s.x - view.camera.x, s.y - view.camera.y) for s in here}
    if q.style == "text":
        assert q.answer == example.captions[views.index(view)]
        assert NAME.findall(q.answer) == sorted(place, key=place.get)
        return "text"
    if q.answer in ("yes", "no"):
        a, b = (far[things[i].name] for i in asked)
        assert abs(a - b) > 0.7 and (a > b) == (q.answer == "yes")
        return "behind"
    if "near" in q.text:
        assert all(far[q.answer] < f - 0.7 for n, f in far.items() if n != q.answer)
        return "nearest"
    x, left = place[things[asked[0]].name], "left" in q.text
    beside = [n for n, p in place.items() if n != things[asked[0]].name and (p < x) == left]
    assert beside == [q.answer] and abs(place[q.answer] - x) > 0.14
    return "beside"


# Houses


@pytest.fixture
def recorded(monkeypatch):
    """Examples of the house with their poses: (example, house, poses)."""
    sights, original = [], house.Sight
    monkeypatch.setattr(house, "Sight", lambda *a: sights.append(original(*a)) or sights[-1])

    def record(key, size=64):
        sights.clear()
        made = house.embodied_vqa(Random(key), size)
        return made, sights[0].house, [s.pose for s in sights]

    return record


def ahead(cell, heading, count=1):
    dx, dy = ((0, -1), (1, 0), (0, 1), (-1, 0))[heading]
    return cell[0] + dx * count, cell[1] + dy * count


def wall(plan, cell, heading):
    x, y = ahead(cell, heading)
    return (cell, heading) in plan.walls or not (0 <= x < 4 and 0 <= y < 4)


def moves(plan, pose):
    cell, heading = pose
    yield "left", (cell, (heading - 1) % 4)
    yield "right", (cell, (heading + 1) % 4)
    if not wall(plan, cell, heading) and ahead(cell, heading) not in plan.things:
        yield "forward", (ahead(cell, heading), heading)


def best_actions(plan, pose, goal):
    """First actions of all shortest plans, found forwards by breadth."""
    edge, seen = {pose: set()}, {pose}
    while edge:
        done = [a for p, a in edge.items() if not wall(plan, *p) and ahead(*p) == goal]
        if done:
            return set().union(*done) or {"stop"}
        following = {}
        for p, first in edge.items():
            for action, q in moves(plan, p):
                if q not in seen:
                    following.setdefault(q, set()).update(first or {action})
        seen |= set(following)
        edge = following
    return set()


def test_walls_stand_on_both_sides_and_rooms_are_joined():
    for i in range(100):
        plan = house.random_house(Random(i))
        assert all((ahead(c, h), (h + 2) % 4) in plan.walls for c, h in plan.walls)
        reached, edge = {(0, 0)}, [(0, 0)]
        for cell in edge:
            new = [ahead(cell, h) for h in range(4) if not wall(plan, cell, h)]
            edge += [c for c in new if c not in reached]
            reached |= set(new)
        assert len(reached) == 16


def test_answers_in_the_house(recorded):
    kinds = Counter()
    for i in range(300):
        made, plan, poses = recorded(f"walk{i}", 128)
        around = len({cell for cell, _ in poses}) == 1 and "forward" in made.prompt
        looks = {look: p for look, p in zip(("forward", "left", "right", "back"), poses, strict=False)}
        if around:
            assert [(p[1] - poses[0][1]) % 4 for p in poses] == [0, 3, 1, 2][: len(poses)]
        for q in made.questions:
            number = re.search(r"view (\d)", q.text)
            pose = poses[int(number[1]) - 1] if number else None
            if around:
                word = next((w for w in AT if re.search(rf"\b{w}\b", q.text)), None)
                pose = (poses[0][0], (poses[0][1] + AT[word]) % 4) if word else None
            kinds[check_house(q, pose, plan, poses, looks if around else None, made)] += 1
    assert len(kinds) == 7 and min(kinds.values()) > 30, kinds


def check_house(q, pose, plan, poses, looks, made):
    """Whether the answer is right; returns the kind of question."""
    cells = {" ".join(v): c for c, v in plan.things.items()}
    asked = NAME.findall(q.text)
    if q.style == "text":
        assert q.answer in made.captions
        assert ("wall ahead" in q.answer) == wall(plan, *pose)
        return "text"
    if "stop" in q.text:
        now = poses[0] if looks else poses[-1]
        assert best_actions(plan, now, cells[asked[0]]) == {q.answer}
        assert any(straight(plan, p) == asked[0] for p in poses)
        return "next"
    if "between" in q.text or "leads" in q.text:
        k, n = (int(v) - 1 for v in re.findall(r"view (\d)", q.text))
        assert n == k + 1 and dict(moves(plan, poses[k]))[q.answer] == poses[n]
        return "done"
    if "color" in q.text:
        (color,) = [c for c, kind in plan.things.values() if re.search(rf"\b{kind}\b", q.text)]
        assert color == q.answer and any(painted(f, color) > 20 for f in made.frames)
        return "color"
    if q.text.startswith(("Which view", "In which view")):
        color = asked[0].split()[0]
        names = list(looks) if looks else NUMBERS[1:]
        assert painted(made.frames[names.index(q.answer)], color) > 20
        if [c for c, _ in plan.things.values()].count(color) == 1:
            assert all(painted(f, color) <= 12 for f, n in zip(made.frames, names, strict=False) if n != q.answer)
        return "which"
    if q.answer in ("yes", "no"):
        assert (q.answer == "no") == wall(plan, *pose) and (q.answer == "no" or ahead(*pose) not in plan.things)
        frame = np.asarray(made.frames[poses.index(pose)])
        tint = frame[34:94:4, 30:98:4].reshape(-1, 3)
        flat = (tint == np.median(tint, axis=0)).all(1).mean() > 0.95
        assert flat == (q.answer == "no")
        return "walk"
    assert straight(plan, pose) == q.answer
    if q.answer != "wall":
        assert q.answer in made.captions[poses.index(pose)]
    return "what"


def straight(plan, pose):
    """What stands straight ahead: a thing, or a wall in front of the next cell."""
    (cell, heading), free = pose, True
    while not wall(plan, cell, heading):
        cell, free = ahead(cell, heading), False
        if cell in plan.things:
            return " ".join(plan.things[cell])
    return "wall" if free else None


def painted(frame, color):
    """Pixels of exactly this colour."""
    return int((np.asarray(frame) == draw.COLORS[color]).all(2).sum())


def test_things_are_where_a_pinhole_puts_them(recorded):
    """A thing alone straight ahead covers the expected square and nothing beyond it."""
    checked = 0
    for i in range(60):
        made, plan, poses = recorded(f"look{i}", 128)
        for frame, (cell, heading) in zip(made.frames, poses, strict=True):
            name = straight(plan, (cell, heading))
            if name in (None, "wall"):
                continue
            (found,) = [c for c, v in plan.things.items() if " ".join(v) == name]
            depth = abs(found[0] - cell[0]) + abs(found[1] - cell[1]) + 0.3  # the eye is 0.3 behind
            half, low = 64 * 1.2 * 0.4 / depth, 64 + 64 * 1.2 * 0.5 / depth
            same = (np.asarray(frame) == draw.COLORS[name.split()[0]]).all(2)
            part = same[round(low - 2 * half) : round(low) + 1, round(64 - half) : round(64 + half) + 1]
            assert part.mean() > 0.12
            checked += 1
    assert checked > 60
