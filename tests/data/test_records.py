"""Opening records: every file form gives the same records, errors name the line, and nothing is held in memory."""

import io
import json
import pickle
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minilava.data import index
from minilava.data.records import BadRecord, open_records
from minilava.errors import UserError
from minilava.inputs.media import load_image


def record(i, **more):
    turns = [{"from": "human", "value": f"question {i} \u00e9\u4e2d\u2028"}, {"from": "gpt", "value": f"answer {i}"}]
    return {"id": i, "conversations": turns} | more


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def png(colour, size=(4, 3)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=4), JSON, max_size=3)
BLANKS = st.sampled_from(["", " ", "\t", "  \t "])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(OBJECTS, st.booleans()) | BLANKS, max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 7, 64, 4096]),
)
def test_line_index_is_that_of_plain_reading(tmp_path_factory, lines, newline, last_newline, mark, chunk):
    texts = [x if isinstance(x, str) else json.dumps(x[0], ensure_ascii=x[1]) for x in lines]
    encoded = [t.encode("utf-8", "surrogatepass") for t in texts]
    if any(b"\xed\xa0" <= e[:2] for e in encoded):
        return
    data = b"\xef\xbb\xbf" * mark + newline.encode().join(encoded) + newline.encode() * last_newline
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(data)
    expected = [(n + 1, x[0]) for n, x in enumerate(lines) if not isinstance(x, str)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "CHUNK", chunk)
        if not expected:
            with pytest.raises(UserError, match="no record|empty"):
                open_records(path)
            return
        records = open_records(path)
    assert [(records.where(i)[1], records.read(i)) for i in range(len(records))] == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=8), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 40))
