"""Every metric against the original's answers, against the rouge package, and against a second statement of it."""

import json
import re
from functools import cache
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest

from minilava.errors import UserError
from minilava.eval import metrics
from minilava.eval.metrics import anls, authors_choice, authors_rouge, exact, letter, lmms_choice, relaxed, score
from minilava.eval.text import distance, normalise, rouge_l
from tests.eval.pairs import pairs, text

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/scores.json").read_text())
MANY = 12_000


def test_like_the_original_scorer():
    for given, expected in GOLDEN["normalise"]:
        assert normalise(given) == expected
    for answer, reference, accuracy, image_choice in GOLDEN["multi_choice"]:
        assert authors_choice(answer, reference) == accuracy == image_choice
    for answer, reference, f in GOLDEN["rouge_l"]:
        assert authors_rouge(answer, reference) == f, (answer, reference)


@pytest.mark.parametrize(
    "given, expected",
    [("A.", "a"), ("(C)", "c"), ("1,000 cats", "1000 cats"), ("It's 3.5 m.", "it's 3.5 m"), ("x,y", "x y"),
     ("well-known fact", "well known fact"), ("foo - bar", "foo  bar"), ("A: left, right", "a: left right"),
     ("a . b.c", "a  bc"), ("x" + "." * 40, "x" + "." * 8), ("", ""), ("'\"(a)\"'", "a")],
)  # fmt: skip
def test_normaliser_on_worked_examples(given, expected):
    assert normalise(given) == expected


def plain_normalise(s):
    """Spec 7.3 said again, a character at a time."""
    s = s.translate({10: " ", 9: " "}).strip()
    commas = any(a.isdecimal() and b == "," and c.isdecimal() for a, b, c in zip(s, s[1:], s[2:], strict=False))
    neighbours = [(s[i - 1 : i], c, s[i + 1 : i + 2]) for i, c in enumerate(s)]
    gone = {c for before, c, after in neighbours if " " in (before, after)}
    out, marks = "", ';/[]"{}()=+\\_-><@`,?!'
    for c in s:
        out += c if c not in marks else "" if commas or c in gone else " "
    kept, deleted = "", 0
    for i, c in enumerate(out):
        if c == "." and deleted < 32 and not out[i + 1 : i + 2].isdecimal():
            deleted += 1
        else:
            kept += c
    for end in "'\")(":
        kept = kept.strip(end)
    return kept.strip().lower()


def test_normaliser_against_a_plain_statement():
    rng = Random(1)
    for _ in range(MANY):
        s = text(rng)
        assert normalise(s) == plain_normalise(s), repr(s)


def test_choice_against_a_plain_statement():
    """Spec 7.4: the last piece between colons that is one letter from a to h stands for the answer."""
    for answer, reference in pairs(MANY, seed=2):
        pieces = [p.strip() for p in plain_normalise(answer).split(":")]
        letters = [p for p in pieces if re.fullmatch("[a-h]", p)] if len(pieces) > 1 else []
        expected = (letters or [plain_normalise(answer)])[-1] == plain_normalise(reference)
        assert authors_choice(answer, reference) == expected, (answer, reference)


def test_lmms_choice():
    for answer, reference, right in [
        ("B. a cat", "B", 1), ("b", "B", 1), ("The answer is b", "B", 1), ("it is a dog, so C", "C", 0),
        ("it is a dog, so C", "A", 1), ("yes", "Yes", 1), ("F. x", "F", 0), ("(D)", "d", 1), ("", "A", 0),
    ]:  # fmt: skip
        assert lmms_choice(answer, reference) == right, (answer, reference)
    for answer, reference in pairs(MANY, seed=3):
        stripped, words = answer.strip(), re.split(r"\W", plain_normalise(answer))
        if stripped[:1] in tuple("ABCDE") and stripped[1:2] == "." and len(stripped) > 2:
            given = stripped[0].lower()
        else:
            given = next((w for w in words if w in tuple("abcde")), plain_normalise(answer))
        assert lmms_choice(answer, reference) == (given == plain_normalise(reference)), (answer, reference)


def test_rouge_against_the_package():
    import rouge

    oracle = rouge.Rouge(metrics=["rouge-l"])
    compared = 0
    for answer, reference in pairs(MANY, seed=4, most=24) + pairs(2000, seed=5, most=60):
        if not answer.strip(".") or not reference.strip("."):
            assert rouge_l(answer, reference) == 0  # the package refuses these
            continue
        assert rouge_l(answer, reference) == oracle.get_scores(answer, reference)[0]["rouge-l"]["f"]
        compared += 1
    assert compared > 10_000
    for answer, reference in pairs(300, seed=6, most=200):  # what is scored is cut after it is normalised
        wanted = normalise(reference)
        if wanted.strip(".") and normalise(answer)[:512].strip("."):
            f = oracle.get_scores(normalise(answer)[:512], wanted)[0]["rouge-l"]["f"]
            assert authors_rouge(answer, reference) == f


