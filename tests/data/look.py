"""Reads the world's samples back: what a caption says, what the pixels show, what a question asks."""

import re

import numpy as np
from PIL import Image

from minilava.data.world import draw
from minilava.data.world.scene import CELLS, JITTER, Thing

EXACT = ("word", "phrase", "letter")
THING = re.compile(rf"an? (?:({'|'.join(draw.SIZES)}) )?({'|'.join(draw.COLORS)}) (\w+) at the ([\w ]+)")


def every(made):
    """All questions that a sample may be asked, those drawn again for practice included."""
    return [*made.questions, *(made.more() if made.more else [])]


def read_caption(caption):
    """The things that a caption lists; large where it says no size."""
    found = [THING.fullmatch(part) for part in caption.split(", ")]
    return [Thing(m[2], m[3], m[1] or "large", CELLS.index(m[4])) for m in found]


def assert_seen(picture, things, empty=True, reach=500):
    """Every thing is in its cell in the pixels, with its colour, kind and size; other cells are empty. reach: how far
    in RGB a pixel may be from the thing's color."""
    pixels = np.asarray(picture).astype(int)
    for t in things:
        assert shown(pixels, t.cell, t.color, reach) == (t.kind, t.size), t
    if empty:
        for cell in set(range(9)) - {t.cell for t in things}:
            part = window(pixels, cell, -JITTER)
            assert np.abs(part - part[0, 0]).max() == 0, cell


def window(pixels, cell, margin):
    """A cell's pixels, and ``margin`` of the picture's side more."""
    side = len(pixels)
    low = [max(0, round((i / 3 - margin) * side)) for i in (cell // 3, cell % 3)]
    high = [round(((i + 1) / 3 + margin) * side) for i in (cell // 3, cell % 3)]
    return pixels[low[0] : high[0], low[1] : high[1]]


def shown(pixels, cell, color, reach=500):
    """(kind, size) of what has this colour in a cell: the silhouette that covers it best."""
    side, part = len(pixels), window(pixels, cell, 0)
    away = np.linalg.norm(part - draw.COLORS[color], axis=-1)
    mask = away < min(reach, np.median(away[:, [0, -1]]) / 2)  # half covered, where it stands before one color
    assert mask.any(), (cell, color)
    scores = {}
    for size, share in draw.SIZES.items():
        for kind in draw.KINDS:
            sprite = np.asarray(draw.sprite(kind, round(share * side))) > 127
            scores[kind, size] = overlap(mask, sprite)
    return max(scores, key=scores.get)


def overlap(mask, sprite):
    """Intersection over union with the middles of the bounding boxes on each other."""
    board = np.zeros((2, 256, 256), bool)
    for layer, m in zip(board, (mask, sprite), strict=True):
        rows, columns = np.flatnonzero(m.any(1)), np.flatnonzero(m.any(0))
        m = m[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top, left = 128 - m.shape[0] // 2, 128 - m.shape[1] // 2
        layer[top : top + m.shape[0], left : left + m.shape[1]] = m
    return (board[0] & board[1]).sum() / (board[0] | board[1]).sum()


def asked(text, forms):
    """The slots of a question that has one of these forms, or None. Options and lists of answers may follow."""
    for form in forms:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(form))
        if found := re.fullmatch(pattern + r"( Choose from .*| \(A\) .*)?", text):
            return found.groupdict()
    return None


def check(question, answers):
    """The forms that the question has; its answer is as expected. answers: {forms: function of the slots}."""
    for forms, answer in answers.items():
        if (slots := asked(question.text, forms)) is not None:
            assert meaning(question) == answer(slots), question
            return forms
    raise AssertionError(f"unknown form: {question}")


def options(text):
    """{letter: option} of a question with options."""
    parts = re.split(r" \(([A-H])\) ", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def meaning(question):
    """What the answer says: the option behind a letter."""
    return options(question.text).get(question.answer, question.answer)


def told(answer):
    """{name: what is said of it} of an answer of the style "each"."""
    return dict(part.split(" ", 1) for part in answer.split(", "))


def same_pixels(a, b):
    return len(a) == len(b) and all(
        Image.Image.tobytes(x) == Image.Image.tobytes(y) and x.size == y.size for x, y in zip(a, b, strict=True)
    )


def assert_well_formed(task, example, make):
    """What holds for every generator: repeatable, sizes, placeholders, questions."""
    first, again, test = (make(task, split, 3, turns=9) for split in ("train", "train", "test"))
    assert first["conversations"] == again["conversations"] and same_pixels(first["image"], again["image"])
    assert first["conversations"] != test["conversations"]
    for size in (64, 128, 200):
        for i in range(20):
            made, _ = example(task, "train", i, size)
            assert all(f.size == (size, size) and f.mode == "RGB" for f in made.frames)
            assert made.prompt.count("<image>") == len(made.frames) == len(made.captions)
            assert made.prompt.endswith("\n") and 3 <= len(made.questions) <= 8
            assert made.preference is None or made.preference[1] != made.preference[2]
            for q in made.questions:
                assert q.answer and (q.style != "letter" or q.answer in (options(q.text) or "ABCD")), q
                assert q.style != "word" or " " not in q.answer, q


def assert_balanced(counts, most):
    """No answer is given in more than this share of the cases."""
    assert max(counts.values()) <= most * sum(counts.values()), counts
