"""Embodied questions: first-person views of a house, where to go next, and what was done between two views."""

from __future__ import annotations

from random import Random

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, number_images, say
from minilava.data.world.floorplan import SIDE, TURNS, Cell, House, Pose, Sight, inside, step
from minilava.data.world.scene import NUMBERS

SHOWN, HIDDEN = 0.4, 0.03  # a thing shows in a view by at least, or at most, this share of its silhouette
NAMES = len(draw.COLORS) * len(draw.KINDS)
LOOKS = {"forward": 0, "left": 3, "right": 1, "back": 2}  # direction -> turns of the heading
SIDES = {"forward": "in front of you", "left": "on your left", "right": "on your right", "back": "behind you"}

LISTS = ("{name}: {image}\n", "Looking {name}: {image}\n", "{name} {image}\n")
WALKS = ("You walk through a house: {images}\n", "{images}\nThese are your last {count} views.\n")
NEXT = ("You want to go to the {name}. What is the next action?", "Go to the {name}. What do you do next?",
        "Your goal is the {name}. What comes next?")  # fmt: skip
ACTIONS = ("Forward, left, right or stop?", "Say forward, left, right or stop.")
LAST = ("You are at the last view.", "You are now at view {n}.")
WHAT = ("What is {side}?", "What can you see {side}?")
WHAT_STEP = ("What is in front of you in view {k}?", "In view {k}, what is in front of you?")
SHOWS = ("Which view shows the {name}?", "In which view is the {name}?", "Which view has the {name}?")
WALK = ("Can you walk {way}?", "Is the way {way} free?")
WALK_STEP = ("Can you walk forward in view {k}?", "In view {k}, is the way forward free?")
DONE = ("What did you do between view {k} and view {n}?", "Which action leads from view {k} to view {n}?")
MOVES = ("Forward, left or right?", "Say forward, left or right.")
COLOR = ("What color is the {kind}?", "Which color does the {kind} have?", "The {kind} is of which color?")
DESCRIBE_LOOK = ("Describe the {look} view.", "What does the {look} view show?", "Tell what is in the {look} view.")
DESCRIBE = ("Describe view {k}.", "What does view {k} show?", "Tell what is in view {k}.")


def embodied_vqa(rng: Random, size: int) -> Example:
    """All directions from one place, or the last two or three steps, with a goal in sight."""
    around = rng.random() < 0.5
    house, goal, answer, pose, before = _task(rng)
    if around:
        looks = list(LOOKS)[: rng.choice((3, 4))]
        poses = [(pose[0], (pose[1] + LOOKS[look]) % 4) for look in looks]
        prompt = _list(rng, looks)
    else:
        looks, (poses, actions) = [], _walk(rng, house, pose, before, rng.choice((2, 3)))
        prompt = _story(rng, len(poses))
    sights = [Sight(house, p) for p in poses]
    captions = [caption(s) for s in sights]
    questions = [_next(rng, house, goal, answer, around, len(poses))]
    questions += _what(rng, house, poses, looks) + _which(rng, sights, looks) + _free(rng, house, poses, looks)
    questions += _color(rng, sights)
    k = rng.randrange(len(sights))
    text = say(rng, DESCRIBE_LOOK, look=looks[k]) if looks else say(rng, DESCRIBE, k=k + 1)
    questions.append(Question(text, captions[k], "text"))
    if not around:
        questions.append(_done(rng, actions))
    rng.shuffle(questions)
    return Example("views", [s.draw(size) for s in sights], prompt, questions, captions)


def caption(sight: Sight) -> str:
    """From left to right: "a near red cup at the center, a far blue car at the right, a wall ahead"."""
    parts = []
    boxes = {thing: quad for _, thing, quad in sight.parts if thing is not None}
    for thing in sorted(shown(sight), key=lambda t: boxes[t][0][0]):
        middle = (boxes[thing][0][0] + boxes[thing][1][0]) / 2
        side = "left" if middle < 0.34 else "right" if middle > 0.66 else "center"
        depth = ("near", "middle", "far")[_depth(sight.pose, thing) - 1]
        parts.append(f"a {depth} {name(sight.house, thing)} at the {side}")
    if sight.house.blocked(*sight.pose):
        return ", ".join([*parts, "a wall ahead"])
    return ", ".join(parts) or "free floor"


def name(house: House, thing: Cell) -> str:
    return " ".join(house.things[thing])


def shown(sight: Sight) -> list[Cell]:
    return [thing for thing, share in sight.shares.items() if share >= SHOWN]


def _depth(pose: Pose, cell: Cell) -> int:
    """How many cells ahead."""
    (x, y), (dx, dy) = pose[0], step((0, 0), pose[1])
    return (cell[0] - x) * dx + (cell[1] - y) * dy


def random_house(rng: Random) -> House:
    """One wall through the house and maybe one through each half, all with a door, and three or four things."""
    walls = set()
    split = rng.randint(1, SIDE - 1)
    across = rng.random() < 0.5
    _wall(rng, walls, split, range(SIDE), across)
    for half in (range(split), range(split, SIDE)):
        if len(half) > 1 and rng.random() < 0.5:
            _wall(rng, walls, rng.randint(1, SIDE - 1), half, not across)
    cells = rng.sample([(x, y) for x in range(SIDE) for y in range(SIDE)], rng.choice((3, 4)))
    kinds = rng.sample(draw.KINDS, len(cells))
    return House(frozenset(walls), {c: (rng.choice(list(draw.COLORS)), k) for c, k in zip(cells, kinds, strict=True)})


