"""The same weights in either dialect are the same model: identical tokens after conversion there and back."""

import numpy as np

import minilava
from minilava.checkpoint import convert


def replies(path, recipe):
    vlm = minilava.load(path, device="cpu", dtype="float32")
    for p in vlm.model.parameters():  # a random model at its initial values only repeats its last token
        p.data = p.data * 8 if p.ndim > 1 else p.data.clone()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(2)]
    prompts = [("What is <image> beside <image>?", images), ("Hello", []), ("Again", images[:1])]
    return [vlm.generate(p, m, recipe=recipe, max_new_tokens=16).token_ids for p, m in prompts]


def test_hf_to_original_and_back(tiny_hf, tmp_path):
    convert(tiny_hf, tmp_path / "original", "original")
    convert(tmp_path / "original", tmp_path / "hf", "hf")
    for recipe in ("hf", "authors"):
        there = replies(tmp_path / "original", recipe)
        assert replies(tiny_hf, recipe) == there == replies(tmp_path / "hf", recipe)
        assert len(set(map(tuple, there))) == 3


def test_original_to_hf_and_back(tiny, tmp_path):
    convert(tiny, tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "original", "original")
    # The port cannot hold the newline, so only its own recipe is the same in all three.
    assert replies(tiny, "hf") == replies(tmp_path / "hf", "hf") == replies(tmp_path / "original", "hf")
    assert replies(tiny, "authors") == replies(tmp_path / "original", "authors")
