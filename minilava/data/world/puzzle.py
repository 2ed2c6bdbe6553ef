"""Raven-like matrices: the missing cell among eight candidates, on one sheet or as eight pictures.

The candidates are the eight combinations of the right and one wrong value of three attributes (as in I-RAVEN), so
every value stands in four of them and the candidates alone tell nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt
from random import Random

from PIL import Image

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, a, each, say, yes
from minilava.data.world.multi import plural
from minilava.data.world.scene import ALL, NUMBERS, other

LETTERS = "ABCDEFGH"
SIZES = {"small": 0.35, "medium": 0.62, "large": 0.98}  # of the cell's side
SPOTS = {1: ((0.5, 0.5),), 2: ((0.25, 0.5), (0.75, 0.5)), 3: ((0.25, 0.26), (0.75, 0.26), (0.5, 0.75))}
LINE = (120, 120, 120)
RULES = ("row", "three", "step")

ASK = (
    "Which candidate completes the matrix?",
    "Which candidate belongs in the empty cell?",
    "Choose the candidate for the question mark.",
)
ASK_COLOR = ("Which color is missing?", "Which color belongs in the empty cell?")
ASK_KIND = ("Which kind of thing is missing?", "Which kind of thing belongs in the empty cell?")
ASK_COUNT = ("How many things belong in the empty cell?", "How many things are missing in the empty cell?")
ASK_SIZE = ("Is the missing thing small, medium or large?", "What size belongs in the empty cell?")
FIND = ("Which candidate shows {cell}?", "Which letter stands for {cell}?")
# For practice only: the steps to a whole cell.
SHOWING = ("Which candidates show {part}?", "Which letters stand for {part}?")
SHOWN = ("Does candidate {letter} show {part}?", "Is candidate {letter} one of {part}?")
LOOK = ("What does candidate {letter} show?", "What is candidate {letter}?")
FILL = ("What belongs in the empty cell?", "Describe the missing cell.")
IN_ROW = ("What are the {what} of row {row}?", "Name the {what} in row {row}.")
FITTING = ("Which candidates have the missing {what}?", "Which candidates show the {what} that is missing?")
SHEET = (
    "Matrix: <image>\nCandidates A to H: <image>\n",
    "Complete <image> with one cell of <image>.\n",
    "<image><image>\n",
)


@dataclass(frozen=True)
class Cell:
    """What one cell of the matrix shows: count things of one kind, or one thing of a size."""

    color: str
    kind: str
    amount: int | str  # how many, or a key of SIZES

    def name(self) -> str:
        if isinstance(self.amount, str):
            return a(f"{self.amount} {self.color} {self.kind}")
        return f"{NUMBERS[self.amount]} {self.color} {plural(self.kind) if self.amount > 1 else self.kind}"

    def draw(self, picture: Image.Image, x: float, y: float, side: float) -> None:
        """In the square with its corner at (x, y)."""
        one = isinstance(self.amount, str)
        pixels = round(side * (SIZES[self.amount] if one else 0.46))
        for u, v in SPOTS[1 if one else self.amount]:
            draw.place(picture, self.kind, self.color, x + u * side, y + v * side, pixels)


def puzzle(rng: Random, size: int) -> Example:
    """A 3 x 3 or 2 x 2 matrix, its eight candidates and their letters."""
    side = rng.choice((2, 3, 3))
    matrix, wrong = _matrix(rng, side)
    candidates = [Cell(*values) for values in product(*zip(_values(matrix[-1]), wrong, strict=True))]
    rng.shuffle(candidates)
    frames = [_draw_grid(matrix[:-1], side, size)]
    captions = [_describe(matrix, side)]
    if rng.random() < 0.5:
        frames.append(_draw_sheet(candidates, size))
        captions.append(", ".join(f"{letter} {c.name()}" for letter, c in zip(LETTERS, candidates, strict=True)))
        prompt = say(rng, SHEET)
    else:
        frames += [_draw_grid([c], 1, size) for c in candidates]
        captions += [c.name() for c in candidates]
        prompt = _prompt(rng)
    preference = (FILL[0], matrix[-1].name(), rng.choice([c for c in candidates if c != matrix[-1]]).name())
    questions = _questions(rng, matrix[-1], candidates)
    return Example(
        "image",
        frames,
        prompt,
        questions,
        captions,
        preference=preference,
        more=lambda: _questions(rng, matrix[-1], candidates) + _steps(rng, matrix, candidates),
    )


def _values(cell: Cell) -> tuple:
    return cell.color, cell.kind, cell.amount


def _matrix(rng: Random, side: int) -> tuple[list[Cell], tuple]:
    """The cells row by row with the right one last, and a wrong value for each of its attributes.

    One to three attributes follow a rule, the others are the same everywhere.
    """
    steps = rng.choice(((1, 2, 3), ("small", "medium", "large")))
    options = (rng.sample(ALL.colors, 3), rng.sample(ALL.kinds, 3), list(steps))
    ruled = set(rng.sample(range(3), rng.choice((1, 2, 2, 3))))
    columns, wrong = [], []
    for i, values in enumerate(options):
        if i not in ruled:
            values = rng.sample(values, 3)
            cells = [values[0]] * side * side
        elif side == 2:
            cells = _two_by_two(rng, rng.sample(values, 2))
        else:
            cells = _three_by_three(rng, values, rng.choice(RULES if i == 2 else RULES[:2]))
        columns.append(cells)
        wrong.append(other(rng, cells if i in ruled else values, cells[-1]))
    return [Cell(*values) for values in zip(*columns, strict=True)], tuple(wrong)


def _two_by_two(rng: Random, values: list) -> list:
    """Constant along the rows, or along the columns."""
    first, second = values
    return [first, first, second, second] if rng.random() < 0.5 else [first, second, first, second]


def _three_by_three(rng: Random, values: list, rule: str) -> list:
    """row: one value per row. three: every row and column has all three. step: grows or shrinks along each row."""
    if rule == "step":
        return (values if rng.random() < 0.5 else values[::-1]) * 3
    values = rng.sample(values, 3)
    if rule == "row":
        return [v for v in values for _ in range(3)]
    turn = rng.choice((1, 2))
    return [values[(row * turn + column) % 3] for row in range(3) for column in range(3)]


def _draw_grid(cells: list[Cell], side: int, size: int) -> Image.Image:
    """Cells row by row with lines between them; a question mark where the cells end."""
    picture, step = draw.canvas(size), size / side
    for i, cell in enumerate(cells):
        cell.draw(picture, i % side * step + 0.06 * step, i // side * step + 0.06 * step, 0.88 * step)
    for i in range(1, side):
        at = round(i * step)
        picture.paste(LINE, (at, 0, at + 1, size))
        picture.paste(LINE, (0, at, size, at + 1))
    if len(cells) < side * side:
        x, y = (len(cells) % side + 0.5) * step, (len(cells) // side + 0.5) * step
        draw.write(picture, "?", x, y, round(0.7 * step))
    return picture


def _draw_sheet(candidates: list[Cell], size: int) -> Image.Image:
    """The candidates on 3 x 3 cells, row by row, each with its letter in the corner."""
    picture, step = draw.canvas(size), size / 3
    for i, cell in enumerate(candidates):
        x, y = i % 3 * step, i // 3 * step
        cell.draw(picture, x + 0.26 * step, y + 0.2 * step, 0.72 * step)
        draw.write(picture, LETTERS[i], x + 0.17 * step, y + 0.18 * step, max(10, round(0.32 * step)))
    return picture


def _describe(matrix: list[Cell], side: int) -> str:
    names = [c.name() for c in matrix[:-1]] + ["a question mark"]
    rows = (", ".join(names[r * side : (r + 1) * side]) for r in range(side))
    return "; ".join(f"row {NUMBERS[r + 1]}: {row}" for r, row in enumerate(rows))


def _prompt(rng: Random) -> str:
    between = rng.choice(("\n", " "))
    listed = between.join(f"{letter}: <image>" for letter in LETTERS)
    return rng.choice(("Matrix: <image>\n", "Complete <image> with one of these.\n")) + listed + "\n"


def _look(rng: Random, candidates: list[Cell], shown: int, looked: int) -> list[Question]:
    """A letter for a cell and a cell for a letter."""
    return [
        Question(say(rng, FIND, cell=candidates[shown].name()), LETTERS[shown], "letter", 8),
        Question(say(rng, LOOK, letter=LETTERS[looked]), candidates[looked].name(), "phrase"),
    ]


def _steps(rng: Random, matrix: list[Cell], candidates: list[Cell]) -> list[Question]:
    """The candidates that share one, two or all values with one of them, whether a candidate does, those that have one
    value of the missing cell or all of them, and one value along a row of the matrix."""
    known = sorted(rng.sample(range(3), rng.choice((1, 2))))
    wanted = rng.choice(candidates)
    color, kind, amount = (v if i in known else None for i, v in enumerate(_values(wanted)))
    amount = NUMBERS[amount] if isinstance(amount, int) else amount
    part = " ".join(w for w in (amount, color, plural(kind or "thing")) if w)
    shown = _sharing(candidates, wanted, known)
    what = rng.randrange(3)
    right = matrix[-1]
    named = ("color", "kind", "size" if isinstance(right.amount, str) else "number")[what]
    side = isqrt(len(matrix))
    row = rng.randrange(side)
    along = [str(_values(c)[what]) for c in matrix[:-1][row * side : (row + 1) * side]]
    letter = rng.choice(LETTERS)
    whole = _sharing(candidates, right, range(3))
    return [
        Question(say(rng, SHOWING, part=part), _list(shown), "phrase"),
        Question(say(rng, SHOWN, letter=letter, part=part), yes(shown[letter]), choices=2),
        Question(say(rng, FIND, cell=wanted.name()), _each(_sharing(candidates, wanted, range(3))), "each"),
        Question(say(rng, FITTING, what=named), _list(_sharing(candidates, right, [what])), "phrase"),
        Question(say(rng, IN_ROW, what=f"{named}s", row=row + 1), ", ".join(along), "phrase"),
        Question(say(rng, ASK), f"{right.name()} ({_list(whole)})", "option"),
        Question(say(rng, ASK), _each(whole), "each"),
    ]


def _sharing(candidates: list[Cell], cell: Cell, values: Sequence[int]) -> dict[str, bool]:
    """letter -> whether that candidate has these values of a cell."""
    wanted = _values(cell)
    return {k: all(_values(c)[i] == wanted[i] for i in values) for k, c in zip(LETTERS, candidates, strict=True)}


def _list(shown: dict[str, bool]) -> str:
    return ", ".join(letter for letter, right in shown.items() if right)


def _each(shown: dict[str, bool]) -> str:
    return each({letter: yes(right) for letter, right in shown.items()})


def _questions(rng: Random, right: Cell, candidates: list[Cell]) -> list[Question]:
    shown, looked = rng.randrange(8), rng.randrange(8)
    sized = isinstance(right.amount, str)
    questions = [
        Question(say(rng, ASK), LETTERS[candidates.index(right)], "letter", 8),
        *_look(rng, candidates, shown, looked),
        Question(say(rng, ASK_COLOR), right.color, choices=len(draw.COLORS)),
        Question(say(rng, ASK_KIND), right.kind, choices=len(draw.KINDS)),
        Question(say(rng, ASK_SIZE), right.amount, choices=3)
        if sized
        else Question(say(rng, ASK_COUNT), NUMBERS[right.amount], choices=3),
        Question(say(rng, FILL), right.name(), "phrase"),
    ]
    rng.shuffle(questions)
    return questions