def _wall(rng: Random, walls: set[Pose], at: int, along: range, across: bool) -> None:
    """A wall before row (or column) ``at``, with one door."""
    door = rng.choice(along)
    for i in along:
        if i != door:
            cell, heading = ((i, at), 0) if across else ((at, i), 3)
            walls |= {(cell, heading), (step(cell, heading), (heading + 2) % 4)}


def _task(rng: Random) -> tuple[House, Cell, str, Pose, str | None]:
    """(house, goal, the next action, pose, the action before it if the goal was in sight only before it)."""
    answer = rng.choice(("forward", "left", "right", "stop"))
    while True:
        house = random_house(rng)
        goal, toward = rng.choice(list(house.things)), rng.randrange(4)
        far = 1 if answer == "stop" else rng.choice((2, 2, 2, 3)) if answer == "forward" else rng.choice((1, 2))
        cell = step(goal, toward, -far)
        if not inside(cell) or cell in house.things or house.ahead((cell, toward)) != (far - 1, goal):
            continue
        pose = (cell, (toward - TURNS.get(answer, 0)) % 4)
        if house.next_actions(pose, goal) == {answer}:
            return house, goal, answer, pose, {"left": "right", "right": "left"}.get(answer)


def _walk(rng: Random, house: House, pose: Pose, before: str | None, count: int) -> tuple[list[Pose], list[str]]:
    """The last poses, the given one at the end, and the actions between them; ``before``: the last action."""
    poses, actions = [pose], []
    while len(poses) < count:
        cell, heading = poses[0]
        came = house.open(cell, (heading + 2) % 4)
        action = before if before and len(poses) == 1 else rng.choice(("left", "right", *["forward"] * 5))
        if action == "forward" and not came:
            action = rng.choice(tuple(TURNS))
        if action == "forward":
            poses.insert(0, (step(cell, heading, -1), heading))
        else:
            poses.insert(0, (cell, (heading - TURNS[action]) % 4))
        actions.insert(0, action)
    return poses, actions


def _list(rng: Random, looks: list[str]) -> str:
    form = rng.choice(LISTS)
    return "".join(form.format(name=look, image="<image>") for look in looks)


def _story(rng: Random, count: int) -> str:
    if rng.random() < 0.7:
        return number_images(rng, count, "View")
    return say(rng, WALKS, count=NUMBERS[count], images="<image>" * count)


def _next(rng: Random, house: House, goal: Cell, answer: str, around: bool, count: int) -> Question:
    where = "" if around else say(rng, LAST, n=count) + " "
    text = f"{where}{say(rng, NEXT, name=name(house, goal))} {say(rng, ACTIONS)}"
    return Question(text, answer, choices=4)


def _done(rng: Random, actions: list[str]) -> Question:
    """The action between two views; walking is rarer than turning, so it is asked for where it can be."""
    walked = [k for k, action in enumerate(actions) if action == "forward"]
    k = rng.choice(walked) if walked and rng.random() < 0.8 else rng.randrange(len(actions))
    return Question(f"{say(rng, DONE, k=k + 1, n=k + 2)} {say(rng, MOVES)}", actions[k], choices=3)


def _what(rng: Random, house: House, poses: list[Pose], looks: list[str]) -> list[Question]:
    """A thing straight ahead in one of the views, or seldom a wall."""
    ends = [house.ahead(p) for p in poses]
    things = [k for k, (_, thing) in enumerate(ends) if thing]
    walls = [k for k, end in enumerate(ends) if end == (0, None)]
    found = walls if rng.random() < 0.15 else things
    if not found:
        return []
    k = rng.choice(found)
    text = say(rng, WHAT, side=SIDES[looks[k]]) if looks else say(rng, WHAT_STEP, k=k + 1)
    answer = name(house, ends[k][1]) if ends[k][1] else "wall"
    return [Question(text, answer, "phrase", 8)]


def _which(rng: Random, sights: list[Sight], looks: list[str]) -> list[Question]:
    """The only view that shows a thing. The view that mostly has the goal is often left out, for balance."""
    found: dict[int, list[Cell]] = {}
    for thing in sights[0].house.things:
        shares = [s.shares.get(thing, 0.0) for s in sights]
        if sum(s > HIDDEN for s in shares) == 1 and max(shares) >= SHOWN:
            found.setdefault(shares.index(max(shares)), []).append(thing)
    if len(sights) > 2 and rng.random() < 0.4:
        found.pop(0 if looks else 1, None)
    if not found:
        return []
    k = rng.choice(sorted(found))
    answer = looks[k] if looks else NUMBERS[k + 1]
    form = say(rng, SHOWS, name=name(sights[0].house, rng.choice(found[k])))
    return [Question(form, answer, choices=len(sights))]


def _free(rng: Random, house: House, poses: list[Pose], looks: list[str]) -> list[Question]:
    """Whether one can walk one of the ways: a wall right ahead, or a free cell. Asked where there are both."""
    answers = ["no" if house.blocked(*p) else "yes" if house.open(*p) else "" for p in poses]
    if not {"yes", "no"}.issubset(answers):
        return []
    wanted = rng.choice(("yes", "no"))
    k = rng.choice([k for k, answer in enumerate(answers) if answer == wanted])
    text = say(rng, WALK, way=looks[k]) if looks else say(rng, WALK_STEP, k=k + 1)
    return [Question(text, wanted, choices=2)]


def _color(rng: Random, sights: list[Sight]) -> list[Question]:
    seen = sorted({t for s in sights for t in shown(s)})
    if not seen:
        return []
    color, kind = sights[0].house.things[rng.choice(seen)]
    return [Question(say(rng, COLOR, kind=kind), color, choices=len(draw.COLORS))]
