"""Video tasks of the world: frames show what captions say, and answers follow from the captions alone."""

import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from minilava.data.world import draw, make, preference
from minilava.data.world.motion import FRAMES, random_clip
from minilava.data.world.scene import CELLS, NUMBERS
from minilava.data.world.video import video_caption, video_qa
from tests.data.look import every

TASKS = {"video_qa": video_qa, "video_caption": video_caption}
THING = re.compile(r"a (small|large) (\w+) (\w+) at the ([a-z ]+)")
NAME = re.compile(rf"the ({'|'.join(draw.COLORS)}) (\w+)")
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def samples(task, count, size=64):
    return [TASKS[task](Random(f"{task}{i}"), size) for i in range(count)]


def tracks(captions):
    """kind -> per frame (size, color, column, row), None where it is not there."""
    out = {}
    for f, caption in enumerate(captions):
        for size, color, kind, where in THING.findall(caption):
            cell = CELLS.index(where)
            out.setdefault(kind, [None] * FRAMES)[f] = (size, color, cell % 3, cell // 3)
    return out


def time(track):
    """The first frame in which a thing is not what it was."""
    return next((f for f in range(1, FRAMES) if track[f] != track[0]), None)


def apart(first, second):
    return min((abs(p[2] - q[2]) + abs(p[3] - q[3]) for p, q in zip(first, second, strict=True) if p and q), default=9)


def first_step(track):
    f = time(track)
    dx, dy = track[f][2] - track[0][2], track[f][3] - track[0][3]
    return next((name for name, (x, y) in STEP.items() if (dx, dy) == (x, y)), None)


def happens(clause, seen):
    """Frame in which the clause becomes true, None if it is wrong."""
    name = re.match(r"an? (\w+) (\w+) (.*)", clause)
    color, kind, rest = name.groups()
    track = seen.get(kind)
    start = track and next(s for s in track if s)
    if not track or start[1] != color or time(track) is None:
        return None
    before, after = track[0], track[-1]
    if rest == "disappears":
        right = before and not after
    elif rest.startswith("appears"):
        right = not before and after and CELLS[after[3] * 3 + after[2]] == rest.removeprefix("appears at the ")
    elif not before or not after:
        right = False
    elif rest.startswith("turns"):
        right = after[1] == rest.split()[1] != before[1]
    elif rest in ("grows", "shrinks"):
        right = (before[0], after[0]) == (("small", "large") if rest == "grows" else ("large", "small"))
    else:
        moved = before[2:] != track[time(track)][2:]
        back = before == after
        right = moved and first_step(track) == re.match(r"moves (\w+)", rest)[1] and back == rest.endswith("back")
        partner = re.search(r"meets an? (\w+) (\w+)", rest)
        if partner:
            other = seen.get(partner[2])
            right = right and other and other[0][1] == partner[1] and apart(track, other) == 1
    return time(track) if right else None


def tells(description, seen):
    """Whether a description has exactly the events of the video, in order."""
    times = [happens(c, seen) for c in description.split(", then ")]
    changed = [t for t in seen.values() if time(t) is not None]
    return None not in times and times == sorted(times) and len(times) == len(changed)


def options(text):
    return dict(re.findall(r"\(([A-H])\) (.*?)(?= \([A-H]\)|$)", text))


@pytest.mark.parametrize("task", TASKS)
def test_form(task):
    assert make(task, "train", 3, turns=5) == make(task, "train", 3, turns=5)
    a, b = make(task, "train", 3), make(task, "test", 3)
    assert [f.tobytes() for f in a["video"]] != [f.tobytes() for f in b["video"]]
    for size in (64, 128, 200):
        made = TASKS[task](Random(1), size)
        assert made.kind == "video" and made.prompt == "<video>\n"
        assert [f.size for f in made.frames] == [(size, size)] * FRAMES
        assert [q.answer for q in made.questions] == [q.answer for q in TASKS[task](Random(1), 128).questions]
    for made in samples(task, 200):
        assert 3 <= len(made.questions) <= 8 and len(made.captions) == FRAMES
        assert len({q.text for q in made.questions}) == len(made.questions)
        for q in made.questions:
            assert q.style != "letter" or len(options(q.text)) == q.choices


@pytest.mark.parametrize("size", [64, 128, 200])
def test_frames_show_what_captions_say(size):
    for made in samples("video_qa", 25, size):
        for frame, caption in zip(made.frames, made.captions, strict=True):
            pixels = np.asarray(frame)
            found = {where: color for _, color, _, where in THING.findall(caption)}
            for i, where in enumerate(CELLS):
                x, y = ((v + 0.5) / 3 * size for v in (i % 3, i // 3))
                half = round(size * 0.11)
                part = pixels[round(y) - half : round(y) + half, round(x) - half : round(x) + half].reshape(-1, 3)
                colors = {c for c, rgb in draw.COLORS.items() if (part == rgb).all(1).mean() > 0.05}
                assert colors == ({found[where]} if where in found else set())


def test_answers_of_video_qa():
    kinds = Counter()
    for made in samples("video_qa", 400):
        seen = tracks(made.captions)
        for q in every(made):
            text, named = q.text, NAME.findall(q.text)
            last = {k: t[-1] for k, t in seen.items() if t[-1]}
            if steps(q, seen, brief_time):
                kinds["step"] += 1
            elif q.style == "letter":
                kinds["order"] += 1
                when = {a: brief_time(clause, seen) for a, clause in options(text).items()}
                assert None not in when.values() and len(set(when.values())) == len(when)
                assert q.answer == (max if "last" in text else min)(when, key=when.get)
            elif q.answer in STEP and q.style == "word":
                kinds["direction"] += 1
                color, kind = named[-1]
                assert first_step(seen[kind]) == q.answer and seen[kind][0][1] == color
            elif "appear" in text or "goes away" in text:
                gone = "disappear" in text or "away" in text
                there, not_there = (0, -1) if gone else (-1, 0)
                right = [f"{t[there][1]} {k}" for k, t in seen.items() if t[there] and not t[not_there]]
                kinds["gone" if gone else "new"] += 1
                assert right == [q.answer]
            elif "color" in text:
                kinds["color"] += 1
                (kind,) = [k for k in seen if re.search(rf"\b{k}\b", text)]
                assert q.answer == seen[kind][-1][1] != seen[kind][0][1]
            elif q.answer in ("grow", "shrink"):
                kinds["size"] += 1
                sizes = ["small", "large"] if q.answer == "grow" else ["large", "small"]
                track = seen[named[0][1]]
                assert [track[0][0], track[-1][0]] == sizes
            elif "How many" in text:
                kinds["count"] += 1
                assert q.answer == NUMBERS[len(last)]
            elif text.startswith("Where"):
                kinds["place"] += 1
                _, color, column, row = last[named[0][1]]
                assert (color, CELLS[row * 3 + column]) == (named[0][0], q.answer)
            else:
                kinds["meet"] += 1
                distance = apart(*(seen[k] for _, k in named))
                assert q.answer == ("yes" if distance == 1 else "no") and q.choices == 2
    assert len(kinds) == 10 and min(kinds.values()) > 40


def steps(question, seen, when):
    """Check what practice asks about an order; whether it is such a question. when: of a clause, the frame."""
    text, listed = question.text.partition(" (A)")[0], options(question.text)
    changing = {k: time(t) for k, t in seen.items() if time(t) is not None}
    pick = max if "last" in text else min
    if re.match("Which thing (changes|does something)", text):
        kind = pick(changing, key=changing.get)
        name = f"{next(s for s in seen[kind] if s)[1]} {kind}"
        assert listed.get(question.answer, question.answer) == name
        return True
    clause = re.match(r"(?:Is the (?:first|last) event|Does it happen (?:first|last)) that (.*)\?", text)
    if clause:
        assert question.answer == ("yes" if when(clause[1], seen) == pick(changing.values()) else "no")
    return bool(clause)


def brief_time(clause, seen):
    """When one of the short options happens."""
    if clause.startswith("something"):
        gone = clause.endswith("disappears")
        return next(time(t) for t in seen.values() if not t[-1 if gone else 0])
    return time(seen[clause.split()[1]])


def test_answers_of_video_caption():
    kinds = Counter()
    for made in samples("video_caption", 300):
        seen = tracks(made.captions)
        clauses = next(q.answer for q in made.questions if q.style == "text").split(", then ")
        assert tells(", then ".join(clauses), seen)
        for q in every(made):
            listed = options(q.text)
            if steps(q, seen, happens):
                kinds["step"] += 1
            elif " that " in q.text:
                kinds[q.answer] += 1
                clause = re.search(" that (.*)\\?$", q.text)[1]
                assert q.answer == ("no" if happens(clause, seen) is None else "yes")
            elif q.style == "phrase" and re.search("first|last", q.text):
                assert q.answer == clauses[0 if "first" in q.text else -1]
            elif q.style == "letter" and set(listed.values()) == set(clauses):
                assert listed[q.answer] == clauses[-1 if "last" in q.text else 0]
            elif q.style == "letter" and q.choices == 2:
                assert [a for a, o in listed.items() if tells(o, seen)] == [q.answer]
            elif q.style == "letter":
                assert len(set(listed.values())) == 4
                assert [a for a, o in listed.items() if happens(o, seen) is not None] == [q.answer]
    assert kinds["step"] > 600 and min(kinds["yes"], kinds["no"]) > 100


@pytest.mark.parametrize("task", TASKS)
def test_preferences(task):
    for i, made in enumerate(samples(task, 150)):
        _, right, wrong = made.preference
        seen = tracks(made.captions)
        assert tells(right, seen) and not tells(wrong, seen), i
    assert preference(task, "train", 0)["prompt"].startswith("<video>\n")


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_balanced(task):
    answers = {}
    for made in samples(task, 500):
        for q in made.questions:
            if q.choices and q.choices <= 4:
                group = (q.style, q.choices, q.answer in STEP, q.answer in NUMBERS)
                answers.setdefault(group, Counter())[q.answer] += 1
    for (_, choices, _, number), counts in answers.items():
        share = max(counts.values()) / counts.total()
        assert share < (0.6 if choices == 2 or number else 0.42), counts


def test_the_two_lengths_of_a_wrong_description_say_nothing():
    """With two events one may be invented, with three one may be missing: the longer one is right as often as not."""
    longer = Counter()
    for made in samples("video_caption", 600):
        _, right, wrong = made.preference
        a, b = right.count(", then "), wrong.count(", then ")
        if a != b:
            longer[a > b] += 1
    assert 0.4 < longer[True] / longer.total() < 0.6


def test_meetings_are_forced():
    assert all(any(e.verb in ("meet", "bounce") for e in random_clip(Random(i), 1, True).events) for i in range(20))


@pytest.mark.parametrize("task", TASKS)
def test_a_clip_in_more_frames_shows_the_same(task):
    """Every fourth of 24 frames is one of its own six; where something moves, there is more to see between them."""
    moving = set()
    for i in range(25):
        own, dense = (make(task, "test", i, size=64, clip_frames=n) for n in (None, 4 * FRAMES))
        assert own["conversations"] == dense["conversations"]
        few, many = ([f.tobytes() for f in record["video"]] for record in (own, dense))
        assert many[::4] == few and len(many) == 4 * FRAMES
        assert few == [f.tobytes() for f in make(task, "test", i, size=64, clip_frames=FRAMES)["video"]]
        moves = " moves " in preference(task, "test", i)["chosen"]
        assert (len(set(many)) > len(set(few))) == moves
        moving.add(moves)
    assert moving == {True, False}
