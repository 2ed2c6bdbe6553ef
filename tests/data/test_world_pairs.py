"""Tasks about two pictures, their answers worked out again from what each picture shows."""

from collections import Counter

import pytest

from minilava.data.world import difference, draw, editing, example, make
from tests.data.look import (
    EXACT,
    asked,
    assert_balanced,
    assert_seen,
    assert_well_formed,
    check,
    every,
    meaning,
    read_caption,
)


def samples(task, count=400, size=128):
    return [example(task, "test", i, size)[0] for i in range(count)]


@pytest.mark.parametrize("task", ["spot_difference", "image_edit"])
def test_well_formed(task):
    assert_well_formed(task, example, make)


@pytest.mark.parametrize("task", ["spot_difference", "image_edit"])
@pytest.mark.parametrize("size", [128, 200])
def test_the_pictures_show_what_the_captions_say(task, size):
    for made in samples(task, 25, size):
        for frame, caption in zip(made.frames, made.captions, strict=True):
            assert_seen(frame, read_caption(caption))


def compare(made):
    """(what changed, the thing before, the thing after), from the captions alone."""
    first, second = (set(read_caption(c)) for c in made.captions)
    old, new = next(iter(first - second), None), next(iter(second - first), None)
    assert len(first - second) <= 1 and len(second - first) <= 1
    if old and new:
        what = [k for k in ("color", "kind", "size", "cell") if getattr(old, k) != getattr(new, k)]
        assert len(what) == 1
        return {"cell": "moved"}.get(what[0], what[0]), old, new
    return "removed" if old else "added" if new else "none", old, new


def answers_difference(what, old, new):
    """{forms of a question: its answer as a function of the question's slots}."""
    m, places = difference, [t.where for t in (old, new) if t]
    return {
        m.SAME: lambda _: "yes" if what == "none" else "no",
        m.WHAT: lambda _: what,
        m.PLACE: lambda _: places[0],
        m.AT: lambda slots: "yes" if slots["where"] in places else "no",
        m.COLOR_WAS: lambda _: old.color,
        m.COLOR_IS: lambda _: new.color,
        m.KIND_WAS: lambda _: old.kind,
        m.KIND_IS: lambda _: new.kind,
        m.LARGER: lambda _: {"large": "larger", "small": "smaller"}[new.size],
        m.RESIZED: lambda _: old.name,
        m.MOVED: lambda _: old.name,
        m.CAME_FROM: lambda _: old.where,
        m.WENT_TO: lambda _: new.where,
        m.REMOVED: lambda _: old.name,
        m.ADDED: lambda _: new.name,
    }


def test_spot_difference():
    seen = Counter()
    for made in samples("spot_difference"):
        what, old, new = compare(made)
        assert (made.frames[0].tobytes() == made.frames[1].tobytes()) == (what == "none")
        for q in every(made):
            if q.style in EXACT:
                seen[check(q, answers_difference(what, old, new))] += 1
            else:
                assert asked(q.text, difference.SENTENCE) == {}
                assert all(t.where in q.answer and t.kind in q.answer for t in (old, new) if t), q
    assert set(seen) == set(answers_difference("none", None, None))


def instructed(what, old, new, color):
    """(kind of edit, its instruction in the short form). color: of the new background."""
    match what:
        case "color":
            return "color", f"change the {old.name} to {new.color}"
        case "kind":
            return "kind", f"change the {old.name} into a {new.kind}"
        case "size":
            return "size", f"make the {old.name} {'larger' if new.size == 'large' else 'smaller'}"
        case "moved":
            return "move", f"move the {old.name} to the {new.where}"
        case "removed":
            return "remove", f"remove the {old.name}"
        case "added":
            return "add", f"add {'an' if new.color == 'orange' else 'a'} {new.name} at the {new.where}"
        case "none":
            return "background", f"change the background to {color}"


def answers_edit(edit, right, old, new, color):
    m = editing
    return {
        m.PICK: lambda _: right,
        m.FITS: lambda slots: "yes" if slots["instruction"] == right else "no",
        m.KIND: lambda _: edit,
        m.THING: lambda _: old.name,
        m.NEW_COLOR: lambda _: new.color if new else color,
        m.NEW_KIND: lambda _: new.kind,
        m.NEW_SIZE: lambda _: right.split()[-1],
        m.NEW_PLACE: lambda _: new.where,
        m.REMOVED: lambda _: old.name,
        m.ADDED: lambda _: new.name,
    }


def test_image_edit():
    seen = Counter()
    for made in samples("image_edit"):
        what, old, new = compare(made)
        color = backdrop(made.frames[1])
        assert (color == backdrop(made.frames[0])) == (what != "none")
        edit, right = instructed(what, old, new, color)
        for q in every(made):
            if q.style in EXACT:
                seen[check(q, answers_edit(edit, right, old, new, color))] += 1
            else:
                assert q.answer == long_form(right, old, new), q
    assert set(seen) == set(answers_edit("", "", None, None, ""))


def long_form(right, old, new):
    """The instruction that also says where the thing is, or what size is added."""
    if old:
        return right.replace(old.name, f"{old.name} at the {old.where}")
    return (
        right.replace(f"add a {new.name}", f"add a {new.full}").replace(f"an {new.name}", f"a {new.full}")
        if new
        else right
    )


def backdrop(picture):
    """The background's name: the most frequent color."""
    _, pixel = max(picture.getcolors(1 << 16))
    return next(name for name, color in draw.BACKGROUNDS.items() if color == pixel)


@pytest.mark.parametrize("pick", ["all", "one"])
def test_guessing_does_not_help(pick):
    """Over all questions, and over one drawn from each sample, as in training with one turn."""
    counts = {
        "spot yes/no": Counter(),
        "same": Counter(),
        "what": Counter(),
        "edit yes/no": Counter(),
        "edit": Counter(),
    }
    for task in ("spot_difference", "image_edit"):
        for i in range(2000):
            made, rng = example(task, "test", i, 32)
            for q in made.questions if pick == "all" else [rng.choice(made.questions)]:
                if q.answer in ("yes", "no"):
                    counts["edit yes/no" if task == "image_edit" else "spot yes/no"][q.answer] += 1
                if asked(q.text, difference.SAME) is not None and task == "spot_difference":
                    counts["same"][q.answer] += 1
                if asked(q.text, difference.WHAT) is not None and task == "spot_difference":
                    counts["what"][meaning(q)] += 1
                if asked(q.text, editing.KIND) is not None and task == "image_edit":
                    counts["edit"][q.answer] += 1
    for name, counted in counts.items():
        assert_balanced(counted, {"what": 0.25, "edit": 0.25, "same": 0.65}.get(name, 0.6))
