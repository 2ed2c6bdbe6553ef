"""Quantised checkpoints and what runs from them."""

import copy
import dataclasses
import json
import mmap
import struct
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import minilava
from minilava.calibrate import mean_squares
from minilava.checkpoint import open_checkpoint
from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.errors import UserError
from minilava.model.linear import Quantized
from minilava.quantize import POLICIES, main, read_quantization, write_quantized
from minilava.runtime.vlm import TINY
from minilava.tokenizer import Tokenizer
from tests.numerics import with_threads


@pytest.fixture(scope="module", params=POLICIES)
def stored(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantised") / request.param
    assert main([str(TINY), str(path), "--quant", request.param]) == 0
    return request.param, path


PROMPTS = ["Where is the cup?", "How many things are there? Answer with a number.", "hi"]


def answers(vlm, prompts):
    return [vlm.generate(p, max_new_tokens=12).token_ids for p in prompts]


def test_stored_is_loaded_is_quantised_while_loading(stored):
    name, path = stored
    picture = torch.randint(256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    disk, memory = minilava.load(path), minilava.load(quant=name)
    a, b = (v.generate("Describe <image>.", images=[picture], max_new_tokens=20) for v in (disk, memory))
    assert a.token_ids == b.token_ids and a.quant == b.quant == name and a.dtype == "float32"


def test_weights_are_views_of_the_file(stored):
    _, path = stored
    values = minilava.load(path).model.text.blocks[0].down.values
    with open("/proc/self/maps") as maps:
        ranges = [line.split()[0].split("-") for line in maps if str(path) in line]
    assert any(int(low, 16) <= values.data_ptr() < int(high, 16) for low, high in ranges)


def test_the_same_tokens_alone_in_a_batch_in_chunks_and_on_any_threads(stored):
    name, path = stored
    vlm = minilava.load(path)
    alone = answers(vlm, PROMPTS)
    requests = [
        vlm.request([{"role": "user", "content": [{"type": "text", "text": p}]}], max_new_tokens=12) for p in PROMPTS
    ]
    assert [r.token_ids for r in vlm.batch(requests)] == alone
    assert with_threads(3, lambda: answers(minilava.load(path), PROMPTS)) == alone


def test_loading_imports_no_compiler(stored):
    """Which takes longer than all the rest of a start."""
    _, path = stored
    code = f"import sys, minilava; minilava.load({str(path)!r}); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_copy_of_a_used_model_has_weights_of_its_own(stored, tmp_path):
    """Also one that was saved whole: the native blocks, which hold addresses, are made again."""
    _, path = stored
    vlm = minilava.load(path)
    first = answers(vlm, ("What is it?",))
    torch.save(vlm.model, tmp_path / "model.pt")
    original = vlm.model
    for made in (copy.deepcopy(original), torch.load(tmp_path / "model.pt", weights_only=False)):
        pointers = [{t.data_ptr() for t in (*m.parameters(), *m.buffers())} for m in (made, original)]
        assert not pointers[0] & pointers[1]
        vlm.engine.model = vlm.model = made
        vlm.forget()
        assert answers(vlm, ("What is it?",)) == first
        assert made.text._decoder not in (None, original.text._decoder)


def test_close_to_the_float_model(stored):
    name, path = stored
    ids = torch.randint(0, 900, (1, 60), generator=torch.Generator().manual_seed(1))[0]
    logits = [hidden_logits(minilava.load(p, dtype="float32"), ids) for p in (TINY, path)]
    likelihoods = [x.log_softmax(-1) for x in logits]
    divergence = (likelihoods[0].exp() * (likelihoods[0] - likelihoods[1])).sum(-1).mean()
    assert 0 < divergence < {"int8": 0.01, "int4": 0.3}[name]


def hidden_logits(vlm, ids):
    from minilava.packed import Packed

    n = len(ids)
    with torch.inference_mode():
        return vlm.model(Packed(ids, torch.arange(n), torch.tensor([0, n], dtype=torch.int32), (n,)))


def test_what_does_not_match_is_refused(stored, tmp_path, capsys):
    name, path = stored
    other = "int4" if name == "int8" else "int8"
    for call in (
        lambda: minilava.load(path, quant=other),
        lambda: minilava.load(path, dtype="bfloat16"),
        lambda: write_quantized(path, tmp_path / "again", name),
        lambda: write_quantized(TINY, path, name),
        lambda: open_checkpoint(path),
        lambda: minilava.load(quant="int3"),
    ):
        with pytest.raises(UserError):
            call()
    assert main([str(path), str(tmp_path / "x"), "--quant", name]) == 2
    assert "quantised already" in capsys.readouterr().err


def test_damaged_files_are_refused(stored, tmp_path):
    name, path = stored
    q = dataclasses.asdict(read_quantization(path))
    tensors = load_file(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    key = "text.blocks.0.q.values"
    for block, change in (
        (q | {"layout": "panels32-v9"}, {}),
        (q | {"bits": {"": 5}}, {}),
        ({"name": name}, {}),
        (q, {key: None}),
        (q, {key: tensors[key][:, :-1].contiguous()}),
        (q, {"stranger": torch.zeros(3)}),
    ):
        bad = tmp_path / "bad"
        bad.mkdir(exist_ok=True)
        for f in path.iterdir():
            (bad / f.name).write_bytes(f.read_bytes())
        (bad / "config.json").write_text(json.dumps(config | {"minilava": {"quantization": block}}))
        save_file({k: v for k, v in (tensors | change).items() if v is not None}, bad / "model.safetensors")
        with pytest.raises(UserError, match="quantise"):
            minilava.load(bad)


def test_calibrated_on_records(tmp_path, capsys):
    """The mean squares are those of the inputs, and weights quantised by them are nearer on inputs of other records."""
    records = tmp_path / "mixture.yaml"
    records.write_text("sources: [{name: world, world: all, samples: 40, seed: 7, turns: 4}]")
    path = tmp_path / "int4"
    assert main([str(TINY), str(path), "--quant", "int4", "--calibrate", str(records)]) == 0
    float_model = minilava.load(TINY, dtype="float32").model
    batch = next(iter(Stream(load_mixture(records), Tokenizer.load(TINY), float_model.config, 2000, seed=5)))
    found, seen = mean_squares(float_model, [batch.packed]), []
    block = float_model.text.blocks[2]
    original = type(block.o).__call__
    try:
        type(block.o).__call__ = lambda m, x, *a, **k: (m is block.o and seen.append(x), original(m, x, *a, **k))[1]
        with torch.inference_mode():
            hidden = float_model.hidden(batch.packed)
    finally:
        type(block.o).__call__ = original
    torch.testing.assert_close(found["text.blocks.2.o"], seen[0].square().mean(0))
    torch.testing.assert_close(found["text.embed"], hidden.square().mean(0))
    plain, weighed = (minilava.load(p, quant=q).model.text.blocks[2].o for p, q in ((TINY, "int4"), (path, None)))
    exact = original(block.o, seen[0])
    assert (error := (plain(seen[0]) - exact).square().mean()) > 0
    assert (weighed(seen[0]) - exact).square().mean() < 0.95 * error


def test_calibration_records_that_do_not_exist(tmp_path, capsys):
    assert main([str(TINY), str(tmp_path / "a"), "--quant", "int4", "--calibrate", str(tmp_path / "no.jsonl")]) == 2
    assert "no.jsonl" in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_weights_of_the_tower_are_let_go_and_come_back(stored):
    """After a picture only the last block's memory, which shares pages with its neighbours, may still be resident."""
    _, path = stored
    vlm = minilava.load(path, cache_bytes=0, lean=True)
    picture = Image.new("RGB", (90, 120), (200, 30, 40))
    first = vlm.generate("<image>\nWhat is it?", [picture], max_new_tokens=4).token_ids
    blocks = [[m.values for m in b.modules() if isinstance(m, Quantized)] for b in vlm.model.vision.blocks]
    assert resident(v for b in blocks for v in b) < 0.4
    assert resident(m.values for m in vlm.model.text.modules() if isinstance(m, Quantized)) > 0.6
    assert vlm.generate("<image>\nWhat is it?", [picture], max_new_tokens=4).token_ids == first


def test_weights_loaded_after_use_are_used(stored):
    picture = torch.randint(256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()

    def answer(vlm):
        return vlm.generate("Describe it.", images=[picture], max_new_tokens=20).token_ids

    vlm, fresh = (minilava.load(stored[1], cache_bytes=0) for _ in range(2))
    before = answer(vlm)
    state = {name: t.clone() for name, t in vlm.model.state_dict().items()}
    for part in ("vision.blocks.0.fc1", "text.blocks.1.down"):
        state[f"{part}.scales"] = state[f"{part}.scales"] * 3
    for model in (vlm.model, fresh.model):
        model.load_state_dict(state, assign=True)
    assert answer(vlm) == answer(fresh) != before


def test_weights_that_move_after_use_are_used(stored):
    vlm = minilava.load(stored[1], cache_bytes=0)
    picture = torch.randint(256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    before = vlm.generate("Describe it.", images=[picture], max_new_tokens=8).token_ids
    vlm.model.share_memory()  # every storage moves; the old ones are freed
    native = [vlm.model.text._decoder, *(b._whole for b in vlm.model.vision.blocks)]
    assert not any(native)
    assert vlm.generate("Describe it.", images=[picture], max_new_tokens=8).token_ids == before


def test_the_default_dtype_changes_nothing(stored):
    """Other libraries set it while they load a model. Half as much memory as the rows need was written past its end."""
    vlm = minilava.load(stored[1], cache_bytes=0)
    before = answers(vlm, PROMPTS)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert answers(vlm, PROMPTS) == before
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_folder_that_cannot_be_made_is_told_at_once(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(TINY), str(tmp_path / "file" / "new"), "--quant", "int8"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_letting_go_spares_weights_that_are_not_mapped(stored):
    """Those of a copy, and others in their place, are memory with nothing behind it."""
    picture = torch.randint(256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()

    def answer(vlm):
        return vlm.generate("Describe it.", images=[picture], max_new_tokens=20).token_ids

    vlm = minilava.load(stored[1], lean=True, cache_bytes=0)
    first = answer(vlm)
    vlm.engine.model = vlm.model = copy.deepcopy(vlm.model)
    assert answer(vlm) == first == answer(vlm)
    vlm = minilava.load(stored[1], lean=True, cache_bytes=0)
    state = {name: t.clone() for name, t in vlm.model.state_dict().items()}
    vlm.model.load_state_dict(state, assign=True)
    assert answer(vlm) == first == answer(vlm)


def resident(tensors) -> float:
    """Share of the tensors' whole pages that are in this process's memory."""
    with open("/proc/self/pagemap", "rb") as f:
        pages = []
        for t in tensors:
            first, last = -(-t.data_ptr() // mmap.PAGESIZE), (t.data_ptr() + t.nbytes) // mmap.PAGESIZE
            f.seek(8 * first)
            pages += [e >> 63 for e in struct.unpack(f"{last - first}Q", f.read(8 * (last - first)))]
    return sum(pages) / len(pages)
