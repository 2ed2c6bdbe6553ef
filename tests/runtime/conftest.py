"""A model for what outlives a question: its views have enough patches for their bits not to depend on their number."""

import pytest

import minilava
from minilava.checkpoint import write_random


@pytest.fixture(scope="session")
def tiny36(tmp_path_factory):
    """36 patches per view: beyond the few rows of kernels/linear.py, of which single ones go another way."""
    grid = [[84 * w, 84 * h] for w, h in ((1, 2), (2, 1), (2, 2))]
    overrides = {"vision_config": {"image_size": 84}, "image_grid_pinpoints": grid}
    path = tmp_path_factory.mktemp("tiny36") / "model"
    return write_random(path, dtype="float32", tokenizer="byte", config_overrides=overrides)


@pytest.fixture
def fresh(tiny36):
    """Loads the model; options as of minilava.load."""

    def load(**options):
        vlm = minilava.load(tiny36, device="cpu", dtype="float32", **options)
        for p in vlm.model.parameters():  # at its small initial values a random model only repeats its last token
            p.data = p.data * 8 if p.ndim > 1 else p.data.clone()
        return vlm

    return load
