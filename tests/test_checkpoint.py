"""Checkpoints: names, strict reading, memory, writing, conversion, and the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava.checkpoint import (
    canonical,
    convert,
    expected,
    load_tensors,
    open_checkpoint,
    stored,
    write_random,
)
from minilava.checkpoint.synthetic import original_config
from minilava.config import ModelConfig
from minilava.errors import UserError
from minilava.tokenizer import Tokenizer, byte_tokenizer
from tests.checkpoints import edit_json, equal, resave

ROOT = Path(__file__).resolve().parents[1]
V = "vision_tower.vision_model."
# hub files -> module names of transformers >= 4.52 -> of 5.x -> what 5.x saves by default
GENERATIONS = {
    "hub": [],
    "4.52": [
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head", "lm_head"),
        (r"^(vision_tower|multi_modal_projector)", r"model.\1"),
    ],
    "5.x": [
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head", "lm_head"),
        (r"^vision_tower\.vision_model", "model.vision_tower"),
        (r"^multi_modal_projector", "model.multi_modal_projector"),
    ],
    "5.x saved": [(r"^vision_tower\.vision_model", "vision_tower")],
}


def published(shape: str) -> ModelConfig:
    return ModelConfig.parse(original_config(shape, Tokenizer(byte_tokenizer()), "bfloat16", {}))


# names


@pytest.mark.parametrize(
    "shape, tensors, total", [("0.5b", 716, 863_966_752), ("7b", 813, 8_140_580_384), ("14b", None, 14_597_166_624)]
)
def test_published_counts(shape, tensors, total):
    """Tensor counts of spec 2.1, 2.4 and parameter totals of 1.3, without allocating anything."""
    config = published(shape)
    shapes = expected(config, unused=True)
    assert sum(torch.Size(s).numel() for s in shapes.values()) == total
    if tensors:
        assert len(shapes) == tensors
        in_hf = {stored(name, "hf") for name in shapes if name != "newline"}
        assert len(in_hf) == tensors - 1  # 715 and 812


@pytest.mark.parametrize("dialect", ["original", "hf"])
def test_names_round_trip(dialect):
    for name in [*expected(published("7b"), unused=True), "vision.head.probe", "vision.position_ids"]:
        assert canonical(stored(name, dialect)) == name


def test_names_of_the_specification():
    tower = "model.vision_tower.vision_tower.vision_model."
    pairs = {
        "model.layers.7.self_attn.q_proj.bias": "text.blocks.7.q.bias",
        "model.layers.31.post_attention_layernorm.weight": "text.blocks.31.norm2.weight",
        "model.norm.weight": "text.norm.weight",
        "lm_head.weight": "text.head.weight",
        "model.image_newline": "newline",
        "model.mm_projector.2.bias": "projector.fc2.bias",
        tower + "embeddings.patch_embedding.weight": "vision.patch.weight",
        tower + "embeddings.position_embedding.weight": "vision.position",
        tower + "encoder.layers.25.self_attn.out_proj.weight": "vision.blocks.25.out.weight",
        tower + "post_layernorm.bias": "vision.post_norm.bias",
        "model.language_model.layers.0.mlp.gate_proj.weight": "text.blocks.0.gate.weight",
        "model.vision_tower.encoder.layers.1.mlp.fc1.weight": "vision.blocks.1.fc1.weight",
    }
    for key, name in pairs.items():
        assert canonical(key) == name
    for key in ["", "model.", "model.layers.0", "model.norm", "model.norm.weight.x", "x.model.norm.weight", V + "foo"]:
        assert canonical(key) is None
    with pytest.raises(KeyError):
        stored("text.nothing", "hf")


# reading


@pytest.mark.parametrize("tied", [True, False])
def test_every_dialect_generation_and_sharding_gives_the_same_tensors(tmp_path, tied):
    overrides = {"tie_word_embeddings": tied, "mm_patch_merge_type": "flat"}  # flat: no newline, so both are equal
    args = {"seed": 3, "config_overrides": overrides}
    want = load_tensors(open_checkpoint(write_random(tmp_path / "original", **args)))
    assert ("text.head.weight" in want) is not tied
    sharded = open_checkpoint(write_random(tmp_path / "sharded", shard_bytes=50_000, **args))
    assert len(sharded.files) > 3 and equal(load_tensors(sharded), want)
    (tmp_path / "sharded" / "model.safetensors.index.json").unlink()
    assert equal(load_tensors(open_checkpoint(tmp_path / "sharded")), want)
    for name, rules in GENERATIONS.items():
        path = write_random(tmp_path / name, dialect="hf", **args)

        def rename(tensors, rules=rules):
            for key in list(tensors):
                new = key
                for pattern, to in rules:
                    new = re.sub(pattern, to, new)
                tensors[new] = tensors.pop(key)

        resave(path, rename)
        assert equal(load_tensors(open_checkpoint(path)), want), name


def test_loaded_shapes_are_the_expected_ones(tiny):
    ck = open_checkpoint(tiny)
    loaded = load_tensors(ck, torch.bfloat16)
    assert {k: tuple(t.shape) for k, t in loaded.items()} == expected(ck.config)
    assert {t.dtype for t in loaded.values()} == {torch.bfloat16}
    assert ck.shapes["newline"] == ((64,), torch.float32)


def test_mapped_tensors_are_private(tiny):
    """Training may write to loaded tensors; the file must not change."""
    before = (tiny / "model.safetensors").read_bytes()
    loaded = load_tensors(open_checkpoint(tiny))
    loaded["text.embed.weight"].fill_(7)
    assert (tiny / "model.safetensors").read_bytes() == before
    assert all(t.data_ptr() % 64 == 0 for t in loaded.values())


def test_unused_tensors_are_no_fault(tmp_path):
    """A full SigLIP tower with -2, its pooling head, position buffers, a repeated tied head (spec 1.1, 2.4)."""
    path = write_random(tmp_path / "a", dialect="hf")
    want = load_tensors(open_checkpoint(path))

    def add(tensors):
        for key in [k for k in tensors if k.startswith(V + "encoder.layers.1.")]:
            tensors[key.replace("layers.1.", "layers.2.")] = tensors[key].clone()
        tensors[V + "head.probe"] = torch.zeros(1, 1, 64)
        tensors[V + "embeddings.position_ids"] = torch.arange(16)[None]
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()

    resave(path, add)
    raw = json.loads((path / "config.json").read_text())
    raw["vision_config"]["num_hidden_layers"] = 3
    edit_json(path / "config.json", vision_feature_layer=-2, vision_config=raw["vision_config"])
    assert equal(load_tensors(open_checkpoint(path)), {k: v.clone() for k, v in want.items()})
    warnings = convert(path, tmp_path / "b", "original")
    assert len(warnings) == 1 and "18 tensors" in warnings[0]
    assert equal(load_tensors(open_checkpoint(tmp_path / "b")), want)


def test_a_tied_checkpoint_with_another_head_is_refused(tmp_path):
    path = write_random(tmp_path / "a")
    resave(path, lambda t: t.update({"lm_head.weight": torch.randn(320, 64, dtype=torch.bfloat16)}))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_tensors(open_checkpoint(path))


@pytest.mark.parametrize("rows", [320, 300, 512])
def test_vocabulary_rows_on_disk_win(tmp_path, rows):
    path = write_random(tmp_path / "a", config_overrides={"vocab_size": rows, "tie_word_embeddings": False})
    edit_json(path / "config.json", vocab_size=400)
    ck = open_checkpoint(path)
    assert ck.config.text.vocab_rows == rows and load_tensors(ck)["text.head.weight"].shape[0] == rows


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("model.norm.weight"), r"1 tensor is missing \(model.norm.weight\)"),
        (lambda t: [t.pop(k) for k in list(t) if "layers.1.mlp" in k], r"7 tensors are missing \(.*, \.\.\.\)"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 tensor is not part of this model \(extra\)"),
        (lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.zeros(1)}), r"not part .*layers.9"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(63)}), r"float32 \(63,\), not \(64,\)"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}), "int8"),
        (lambda t: t.update({"model.embed_tokens.weight": torch.zeros(())}), "embed_tokens"),
    ],
)
def test_wrong_tensors_are_listed(tmp_path, change, message):
    path = write_random(tmp_path / "a")
    resave(path, change)
    with pytest.raises(UserError, match=message) as e:
        open_checkpoint(path)
    assert "\n" not in str(e.value)


def test_untied_without_a_head_is_refused(tmp_path):
    path = write_random(tmp_path / "a")
    edit_json(path / "config.json", tie_word_embeddings=False)
    with pytest.raises(UserError, match="missing .lm_head.weight"):
        open_checkpoint(path)


def test_the_same_tensor_twice_is_refused(tmp_path):
    path = write_random(tmp_path / "a", shard_bytes=50_000)
    (path / "model.safetensors.index.json").unlink()
    (path / "copy.safetensors").write_bytes(sorted(path.glob("*.safetensors"))[0].read_bytes())
    with pytest.raises(UserError, match="twice"):
        open_checkpoint(path)


def test_missing_shard_and_bad_index(tmp_path):
    path = write_random(tmp_path / "a", shard_bytes=100_000)
    shards = sorted(path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        open_checkpoint(path)
    for bad in ({}, {"weight_map": 3}, {"weight_map": {"a": "../../etc/passwd"}}, {"weight_map": {"a": 1}}):
        (path / "model.safetensors.index.json").write_text(json.dumps(bad))
        with pytest.raises(UserError, match="weight_map"):
            open_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 5000, -1])
def test_truncated_file_is_named(tmp_path, keep):
    path = write_random(tmp_path / "a")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model.norm.weight": 3}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 4]}}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"model.norm.weight": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"model.norm.weight": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"model.norm.weight": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_corrupt_header_is_named(tmp_path, header):
    path = write_random(tmp_path / "a")
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    with pytest.raises(UserError, match="model.safetensors"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> tuple[Path, bytes]:
    path = write_random(tmp_path_factory.mktemp("victim") / "a")
    return path, (path / "model.safetensors").read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_damaged_header_is_refused_or_harmless(victim, position, junk):
    path, good = victim
    changed = good[:position] + junk + good[position + len(junk) :]
    (path / "model.safetensors").unlink()  # never write into a file that an earlier example has mapped
    (path / "model.safetensors").write_bytes(changed)
    try:
        load_tensors(open_checkpoint(path))
    except UserError as e:
        assert "\n" not in str(e)


def test_places_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not a checkpoint directory"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="no .safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match="config.json"):
        (tmp_path / "model.safetensors").write_bytes(b"")
        open_checkpoint(tmp_path)


# memory

CHILD = """
import sys, torch
from minilava.checkpoint import open_checkpoint, load_tensors

