"""A run from YAML to a checkpoint that every reader takes, and its loss curve against transformers and torch."""

import json
import math
import signal
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minilava.checkpoint import load_tensors, open_checkpoint
from minilava.checkpoint.companions import INTERLEAVED_TEMPLATE
from minilava.config import IGNORE
from minilava.train.__main__ import main
from minilava.train.log import read_log
from minilava.train.loop import Run, show, train
from minilava.train.ranks import Ranks
from tests.train.small import config, settings, write_config

# --- the curve of transformers ----------------------------------------------------------------------------------------


def alone(packed, model_config):
    """The samples of a pack in the reference's form: (input_ids (1, T), pixel_values or None, labels (T,))."""
    v, view = model_config.vision, 0
    side, size = v.side, v.patch_size
    ids = packed.ids.clone()
    if packed.splice_rows is not None:
        ids[packed.splice_rows] = model_config.image_token_id
    for a, b in zip(packed.cu_seqlens[:-1].tolist(), packed.cu_seqlens[1:].tolist(), strict=True):
        count = int((ids[a:b] == model_config.image_token_id).sum()) // v.patches
        pixels = None
        if count:
            grid = packed.patches[view : view + count].view(count, side, side, 3, size, size)
            pixels = grid.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, side * size, side * size)
            view += count
        yield ids[None, a:b], pixels, packed.labels[a:b]


def test_loss_curve_is_transformers(tiny_hf, tmp_path):
    """20 steps of AdamW on LlavaForConditionalGeneration, its samples unpadded and one by one."""
    transformers = pytest.importorskip("transformers", reason='needs pip install "minilava[reference]"')
    sources = [
        {"world": "spot_difference,visual_story", "samples": 60, "turns": 2, "size": 56},
        {"world": "single_image", "samples": 30, "size": 56, "anyres": False},
    ]
    c = config(tiny_hf, tmp_path / "out", data={"sources": sources}, steps=20, budget=600, lr=3e-3,
               lr_vision=1e-3, lr_projector=5e-3, weight_decay=0.05, betas=(0.9, 0.98))  # fmt: skip
    run = Run(c, Ranks.start("cpu"))
    batches = run.stream.loader(0)
    ours = [run.advance() for _ in range(20)]

    model = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_hf, dtype=torch.float32).train()
    layer_norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}
    groups = [
        {"params": [p], "peak": 1e-3 if "vision_tower" in name else 5e-3 if "projector" in name else 3e-3,
         "weight_decay": 0.0 if id(p) in layer_norms or "bias" in name else 0.05}
        for name, p in model.named_parameters()
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-8)
    warm = math.ceil(0.2 * 20)
    for step, row in enumerate(ours):
        total, units = 0.0, 0
        for _ in range(2):
            for ids, pixels, labels in alone(next(batches).packed, run.model.config):
                logits = model(input_ids=ids, pixel_values=pixels).logits[0, :-1]
                nll = F.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=IGNORE)
                nll.backward()
                total, units = total + nll.item(), units + int((labels[1:] != IGNORE).sum())
        for p in model.parameters():
            if p.grad is not None:
                p.grad /= units
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (20 - warm)))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.step()
        optimizer.zero_grad()
        assert units == row["labelled"]
        assert abs(total / units - row["loss"]) <= 1e-4 * row["loss"], (step, total / units, row["loss"])
    assert ours[-1]["loss"] < 0.7 * ours[0]["loss"]  # the curve is one of learning


# --- from beginning to end --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """A finished run of 6 steps: its directory."""
    out = tmp_path_factory.mktemp("done") / "out"
    train(config(tiny, out, steps=6))
    return out


@pytest.mark.parametrize("dialect", ["tiny", "tiny_hf"])
def test_the_finished_model_is_a_checkpoint_of_its_dialect(request, tmp_path, dialect):
    from minilava import load

    init, out = request.getfixturevalue(dialect), tmp_path / "out"
    assert train(config(init, out, steps=2, warmup=0.0)) == out / "model"
    before, after = open_checkpoint(init), open_checkpoint(out / "model")
    assert replace(after.config, asking=before.config.asking) == before.config
    assert after.config.recipe == "train" and set(after.entries) == set(before.entries)
    if dialect == "tiny_hf":
        assert (out / "model" / "chat_template.jinja").read_text() == INTERLEAVED_TEMPLATE
    old, new = (load_tensors(x, torch.float32, torch.device("cpu")) for x in (before, after))
    assert sum(not torch.equal(old[name].bfloat16().float(), new[name]) for name in old) > len(old) / 2
    reply = load(out / "model", device="cpu", dtype="float32").generate("hello", max_new_tokens=3)
    assert len(reply.token_ids) <= 3


def test_the_log_has_a_line_per_step(done):
    rows = read_log(done)
    assert [row["step"] for row in rows] == list(range(1, 7))
    for row in rows:
        assert row["labelled"] < row["tokens"] <= 2 * 500 and row["images"] > 0 and row["grad_norm"] > 0
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    assert rows[0]["lr"] == 0.0 and max(row["lr"] for row in rows) == 1e-3
    assert len(list(done.glob("step-*"))) == 2  # keep


def test_the_logged_rate_is_the_text_models(tiny, tmp_path):
    run = Run(config(tiny, tmp_path, warmup=0.0, lr_vision=1e-5), Ranks.start("cpu"))
    assert run.advance()["lr"] == 1e-3


def test_workers_do_not_change_the_curve(tiny, tmp_path):
    """With two or none: the same bits."""
    curves = [
        [run.advance()["loss"] for _ in range(4)]
        for w in (0, 2)
        for run in [Run(config(tiny, tmp_path / str(w), workers=w), Ranks.start("cpu"))]
    ]
    assert curves[0] == curves[1]


def test_a_finished_run_returns_at_once(tiny, done, capfd):
    stamp = {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()}
    path = write_config(done.parent / "c.yaml", settings(tiny, done, steps=6))
    assert main([str(path)]) == 0
    assert capfd.readouterr().out.strip() == str(done / "model")
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*") if p.is_file()} == stamp
    assert main([str(path), "--set", "lr=2e-5"]) == 2
    assert "holds a run with lr 0.001, not 2e-05: name another out" in capfd.readouterr().err


def test_preview_and_bad_commands(tiny, tmp_path, capfd):
    show(config(tiny, tmp_path))
    assert "assistant" in capfd.readouterr().out
    path = write_config(tmp_path / "c.yaml", settings(tiny, tmp_path / "out", steps=0))
    for argv in ([str(path)], [str(tmp_path / "no.yaml")], [], ["--no-such-flag"]):
        assert main(argv) == 2
        out, err = capfd.readouterr()
        assert err.startswith("minilava: error: ") and err.count("\n") == 1 and not out


def test_a_second_ctrl_c_ends_at_once_but_an_echo_of_the_first_does_not(monkeypatch):
    from minilava.train import loop

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stop, clock = loop._Stop(), time.monotonic()
    try:
        monkeypatch.setattr(loop.time, "monotonic", lambda: clock)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        clock += 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_log_survives_half_a_line(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert [row["step"] for row in read_log(tmp_path)] == [1]
