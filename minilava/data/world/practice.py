"""Denser questions for training: further ones of a sample's own forms, words to be chosen by their letter, and steps
towards what is answered by a letter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from random import Random

from minilava.data.world import draw
from minilava.data.world.difference import CHANGES
from minilava.data.world.editing import ALL_EDITS
from minilava.data.world.example import Example, Question, each, lettered, yes
from minilava.data.world.scene import CELLS, NUMBERS
from minilava.data.world.words import WORDS

AT_LENGTH = 0.25  # of the descriptions and stories: their many words would be most of what is learned
BY_LETTER = 0.6  # of the questions of a sample, where its own forms have so many; they are harder than others
LETTERED = 0.3  # of the others, if their answer has a family
# Of the questions whose answer is the letter of a listed option:
FEWER = 0.4  # lose some of their options
SPELLED = 0.2  # are answered by the option and its letter, a step between the two
JUDGED = 0.2  # are answered for every option
# Words that are answers of other kinds too are left out.
FAMILIES = (
    tuple(draw.COLORS),
    draw.KINDS,
    CELLS,
    NUMBERS,
    tuple(w for w in WORDS if w not in ("no", "up")),
    (*CHANGES, "none"),
    ALL_EDITS,
)
DRAWS = 6  # how often more questions are drawn for one sample
OPTION = re.compile(r" \(([A-H])\) (.+?)(?= \([A-H]\) |$)")


def asked(rng: Random, made: Example, turns: int) -> list[Question]:
    """Up to ``turns`` questions of which no two have the same text and style."""
    found: dict[tuple[str, str], Question] = {}
    for draws in range(1 + DRAWS):
        if len(found) >= 2 * turns or draws and not made.more:
            break
        more = made.more() if draws else made.questions
        short = [q for q in more if q.style != "text" or rng.random() < AT_LENGTH]
        found |= _by_text(q for q in rng.sample(short, len(short)) if (q.text, q.style) not in found)
    chosen = _chosen(list(found.values()), turns)
    out = [with_letters(rng, q) if rng.random() < LETTERED else q for q in chosen]
    out = list(_by_text(stepped(rng, q) for q in out).values())
    rng.shuffle(out)
    return out


def _chosen(questions: list[Question], turns: int) -> list[Question]:
    """Up to ``turns`` of them, of which up to BY_LETTER are answered by a letter."""
    by_letter = [q for q in questions if q.style == "letter"]
    others = [q for q in questions if q.style != "letter"]
    most = max(round(BY_LETTER * turns), turns - len(others))
    return [*by_letter[:most], *others][:turns]


def _by_text(questions: Iterable[Question]) -> dict[tuple[str, str], Question]:
    return {(q.text, q.style): q for q in questions}


def with_letters(rng: Random, question: Question) -> Question:
    """The question with two to four options, if it has a word or a phrase for an answer and others would fit."""
    wrong = _others(rng, question.answer) if question.style in ("word", "phrase") else []
    if not wrong:
        return question
    listed, letter = lettered(rng, question.answer, rng.sample(wrong, min(len(wrong), rng.randint(1, 3))))
    return Question(f"{question.text} {listed}", letter, "letter")


def stepped(rng: Random, question: Question) -> Question:
    """A question that lists its options, in one of its easier forms or as it is. Others stay as they are."""
    if question.style != "letter" or question.answer not in _options(question):
        return question
    if rng.random() < FEWER:
        question = fewer(rng, question)
    step = rng.random()
    if step < SPELLED:
        return spelled(question)
    return judged(question) if step < SPELLED + JUDGED else question


def fewer(rng: Random, question: Question) -> Question:
    """With two of its options or more, in another order."""
    options = _options(question)
    right = options.pop(question.answer)
    listed, letter = lettered(rng, right, rng.sample(list(options.values()), rng.randint(1, len(options))))
    return replace(question, text=f"{OPTION.sub('', question.text)} {listed}", answer=letter)


def spelled(question: Question) -> Question:
    """ "red (B)" for an answer instead of "B"."""
    return replace(question, answer=f"{_options(question)[question.answer]} ({question.answer})", style="option")


def judged(question: Question) -> Question:
    """ "A no, B yes" for an answer instead of "B"."""
    marks = {letter: yes(letter == question.answer) for letter in _options(question)}
    return replace(question, answer=each(marks), style="each")


def _options(question: Question) -> dict[str, str]:
    return dict(OPTION.findall(question.text))


def _others(rng: Random, answer: str) -> list[str]:
    """Answers of the same family; of a thing's name those that share its colour or its kind."""
    words = answer.split()
    if len(words) == 2 and words[0] in draw.COLORS and words[1] in draw.KINDS:
        color = rng.choice([c for c in draw.COLORS if c != words[0]])
        kind = rng.choice([k for k in draw.KINDS if k != words[1]])
        return [f"{color} {words[1]}", f"{words[0]} {kind}", f"{color} {kind}"]
    if answer.isdigit():
        return [str(n) for n in (int(answer) + d for d in (-10, -1, 1, 10, 20)) if n > 0]
    return next(([w for w in family if w != answer] for family in FAMILIES if answer in family), [])
