"""config.json of both dialects -> ModelConfig, and every way it can be wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest

from minilava.checkpoint.dialects import to_hf
from minilava.checkpoint.synthetic import original_config
from minilava.config import Asking, ModelConfig, TextConfig, VisionConfig, read_json
from minilava.errors import UserError
from minilava.tokenizer import Tokenizer, byte_tokenizer

TOK = Tokenizer(byte_tokenizer())
ORIGINAL = original_config("0.5b", TOK, "bfloat16", {})
HF = to_hf(ORIGINAL, ModelConfig.parse(ORIGINAL), 151646)


def changed(raw: dict, **fields) -> dict:
    """A copy with fields set (None removes one); text__x and vision__x reach into the blocks."""
    raw = copy.deepcopy(raw)
    for key, value in fields.items():
        block, _, inner = key.rpartition("__")
        target = raw[block + "_config"] if block else raw
        if value is None:
            target.pop(inner, None)
        else:
            target[inner] = value
    return raw


def test_original_as_published():
    config = ModelConfig.parse(ORIGINAL, {"repetition_penalty": 1.1, "eos_token_id": [151645, 151643]})
    assert config.dialect == "original" and config.recipe == "authors" and config.newline
    assert config.vision == VisionConfig() and config.vision.patches == 729 and config.vision.head_dim == 72
    assert config.text == TextConfig(1024, 2816, 24, 16, 16, 64, 151936, True)
    assert config.image.image_grid_pinpoints[0] == (384, 768) and config.image_token_id is None
    assert config.eos_ids == (151645, 151643) and config.repetition_penalty == 1.1 and config.max_length == 32768


def test_hf_as_published():
    config = ModelConfig.parse(HF)
    original = ModelConfig.parse(ORIGINAL)
    assert (config.dialect, config.recipe, config.newline) == ("hf", "hf", False)
    assert (config.text, config.vision) == (original.text, original.vision)
    assert config.image_token_id == 151646 and config.image.mm_patch_merge_type == "flat"
    assert config.eos_ids == (258,) and config.repetition_penalty == 1.0


def test_the_7b_port_leaves_out_what_equals_qwen2_defaults():
    """Its text_config has no hidden_size, no layer count and no heads (spec 2.4)."""
    text = {"model_type": "qwen2", "intermediate_size": 11008, "rope_theta": 1000000.0, "vocab_size": 152000}
    config = ModelConfig.parse({**HF, "text_config": text, "tie_word_embeddings": False})
    assert config.text == TextConfig(4096, 11008, 32, 32, 32, 128, 152000, False)


def test_layer_choice_counts_the_blocks_that_run():
    full = changed(HF, vision__num_hidden_layers=27)
    for layer, blocks in ((-1, 27), (-2, 26), (26, 26), (None, 26)):  # absent means LlavaConfig's -2
        assert ModelConfig.parse(changed(full, vision_feature_layer=layer)).vision.layers == blocks


def test_the_context_is_no_longer_than_the_positions():
    """And no longer than where the reference cuts (spec 5.6)."""
    for cut, positions in ((65536, 32768), (4096, 32768), (None, 1024), (32768, None)):
        raw = changed(ORIGINAL, tokenizer_model_max_length=cut, max_position_embeddings=positions)
        assert ModelConfig.parse(raw).max_length == min(cut or 1 << 60, positions or 32768)


def test_rope_theta_of_transformers_5():
    text = {k: v for k, v in HF["text_config"].items() if k != "rope_theta"}
    text["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "default"}
    assert ModelConfig.parse({**HF, "text_config": text}).text.rope_theta == 1e6


def test_eos_comes_from_generation_config_first():
    assert ModelConfig.parse(changed(ORIGINAL, eos_token_id=5), {"eos_token_id": 6}).eos_ids == (6,)
    assert ModelConfig.parse(changed(ORIGINAL, eos_token_id=5)).eos_ids == (5,)
    assert ModelConfig.parse(changed(ORIGINAL, eos_token_id=None)).eos_ids == ()


@pytest.mark.parametrize(
    "raw, message",
    [
        ({}, "mm_projector_type"),
        (changed(ORIGINAL, hidden_size=None), "no field 'hidden_size'"),
        (changed(ORIGINAL, hidden_size="many"), "wrong type"),
        (changed(ORIGINAL, hidden_size=1024.0), "hidden_size|width"),
        (changed(ORIGINAL, num_hidden_layers=-1), "layers = -1"),
        (changed(ORIGINAL, num_attention_heads=0), "wrong type or value"),
        (changed(ORIGINAL, num_key_value_heads=3), "16 attention heads cannot share 3"),
        (changed(ORIGINAL, rope_theta="x"), "not a number"),
        (changed(ORIGINAL, eos_token_id="x"), "not a number"),
        (changed(ORIGINAL, mm_projector_type="linear"), "mlp2x_gelu"),
        (changed(ORIGINAL, mm_vision_tower="openai/clip"), "siglip"),
        (changed(ORIGINAL, use_sliding_window=True), "sliding-window"),
        (changed(ORIGINAL, hidden_act="gelu"), "silu"),
        (changed(ORIGINAL, vision_config={"patch_size": 500}), "do not fit"),
        (changed(ORIGINAL, vision_config=[]), "wrong type"),
        (changed(HF, model_type="llava_next"), "llava_next"),
        (changed(HF, projector_hidden_act="relu"), "relu"),
        (changed(HF, vision_feature_select_strategy="default"), "full"),
        (changed(HF, vision_feature_layer=[1, 2]), "wrong type"),
        (changed(HF, vision_feature_layer=-40), "-40"),
        (changed(HF, vision__model_type="clip_vision_model"), "clip"),
        (changed(HF, vision__hidden_act="relu"), "relu"),
        (changed(HF, image_token_index=None), "image_token_index"),
        (changed(HF, text__rope_scaling={"type": "linear", "factor": 2.0}), "rope scaling"),
        (changed(HF, text_config=[]), "wrong type"),
        (changed(HF, minilava={"asking": {"frames": "many"}}), "frames of the wrong type"),
        (changed(HF, minilava={"asking": {"tone": "polite"}}), "wrong type or value"),
    ],
)
def test_refusals_say_what_is_wrong(raw, message):
    with pytest.raises(UserError, match=message) as e:
        ModelConfig.parse(raw)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_bad_json_names_the_file(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json"):
        read_json(tmp_path / "config.json")


def test_load_reads_both_files(tmp_path):
    with pytest.raises(UserError, match="cannot read .*config.json"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL))
    assert ModelConfig.load(tmp_path).repetition_penalty == 1.0
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05}))
    assert ModelConfig.load(tmp_path).repetition_penalty == 1.05


def test_a_checkpoint_may_say_how_to_ask_it():
    asking = {"recipe": "train", "anyres": False, "pool": "average", "frames": 6}
    config = ModelConfig.parse(changed(HF, minilava={"asking": asking}))
    assert config.recipe == "train" and asdict(config.asking) == asking
    assert ModelConfig.parse(HF).recipe == "hf" and ModelConfig.parse(ORIGINAL).asking == Asking()
