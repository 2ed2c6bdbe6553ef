"""Curves from logs: files appear, panels follow the log, bad input is one line."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from minilava.errors import UserError
from minilava.train.__main__ import main
from minilava.train.plot import plot, smoothed


def write_log(out, steps=60, **extra):
    out.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with open(out / "log.jsonl", "w") as f:
        for i in range(1, steps + 1):
            row = {
                "step": i,
                "loss": 4 * i**-0.3 + 0.1 * rng.normal(),
                "lr": 1e-3 * (1 - i / steps),
                "grad_norm": float(np.exp(rng.normal())),
                "tokens_per_s": 900 + 50 * rng.normal(),
                "refusals": ["x"],
            }
            f.write(json.dumps(row | {k: rng.random() for k in extra}) + "\n")  # fmt: skip
    return out


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_one_picture_per_run(tmp_path):
    pytest.importorskip("matplotlib")
    a, b = write_log(tmp_path / "a"), write_log(tmp_path / "b", accuracy=1, margin=1)
    assert plot([a, b]) == [a / "curves.png", b / "curves.png"]
    assert size(b / "curves.png")[1] > size(a / "curves.png")[1]  # two more panels for preferences
    assert not list(tmp_path.rglob("*.tmp"))


def test_several_runs_in_one_picture(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [write_log(tmp_path / "a"), write_log(tmp_path / "b", 20, margin=1)]
    assert plot(runs, tmp_path / "new" / "both.png") == [tmp_path / "new" / "both.png"]
    picture = np.asarray(Image.open(tmp_path / "new" / "both.png").convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # a line of each run is there
        assert (picture == colour).all(1).any()
    assert not (tmp_path / "a" / "curves.png").exists()


def test_short_broken_and_odd_logs(tmp_path):
    pytest.importorskip("matplotlib")
    run = write_log(tmp_path / "one", 1)
    assert plot([run])[0].exists()
    with open(run / "log.jsonl", "a") as f:
        f.write('{"step": 2, "loss": NaN, "grad_norm": 0.0}\n{"step": 3, "lo')
    assert plot([run])[0].exists()


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = write_log(tmp_path / "a")
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "curves.png")
    assert main(["plot", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minilava: error:") and "log.jsonl" in error and error.count("\n") == 1


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install"):
        plot([write_log(tmp_path / "a")])


def test_smoothing():
    assert np.allclose(smoothed(np.full(300, 2.5)), 2.5)  # unbiased from the first value on
    noisy = 1 + np.random.default_rng(0).normal(size=2000)
    assert smoothed(noisy)[200:].std() < noisy.std() / 4
    assert abs(smoothed(noisy)[-1] - 1) < 0.5
    assert np.allclose(smoothed(np.array([1.0, np.nan, 1.0])), 1.0)
    assert abs(smoothed(np.arange(400.0))[200] - 200) < 1  # no lag
    assert np.array_equal(smoothed(np.array([3.0, 1.0])), [3.0, 1.0])  # a short run is not smoothed
