"""Writing, converting and the commands: lossless both ways, whole files or none."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from minilava.checkpoint import (
    Source,
    canonical,
    convert,
    find_non_finite,
    load_tensors,
    open_checkpoint,
    write_checkpoint,
    write_random,
)
from minilava.checkpoint.__main__ import main
from minilava.checkpoint.reader import NEWLINE
from minilava.checkpoint.summary import parameters
from minilava.config import ModelConfig
from minilava.errors import UserError
from minilava.tokenizer import Tokenizer
from tests.checkpoints import equal, resave, tensors_of

ROOT = Path(__file__).resolve().parents[1]

# writing


def test_written_files_are_read_by_the_safetensors_package(tmp_path):
    sources = {
        "a": torch.randn(3, 5, dtype=torch.bfloat16),
        "b": torch.arange(7),
        "c": torch.randn(4, 2).t(),
        "d": torch.tensor(2.5, dtype=torch.float16),
        "e": torch.empty(0, 4),
    }
    write_checkpoint(tmp_path / "one", {"x": 1}, [Source.of(k, t) for k, t in sources.items()])
    got = tensors_of(tmp_path / "one")
    assert equal(got, sources)
    files = write_checkpoint(tmp_path / "many", {}, [Source.of(k, t) for k, t in sources.items()], shard_bytes=40)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert [f.name for f in files] == sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in sources.values())
    for key, name in index["weight_map"].items():
        assert torch.equal(safetensors.torch.load_file(tmp_path / "many" / name)[key], sources[key])


def test_nothing_is_left_of_a_failed_write(tmp_path):
    def fail():
        yield torch.zeros(2)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_checkpoint(tmp_path / "a", {}, [Source("x", (4,), torch.float32, fail)])
    assert list((tmp_path / "a").iterdir()) == []
    for wrong in (torch.zeros(3), torch.zeros(4, dtype=torch.float16)):  # not what the header announces
        with pytest.raises(ValueError, match="x"):
            write_checkpoint(tmp_path / "a", {}, [Source("x", (4,), torch.float32, lambda w=wrong: [w])])


def test_an_existing_checkpoint_is_not_overwritten(tiny, tmp_path):
    with pytest.raises(UserError, match="already holds"):
        write_random(tiny)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_random(tmp_path / "file")


def test_random_is_a_function_of_seed_and_name(tmp_path):
    a = load_tensors(open_checkpoint(write_random(tmp_path / "a", seed=5)))
    b = load_tensors(open_checkpoint(write_random(tmp_path / "b", seed=5, dialect="hf", shard_bytes=60_000)))
    c = load_tensors(open_checkpoint(write_random(tmp_path / "c", seed=6)))
    assert all(torch.equal(a[k], b[k]) for k in b)
    assert not any(torch.equal(a[k], c[k]) for k in a)
    assert not find_non_finite(a.items())
    assert abs(a["text.norm.weight"].float().mean() - 1) < 0.02 and a["text.blocks.0.q.bias"].abs().max() > 0


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="259 ids and the vocabulary 200 rows"):
        write_random(tmp_path / "a", config_overrides={"vocab_size": 200})


# conversion


@pytest.mark.parametrize("tied", [True, False])
def test_original_to_hf_and_back(tmp_path, tied):
    overrides = {"tie_word_embeddings": tied, "image_aspect_ratio": "pad", "rope_theta": 5e5, "own_field": [1]}
    a = write_random(tmp_path / "a", seed=8, config_overrides=overrides)
    warnings = convert(a, tmp_path / "h", "hf")
    assert len(warnings) == 1 and NEWLINE in warnings[0]
    assert convert(tmp_path / "h", tmp_path / "b", "original") == []
    assert equal(tensors_of(a), tensors_of(tmp_path / "b"))
    assert ModelConfig.load(a) == ModelConfig.load(tmp_path / "b")
    old, new = (json.loads((p / "config.json").read_text()) for p in (a, tmp_path / "b"))
    assert {k: v for k, v in new.items() if k not in ("minilava", "vision_config")} == {
        k: v for k, v in old.items() if k != "vision_config"
    }
    assert Tokenizer.load(tmp_path / "h").image == 259 and Tokenizer.load(tmp_path / "b").image is None
    assert (a / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert (a / "generation_config.json").read_bytes() == (tmp_path / "b" / "generation_config.json").read_bytes()


def test_hf_to_original_and_back(tmp_path):
    a = write_random(tmp_path / "a", dialect="hf", seed=9)
    assert convert(a, tmp_path / "o", "original") == []
    config = ModelConfig.load(tmp_path / "o")
    assert (config.image.mm_patch_merge_type, config.image.image_aspect_ratio) == ("flat", "square")
    assert not config.newline
    assert convert(tmp_path / "o", tmp_path / "b", "hf") == []
    assert equal(tensors_of(a), tensors_of(tmp_path / "b"))
    assert ModelConfig.load(a) == ModelConfig.load(tmp_path / "b")
    old, new = (json.loads((p / "config.json").read_text()) for p in (a, tmp_path / "b"))
    assert new.pop("minilava") and new == old
    assert (a / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_a_lost_newline_turns_the_merge_type_flat(tmp_path):
    convert(write_random(tmp_path / "a"), tmp_path / "h", "hf")
    (tmp_path / "h" / NEWLINE).unlink()
    convert(tmp_path / "h", tmp_path / "b", "original")
    assert ModelConfig.load(tmp_path / "b").image.mm_patch_merge_type == "flat"
    open_checkpoint(tmp_path / "b")


def test_hf_gets_a_row_for_the_image_id(tmp_path):
    """Exactly as many rows as ids: the port pads to a multiple of 64, and the way back cuts the zeros off."""
    args = {"vocab_size": 259, "tie_word_embeddings": False}
    a = write_random(tmp_path / "a", config_overrides=args)
    convert(a, tmp_path / "h", "hf")
    rows = tensors_of(tmp_path / "h")["language_model.lm_head.weight"]
    assert rows.shape == (320, 64) and not rows[259:].any()
    convert(tmp_path / "h", tmp_path / "b", "original")
    assert equal(tensors_of(a), tensors_of(tmp_path / "b"))


def test_conversion_refuses(tmp_path, tiny):
    with pytest.raises(UserError, match="already in the original dialect"):
        convert(tiny, tmp_path / "b", "original")
    path = write_random(tmp_path / "a")
    with pytest.raises(UserError, match="already holds"):
        convert(tiny, path, "hf")
    resave(path, lambda t: t["model.norm.weight"][3:4].fill_(float("nan")))
    with pytest.raises(UserError, match="NaN or infinity in text.norm.weight"):
        convert(path, tmp_path / "c", "hf")
    assert not (tmp_path / "c" / "config.json").exists() and not list((tmp_path / "c").glob("*.safetensors"))


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_converted_checkpoint(tmp_path, tied):
    transformers = pytest.importorskip("transformers")
    a = write_random(tmp_path / "a", seed=4, config_overrides={"tie_word_embeddings": tied})
    convert(a, tmp_path / "h", "hf")
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "h", output_loading_info=True, dtype=torch.bfloat16
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    want = load_tensors(open_checkpoint(a))
    state = {canonical(k): t for k, t in model.state_dict().items()}
    assert all(torch.equal(state[k], t) for k, t in want.items() if k != "newline")
    text, vision = model.config.text_config, model.config.vision_config
    assert text.rope_parameters["rope_theta"] == 1e6 and text.num_key_value_heads == 2
    assert vision.num_hidden_layers == 2 and model.config.image_token_index == 259


def test_transformers_reads_the_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = write_random(tmp_path / "a", dialect="hf")
    ours, theirs = Tokenizer.load(path), transformers.AutoTokenizer.from_pretrained(path)
    for text in ("Hello  world\n", "<|im_start|>user <image>\n", "été 你好 1234 don't\t", "<|endoftext|>"):
        assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == ours.im_end and theirs.convert_tokens_to_ids("<image>") == ours.image


def test_chat_template(tmp_path):
    """Spec 5.10, through transformers' own renderer."""
    transformers = pytest.importorskip("transformers")
    path = write_random(tmp_path / "a", dialect="hf")
    content = [{"type": "text", "text": "A"}, {"type": "image"}, {"type": "text", "text": "B"}, {"type": "image"}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "C"}]
    tok = transformers.AutoTokenizer.from_pretrained(path)
    text = tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\n<image><image>\nA\nB<|im_end|>\n<|im_start|>assistant\n\nC<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("original_format", [True, False])
