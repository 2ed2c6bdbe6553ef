"""visual_story: three or four pictures in which one thing travels and something happens to it in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import factorial
from random import Random

from minilava.data.world import draw
from minilava.data.world.captions import SHOWING
from minilava.data.world.example import Example, Question, a, each, lettered, number_images, say, yes
from minilava.data.world.scene import ALL, CELLS, NUMBERS, Scene, Thing, other, random_thing

NAMES = len(draw.COLORS) * len(draw.KINDS)
AROUND_CENTER = (0, 1, 2, 3, 5, 6, 7, 8)
# What happens in the last picture, as an option and as the end of the story.
ENDINGS = {
    "collects": ("it collects a thing", "collects the {goal}"),
    "grows": ("it grows", "grows"),
    "leaves": ("it leaves", "leaves"),
    "stops": ("it stops", "stops"),
}

WHO = ("Who moves?", "Which thing moves?", "Which thing travels in this story?")
END = ("Where does the moving thing end?", "Where is the moving thing in the last picture?", "Where does the trip end?")
START = ("Where does the moving thing start?", "Where does the trip start?")
WHERE = ("Where is the moving thing in picture {n}?", "Picture {n}: where is the moving thing?")
WHEN = ("In which picture is the {name} at the {where}?", "Which picture shows the {name} at the {where}?")
ENDING = ("What happens in the end?", "How does the story end?", "What happens in the last picture?")
COLLECTED = ("What is collected?", "Which thing is collected?", "Which thing is gone in the last picture?")
TELL = ("Tell the story.", "What happens in these pictures? Tell it as a story.", "Write the story of the pictures.")
FIRST = ("The pictures are mixed up. Which comes first?", "The story is mixed up. Which picture is the first?")
LAST = ("The pictures are mixed up. Which comes last?", "The story is mixed up. Which picture is the last?")
ORDER = ("Put the pictures in order.", "What is the right order of the pictures?")
NEXT_THING = ("What will the moving thing reach next?", "Which thing will be reached next?")
NEXT_PLACE = ("Where will the moving thing be next?", "To which place will it go next?")
# For practice only: the steps to an order, an end or a next place.
WHERE_EACH = ("Where is the moving thing in each picture?", "Follow the moving thing through the pictures.")
STAYS = ("Where is the {name}?", "In which place is the {name}?")

SHUFFLED = ("Picture {n}: <image>\n", "({n}) <image>\n", "{n} <image> ")


@dataclass(frozen=True)
class Story:
    """hero: the thing that travels, as it starts. path: its cell in each picture, None when it is gone.
    goal: what it collects at the end of the path, if it does. others: things that stay."""

    hero: Thing
    path: tuple[int | None, ...]
    ending: str
    goal: Thing | None
    others: tuple[Thing, ...]
    background: str

    def scenes(self) -> list[Scene]:
        out = []
        for i, cell in enumerate(self.path):
            last = i == len(self.path) - 1
            staying = self.others if last or not self.goal else (*self.others, self.goal)
            scene = Scene(tuple(sorted(staying, key=lambda t: t.cell)), self.background)
            if cell is not None:
                size = "large" if self.ending == "grows" and last else self.hero.size
                scene = scene.having(replace(self.hero, cell=cell, size=size))
            out.append(scene)
        return out

    def tell(self) -> str:
        """One sentence per picture."""
        places = [None if c is None else CELLS[c] for c in self.path]
        end = ENDINGS[self.ending][1].format(goal=self.goal.name if self.goal else "")
        start = f"{a(self.hero.full).capitalize()} starts at the {places[0]}."
        steps = [f"It moves to the {p}." for p in places[1:-1]]
        last = f"At the {places[-1]} it {end}." if self.ending == "collects" else f"Then it {end}."
        return " ".join([start, *steps, last])


def visual_story(rng: Random, size: int) -> Example:
    """The whole story, the same mixed up, or its beginning."""
    mode = rng.random()
    if mode < 0.6:
        return _whole(rng, size)
    return _shuffled(rng, size) if mode < 0.8 else _beginning(rng, size)


def _walk(rng: Random, steps: int) -> list[int]:
    """A shortest way over neighbouring cells, ``steps`` long."""
    while True:
        start, goal = rng.sample(range(9), 2)
        across, down = goal % 3 - start % 3, goal // 3 - start // 3
        if abs(across) + abs(down) == steps:
            break
    moves = [1 if across > 0 else -1] * abs(across) + [3 if down > 0 else -3] * abs(down)
    rng.shuffle(moves)
    path = [start]
    for move in moves:
        path.append(path[-1] + move)
    return path


def _things(rng: Random, cells: list[int]) -> list[Thing]:
    """A thing for each cell, no two of the same colour or kind."""
    colors, kinds = rng.sample(ALL.colors, len(cells)), rng.sample(ALL.kinds, len(cells))
    return [replace(random_thing(rng, c), color=x, kind=k) for c, x, k in zip(cells, colors, kinds, strict=True)]


def _story(rng: Random, pictures: int, ending: str) -> Story:
    """One or two things stay where they are, off the way."""
    path: list[int | None] = [*_walk(rng, pictures - 1 if ending == "collects" else pictures - 2)]
    while ending == "leaves" and path[-1] == 4:  # it leaves over the edge
        path = [*_walk(rng, pictures - 2)]
    free = [c for c in range(9) if c not in path]
    hero, goal, *others = _things(rng, [path[0], path[-1], *rng.sample(free, rng.randint(1, 2))])
    if ending == "grows":
        hero = replace(hero, size="small")
    if ending != "collects":
        path.append(None if ending == "leaves" else path[-1])
    background = rng.choice(list(draw.BACKGROUNDS))
    return Story(hero, tuple(path), ending, goal if ending == "collects" else None, tuple(others), background)


def _example(
    size: int,
    scenes: list[Scene],
    prompt: str,
    questions: list[Question],
    more: Callable[[], list[Question]],
    preference: tuple[str, str, str] | None = None,
) -> Example:
    frames, captions = [s.draw(size) for s in scenes], [s.caption() for s in scenes]
    return Example("image", frames, prompt, questions, captions, preference=preference, more=more)


def _steps(rng: Random, story: Story, names: str, order: Sequence[int]) -> list[Question]:
    """Where the hero is in each picture, where another thing stays, and in which pictures. names: of the pictures, as
    shown; order: the part of the story that each shows."""
    scenes, path, shown = story.scenes(), story.path, dict(zip(names, order, strict=True))
    places = {name: "nowhere" if path[i] is None else CELLS[path[i]] for name, i in shown.items()}
    thing = story.goal or rng.choice(story.others)
    there = {name: yes(thing in scenes[i].things) for name, i in shown.items()}
    staying = [t for t in (*story.others, story.goal) if t]
    name = rng.choice([n for n, place in places.items() if place != "nowhere"])
    return [
        Question(say(rng, WHERE_EACH), each(places), "each"),
        Question(say(rng, WHERE, n=name), places[name], "phrase", len(CELLS)),
        Question(say(rng, SHOWING, part=f"the {thing.name}"), each(there), "each"),
        *(Question(say(rng, STAYS, name=t.name), t.where, "phrase", len(CELLS)) for t in staying),
    ]


def _whole(rng: Random, size: int) -> Example:
    count = rng.randint(3, 4)
    story = _story(rng, count, rng.choice(list(ENDINGS)))
    questions = _about(rng, story)
    rng.shuffle(questions)
    wrong = replace(story, hero=replace(story.hero, color=other(rng, ALL.colors, story.hero.color)))
    preference = (say(rng, TELL), story.tell(), wrong.tell())

    def more() -> list[Question]:
        told = Question(say(rng, ENDING), ENDINGS[story.ending][0], "phrase")
        return [*_about(rng, story), *_steps(rng, story, "1234"[:count], range(count)), told]

    return _example(size, story.scenes(), number_images(rng, count), questions, more, preference)


def _about(rng: Random, story: Story) -> list[Question]:
    """What can be asked about a whole story."""
    count = len(story.path)
    questions = [
        Question(say(rng, WHO), story.hero.name, "phrase", NAMES),
        Question(say(rng, START), CELLS[story.path[0]], "phrase", len(CELLS)),
        Question(say(rng, TELL), story.tell(), "text"),
    ]
    if story.path[-1] is not None:
        questions.append(Question(say(rng, END), CELLS[story.path[-1]], "phrase", len(CELLS)))
    if story.goal:
        questions.append(Question(say(rng, COLLECTED), story.goal.name, "phrase", NAMES))
    listed, letter = lettered(rng, ENDINGS[story.ending][0], [v[0] for k, v in ENDINGS.items() if k != story.ending])
    questions.append(Question(f"{say(rng, ENDING)} {listed}", letter, "letter", len(ENDINGS)))
    seen = [i for i, c in enumerate(story.path) if c is not None]
    n = rng.choice(seen)
    questions.append(Question(say(rng, WHERE, n=n + 1), CELLS[story.path[n]], "phrase", len(CELLS)))
    if len({*story.path} - {None}) == count:  # else the last picture could not be the answer
        n = rng.randrange(count)
        asked = say(rng, WHEN, name=story.hero.name, where=CELLS[story.path[n]])
        questions.append(Question(asked, NUMBERS[n + 1], choices=count))
    return questions


def _shuffled(rng: Random, size: int) -> Example:
    """Only stories whose order is certain: what was collected cannot come back."""
    count = rng.randint(3, 4)
    story = _story(rng, count, "collects")
    scenes, order = story.scenes(), list(range(count))
    rng.shuffle(order)
    names = "ABCD"[:count]
    letters = [names[order.index(i)] for i in range(count)]  # the letter under which each picture is shown
    form = rng.choice(SHUFFLED)
    prompt = "".join(form.format(n=name) for name in names).rstrip() + "\n"

    def about() -> list[Question]:
        return [
            Question(say(rng, FIRST), letters[0], "letter", count),
            Question(say(rng, LAST), letters[-1], "letter", count),
            Question(say(rng, ORDER), ", ".join(letters), "phrase", factorial(count)),
            Question(say(rng, WHO), story.hero.name, "phrase", NAMES),
        ]

    questions = about()
    rng.shuffle(questions)
    shown = [scenes[i] for i in order]
    return _example(size, shown, prompt, questions, lambda: [*about(), *_steps(rng, story, names, order)])


def _beginning(rng: Random, size: int) -> Example:
    """Two pictures of a thing on its straight way to another; what comes next is the third."""
    end = rng.choice(AROUND_CENTER)
    start = rng.choice([c for c in AROUND_CENTER if _straight(c, end)])
    middle = (start + end) // 2
    free = [c for c in AROUND_CENTER if c not in (start, middle, end)]
    hero, goal, *others = _things(rng, [start, end, *rng.sample(free, 2)])
    story = Story(hero, (start, middle, end), "collects", goal, tuple(others), rng.choice(list(draw.BACKGROUNDS)))

    def about() -> list[Question]:
        things, thing = lettered(rng, goal.name, [t.name for t in others])
        places, place = lettered(rng, goal.where, [t.where for t in others])
        return [
            Question(f"{say(rng, NEXT_THING)} {things}", thing, "letter", 3),
            Question(f"{say(rng, NEXT_PLACE)} {places}", place, "letter", 3),
            Question(say(rng, NEXT_THING), goal.name, "phrase", NAMES),
            Question(say(rng, WHO), hero.name, "phrase", NAMES),
        ]

    questions = about()
    rng.shuffle(questions)

    def more() -> list[Question]:
        told = Question(say(rng, NEXT_PLACE), goal.where, "phrase", len(CELLS))
        return [*about(), *_steps(rng, story, "12", (0, 1)), told]

    return _example(size, story.scenes()[:2], number_images(rng, 2), questions, more)


def _straight(start: int, end: int) -> bool:
    """Whether two cells are the ends of a row, a column or a diagonal."""
    across, down = abs(start % 3 - end % 3), abs(start // 3 - end // 3)
    return (across, down) in ((2, 0), (0, 2), (2, 2))
