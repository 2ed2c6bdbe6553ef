"""The command end to end on a random checkpoint: reports, both scorers, resuming, several processes, bad input."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from minilava.eval import run as run_module
from minilava.eval.__main__ import main
from minilava.eval.metrics import SCORERS
from minilava.eval.run import read_lines
from minilava.runtime.vlm import VLM
from tests.eval.fixtures import interleave_bench

FEW = ["--max-new-tokens", "6", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return interleave_bench(tmp_path_factory.mktemp("bench"))


def evaluate(*args, suite="interleave-bench"):
    return main([suite, *map(str, args), *FEW])


def read(out, name="report.json"):
    return json.loads((out / name).read_text())


def tokens_of(lines):
    return {(line["id"], line["turn"]): (line["prompt_sha"], line["answer"]) for line in lines}


def test_interleave_bench_with_both_scorers(tiny, bench, tmp_path, capsys):
    for scorer in SCORERS:
        out = tmp_path / scorer
        assert evaluate("--model", tiny, "--data", bench, "--out", out, "--scorer", scorer) == 0
        lines, made = read_lines(out / "samples.jsonl"), read(out)
        assert len(lines) == 18 + 1 + 4 and len({(line["id"], line["turn"]) for line in lines}) == len(lines)
        for line in lines:
            expected = SCORERS[scorer][line["metric"]](line["answer"], line["reference"])
            assert line["score"] == expected and len(line["prompt_sha"]) == 16
        assert made["settings"]["recipe"] == "authors" and made["settings"]["scorer"] == scorer
        assert made["settings"]["commit"] is not None
        assert made["averages"]["In-domain Avg"]["samples"] == 16 + 1 - made["unscored"].get("MagicBrush", 0)
        # A column of one set is its score; the average is the plain mean of the columns.
        means = [made["columns"][c]["value"] for c in ("SD", "IE", "VST", "TRVQA", "MIVQA", "Puzzle", "QB", "NLVR2")]
        assert made["averages"]["In-domain Avg"]["value"] == pytest.approx(sum(means) / 8)
        text = (out / "report.md").read_text()
        assert text in capsys.readouterr().out
        assert re.search(r"Interleave 7B \(paper\) +\| 58.6 ", text)
        assert "Out-domain Avg: without Sci, Mantis, MMMU-mv." in text
    # The empty reference of MagicBrush is left out by the authors and scored on the raw text by lmms-eval.
    assert read(tmp_path / "authors")["unscored"] == {"MagicBrush": 1}
    assert read(tmp_path / "lmms-eval")["unscored"] == {}
    both = [tokens_of(read_lines(tmp_path / s / "samples.jsonl")) for s in SCORERS]
    assert both[0] == both[1]


def test_second_turns_see_the_first_answer_and_a_second_system_block(tiny, bench, tmp_path, monkeypatch):
    """Spec 7.2: previous ids + generated ids + a complete new prompt."""
    out, asked, real = tmp_path / "run", [], VLM.batch

    def batch(vlm, requests, samples):
        replies = real(vlm, requests, samples)
        asked.extend((s.ids, r.token_ids) for s, r in zip(samples, replies, strict=True))
        return replies

    monkeypatch.setattr(VLM, "batch", batch)
    assert evaluate("--model", tiny, "--data", bench, "--out", out) == 0
    first, second = [line for line in read_lines(out / "samples.jsonl") if line["id"] == "VIST/0~1"]
    assert second["image_tokens"] == first["image_tokens"] > 0
    import minilava

    tok = minilava.load(tiny, "cpu", "float32").tokenizer
    block = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n"
    new = tok.encode(block + "<|im_start|>assistant\n")
    (later,) = [ids for ids, _ in asked if ids[-len(new) :] == new]
    generated, *_ = [got for ids, got in asked if ids + got == later[: -len(new)]]  # others may ask the same
    assert second["prompt_tokens"] == first["prompt_tokens"] + len(generated) + len(new)


def test_batched_is_the_same_as_one_by_one(tiny, bench, tmp_path):
    assert evaluate("--model", tiny, "--data", bench, "--out", tmp_path / "all") == 0
    assert evaluate("--model", tiny, "--data", bench, "--out", tmp_path / "one", "--batch-tokens", 1) == 0
    a, b = (read_lines(tmp_path / name / "samples.jsonl") for name in ("all", "one"))
    assert tokens_of(a) == tokens_of(b)


def test_resume_after_a_crash(tiny, bench, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    args = ("--model", tiny, "--data", bench, "--batch-tokens", 200)
    assert evaluate(*args, "--out", whole) == 0
    real, batches = run_module._converse, []

    def crash(vlm, batch, options):
        batches.append(len(batch))
        if len(batches) == 4:
            raise MemoryError
        yield from real(vlm, batch, options)

    monkeypatch.setattr(run_module, "_converse", crash)
    with pytest.raises(MemoryError):
        evaluate(*args, "--out", out)
    part = out / "part-0.jsonl"
    assert len(read_lines(part)) == sum(batches[:3]) > 0 and not (out / "report.json").exists()
    part.write_bytes(part.read_bytes()[:-20])  # and the machine went down while it wrote
    kept = len(read_lines(part))
    asked = []
    monkeypatch.setattr(run_module, "_converse", lambda v, b, o: asked.extend(b) or real(v, b, o))
    assert evaluate(*args, "--out", out) == 0
    for name in ("samples.jsonl", "report.json", "report.md", "run.json"):
        assert (out / name).read_text() == (whole / name).read_text(), name
    assert len(asked) == 22 - kept and not part.exists()  # one item has two turns
    asked.clear()
    assert evaluate(*args, "--out", out) == 0 and not asked  # and a finished run asks nothing
    before = (out / "samples.jsonl").read_bytes()
    assert evaluate(*args, "--out", out, "--limit", 1) == 2 and not asked  # fewer questions would drop answers
    assert (out / "samples.jsonl").read_bytes() == before


def test_what_could_not_be_asked_is_asked_again(tiny, bench, tmp_path, capsys):
    args = ("--model", tiny, "--data", tmp_path / "data", "--out", tmp_path / "out", "--limit", 1)
    shutil.copytree(bench, tmp_path / "data")
    pictures = [p for p in (tmp_path / "data").rglob("*") if p.suffix in (".jpg", ".png")]
    kept = {p: p.read_bytes() for p in pictures}
    for p in pictures:
        p.unlink()
    assert evaluate(*args, "--skip-bad") == 0
    errors = [line for line in read_lines(tmp_path / "out" / "samples.jsonl") if "error" in line]
    assert errors
    for p, data in kept.items():
        p.write_bytes(data)
    assert evaluate(*args) == 0
    lines = read_lines(tmp_path / "out" / "samples.jsonl")
    assert {e["id"] for e in errors} <= {line["id"] for line in lines} and not any("error" in line for line in lines)


def test_other_settings_do_not_mix(tiny, bench, tmp_path, capsys):
    args = ("--model", tiny, "--data", bench, "--out", tmp_path, "--limit", 1)
    assert evaluate(*args) == 0
    assert evaluate(*args, "--recipe", "train") == 2
    assert "holds a run with recipe 'authors', not 'train'; give another --out" in capsys.readouterr().err


def test_processes_share_the_work_and_the_report_is_the_same(tiny, bench, tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    args = ["--model", str(tiny), "--data", str(bench), *FEW]
    assert main(["interleave-bench", *args, "--out", str(one)]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "minilava.eval", "interleave-bench", *args, "--out", str(several)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("samples.jsonl", "report.json", "report.md"):
        assert (one / name).read_text() == (several / name).read_text(), name
    assert sorted(p.name for p in several.iterdir()) == ["report.json", "report.md", "run.json", "samples.jsonl"]


def test_world_and_blind(tmp_path):
    """On the embedded model, whose answers depend on what it sees."""
    args = ("--limit", 1)
    assert evaluate(*args, "--out", tmp_path / "seen", suite="world") == 0
    assert evaluate(*args, "--out", tmp_path / "blind", "--blind", suite="world") == 0
    seen, blind = (read_lines(tmp_path / name / "samples.jsonl") for name in ("seen", "blind"))
    assert len(seen) == 14 and [line["prompt_sha"] for line in seen] == [line["prompt_sha"] for line in blind]
    assert [line["answer"] for line in seen] != [line["answer"] for line in blind]
    made = read(tmp_path / "seen")
    assert made["averages"]["all"]["samples"] == 14 and 0 <= made["chance"]["puzzle"] <= 100


def test_three_d_from_its_file(tiny, bench, tmp_path):
    assert evaluate("--model", tiny, "--data", bench, "--out", tmp_path, suite="3d") == 0
    assert set(read(tmp_path)["columns"]) == {"ScanQA", "ALFRED"}
    assert re.search(r"Interleave 14B \(paper\) +\| 59.2 ", (tmp_path / "report.md").read_text())


def test_bad_input_is_one_line(tiny, bench, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(bench, data)
    (data / "eval_images/Split1/QBench/0_1.jpg").write_bytes(b"no picture")
    args = ("--model", tiny, "--data", data)
    assert evaluate(*args, "--out", tmp_path / "a") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("minilava: error: QBench/0~1: ") and "--skip-bad" in error
    assert evaluate(*args, "--out", tmp_path / "a", "--skip-bad") == 0
    assert read(tmp_path / "a")["refused"] == {"QBench": 1}
    assert "could not be asked: 1 of QBench." in (tmp_path / "a/report.md").read_text()
    for arguments, message in [
        (["interleave-bench"], "give their folder as --data DIR"),
        (["interleave-bench", "--data", str(tmp_path)], "holds no multi_image_in_domain.json or"),
        (["world", "--limit", "0"], "--limit must be at least 1"),
        (["nothing"], "invalid choice: 'nothing'"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_unknown_question_types_are_named_at_once(tiny, bench, tmp_path, capsys):
    records = json.loads((bench / "multi_image_out_domain.json").read_text())
    records[-1]["metadata"] = {"dataset": "New", "question_type": "essay"}
    (tmp_path / "multi_image_out_domain.json").write_text(json.dumps(records))
    assert evaluate("--model", tiny, "--data", tmp_path, "--out", tmp_path / "out") == 2
    assert "question type 'essay' has no metric" in capsys.readouterr().err
