"""python -m minilava.data on sound and on damaged data: every damage is named with its file and line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from minilava.data.__main__ import main
from minilava.data.composition import PAPER_DATASETS, PAPER_THOUSANDS, scenario_of, table15


def record(i, question="<image> what?", answer="a thing", **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": i, "image": "good.png", "conversations": turns} | more


def pair(i, **more):
    return {"id": i, "prompt": "<image>what?", "chosen": "a", "rejected": "b", "image": "good.png"} | more


def without(record, *keys):
    return {k: v for k, v in record.items() if k not in keys}


def damages():
    """(What the line holds, a part of the text that must name it); None for a sound line."""
    text = json.dumps(record(0))
    yield "not json at all", "not JSON: Expecting value"
    yield text[:-20], "cut short"
    yield json.dumps([record(1)]), "must be a JSON object, not a list"
    yield text.encode().replace(b"thing", b"th\0ng"), "NUL byte"
    yield text.encode().replace(b"thing", b"th\xffng"), "not UTF-8"
    yield record(100), None
    yield record(100), "duplicate id 100, first on line 6"
    yield without(record(7), "conversations"), "has no conversations"
    yield record(8, conversations=[]), "conversations is empty"
    yield record(9, conversations="hello"), "must be a list, not a str"
    yield record(10, conversations=[{"from": "bot", "value": "x"}]), "unknown role 'bot'"
    yield record(11, conversations=record(0)["conversations"][::-1]), "roles are swapped"
    yield (
        record(12, "x", conversations=[*record(0)["conversations"], *record(0, "x")["conversations"][1:]]),
        "must alternate",
    )
    yield record(13, conversations=record(0)["conversations"][:1]), "no turn is an answer"
    yield record(14, answer=" "), "answer is empty"
    yield record(15, answer=5), "text must be a string"
    yield record(16, question="<image> <image>"), "2 placeholders but 1 image"
    yield record(17, image=["good.png"] * 3), "1 placeholder but 3 images"
    yield record(18, image="gone.png"), "does not exist"
    yield record(19, image="cut.png"), "truncated or damaged"
    yield record(20, image="zero.png"), "empty, 0 bytes"
    yield record(21, image="../outside.png"), "outside the images folder"
    yield record(22, video="frames"), "both image and video"
    yield without(record(23, video="gone.mp4"), "image"), "does not exist"
    yield without(record(24, video="empty"), "image"), "holds no picture"
    yield record(25, image={"path": "good.png"}), "image must be a path"
    yield without(pair(26), "chosen"), "without 'chosen'"
    yield without(pair(27), "rejected"), "without 'rejected'"
    yield pair(28, chosen="b"), "are equal"
    yield record(29, answer="long " * 2000), "too long: at least"
    yield record(30, image="page.png"), "not a picture"
    yield record(31, answer="\ud800"), "surrogate"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder with one damaged record per line among sound ones and blank lines, and {line: expected text}."""
    root = tmp_path_factory.mktemp("damaged")
    images = root / "images"
    (images / "empty").mkdir(parents=True)
    (images / "frames").mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8))
    for name in ("good.png", "frames/0.png"):
        noise.save(images / name)
    noise.save(root / "outside.png")
    whole = (images / "good.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "zero.png").touch()
    (images / "page.png").write_text("<html>")
    lines, expected = [], {}
    for made, text in damages():
        lines.append(made if isinstance(made, bytes) else made.encode() if isinstance(made, str)
                     else json.dumps(made).encode())  # fmt: skip
        if text:
            expected[len(lines)] = text
        if len(lines) % 7 == 0:
            lines += [b"", json.dumps(record(f"ok{len(lines)}")).encode()]
    (root / "a.jsonl").write_bytes(b"\r\n".join(lines))
    return root, expected, sum(1 for line in lines if line)


@pytest.fixture(scope="module")
def check_damaged(damaged, tiny):
    root, expected, total = damaged
    flags = ["--images", str(root / "images"), "--tokenizer", str(tiny), "--max-tokens", "9000"]
    return ["check", str(root / "a.jsonl"), *flags], expected, total


def test_each_damage_is_named_with_its_line(check_damaged, capsys):
    argv, expected, total = check_damaged
    assert main(argv) == 1
    out = capsys.readouterr().out.splitlines()
    named = [line for line in out if line.startswith(argv[1])]
    assert len(expected) >= 30 and len(named) == len(expected)
    for line, (number, text) in zip(named, expected.items(), strict=True):
        assert line.startswith(f"{argv[1]}:{number}: ") and text in line, (line, text)
    assert f"records            {total}, of which {len(expected)} bad" in out


def test_json_report(check_damaged, capsys):
    argv, expected, total = check_damaged
    assert main([*argv, "--json", "--max-errors", "5", "--workers", "1"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["records"], report["bad"], report["faults"]) == (total, len(expected), len(expected))
    assert [e["line"] for e in report["errors"]] == list(expected)[:5]
    assert report["scenarios"]["single-image"] == total - len(expected)
    assert report["text"]["unit"] == "tokens" and report["text"]["max"] >= report["text"]["p50"] > 0
    assert report["images_per_record"] == {"mean": 1.0, "p50": 1, "p95": 1, "max": 1}


def test_less_thorough_checks(check_damaged, capsys):
    argv, expected, _ = check_damaged
    needs_pixels = [n for n, text in expected.items() if text == "truncated or damaged"]
    needs_files = needs_pixels + [n for n, t in expected.items() if "exist" in t or "empty, 0" in t or "picture" in t]
    for flag, missed in (("--no-decode", needs_pixels), ("--no-media", needs_files)):
        assert main([*argv, "--json", flag]) == 1
        found = {e["line"] for e in json.loads(capsys.readouterr().out)["errors"]}
        assert found == set(expected) - set(missed), flag


def test_sound_data(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    scenarios = [
        record(0), record(1, image=["good.png"] * 2, question="no marker"), without(record(2, question="hi"), "image"),
        record(3, image=["good.png"] * 3, question="x", metadata={"dataset": "ScanQA"}), pair(4),
        without(record(5, video=".", question="<video>"), "image"),
        record(0, metadata={"dataset": "other"}), record("0"),
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(scenarios))
    assert main(["check", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scenarios"] == {"multi-image": 1, "video": 1, "multi-view": 1, "single-image": 4, "text-only": 1}
    assert report["front"] == 2 and report["errors"] == [] and report["text"]["unit"] == "words"
    assert main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "no placeholder     2; their media go in front" in out and "mean 1.1" in out


def test_a_folder_with_files_that_cannot_be_opened(tmp_path, capsys):
    (tmp_path / "a.json").write_text('[{"id": 1}, ')
    (tmp_path / "b.tar").write_bytes(b"noise" * 500)
    (tmp_path / "c.jsonl").touch()
    (tmp_path / "d.jsonl").write_text(json.dumps(without(record(1, question="x"), "image")))
    (tmp_path / "e.txt").touch()
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for text in (
        "a.json:2: cut short",
        "b.tar:0: is not an uncompressed tar",
        "c.jsonl:0: is empty",
        "4, of which 3 bad",
    ):
        assert text in out, out


def test_user_errors(tmp_path, capsys, damaged):
    file = str(damaged[0] / "a.jsonl")
    for argv in (
        [],
        ["check"],
        ["check", str(tmp_path / "none.jsonl")],
        ["check", str(tmp_path)],
        ["check", file, "--images", str(tmp_path / "none")],
        ["check", file, "--tokenizer", str(tmp_path)],
        ["check", file, "--max-tokens", "9"],
        ["check", file, "--max-errors", "x"],
        ["stats", str(tmp_path / "none.json")],
    ):
        assert main(argv) == 2, argv
        captured = capsys.readouterr()
        assert captured.err.startswith("minilava: error: ") and captured.err.count("\n") == 1 and not captured.out


def test_help_says_what_the_status_means(capsys):
    for argv, text in ((["check", "--help"], "1 when one is bad"), (["world", "--help"], "--per-task")):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 0 and text in capsys.readouterr().out


def test_as_a_process(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    done = subprocess.run(
        [sys.executable, "-m", "minilava.data", "check", str(tmp_path / "a.jsonl")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "a.jsonl:1: has no conversations" in done.stdout and "Traceback" not in done.stderr


def test_table15_is_what_the_spec_lists():
    """The paper's text says 41 data sets and 1177.6k samples, the rows of its table come to a little less."""
    rows = table15()
    assert len({r.dataset for r in rows}) == len(rows) == 40 == PAPER_DATASETS - 1
    assert len({r.task for r in rows}) == 14
    assert round(sum(r.thousands for r in rows), 1) == 1172.7 == round(PAPER_THOUSANDS - 4.9, 1)
    scenarios = dict.fromkeys(r.scenario for r in rows)
    shares = {s: round(sum(r.thousands for r in rows if r.scenario == s), 1) for s in scenarios}
    assert shares == {"multi-image": 495.9, "video": 261.9, "multi-view": 107.9, "single-image": 307.0}


def test_stats(tmp_path, capsys):
    names = ["NLVR2_Mantis", "nlvr2", "mit-states_statecoherence", "mine", "mine", None]
    lines = [json.dumps(record(i, metadata={"dataset": n})) for i, n in enumerate(names)] + ["{broken"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert main(["stats", str(tmp_path / "a.jsonl")]) == 0
    rows = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert "multi-image Multi-image VQA NLVR2 86.4k 2" in rows
    assert "multi-image Multi-image VQA MIT-States StateCoherence 1.9k 1" in rows
    assert {"mine 2", "(unnamed) 1", "(damaged) 1", "total 14 tasks 40 data sets 1172.7k 3"} <= rows
    assert main(["stats"]) == 0 and "1177.6k" in capsys.readouterr().out


def test_scenarios():
    assert scenario_of({"image": ["a", "b"], "metadata": {"scenario": "multi-view"}}) == "multi-view"
    assert scenario_of({"image": "a", "metadata": "x"}) == "single-image" and scenario_of({}) == "text-only"
    assert scenario_of({"image": ["a", "b"], "metadata": {"dataset": "NLVR2"}}) == "multi-image"
    assert scenario_of({"video": "v", "metadata": {"dataset": "ScanQA"}}) == "video"
