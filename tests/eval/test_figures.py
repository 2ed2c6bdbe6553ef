"""Sums, intervals and tables on made-up lines whose figures are known."""

import numpy as np
import pytest

from minilava.eval.figures import resampled, tabulate
from minilava.eval.item import Column, Layout


def lines(task, scores, metric="exact", **extra):
    return [{"id": f"{task}{i}", "task": task, "metric": metric, "score": s, **extra} for i, s in enumerate(scores)]


LAYOUT = Layout((Column("X", ("a", "b")), Column("Y", ("c",)), Column("Z", ("d",))), {"Avg": ("X", "Y", "Z")})


def test_a_column_is_the_mean_over_data_sets_or_over_samples():
    given = lines("a", [1, 1, 1, None]) + lines("b", [0]) + lines("c", [1, 0])
    tasks, columns, averages = tabulate(LAYOUT, given, pooled=False)
    assert tasks["a"]["score"].value == 100 and tasks["a"]["score"].samples == 3
    assert columns["X"].value == 50 and columns["Y"].value == 50 and "Z" not in columns
    assert averages["Avg"].value == 50 and averages["Avg"].missing == ("Z",)
    _, columns, averages = tabulate(LAYOUT, given, pooled=True)
    assert columns["X"].value == 75 and averages["Avg"].value == 62.5


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        scores = (rng.random(120) < 0.6).astype(float)
        figure = tabulate(LAYOUT, lines("c", scores), False)[1]["Y"]
        assert figure.low <= figure.value <= figure.high
        held += figure.low <= 60 <= figure.high
    assert 180 <= held <= 199  # 190 expected


def test_intervals_are_of_stratified_resamples():
    """A data set's interval has the width of the normal approximation, and columns are independent of each other."""
    given = lines("a", [0, 1] * 200) + lines("b", [0, 1] * 200)
    tasks, columns, _ = tabulate(LAYOUT, given, False)
    width = tasks["a"]["score"].high - tasks["a"]["score"].low
    assert width == pytest.approx(2 * 1.96 * 50 / 20, rel=0.15)
    assert columns["X"].high - columns["X"].low == pytest.approx(width / 2**0.5, rel=0.15)


def test_pope():
    said = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "no")] * 9 + [("other", "yes")] * 3
    given = [
        {"task": "c", "metric": "pope", "said": s, "reference": r, "score": float(s == r)} for s, r in said
    ]  # fmt: skip
    figures = {k: float(v[0]) for k, v in (lambda t, f: f(t))(*resampled(given)).items()}
    precision, recall = 6 / 8, 6 / 9
    assert figures == pytest.approx({
        "score": 100 * 2 * precision * recall / (precision + recall), "accuracy": 75, "precision": 75,
        "recall": 100 * recall, "yes-ratio": 40,
    })  # fmt: skip


def test_mme():
    def pair(subtask, picture, *scores):
        keys = {"task": "MME", "metric": "mme", "subtask": subtask, "picture": picture}
        return [keys | {"score": float(s)} for s in scores]

    given = pair("existence", "1", 1, 1) + pair("existence", "2", 1, 0) + pair("code_reasoning", "1", 0, 1)
    totals, figures = resampled(given)
    made = {k: float(v[0]) for k, v in figures(totals).items()}
    # existence: 3 of 4 questions and 1 of 2 pictures; code reasoning: 1 of 2 and 0 of 1
    assert made == pytest.approx({"score": 100 * (125 + 50) / 2800, "perception": 125, "cognition": 50})


def test_grades_count_tenfold_in_averages():
    layout = Layout((Column("NExT-QA", ("c",)), Column("VDD", ("v",), graded=True)), {"Avg": ("NExT-QA", "VDD")})
    graded = [{"task": "v", "metric": "judge-caption", "score": 0.6, "grades": {"score": 3}}] * 4
    _, columns, averages = tabulate(layout, lines("c", [1, 0]) + graded, False)
    assert columns["VDD"].value == 3 and averages["Avg"].value == 40
