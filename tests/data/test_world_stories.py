"""Tasks about several pictures, their answers worked out again from what each picture shows."""

import re
from collections import Counter
from importlib import import_module
from itertools import permutations

import numpy as np
import pytest

from minilava.data.world import daily, example, make, story
from minilava.data.world.scene import CELLS, NUMBERS
from tests.data.look import (
    EXACT,
    asked,
    assert_balanced,
    assert_seen,
    assert_well_formed,
    check,
    every,
    read_caption,
    told,
)

caption = import_module("minilava.data.world.captions")
TASKS = ("visual_story", "image_caption", "daily")


def samples(task, count=300, size=128):
    return [example(task, "test", i, size)[0] for i in range(count)]


@pytest.mark.parametrize("task", TASKS)
def test_well_formed(task):
    assert_well_formed(task, example, make)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [128, 200])
def test_the_pictures_show_what_the_captions_say(task, size):
    for made in samples(task, 15, size):
        for frame, text in zip(made.frames, made.captions, strict=True):
            flat = task != "daily"
            assert_seen(frame, read_caption(text.split(": ")[-1]), empty=flat, reach=500 if flat else 50)


def test_visual_story():
    seen = Counter()
    for made in samples("visual_story", 400):
        frames = [{t.name: t for t in read_caption(c)} for c in made.captions]
        texts = [q.text for q in made.questions]
        if any(asked(t, story.FIRST) is not None for t in texts):
            answers = mixed_up(frames)
        elif any(asked(t, story.NEXT_PLACE) is not None for t in texts):
            answers = beginning(frames)
        else:
            answers = whole(frames)
            (text,) = (q.answer for q in made.questions if q.style == "text")
            assert text == answers.pop("told")
        names = "ABCD" if story.FIRST in answers else "1234"
        answers |= followed(dict(zip(names, frames, strict=False)))
        for q in every(made):
            if q.style in (*EXACT, "each"):
                seen[check(q, answers)] += 1
    assert set(seen) == {
        story.WHO, story.END, story.START, story.WHERE, story.WHEN, story.ENDING, story.COLLECTED, story.FIRST,
        story.LAST, story.ORDER, story.NEXT_THING, story.NEXT_PLACE, story.WHERE_EACH, story.STAYS, story.SHOWING,
    }  # fmt: skip


def followed(frames):
    """What is asked about single pictures in practice. frames: {name of a picture: {name: thing}}."""
    hero = mover([f for f in frames.values() if len(f) == max(map(len, frames.values()))])

    def where(name, frame):
        return frame[name].where if name in frame else "nowhere"

    return {
        story.WHERE: lambda slots: where(hero, frames[slots["n"]]),
        story.WHERE_EACH: lambda _: ", ".join(f"{n} {where(hero, f)}" for n, f in frames.items()),
        story.SHOWING: lambda slots: ", ".join(
            f"{n} {'yes' if slots['part'].removeprefix('the ') in f else 'no'}" for n, f in frames.items()
        ),
        story.STAYS: lambda slots: next(f[slots["name"]].where for f in frames.values() if slots["name"] in f),
    }


def mover(frames):
    """The name of the one thing that is not in the same cell in all pictures that show it."""
    (name,) = (n for n in frames[0] if len({f[n].cell for f in frames if n in f}) > 1)
    return name