def test_list_index_is_that_of_json_load(tmp_path_factory, objects, indent, ascii, window):
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_text(json.dumps(objects, indent=indent, ensure_ascii=ascii) + "\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "WINDOW", window)
        records = open_records(path)
    assert [records.read(i) for i in range(len(records))] == objects
    assert [records.where(i) for i in range(len(records))] == [(str(path), i + 1) for i in range(len(objects))]


@pytest.mark.parametrize(
    "text, reason",
    [
        ('[{"a": 1}, {"b": }]', r":2: not JSON: Expecting value at character 7 of the record \(line 1\)"),
        ('[{"a": 1},\n{"b": 2}', r":3: cut short: the list has no end \(line 2\)"),
        ('[{"a": 1},\n{"b": "x', r":2: cut short: .* \(line 2\)"),
        ('[{"a": 1} {"b": 1}]', ":2: not JSON: expected a comma"),
        ('[{"a": 1}] x', ":2: not JSON: expected a comma or the list's end"),
        ('[{"a": 1},]', ":2: not JSON"),
        ("[" * 100_000, ":1: not JSON: nested too deeply"),
        ('{"a": 1}', "not a JSON list of records; if it holds one record per line"),
        ("[]", "holds no record"),
        ("", "is empty"),
    ],
)
def test_broken_lists(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        open_records(path)


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"a": nope}', "not JSON: Expecting value at character 7"),
        (b'{"a": "text that', "cut short"),
        (b'{"a": 1', "cut short"),
        (b"[1, 2]", "a record must be a JSON object, not a list"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at column 8"),
        (b'{"a": "x\0"}', "a NUL byte at column 9"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_bad_line_is_named_and_spares_the_others(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": 1}\n\n' + line + b'\n{"id": 2}\n')
    records = open_records(path)
    assert len(records) == 3 and records[2]["id"] == records[-1]["id"] == 2
    with pytest.raises(BadRecord, match=reason) as caught:
        records[1]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.file, again.line, str(again)) == (str(path), 3, str(caught.value))
    with pytest.raises(IndexError):
        records[3]


def test_media_are_resolved_and_cannot_leave_their_folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    names = ["a.png", ["x/a.png", "x/../b.png"], "../a.png", "x/../../a.png", "/etc/passwd", str(root / "c.png"), "a\0"]
    path = write_lines(tmp_path / "a.jsonl", [record(i, image=n) for i, n in enumerate(names)] + [record(9, video="v")])
    records = open_records(path, root)
    assert records[0]["image"] == [str(root / "a.png")]
    assert records[1]["image"] == [str(root / "x/a.png"), str(root / "b.png")]
    assert records[5]["image"] == [str(root / "c.png")] and records[7]["video"] == str(root / "v")
    for i in (2, 3, 4):
        with pytest.raises(BadRecord, match="outside the images folder") as caught:
            records[i]
        assert caught.value.line == i + 1
    with pytest.raises(BadRecord, match="NUL"):
        records[6]
    assert records.read(2) == record(2, image="../a.png")
    own = open_records(path)  # no folder given: the file's own, and absolute names as they are
    assert own[0]["image"] == [str(tmp_path / "a.png")] and own[4]["image"] == ["/etc/passwd"]
    with pytest.raises(BadRecord):
        own[2]


@pytest.mark.parametrize("field", [{"image": 3}, {"image": ["a", None]}, {"video": {}}, {"image": ""}, {"image": {}}])
def test_media_of_the_wrong_type(tmp_path, field):
    with pytest.raises(BadRecord, match="must be a path|empty path"):
        open_records(write_lines(tmp_path / "a.jsonl", [record(0, **field)]))[0]


def test_several_files_are_one_sequence(tmp_path):
    for i, name in enumerate(("part_a.json", "part_b.json", "c-08.jsonl", "c-09.jsonl", "c-10.jsonl")):
        own = [record(3 * i + k) for k in range(3)]
        (tmp_path / name).write_text(json.dumps(own)) if name.endswith(".json") else write_lines(tmp_path / name, own)
    braces = open_records(tmp_path / "part_{a,b}.json")
    assert [r["id"] for r in braces] == list(range(6)) and braces[-1]["id"] == 5
    assert [r["id"] for r in open_records(tmp_path / "c-{08..10}.jsonl")] == list(range(6, 15))
    records = open_records(tmp_path / "c-*.jsonl")
    assert [r["id"] for r in records] == list(range(6, 15))
    assert records.where(4) == (str(tmp_path / "c-09.jsonl"), 2) and records.read(4)["id"] == 10
    for bad in ("part_{a,z}.json", "none.jsonl", "none*.jsonl", "c-{1..999999999}.jsonl", "a.txt"):
        with pytest.raises(UserError):
            open_records(tmp_path / bad)


def test_records_travel_to_another_process(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [record(i, image="x.png") for i in range(20)])
    (tmp_path / "b.json").write_text(json.dumps([record(7)]))
    tar = write_tar(tmp_path / "c.tar", [("0.json", b'{"id": 5}')])
    for records in (open_records(path), open_records(tmp_path / "b.json"), open_records(tar)):
        list(records)  # with the file open
        assert list(pickle.loads(pickle.dumps(records))) == list(records)


def test_index_is_kept_and_made_anew_when_the_file_changes(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", [record(i) for i in range(5)])
    open_records(path)
    assert not (tmp_path / "a.jsonl.idx").exists()  # too small to be worth it
    monkeypatch.setattr(index, "CACHE_FROM", 0)
    old = open_records(path)
    assert (tmp_path / "a.jsonl.idx").exists() and len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr("minilava.data.records.index_lines", None)  # must not be needed
        assert list(open_records(path)) == list(old)
    write_lines(path, [record(i) for i in range(3, 9)])
    assert [r["id"] for r in open_records(path)] == list(range(3, 9))
    with pytest.raises(UserError, match="changed while it was in use"):
        pickle.loads(pickle.dumps(old))[0]
    kept = (tmp_path / "a.jsonl.idx").read_bytes()
    for damaged in (b"", kept[:-5], kept[:40] + b"\xff" * (len(kept) - 40), b"x" * len(kept)):
        (tmp_path / "a.jsonl.idx").write_bytes(damaged)
        assert [r["id"] for r in open_records(path)] == list(range(3, 9))
    monkeypatch.setattr(index.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("read-only")))
    (tmp_path / "a.jsonl.idx").unlink()
    assert len(open_records(path)) == 6 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_large_file_is_not_read_into_memory(tmp_path, suffix):
    path, line = tmp_path / f"big{suffix}", b'{"id": 1, "text": "' + b"x" * 100_000 + b'"}'
    separator, ends = (b"\n", (b"", b"\n")) if suffix == ".jsonl" else (b",\n", (b"[", b"]"))
    path.write_bytes(ends[0] + separator.join([line] * 300) + ends[1])
    tracemalloc.start()
    try:
        records = open_records(path)
        assert len(records) == 300 and records[299]["id"] == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2
    assert len(pickle.dumps(records)) < 20_000


def test_shards_give_the_records_and_pictures_of_the_folder(tmp_path):
    colours = [(10 * i, 0, 0) for i in range(8)]
    (tmp_path / "im").mkdir()
    for i, colour in enumerate(colours):
        (tmp_path / f"im/{i}.png").write_bytes(png(colour))
    made = [record(i, image=[f"im/{2 * i}.png", f"im/{2 * i + 1}.png"]) for i in range(4)]
    folder = open_records(write_lines(tmp_path / "a.jsonl", made))
    for shard in range(2):
        files = []
        for i in (2 * shard, 2 * shard + 1):
            forms = (["left.png", "right.png"], [f"{i:04}.left.png", f"s/{i:04}.right.png"])[i % 2]
            files += [(f"s/{i:04}.json", json.dumps(record(i, image=forms)).encode())]
            files += [(f"s/{i:04}.{side}.png", png(colours[2 * i + k])) for k, side in enumerate(("left", "right"))]
        write_tar(tmp_path / f"a-{shard:03}.tar", files)
    shards = open_records(tmp_path / "a-{000..001}.tar")
    assert len(shards) == len(folder)
    for a, b in zip(folder, shards, strict=True):
        assert a["conversations"] == b["conversations"] and a["id"] == b["id"]
        pixels = [[load_image(x).getpixel((0, 0)) for x in r["image"]] for r in (a, b)]
        assert pixels[0] == pixels[1] == [colours[2 * a["id"]], colours[2 * a["id"] + 1]]


def test_what_a_shard_may_hold(tmp_path):
    text = json.dumps(record(0)).encode()
    one = json.dumps(record(1, image="coco/17.jpg")).encode()
    clip = json.dumps(record(2, video="clip")).encode()
    two = json.dumps(record(3, image=["a.png", "b.png"])).encode()
    outside = json.dumps(record(5, video="clips/v.mp4")).encode()
    files = [("0.json", text), ("0.png", png("red")), ("1.json", one), ("1.jpg", png("blue"))]
    files += [("2.clip.001.png", png("red")), ("2.clip.000.png", png("blue")), ("2.json", clip)]
    files += [("3.json", two), ("3.png", png("red")), ("4.txt", b"caption"), ("5.json", outside)]
    files += [
        ("6.json", text),
        ("6.a.png", png("red")),
        ("6.b.png", png("red")),
        ("7.json", b"{"),
        (".hidden.json", b""),
    ]
    files += [("8.json", json.dumps(record(8, video="v.mp4")).encode()), ("8.v.mp4", b"....")]
    shard = open_records(write_tar(tmp_path / "a.tar", files))
    assert len(shard) == 9
    assert shard[0]["image"] == [png("red")] and shard[1]["image"] == [
        png("blue")
    ]  # the only picture, whatever its name
    assert shard[2]["video"] == [png("blue"), png("red")]
    reasons = {3: "holds no 'a.png'", 4: "no .json member, only txt", 5: "holds no", 6: "does not name its pictures"}
    for i, reason in (reasons | {7: "cut short", 8: "is no picture"}).items():
        with pytest.raises(BadRecord, match=reason) as caught:
            shard[i]
        assert caught.value.line == i + 1
    assert open_records(tmp_path / "a.tar", tmp_path)[5]["video"] == str(tmp_path / "clips/v.mp4")


def test_broken_shards(tmp_path):
    whole = write_tar(tmp_path / "a.tar", [(f"{i}.json", b'{"id": 1}' + b" " * 3000) for i in range(3)]).read_bytes()
    for name, data in (("cut", whole[:7000]), ("noise", b"x" * 2000), ("empty", b"")):
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(UserError, match="tar"):
            open_records(tmp_path / f"{name}.tar")


def test_shards_of_the_webdataset_package(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for i in range(3):
            sink.write({"__key__": f"{i:06}", "json": record(i, image=["1.png"]), "1.png": png((i, 0, 0))})
    records = open_records(tmp_path / "a.tar")
    assert [r["id"] for r in records] == [0, 1, 2] and records[2]["image"] == [png((2, 0, 0))]
