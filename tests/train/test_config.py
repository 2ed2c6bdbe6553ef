"""The YAML of a stage: every wrong setting is named, and nothing from outside becomes a traceback."""

import math
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minilava.errors import UserError
from minilava.train.config import TrainConfig, load_config, parse

NEEDED = {"init": "a", "out": "b", "data": {"sources": []}, "steps": 5}


def test_types_and_overrides(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text("init: a\nout: b\ndata: {sources: []}\nsteps: 5\nlr: 1e-5\nbetas: [0.9, 0.98]\ntrain: projector\n")
    c = load_config(path, ["steps=7", "lr_vision=2e-6", "train=[vision, text]", "recompute=all", "features=null"])
    assert (c.steps, c.lr, c.lr_vision, c.betas) == (7, 1e-5, 2e-6, (0.9, 0.98))
    assert c.train == ("vision", "text") and c.recompute == "all" and c.features is None
    assert load_config(path).train == ("projector",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"steps": 1.5}, {"steps": math.inf}, {"steps": math.nan}, {"steps": True}, {"steps": [1]},
        {"lr": 0}, {"lr": math.nan}, {"lr": math.inf}, {"lr": "fast"}, {"lr": True}, {"lr_vision": -1},
        {"betas": [0.9]}, {"betas": [0.9, 1.0]}, {"betas": 0.9}, {"betas": [0.9, None]}, {"eps": 0}, {"clip": 0},
        {"weight_decay": -1}, {"warmup": 1.1}, {"warmup": math.nan}, {"seed": -1}, {"seed": 2**70}, {"workers": -1},
        {"train": []}, {"train": ["tower"]}, {"train": 3}, {"schedule": "step"}, {"recompute": "some"},
        {"recompute_vision": "some"},
        {"schedule": "warmup_stable_decay", "warmup": 0.5, "decay": 0.6}, {"dtype": "float16"}, {"form": "x"},
        {"device": "tpu"}, {"shard": "zero"}, {"strict": "yes"}, {"data": 5}, {"data": None}, {"data": ["a.json"]},
        {"lora": -1}, {"lora": 4, "train": ["projector"]}, {"lora_dropout": 1.0}, {"beta": 0}, {"sft_weight": -1},
        {"init": None}, {"out": 3}, {"learning_rate": 1}, {3: 4, "x": 5}, {None: 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(UserError) as e:
        parse(NEEDED | wrong)
    assert "\n" not in str(e.value) and any(str(key) in str(e.value) for key in wrong)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(st.sampled_from([f.name for f in fields(TrainConfig)]), plain)
def test_any_value_is_taken_or_refused(name, value):
    try:
        c = parse(NEEDED | {name: value})
    except UserError as e:
        assert name in str(e)
    else:
        assert getattr(c, name) is not None or value is None


@pytest.mark.parametrize("missing", ["init", "out", "data", "steps"])
def test_what_must_be_given(missing):
    with pytest.raises(UserError, match=missing):
        parse({k: v for k, v in NEEDED.items() if k != missing})


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00", "just words"])
def test_a_file_that_is_no_mapping(tmp_path, text):
    path = tmp_path / "stage.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="stage.yaml"):
        load_config(path)
    with pytest.raises(UserError, match="absent.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_bad_overrides(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text(yaml.safe_dump(NEEDED))
    for override in ("steps", "lr=[", "no_such=1"):
        with pytest.raises(UserError, match=override.partition("=")[0]):
            load_config(path, [override])


def test_paths_of_the_data_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    monkeypatch.chdir(tmp_path)
    inline = {"images": "pictures", "sources": [{"path": "a.json", "images": "more"}, {"path": "/x/b.json"}]}
    for data, wanted in (
        ("mix.yaml", "stages/mix.yaml"),
        ("/x/mix.yaml", "/x/mix.yaml"),
        (inline, {"images": "stages/pictures",
                  "sources": [{"path": "stages/a.json", "images": "stages/more"}, {"path": "/x/b.json"}]}),
    ):  # fmt: skip
        Path("stages/stage.yaml").write_text(yaml.safe_dump(NEEDED | {"data": data}))
        c = load_config("stages/stage.yaml")
        assert c.data == wanted and c.init == "a" and c.out == "b"