def whole(frames):
    hero = mover(frames)
    cells = [f[hero].cell if hero in f else None for f in frames]
    gone = [n for n in frames[0] if n not in frames[-1]]
    for one, two in zip(cells, cells[1:], strict=False):
        assert two is None or abs(one % 3 - two % 3) + abs(one // 3 - two // 3) <= 1
    goal = gone[0] if gone and gone != [hero] else None
    if goal:
        ending, end = "it collects a thing", f"At the {CELLS[cells[-1]]} it collects the {goal}."
        assert frames[0][goal].cell == cells[-1]
    elif gone:
        ending, end = "it leaves", "Then it leaves."
        assert cells[-2] != 4
    elif frames[-1][hero].size != frames[-2][hero].size:
        ending, end = "it grows", "Then it grows."
        assert frames[-1][hero].size == "large"
    else:
        ending, end = "it stops", "Then it stops."
        assert cells[-1] == cells[-2]
    steps = "".join(f"It moves to the {CELLS[c]}. " for c in cells[1:-1])
    return {
        "told": f"A {frames[0][hero].full} starts at the {CELLS[cells[0]]}. {steps}{end}",
        story.WHO: lambda _: hero,
        story.START: lambda _: CELLS[cells[0]],
        story.END: lambda _: CELLS[cells[-1]],
        story.WHEN: lambda slots: NUMBERS[1 + cells.index(CELLS.index(slots["where"]))],
        story.ENDING: lambda _: ending,
        story.COLLECTED: lambda _: goal,
    }


def mixed_up(frames):
    """The one order in which a thing walks cell by cell until it is where the collected thing was."""
    hero = mover([f for f in frames if len(f) == max(map(len, frames))])
    (last,) = (i for i, f in enumerate(frames) if len(f) < max(map(len, frames)))
    orders = []
    for order in permutations(range(len(frames))):
        cells = [frames[i][hero].cell for i in order]
        steps = [abs(a % 3 - b % 3) + abs(a // 3 - b // 3) for a, b in zip(cells, cells[1:], strict=False)]
        if order[-1] == last and set(steps) == {1}:
            orders.append(order)
    (order,) = orders
    letters = ["ABCD"[i] for i in order]
    return {
        story.FIRST: lambda _: letters[0],
        story.LAST: lambda _: letters[-1],
        story.ORDER: lambda _: ", ".join(letters),
        story.WHO: lambda _: hero,
    }


def beginning(frames):
    hero = mover(frames)
    one, two = (f[hero].cell for f in frames)
    following = 2 * two - one
    (goal,) = (t.name for t in frames[0].values() if t.cell == following)
    return {
        story.NEXT_THING: lambda _: goal,
        story.NEXT_PLACE: lambda _: CELLS[following],
        story.WHO: lambda _: hero,
    }


def test_image_caption():
    m, seen = caption, Counter()
    for made in samples("image_caption"):
        frames = [read_caption(c) for c in made.captions]
        for q in every(made):
            if q.style == "each":
                part = asked(q.text, m.SHOWING)["part"]
                marks = {str(i + 1): "yes" if shows(part, f) else "no" for i, f in enumerate(frames)}
                assert told(q.answer) == marks
            elif q.style in EXACT:
                seen[check(q, answers_caption(frames, q))] += 1
            else:
                assert q.answer == made.captions[int(asked(q.text, m.WRITE)["n"]) - 1]
    assert set(seen) == {m.PICTURE, m.CAPTION, m.FITS, m.COUNT_COLOR, m.COUNT_KIND, m.SHOWING, m.SHOWN}


def fits(text, frame):
    """Whether a picture shows all that a caption says, but for sizes, which do not differ."""
    shown = [(t.color, t.kind, t.cell) for t in frame]
    return all((t.color, t.kind, t.cell) in shown for t in read_caption(text))


def shows(part, frame):
    """Whether a picture has a thing of this color, kind and place, of which some may not be said."""
    words, _, where = part.partition(" at the ")
    said = set(words.split()) - {"a", "an", "thing"}
    return any(said <= {t.color, t.kind} and where in ("", CELLS[t.cell]) for t in frame)


def answers_caption(frames, question):
    m = caption

    def fitting(slots):
        (found,) = (i for i, f in enumerate(frames) if fits(slots["caption"], f))
        return NUMBERS[found + 1]

    def chosen(slots):
        options = re.split(r" \([A-C]\) ", question.text)[1:]
        (found,) = (o for o in options if fits(o, frames[int(slots["n"]) - 1]))
        return found

    return {
        m.COUNT_COLOR: lambda slots: NUMBERS[sum(any(t.color == slots["value"] for t in f) for f in frames)],
        m.CAPTION: chosen,
        m.FITS: lambda slots: "yes" if shows(slots["caption"], frames[int(slots["n"]) - 1]) else "no",
        m.SHOWN: lambda slots: "yes" if shows(slots["part"], frames[int(slots["n"]) - 1]) else "no",
        m.SHOWING: lambda slots: " and ".join(
            ", ".join(NUMBERS[i + 1] for i, f in enumerate(frames) if shows(slots["part"], f)).rsplit(", ", 1)
        ),
        m.COUNT_KIND: lambda slots: NUMBERS[sum(any(slots["value"].split()[-1] == t.kind for t in f) for f in frames)],
        m.PICTURE: fitting,
    }


def test_daily():
    m, seen = daily, Counter()
    for made in samples("daily"):
        heads, things = zip(*(c.split(": ") for c in made.captions), strict=True)
        places = [h.split()[1] for h in heads]
        dark = [h.endswith("night") for h in heads]
        for frame, night in zip(made.frames, dark, strict=True):
            assert (sum(frame.getpixel((1, 1))) < 300) == night
        answers = answers_daily(places, dark, [read_caption(t) for t in things])
        for q in every(made):
            if q.style == "each":
                one = [answers_daily([p], [True], [read_caption(t)]) for p, t in zip(places, things, strict=True)]
                slots = asked(q.text, m.HOW_MANY)
                assert list(told(q.answer).values()) == [a[m.HOW_MANY](slots) for a in one]
            elif q.style in EXACT:
                seen[check(q, answers)] += 1
            else:
                assert [bool(re.search(f"{p} at night", q.answer)) for p in places] == dark
                assert re.findall("street|table|garden|beach", q.answer) == places
    assert set(seen) == {m.SHOWS, m.PLACE, m.NIGHT, m.DO, m.WHERE_DO, m.HOW_MANY, m.COLOR}


def answers_daily(places, dark, views):
    m = daily
    verbs = [next(m.VERBS[t.kind] for t in v if t.kind in m.VERBS) for v in views]
    assert all(len({t.kind for t in v} & set(m.VERBS)) == 1 for v in views) and sum(dark) == 1

    def color(slots):
        (thing,) = (t for t in views[int(slots["n"]) - 1] if t.kind == slots["kind"])
        return thing.color

    def where(slots):
        assert verbs.count(slots["verb"]) == 1
        return NUMBERS[verbs.index(slots["verb"]) + 1]

    return {
        m.SHOWS: lambda slots: NUMBERS[places.index(slots["place"]) + 1],
        m.PLACE: lambda slots: places[int(slots["n"]) - 1],
        m.NIGHT: lambda _: NUMBERS[dark.index(True) + 1],
        m.DO: lambda slots: verbs[int(slots["n"]) - 1],
        m.WHERE_DO: where,
        m.HOW_MANY: lambda slots: NUMBERS[sum(m.plural(t.kind) == slots["kinds"] for v in views for t in v)],
        m.COLOR: color,
    }


@pytest.mark.parametrize("night", [False, True])
@pytest.mark.parametrize("place", list(daily.BOXES))
def test_things_stand_out_in_every_place(place, night):
    for row in range(3):
        assert len(daily._visible(place, night, row)) >= 4


def test_guessing_does_not_help():
    """The most frequent answer to each kind of question, against what a guess may reach."""
    limits = {
        caption.FITS: 0.6, caption.CAPTION: 0.42, caption.PICTURE: 0.42, caption.COUNT_COLOR: 0.4,
        daily.SHOWS: 0.45, daily.NIGHT: 0.45, daily.DO: 0.35, daily.PLACE: 0.32, daily.HOW_MANY: 0.4,
        story.FIRST: 0.42, story.LAST: 0.42, story.ENDING: 0.32, story.NEXT_PLACE: 0.45, story.NEXT_THING: 0.45,
        story.START: 0.25, story.END: 0.25, story.WHERE: 0.25, story.WHEN: 0.4,
    }  # fmt: skip
    counts = {forms: Counter() for forms in limits}
    for task, module in (("visual_story", story), ("image_caption", caption), ("daily", daily)):
        own = [f for f in limits if f in vars(module).values()]
        for made in samples(task, 800, 32):
            for q in made.questions:
                for forms in own:
                    if q.style in EXACT and asked(q.text, forms) is not None:
                        counts[forms][q.style, q.answer] += 1
    for forms, counted in counts.items():
        for style in {s for s, _ in counted}:
            assert_balanced({k: v for k, v in counted.items() if k[0] == style}, limits[forms])


def test_night_is_dark_and_day_is_light():
    for place in daily.BOXES:
        day, night = (np.mean(daily._background(place, night, 64)) for night in (False, True))
        assert night < 0.6 * day