def status(field):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[field].split()[0]) * 1024

path, dtype, use = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3] == "use"
torch.ones(1 << 20).to(torch.bfloat16).sum()
open("/proc/self/clear_refs", "w").write("5")  # resets the high-water mark
before = status("VmRSS")
tensors = load_tensors(open_checkpoint(path), dtype)
if use:
    for t in tensors.values():
        t.view(torch.uint8).max()
size = sum(t.nbytes for t in tensors.values())
print((status("VmHWM") - before) / size)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """About 180 MB, two thirds of it in one tensor, as the embedding of the 0.5B model is a third of it."""
    overrides = {"hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 80_000}
    overrides |= {"intermediate_size": 2048, "num_hidden_layers": 4}
    root = tmp_path_factory.mktemp("large")
    return {d: write_random(root / d, dtype=d, config_overrides=overrides) for d in ("bfloat16", "float32")}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize(
    "on_disk, dtype, use, bound",
    [
        ("bfloat16", "bfloat16", "", 0.1),  # nothing is read before it is used
        ("bfloat16", "bfloat16", "use", 1.15),
        ("bfloat16", "float32", "use", 1.15),
        ("float32", "bfloat16", "use", 1.15),
    ],
)
def test_resident_memory_while_loading(large, on_disk, dtype, use, bound):
    command = [sys.executable, "-c", CHILD, str(large[on_disk]), dtype, use]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(out.stdout) <= bound