def test_rouge_on_worked_examples():
    for answer, reference, f in [
        ("the cat sat on the mat", "the cat is on the mat", 0.799999995), ("a b c", "c b a", 0.333333328),
        ("the the the", "the", 0.999999995), ("one two. three four", "three four. one two", 0.999999995),
        ("x", "y", 0), ("", "y", 0),
    ]:  # fmt: skip
        assert rouge_l(answer, reference) == pytest.approx(f, abs=1e-9)
    assert authors_rouge("anything", " ; ") is None


def test_distance_and_anls_against_plain_statements():
    def matrix(a, b):
        """Levenshtein by the whole matrix, a diagonal of numpy at a time being too clever for an oracle."""
        d = np.add.outer(np.arange(len(a) + 1), np.arange(len(b) + 1))
        for i, j in product(range(len(a)), range(len(b))):
            d[i + 1, j + 1] = min(d[i, j + 1] + 1, d[i + 1, j] + 1, d[i, j] + (a[i] != b[j]))
        return int(d[-1, -1])

    @cache
    def recursive(a, b):
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return recursive(a[1:], b[1:])
        return 1 + min(recursive(a[1:], b), recursive(a, b[1:]), recursive(a[1:], b[1:]))

    for answer, reference in pairs(MANY, seed=7, most=2):
        a, b = " ".join(answer.lower().split()), " ".join(reference.lower().split())
        edits = recursive(a, b) if len(a) + len(b) < 40 else matrix(a, b)
        assert distance(a, b) == edits == distance(b, a)
        longest = max(len(answer.upper()), len(reference.upper()))
        similar = 1.0 if longest == 0 else 1 - edits / longest
        assert anls(answer, reference) == (0 if similar < 0.5 else similar), (answer, reference)
    assert score("anls", "Seven", ["7", "seven"]) == 1


def test_relaxed_accuracy_against_a_plain_statement():
    def number(t):
        percent = t.endswith("%")
        try:
            return float(t.rstrip("%") if percent else t) / (100 if percent else 1)
        except ValueError:
            return None

    rng = Random(8)
    values = ["12", "12.6", "12.61", "11.4", "11.39", "12%", "0.12", "0.126", "0", "-12", "1e1", "nan", "", "%", "Yes"]
    cases = pairs(MANY, seed=9, most=2) + list(product(values, values)) + [
        (f"{x * rng.uniform(0.9, 1.1):.4f}", f"{x:.3f}") for x in (rng.gauss(0, 100) for _ in range(3000))
    ]  # fmt: skip
    for answer, reference in cases:
        a, b = number(answer), number(reference)
        if a is not None and b is not None and b != 0:
            expected = abs(a - b) <= 0.05 * abs(b)
            margin = abs(abs(a - b) - 0.05 * abs(b)) > 1e-9  # the two statements may round the edge differently
        else:
            expected, margin = answer.lower() == reference.lower(), True
        assert not margin or relaxed(answer, reference) == expected, (answer, reference)
    assert relaxed("10.5", "10") == 1 and relaxed("10.6", "10") == 0 and relaxed("5%", "0.05") == 1


def test_letters_words_and_yes_or_no():
    for answer in ("B", "b", "(B)", "B.", "B: a cat", "B. a dog", "A cat."):
        assert letter(answer, "B. a cat") == 1, answer
    for answer in ("", "A", "a dog", "Bb", "The answer is C"):
        assert letter(answer, "B. a cat") == 0, answer
    assert letter("A cat sits here", "A. a dog") == 0  # the article is not the letter
    assert exact(" Red. ", "red") == 1 and exact("reddish", "red") == 0
    assert [metrics.yes_or_no(t) for t in ("Yes, it is", " no.", "Not yes", "maybe", "")] == [
        "yes", "no", "no", "other", "other"
    ]  # fmt: skip


def test_scores_by_question_type():
    assert score("multi-choice", "The answer is b", "B", "authors") == 0
    assert score("multi-choice", "The answer is b", "B", "lmms-eval") == 1
    assert score("open-ended", "x-y", "x y", "authors") > 0.99 > 0.5 > score("open-ended", "x-y", "x y", "lmms-eval")
    assert score("open-ended", "anything", "", "lmms-eval") is None
    with pytest.raises(UserError, match="fill-in"):
        score("fill-in", "a", "b")
