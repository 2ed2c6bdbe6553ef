"""The embedded model's stages: each starts from what the one before leaves, and can draw its data."""

from pathlib import Path

import pytest
import torch

import minilava
from minilava.config import read_json
from minilava.data.mixture import Mixture, Source, load_mixture
from minilava.data.world import World
from minilava.inputs.pack import pack
from minilava.recipes import tiny
from minilava.recipes.tiny import grow
from minilava.recipes.tiny.__main__ import HERE, STAGES
from minilava.train.config import load_config
from minilava.train.new import write_new
from tests.checkpoints import resave
from tests.runtime.test_invariance import picture
from tests.runtime.test_pictures import sample


def test_every_file_is_a_stage():
    found = {f.stem for f in Path(tiny.__file__).parent.glob("*.yaml")} - {"vocabulary"}
    assert found == set(STAGES)


def test_stages_follow_each_other():
    made = [load_config(HERE / f"{stage}.yaml") for stage in STAGES]
    assert [c.out for c in made] == [f"runs/tiny/{stage}" for stage in STAGES]
    inits = [f"{c.out}/model" for c in made[:-1]]
    inits[STAGES.index("deeper") - 1] = "runs/tiny/grown"  # from what practice leaves
    assert [c.init for c in made[1:]] == inits


@pytest.mark.parametrize("stage", [*STAGES, "vocabulary"])
def test_every_source_draws_its_records(stage):
    file = HERE / f"{stage}.yaml"
    mixture = load_mixture(file if stage == "vocabulary" else load_config(file).data)
    names = [s.name for s in mixture.sources]
    assert len(set(names)) == len(names)
    for source in mixture.sources:
        record = source.records[len(source.records) - 1]
        assert record["conversations" if stage != "dpo" else "chosen"], source.name


def small(folder: Path) -> Path:
    """A model of six blocks, as the recipe's before it grows, with weights on one scale."""
    shape = read_json(HERE / "shape.json")
    shape["text_config"] |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    shape["text_config"]["num_key_value_heads"] = 2
    shape["vision_config"] |= {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}
    return write_new(folder, shape, Mixture([Source("a few", World("single_image", samples=50))]), 300)


def test_new_blocks_begin_as_the_identity(tmp_path):
    src, dst = small(tmp_path / "old"), tmp_path / "new"
    grow.grow(src, dst, 48, 40)
    old, new = minilava.load(str(src)), minilava.load(str(dst))
    assert len(new.model.text.blocks) == len(grow.ORDER) > len(old.model.text.blocks) == 6
    packed = pack([sample(old, picture(1, 128, 128))], old.config.vision.patches)
    with torch.no_grad():
        assert torch.equal(old.model(packed), new.model(packed))


def test_the_units_that_do_least_go(tmp_path):
    """Two inner units of every MLP are given weights next to nothing: without them the model is as before."""
    src, dst = small(tmp_path / "old"), tmp_path / "new"

    def silence(weights):
        for name, t in weights.items():
            if "gate_proj" in name or "fc1" in name:
                t[[1, 7]] = 0

    resave(src, silence)
    grow.grow(src, dst, 46, 38)
    old, new = minilava.load(str(src)), minilava.load(str(dst))
    assert new.model.text.blocks[3].gate.weight.shape == (46, 32) and new.config.vision.mlp_width == 38
    packed = pack([sample(old, picture(1, 128, 128))], old.config.vision.patches)
    with torch.no_grad():
        torch.testing.assert_close(old.model(packed), new.model(packed))
    grow.grow(src, tmp_path / "less", 44, 36)  # now others go as well
    less = minilava.load(str(tmp_path / "less"))
    with torch.no_grad():
        assert not torch.allclose(old.model(packed), less.model(packed))
