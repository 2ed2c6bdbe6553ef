"""Denser questions for training: further ones of a sample's own forms, and words to be chosen by their letter."""

from __future__ import annotations

import re
from dataclasses import replace
from random import Random

from minilava.data.world import draw
from minilava.data.world.example import Example, Question, lettered
from minilava.data.world.scene import CELLS, NUMBERS
from minilava.data.world.words import WORDS

LETTERED = 0.4  # of the questions whose answer has a family
SPELLED = 0.3  # of the questions whose answer is a letter: the option comes before it, a step between the two
# Words that are answers of other kinds too are left out.
FAMILIES = (tuple(draw.COLORS), draw.KINDS, CELLS, NUMBERS, tuple(w for w in WORDS if w not in ("no", "up")))
DRAWS = 6  # how often more questions are drawn for one sample


def asked(rng: Random, made: Example, turns: int) -> list[Question]:
    """Up to ``turns`` questions of which no two have the same text."""
    found = {q.text: q for q in rng.sample(made.questions, len(made.questions))}
    for _ in range(DRAWS if made.more else 0):
        if len(found) >= turns:
            break
        found |= {q.text: q for q in made.more() if q.text not in found}
    out = [with_letters(rng, q) if rng.random() < LETTERED else q for q in list(found.values())[:turns]]
    out = [spelled(q) if q.style == "letter" and rng.random() < SPELLED else q for q in out]
    rng.shuffle(out)
    return out


def spelled(question: Question) -> Question:
    """ "red (B)" for an answer instead of "B", if the question lists its options."""
    options = dict(re.findall(r"\(([A-H])\) (.+?)(?= \([A-H]\) |$)", question.text))
    if question.answer not in options:
        return question
    return replace(question, answer=f"{options[question.answer]} ({question.answer})", style="option")


def with_letters(rng: Random, question: Question) -> Question:
    """The question with two to four options, if it has a word or a phrase for an answer and others would fit."""
    wrong = _others(rng, question.answer) if question.style in ("word", "phrase") else []
    if not wrong:
        return question
    listed, letter = lettered(rng, question.answer, rng.sample(wrong, min(len(wrong), rng.randint(1, 3))))
    return Question(f"{question.text} {listed}", letter, "letter")


def _others(rng: Random, answer: str) -> list[str]:
    """Answers of the same family; of a thing's name those that share its colour or its kind."""
    words = answer.split()
    if len(words) == 2 and words[0] in draw.COLORS and words[1] in draw.KINDS:
        color = rng.choice([c for c in draw.COLORS if c != words[0]])
        kind = rng.choice([k for k in draw.KINDS if k != words[1]])
        return [f"{color} {words[1]}", f"{words[0]} {kind}", f"{color} {kind}"]
    if answer.isdigit():
        return [n for n in {str(int(answer) + d) for d in (-10, -1, 1, 10, 20)} if int(n) > 0]
    return next(([w for w in family if w != answer] for family in FAMILIES if answer in family), [])
