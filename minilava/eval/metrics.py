"""One answer against its reference: every metric of the benchmarks, each in its published definition (spec 7.4 to 7.7).

A metric takes (answer, reference) and returns a score from 0 to 1, or None where the published script leaves the sample
out. ``references`` may be several accepted texts. What a data set makes of its scores is figures.py's job.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from minilava.errors import UserError
from minilava.eval.text import MAX_PREDICTION, distance, normalise, rouge_l

Metric = Callable[[str, str], float | None]

OPTIONS = frozenset("abcdefgh")
LETTER_AND_TEXT = re.compile(r"([A-E])\..+", re.DOTALL)
LONE_LETTER = re.compile(r"\b[a-e]\b")
CHOSEN = re.compile(r"\(?([A-Z])(?:[).:]|$)")
ANLS_THRESHOLD = 0.5
RELAXED = 0.05


# --- LLaVA-Interleave Bench, by the authors' script -------------------------------------------------------------------


def authors_choice(answer: str, reference: str) -> float:
    """Equality after normalisation. Of an answer with colons the last piece that is one letter a to h counts:
    "B: cat" is b, "a: b: c" is c, and "the answer is b" is wrong."""
    text = normalise(answer)
    if ":" in text:
        letters = [piece.strip() for piece in text.split(":") if piece.strip() in OPTIONS]
        text = letters[-1] if letters else text
    return float(text == normalise(reference))


def authors_rouge(answer: str, reference: str) -> float | None:
    """ROUGE-L of the normalised texts, the answer cut; None where the reference is empty once normalised."""
    reference = normalise(reference)
    return rouge_l(normalise(answer)[:MAX_PREDICTION], reference) if reference else None


# --- the same bench, by lmms-eval (spec 7.6) --------------------------------------------------------------------------


def lmms_choice(answer: str, reference: str) -> float:
    """The first letter A to E that stands alone in the normalised answer; the article "a" counts as one."""
    given = LETTER_AND_TEXT.fullmatch(answer.strip())
    text = given[1].lower() if given else normalise(answer)
    found = LONE_LETTER.search(text)
    return float((found[0] if found else text) == normalise(reference))


def lmms_rouge(answer: str, reference: str) -> float | None:
    return rouge_l(answer[:MAX_PREDICTION], reference) if reference else None


SCORERS: dict[str, dict[str, Metric]] = {
    "authors": {"multi-choice": authors_choice, "open-ended": authors_rouge},
    "lmms-eval": {"multi-choice": lmms_choice, "open-ended": lmms_rouge},
}


# --- other benchmarks -------------------------------------------------------------------------------------------------


def exact(answer: str, reference: str) -> float:
    """Equality but for case and a final period; the M4 world's rule."""
    return float(answer.strip().rstrip(".").lower() == reference.strip().rstrip(".").lower())


def letter(answer: str, reference: str) -> float:
    """The letter that an answer begins with ("B", "(B)", "B. a cat"), or an answer that is the right option's text.

    reference: the letter, or the letter, a period, a space and the option's text."""
    wanted, _, option = reference.partition(". ")
    answer = answer.strip()
    found = CHOSEN.match(answer)
    if found and found[1] == wanted:
        return 1.0
    return float(answer == wanted.lower() or bool(option) and normalise(answer) == normalise(option))


def anls(answer: str, reference: str) -> float:
    """1 - edit distance / length, nothing below 0.5; the length is that of the longer text before blanks are cut."""
    a, b = (" ".join(t.strip().lower().split()) for t in (answer, reference))
    length = max(len(answer.upper()), len(reference.upper()))
    score = 1 - (distance(b, a) / length if length else 0.0)
    return score if score >= ANLS_THRESHOLD else 0.0


def relaxed(answer: str, reference: str) -> float:
    """Numbers within 5 % of the reference, other texts equal but for case (ChartQA)."""
    a, b = _number(answer), _number(reference)
    if a is not None and b:
        return float(abs(a - b) / abs(b) <= RELAXED)
    return float(answer.lower() == reference.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def yes_or_no(answer: str) -> str:
    """yes, no or other: what the first four characters hold (MME, POPE)."""
    start = answer.lower().strip().replace(".", "")[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def yes_no(answer: str, reference: str) -> float:
    return float(yes_or_no(answer) == yes_or_no(reference))


METRICS: dict[str, Metric] = {
    "exact": exact, "letter": letter, "anls": anls, "relaxed": relaxed, "pope": yes_no, "mme": yes_no
}  # fmt: skip


def known(metric: str, scorer: str) -> Metric | None:
    """The function of a key of METRICS, or of a question_type, whose meaning is the scorer's. None: a judge's task."""
    table = METRICS | SCORERS[scorer]
    if metric not in table and not metric.startswith("judge"):
        raise UserError(f"question type {metric!r} has no metric; known are {', '.join(table)}")
    return table.get(metric)


def score(metric: str, answer: str, references: str | Sequence[str], scorer: str = "authors") -> float | None:
    """The best score over the references, None where all of them leave the sample out, or where a judge scores it."""
    function = known(metric, scorer)
    given = [references] if isinstance(references, str) else references
    scores = [s for r in given if function and (s := function(answer, r)) is not None]
    return max(scores) if scores else None
