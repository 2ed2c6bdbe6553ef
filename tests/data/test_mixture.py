"""Mixtures: strategies, weights and the order of an epoch are exact and repeatable."""

import json
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava.data.mixture import Mixture, Source, choose, load_mixture, shuffled
from minilava.errors import UserError


def numbers(n):
    return [{"id": i} for i in range(n)]


def ids(records):
    return [r["id"] for r in records]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "sub/a.jsonl").write_text("".join(json.dumps({"id": i, "image": "x.png"}) + "\n" for i in range(10)))
    (tmp_path / "b.json").write_text(json.dumps(numbers(4)))
    return tmp_path


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.sampled_from(["first", "end", "random"]), st.integers(1, 100), st.booleans())
def test_strategies(n, kind, amount, percent):
    kept = ids(choose(numbers(n), f"{kind}:{amount}{'%' * percent}", "x", seed=3))
    count = -(-amount * n // 100) if percent else min(n, amount)
    assert len(kept) == count
    if kind == "random":
        assert kept == sorted(set(kept)) == ids(choose(numbers(n), f"random:{count}", "x", seed=3))
    else:
        assert kept == list(range(n))[:count] if kind == "first" else list(range(n))[n - count :]


def test_random_strategy_depends_on_seed_and_name_only():
    kept = [ids(choose(numbers(1000), "random:10%", name, seed)) for name, seed in (("x", 0), ("y", 0), ("x", 1))]
    assert len({tuple(k) for k in kept}) == 3 and kept[0] == ids(choose(numbers(1000), "random:10%", "x", 0))
    assert ids(choose(numbers(5), "all", "x")) == list(range(5))
    assert len(choose(numbers(1000), "first:0.15%", "x")) == 2


@pytest.mark.parametrize(
    "strategy", ["some", "first", "first:", "first:0", "end:-1", "random:0%", "random:101%", "all:3"]
)
def test_bad_strategies(strategy):
    with pytest.raises(UserError, match="strategy"):
        choose(numbers(3), strategy, "x")


def test_epochs_hold_every_record_as_often_as_its_weight_says():
    mixture = Mixture([Source("a", numbers(10), 2.5), Source("b", numbers(7)), Source("c", numbers(8), 0.25)])
    assert len(mixture) == 25 + 7 + 2
    first, second = mixture.epoch(0, seed=5), mixture.epoch(1, seed=5)
    for table in (first, second):
        counts = Counter(map(tuple, table.tolist()))
        assert table.shape == (len(mixture), 2) and table.dtype == np.int64
        assert sorted(Counter(counts[0, i] for i in range(10)).items()) == [(2, 5), (3, 5)]
        assert [counts[1, i] for i in range(7)] == [1] * 7
        assert sum(counts[2, i] for i in range(8)) == 2 and max(counts[2, i] for i in range(8)) == 1
    assert np.array_equal(first, mixture.epoch(0, seed=5))
    assert not np.array_equal(first, second) and not np.array_equal(first, mixture.epoch(0, seed=6))
    extras = [{i for i in range(10) if (t.tolist()).count([0, i]) == 3} for t in (first, second)]
    assert extras[0] != extras[1]  # the half is drawn anew
    assert first[:17, 0].max() > 0 and not np.array_equal(first[:, 1], np.sort(first[:, 1]))


@given(st.integers(0, 200), st.integers(0, 2**70))
def test_shuffled_is_a_permutation(n, key):
    assert sorted(shuffled(n, key)) == list(range(n))


def test_shuffled_stays_what_it_is():
    """A run that is resumed under another numpy has to see the same order."""
    assert shuffled(12, 0, 1).tolist() == [3, 7, 4, 2, 9, 8, 1, 6, 5, 0, 10, 11]


def test_yaml(folder):
    pytest.importorskip("yaml")
    (folder / "mix.yaml").write_text(
        """
images: images
sources:
  - {path: sub/a.jsonl, strategy: "end:3", weight: 2, scenario: multi-image, layout: mixed, front_ratio: 0.25}
  - {name: a, path: b.json, images: sub, pool: average, anyres: false, frames: 16, labels: main}
"""
    )
    mixture = load_mixture(folder / "mix.yaml")
    a, b = mixture.sources
    assert (a.name, ids(a.records), a.weight, a.scenario, a.layout, a.front_ratio) == (
        "a", [7, 8, 9], 2, "multi-image", "mixed", 0.25,
    )  # fmt: skip
    assert a.records[0]["image"] == [str(folder / "images/x.png")]
    assert (b.name, ids(b.records), b.pool, b.anyres, b.frames, b.labels) == (
        "a-2", [0, 1, 2, 3], "average", False, 16, "main",
    )  # fmt: skip
    again = pickle.loads(pickle.dumps(mixture))
    assert np.array_equal(again.epoch(3, 1), mixture.epoch(3, 1)) and ids(again.sources[0].records) == [7, 8, 9]


def test_published_form_and_a_bare_file(folder):
    published = {"datasets": [{"json_path": str(folder / "sub/a.jsonl"), "sampling_strategy": "first:20%"},
                              {"json_path": str(folder / "b.json")}]}  # fmt: skip
    assert [ids(s.records) for s in load_mixture(published).sources] == [[0, 1], [0, 1, 2, 3]]
    (bare,) = load_mixture(folder / "sub/a.jsonl", images=folder).sources
    assert bare.name == "a" and bare.records[3]["image"] == [str(folder / "x.png")] and bare.labels == "clean"


def test_world_sources(monkeypatch):
    import minilava.data.world as world

    class World(list):
        def __init__(self, task, **options):
            super().__init__([{"id": (task, tuple(sorted(options.items())))}] * options.get("samples", 5))

    monkeypatch.setattr(world, "World", World)
    entries = [
        {"world": "puzzle", "split": "train", "samples": 20, "turns": 4, "seed": 2, "strategy": "first:50%"},
        {"world": "daily", "weight": 0.5, "layout": "front"},
    ]
    puzzle, daily = load_mixture({"sources": entries}).sources
    assert puzzle.name == "world:puzzle" and len(puzzle.records) == 10
    assert puzzle.records[0]["id"] == ("puzzle", (("samples", 20), ("seed", 2), ("split", "train"), ("turns", 4)))
    assert daily.records[0]["id"] == ("daily", ()) and daily.layout == "front" and daily.picks == 3


@pytest.mark.parametrize(
    "more",
    [
        {"wieght": 1}, {"weight": 0}, {"weight": math.inf}, {"weight": "2"}, {"layout": "behind"},
        {"scenario": "audio"}, {"pool": "sum"}, {"front_ratio": 1.5}, {"frames": 0}, {"labels": "all"},
        {"anyres": "yes"}, {"strategy": "none"}, {"images": "nowhere"}, {"path": 3}, {"path": "none.jsonl"},
        {"world": "puzzle"},
    ],
)  # fmt: skip
def test_bad_fields(folder, monkeypatch, more):
    monkeypatch.chdir(folder)
    assert load_mixture({"sources": [{"path": "b.json"}]})
    with pytest.raises(UserError):
        load_mixture({"sources": [{"path": "b.json"} | more]})


@pytest.mark.parametrize("entry", ["a", {}, {"world": "puzzle", "samples": "many"}, {"world": "puzzle", "samples": 0}])
def test_bad_sources(entry):
    with pytest.raises(UserError):
        load_mixture({"sources": [entry]})


@pytest.mark.parametrize("text", ["sources: []", "a: [", "- 1", "", "sources: [{path: b.json}]\nweight: 1", "\x00"])
def test_bad_mixture_files(folder, text):
    pytest.importorskip("yaml")
    (folder / "mix.yaml").write_text(text)
    with pytest.raises(UserError):
        load_mixture(folder / "mix.yaml")
    with pytest.raises(UserError):
        load_mixture(folder / "none.yaml")
