"""The embedded model's stages: each starts from what the one before leaves, and can draw its data."""

from pathlib import Path

import pytest

from minilava.data.mixture import load_mixture
from minilava.recipes import tiny
from minilava.recipes.tiny.__main__ import HERE, STAGES
from minilava.train.config import load_config


def test_every_file_is_a_stage():
    found = {f.stem for f in Path(tiny.__file__).parent.glob("*.yaml")} - {"vocabulary"}
    assert found == set(STAGES)


def test_stages_follow_each_other():
    made = [load_config(HERE / f"{stage}.yaml") for stage in STAGES]
    assert [c.out for c in made] == [f"runs/tiny/{stage}" for stage in STAGES]
    assert [c.init for c in made[1:]] == [f"{c.out}/model" for c in made[:-1]]


@pytest.mark.parametrize("stage", [*STAGES, "vocabulary"])
def test_every_source_draws_its_records(stage):
    file = HERE / f"{stage}.yaml"
    mixture = load_mixture(file if stage == "vocabulary" else load_config(file).data)
    names = [s.name for s in mixture.sources]
    assert len(set(names)) == len(names)
    for source in mixture.sources:
        record = source.records[len(source.records) - 1]
        assert record["conversations" if stage != "dpo" else "chosen"], source.name
