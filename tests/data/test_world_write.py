"""python -m minilava.data world: what lands on disk is what the generators made, whole or not at all."""

import argparse
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from minilava.data.__main__ import main
from minilava.data.records import open_records
from minilava.data.world import SPLITS, TASKS, make, preference
from minilava.data.world.sheet import contact_sheet
from minilava.data.world.write import add_arguments, run
from minilava.errors import UserError

SOME = "puzzle,single_image,video_qa"


def write(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(w) for w in words]))


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def pictures(path):
    """All pixels under a relative path: of a picture, or of a folder of frames in name order."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    assert all(f.suffix == ".png" for f in files)
    return [np.asarray(Image.open(f)) for f in files]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "new"
    write("--out", out, "--split", "validation", "--per-task", 4, "--seed", 3, "--task", SOME, "--turns", 2,
          "--sheet", "--preferences")  # fmt: skip
    return out


def test_records_and_pictures_come_back_as_they_were_made(written):
    records = lines(written / "records.jsonl")
    expected = [(task, i) for task in SOME.split(",") for i in range(4)]
    assert [r["id"] for r in records] == [f"world/validation/{task}/{i}" for task, i in expected]
    for record, (task, i) in zip(records, expected, strict=True):
        made = make(task, "validation", i, seed=3, turns=2)
        kind = "video" if task == "video_qa" else "image"
        media = record.pop(kind)
        frames = made.pop(kind)
        assert record == made
        assert isinstance(media, str) == (kind == "video")
        found = [p for name in ([media] if kind == "video" else media) for p in pictures(written / name)]
        assert len(found) == len(frames)
        assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(found, frames, strict=True))


def test_the_loader_reads_them(written):
    records = open_records(written / "records.jsonl")
    assert len(records) == 12
    assert len(records[0]["image"]) in (2, 9)
    assert open_records(written / "preferences.jsonl").read(0)["prompt"].count("<image>") in (2, 9)


def test_preferences_share_the_pictures(written):
    media = {r["id"]: r.get("image") or r["video"] for r in lines(written / "records.jsonl")}
    pairs = lines(written / "preferences.jsonl")
    made = [preference(task, "validation", i, seed=3) for task in SOME.split(",") for i in range(4)]
    assert [p["id"] for p in pairs] == [m["id"] for m in made if m is not None]
    assert len(pairs) >= 8
    for pair in pairs:
        assert (pair.get("image") or pair["video"]) == media[pair["id"]]
        assert pair["chosen"] != pair["rejected"] and "conversations" not in pair


def test_sheets_show_every_task(written):
    assert sorted(p.stem for p in (written / "sheets").iterdir()) == sorted(SOME.split(","))
    for path in (written / "sheets").iterdir():
        sheet = np.asarray(Image.open(path))
        assert sheet.shape[1] > 1000 and sheet.std() > 10
    assert sorted(p.name for p in written.iterdir()) == ["images", "preferences.jsonl", "records.jsonl", "sheets"]
    assert not list(written.rglob("*.tmp"))


@pytest.mark.parametrize("frames", [1, 2, 5, 9, 16, 30])
@pytest.mark.parametrize("shape", [(128, 128), (64, 128), (384, 192)])
def test_sheets_hold_any_number_of_pictures_of_any_shape(frames, shape):
    message = [{"from": "human", "value": "<image>" * frames + "\n" + "long " * 80}, {"from": "gpt", "value": "yes"}]
    record = {"image": [Image.new("RGB", shape, "red")] * frames, "conversations": message}
    sheet = np.asarray(contact_sheet([record, record, record]))
    red = ((sheet == (255, 0, 0)).all(-1)).sum()
    assert red > 3 * frames * 20 * 20


def test_the_same_arguments_write_the_same_bytes(tmp_path):
    trees = []
    for name in ("a", "b"):
        write("--out", tmp_path / name, "--per-task", 2, "--task", "text_rich,low_level", "--size", 64)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        trees.append([(p.relative_to(tmp_path / name), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert trees[0] == trees[1]
    assert not (tmp_path / "a/preferences.jsonl").exists() and not (tmp_path / "a/sheets").exists()


def test_splits_share_no_id_and_no_pictures():
    ids, media = set(), set()
    for task in TASKS:
        for split in SPLITS:
            for i in range(6):
                record = make(task, split, i, size=64)
                ids.add(record["id"])
                media.add(b"".join(f.tobytes() for f in record.get("image") or record["video"]))
    assert len(ids) == len(media) == len(TASKS) * len(SPLITS) * 6


def test_bad_arguments_are_one_line_each(tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("kept")
    small = ("--per-task", "1", "--task", "single_image")
    for out, more, message in [
        (full, small, "is not empty"),
        (full / "file", small, "cannot write"),
        (full / "file/below", small, "cannot write"),
        (tmp_path / "a", ("--per-task", "0"), "at least 1"),
        (tmp_path / "b", ("--turns", "0"), "at least 1"),
        (tmp_path / "c", ("--size", "20"), "--size must be from 64 to 384"),
        (tmp_path / "d", ("--task", "chess"), "chess"),
    ]:
        with pytest.raises(UserError, match=message):
            write("--out", out, *more)
    assert [p.name for p in tmp_path.iterdir()] == ["full"] and [p.name for p in full.iterdir()] == ["file"]
    assert main(["world", "--out", str(full), *small]) == 2
    assert capsys.readouterr().err.startswith("minilava: error: ")


def test_a_failure_leaves_no_half_written_list(tmp_path, monkeypatch):
    """The lists appear last: a folder without records.jsonl is unfinished."""
    from minilava.data.world import write as module

    def full(picture, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_picture", full)
    with pytest.raises(UserError, match="No space left"):
        write("--out", tmp_path / "x", "--per-task", 1, "--task", "single_image", "--preferences")
    assert not [p for p in (tmp_path / "x").rglob("*") if p.is_file()]
