"""Comparing two texts as the published benchmark scripts do, quirks included (spec 7.3, 7.4), in pure Python."""

from __future__ import annotations

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # 21; colon, period and apostrophe are not among them
NUMBER_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32  # the original hands a flag to the place of a count, and that flag is 32
MAX_PREDICTION = 512  # characters of an open answer that are scored
EPSILON = 1e-8  # of the rouge package, kept so that scores agree to the last digit


def normalise(text: str) -> str:
    """A text as both sides of a comparison are written (spec 7.3).

    Whether a character is deleted or becomes a space is decided on the text as it came: "well-known" -> "well known",
    "foo - bar" -> "foo  bar", and a comma between digits anywhere deletes every kind: "1,000 x-y" -> "1000 xy".
    """
    given = text.replace("\n", " ").replace("\t", " ").strip()
    delete_all = NUMBER_COMMA.search(given) is not None
    out = given
    for c in PUNCTUATION:
        out = out.replace(c, "" if delete_all or c + " " in given or " " + c in given else " ")
    out = PERIOD.sub("", out, count=MAX_PERIODS)
    return out.strip("'").strip('"').strip(")").strip("(").strip().lower()


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L f of the package ``rouge`` 1.0.1 at summary level: sentences end at ".", words are counted once.

    A text without a sentence (empty, or nothing but periods) scores 0; the package refuses it.
    """
    hypothesis, wanted = _sentences(prediction), _sentences(reference)
    if not hypothesis or not wanted:
        return 0.0
    common: set[str] = set()
    for w in wanted:
        for h in hypothesis:
            common |= _common_words(w, h)
    precision = len(common) / len(set().union(*hypothesis))
    recall = len(common) / len(set().union(*wanted))
    return 2.0 * ((precision * recall) / (precision + recall + EPSILON))


def _sentences(text: str) -> list[list[str]]:
    """Words of every sentence. One of blanks alone holds one empty word, as it does in the package."""
    return [" ".join(s.split()).split(" ") for s in text.split(".") if s]


def _common_words(x: list[str], y: list[str]) -> set[str]:
    """The words of one longest common subsequence; of several, the one found by going back in y wherever that loses
    nothing."""
    table = [[0] * (len(y) + 1)]
    for a in x:
        above, row = table[-1], [0]
        for j, b in enumerate(y):
            row.append(above[j] + 1 if a == b else max(row[j], above[j + 1]))
        table.append(row)
    i, j, words = len(x), len(y), set()
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


def distance(a: str, b: str) -> int:
    """Levenshtein: the fewest insertions, deletions and replacements of one character."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
