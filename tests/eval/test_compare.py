"""diff: wins and losses, McNemar against SciPy's binomial test, and what it prints."""

import json
from itertools import product

import pytest

from minilava.errors import UserError
from minilava.eval.__main__ import main
from minilava.eval.compare import compare, mcnemar


def lines(scores, sha="x", task="t"):
    return [
        {
            "id": f"{task}/{i}",
            "turn": 0,
            "task": task,
            "score": s,
            "prompt_sha": sha,
            "reference": "r",
            "answer": f"{s}",
        }
        for i, s in enumerate(scores)
    ]


def test_mcnemar_is_the_exact_binomial_test():
    from scipy import stats

    for wins, losses in product(range(0, 40, 3), repeat=2):
        if wins + losses:
            assert mcnemar(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3000, 2800) == pytest.approx(stats.binomtest(3000, 5800).pvalue, rel=1e-9)


def test_pairs_by_sample():
    a = lines([1, 0, 0, 1, None, 1]) + lines([0.2, 0.5], task="u")
    b = lines([0, 1, 1, 1, 1, None], sha="y")[::-1] + lines([0.4, 0.5], task="u") + lines([1], task="new")
    made = compare(a, b)
    assert {k: made["tasks"]["t"][k] for k in ("samples", "a", "b", "wins", "losses")} == {
        "samples": 4, "a": 50, "b": 75, "wins": 2, "losses": 1
    }  # fmt: skip
    assert made["all"]["samples"] == 6 and made["all"]["wins"] == 3
    assert made["unpaired"] == [2, 3] and made["other_prompt"] == 4
    assert made["all"]["low"] <= made["all"]["change"] <= made["all"]["high"]
    with pytest.raises(UserError, match="no scored sample in common"):
        compare(a, lines([1], task="other"))


def test_the_command(tmp_path, capsys):
    for name, scores in (("a", [1, 0, 0, 0]), ("b", [0, 1, 1, 0])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"suite": "world", "recipe": f"recipe-{name}"}))
        (tmp_path / name / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(scores)))
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "recipe: recipe-a -> recipe-b" in out and "## B wins" in out and "## B loses" in out
    assert "| t   | 4       | 25.0 | 50.0 | +25.0  |" in out
    assert main(["diff", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