def test_a_checkpoint_saved_by_transformers_is_read(tmp_path, original_format):
    transformers = pytest.importorskip("transformers")
    path = write_random(tmp_path / "a", dialect="hf", seed=4, config_overrides={"rope_theta": 12345.0})
    model = transformers.LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "b", save_original_format=original_format)
    a, b = open_checkpoint(path), open_checkpoint(tmp_path / "b")
    assert equal(load_tensors(a), load_tensors(b))
    assert (b.config.text, b.config.vision) == (a.config.text, a.config.vision)


# commands


def command(*args) -> subprocess.CompletedProcess:
    arguments = [sys.executable, "-m", "minilava.checkpoint", *map(str, args)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)


def test_commands(tmp_path):
    a, h = tmp_path / "a", tmp_path / "h"
    done = command("random", a, "--seed", 3, "--dtype", "float16")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = command("convert", a, h, "--to", "hf")
    assert (done.returncode, done.stdout) == (0, "") and done.stderr.startswith("minilava: warning: the hf dialect")
    done = command("inspect", h, "--check")
    assert done.returncode == 0 and "all finite" in done.stdout and "float16" in done.stdout
    for key in ("dialect", "files", "tensors", "parameters", "vocabulary", "recipe", "context", "eos ids"):
        assert re.search(f"^{key} ", done.stdout, re.M)


def test_inspect_finds_nan_and_infinity(tmp_path, capsys):
    path = write_random(tmp_path / "a")
    resave(path, lambda t: t["model.image_newline"][5:6].fill_(float("-inf")))
    assert main(["inspect", str(path)]) == 0
    assert main(["inspect", str(path), "--check"]) == 2
    out, err = capsys.readouterr()
    assert "NaN or infinity in 1 of them: newline" in out
    assert err.startswith("minilava: error: ") and err.count("\n") == 1


@pytest.mark.parametrize("args", [("inspect", "/nowhere"), ("random", "x", "--shape", "1b"), ("convert", "x"), ()])
def test_mistakes_are_one_line_and_status_2(args, capsys):
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"minilava: error: [^\n]+\n", err)


def test_interrupt_is_quiet(tmp_path):
    arguments = [sys.executable, "-m", "minilava.checkpoint", "random", str(tmp_path / "a"), "--shape", "14b"]
    child = subprocess.Popen([*arguments, "--tokenizer", "byte"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("a/*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) == 130 and "Traceback" not in child.stderr.read()
    assert not list(tmp_path.glob("a/*.tmp")) and not (tmp_path / "a" / "config.json").exists()


def test_parameters_by_part(tiny):
    parts = parameters(open_checkpoint(tiny))
    assert parts["newline"] == 64 and parts["total"] == sum(v for k, v in parts.items() if k != "total")
