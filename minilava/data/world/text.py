"""Text-rich pictures: signs, receipts, bar charts and tables, with letters large enough to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, a, in_each, lettered, say, yes
from minilava.data.world.multi import ask_which, introduce
from minilava.data.world.scene import ALL, NUMBERS, other
from minilava.data.world.words import ITEMS, WORDS

LIGHT = ("orange", "yellow", "pink")  # boards that carry black letters
COLUMNS = ("A", "B")

# {where} is " in picture 2", or nothing if there is only one picture
SAYS = ("What does the sign say{where}?", "What is written on the sign{where}?", "Read the sign{where}.")
NUMBER = ("What number is on the sign{where}?", "What number does the sign show{where}?", "Read the number{where}.")
BOARD = ("What color is the sign{where}?", "Which color does the sign have{where}?")
PRICE = (
    "What does the {item} cost{where}?",
    "How much is the {item}{where}?",
    "What is the price of the {item}{where}?",
)
TOTAL = ("What is the total{where}?", "How much is everything together{where}?", "Read the total{where}.")
CELL = (
    "What is the value of the {kind} in column {column}{where}?",
    "What is in column {column} beside the {kind}{where}?",
)
BESIDE = ("Which row has {value} in column {column}{where}?", "Which thing has {value} in column {column}{where}?")
HIGHEST = ("Which bar is the {most}{where}?", "What color is the {most} bar{where}?")
BARS = ("How many bars are there{where}?", "Count the bars{where}.")
READ_ALL = ("Read everything{where}.", "What can you read{where}?", "Write down what is shown{where}.")
SAME = ("Do both signs say the same?", "Is the same written on both signs?")
FIND = ('Which picture says "{text}"?', 'In which picture is "{text}" written?')
# For practice only: the step to what compares signs.
SAY = ("What do the signs say?", "Read all signs.")
LARGER = ("Which picture shows the larger number?", "In which picture is the number larger?")


@dataclass
class Page:
    """caption: what stands there, in a regular grammar. wrong: the same with one detail misread. more: draws further
    questions, for training."""

    picture: Image.Image
    caption: str
    wrong: str
    questions: list[Question]
    more: Callable[[], list[Question]]


def text_rich(rng: Random, size: int) -> Example:
    """Pages of mixed kinds, or two or three signs to compare."""
    pages, compare, steps = _signs(rng, size) if rng.random() < 0.35 else (_mixed(rng, size), list, list)
    questions = compare()
    # Not of all three pages: the questions that need several pages should not become rare.
    questions += [q for p in rng.sample(pages, min(2, len(pages))) for q in p.questions]
    k = rng.randrange(len(pages))
    wanted = say(rng, READ_ALL, where=_where(k, len(pages)))
    questions.append(Question(wanted, pages[k].caption, "text"))
    rng.shuffle(questions)
    frames, captions = [p.picture for p in pages], [p.caption for p in pages]
    preference = (wanted, pages[k].caption, pages[k].wrong)

    def more() -> list[Question]:
        return [*compare(), *steps(), *(q for p in pages for q in p.more())]

    return Example("image", frames, introduce(rng, len(pages)), questions, captions, preference=preference, more=more)


def _mixed(rng: Random, size: int) -> list[Page]:
    count = rng.choice((1, 2, 2, 3))
    makers = [rng.choice((_sign, _receipt, _chart, _table)) for _ in range(count)]
    return [m(rng, size, _where(i, count)) for i, m in enumerate(makers)]


def _where(index: int, count: int) -> str:
    return f" in picture {index + 1}" if count > 1 else ""


def _sign(rng: Random, size: int, where: str, text: str | None = None) -> Page:
    """A coloured board with a word or a number."""
    text = text or _label(rng)
    board = rng.choice(ALL.colors)
    picture = draw.canvas(size, rng.choice(list(draw.BACKGROUNDS)))
    top = rng.uniform(0.2, 0.3)
    box = [round(v * size) for v in (0.04, top, 0.96, top + 0.5)]
    picture.paste(draw.COLORS[board], tuple(box))
    ink = "black" if board in LIGHT else (255, 255, 255)
    draw.write(picture, text, size / 2, (box[1] + box[3]) / 2, round(0.31 * size), ink)
    number = text.isdigit()

    def about() -> list[Question]:
        return [
            Question(say(rng, NUMBER if number else SAYS, where=where), text, choices=None if number else len(WORDS)),
            Question(say(rng, BOARD, where=where), board, choices=len(draw.COLORS)),
        ]

    questions, says = about(), f"{a(board)} sign that says "
    return Page(picture, says + text, says + _different(rng, 2, number, [text])[1], questions, about)


def _label(rng: Random) -> str:
    return rng.choice(WORDS) if rng.random() < 0.6 else str(rng.randint(10, rng.choice((99, 999))))


def _receipt(rng: Random, size: int, where: str) -> Page:
    """Two things with prices, and their total."""
    picture = draw.canvas(size)
    items = rng.sample(ITEMS, 2)
    prices = [rng.randint(1, 9), rng.randint(1, 9)]
    lines = [*zip(items, prices, strict=True), ("total", sum(prices))]
    pixels = round(0.235 * size)
    for row, (name, price) in enumerate(lines):
        y = (row + 0.5) / 3 * size
        _align(picture, name, 0.03 * size, y, pixels, "lm")
        _align(picture, str(price), 0.97 * size, y, pixels, "rm")
    at = round(size * 2 / 3)
    picture.paste(draw.COLORS["black"], (0, at, size, at + max(1, size // 64)))

    def about(k: int) -> list[Question]:
        return [
            Question(say(rng, PRICE, item=items[k], where=where), str(prices[k]), choices=9),
            Question(say(rng, TOTAL, where=where), str(sum(prices)), choices=9),
        ]

    k = rng.randrange(2)
    questions = about(k)
    caption = "a receipt: " + ", ".join(f"{name} {price}" for name, price in lines)
    wrong = caption.replace(items[k], other(rng, ITEMS, *items))
    return Page(picture, caption, wrong, questions, lambda: [*about(0), *about(1)])


def _align(picture: Image.Image, text: str, x: float, y: float, pixels: int, anchor: str) -> None:
    draw.ImageDraw.Draw(picture).text((x, y), text, draw.COLORS["black"], draw.font(pixels), anchor=anchor)


def _chart(rng: Random, size: int, where: str) -> Page:
    """Three or four bars, each at least a sixth of the picture higher than the next lower one."""
    picture = draw.canvas(size)
    count = rng.choice((3, 4))
    colors = rng.sample(ALL.colors, count)
    heights = rng.sample((1, 2, 3, 4, 5), count)
    step = 0.92 * size / count
    for i, (color, height) in enumerate(zip(colors, heights, strict=True)):
        left = 0.04 * size + (i + 0.15) * step
        box = (left, (0.92 - height * 0.17) * size, left + 0.7 * step, 0.92 * size)
        picture.paste(draw.COLORS[color], tuple(round(v) for v in box))
    picture.paste(
        draw.COLORS["black"], (round(0.04 * size), round(0.92 * size), round(0.96 * size), round(0.94 * size))
    )

    def about() -> list[Question]:
        most, pick = rng.choice((("highest", max), ("lowest", min)))
        right = colors[heights.index(pick(heights))]
        listed, letter = lettered(rng, right, [c for c in colors if c != right])
        text = say(rng, HIGHEST, most=most, where=where)
        return [
            Question(text, right, choices=len(draw.COLORS)),
            Question(f"{text} {listed}", letter, "letter", count),
            Question(say(rng, BARS, where=where), NUMBERS[count], choices=2),
        ]

    questions = about()
    bars = [f"{c} {NUMBERS[h]}" for c, h in zip(colors, heights, strict=True)]
    caption = "a bar chart: " + ", ".join(bars)
    wrong = caption.replace(questions[0].answer, other(rng, ALL.colors, *colors))
    return Page(picture, caption, wrong, questions, about)


def _table(rng: Random, size: int, where: str) -> Page:
    """Two things by two columns of numbers, on the 3 x 3 grid."""
    picture = draw.canvas(size)
    kinds, colors = rng.sample(ALL.kinds, 2), rng.sample(ALL.colors, 2)
    numbers = rng.sample(range(1, 100), 4)
    values = (numbers[:2], numbers[2:])
    third, pixels = size / 3, round(0.235 * size)
    for j, column in enumerate(COLUMNS):
        draw.write(picture, column, (j + 1.5) * third, 0.5 * third, pixels)
    for i, (kind, color) in enumerate(zip(kinds, colors, strict=True)):
        draw.place(picture, kind, color, 0.5 * third, (i + 1.5) * third, round(0.24 * size))
        for j, value in enumerate(values[i]):
            draw.write(picture, str(value), (j + 1.5) * third, (i + 1.5) * third, pixels)
    for line in (round(third), round(2 * third)):
        picture.paste((150, 150, 150), (0, line, size, line + 1))
        picture.paste((150, 150, 150), (line, 0, line + 1, size))

    def about() -> list[Question]:
        i, j = rng.randrange(2), rng.randrange(2)
        at = {"column": COLUMNS[j], "where": where}
        return [
            Question(say(rng, CELL, kind=kinds[i], **at), str(values[i][j]), choices=99),
            Question(say(rng, BESIDE, value=values[i][j], **at), kinds[i], choices=len(draw.KINDS)),
        ]

    questions = about()
    caption, wrong = (
        "a table: {} A {} B {}; {} A {} B {}".format(k, *values[0], m, *values[1]) for k, m in (kinds, kinds[::-1])
    )
    return Page(picture, caption, wrong, questions, about)


def _signs(rng: Random, size: int) -> tuple[list[Page], Callable[[], list[Question]], Callable[[], list[Question]]]:
    """Signs alone, and what draws questions on all of them together and steps towards those."""
    count = rng.choice((2, 2, 3))
    same = count == 2 and rng.random() < 0.5
    numbers = not same and rng.random() < 0.4
    texts = [_label(rng)] * 2 if same else _different(rng, count, numbers)
    pages = [_sign(rng, size, _where(i, count), text) for i, text in enumerate(texts)]

    def compare() -> list[Question]:
        questions = []
        if count == 2:
            questions.append(Question(say(rng, SAME), yes(same), choices=2))
        if numbers and count == 2:
            questions += ask_which(say(rng, LARGER), texts.index(max(texts, key=int)), range(count))
        if not same:
            k = rng.randrange(count)
            questions += ask_which(say(rng, FIND, text=texts[k]), k, range(count))
        return questions

    def steps() -> list[Question]:
        wanted = rng.choice(texts)
        return [
            Question(say(rng, SAY), in_each(texts), "each"),
            Question(say(rng, FIND, text=wanted), in_each(yes(t == wanted) for t in texts), "each"),
        ]

    return pages, compare, steps


def _different(rng: Random, count: int, numbers: bool, texts: Sequence[str] = ()) -> list[str]:
    """The texts and more, up to ``count``, no two alike; two numbers are far apart."""
    texts = list(texts)
    while len(texts) < count:
        text = str(rng.randint(10, 999)) if numbers else _label(rng)
        if text not in texts and not (numbers and any(abs(int(text) - int(t)) < 50 for t in texts)):
            texts.append(text)
    return texts
