"""Each kind of damage gets its own clear text, and sound records get none."""

import re

import numpy as np
import pytest
from PIL import Image

from minilava.assets import __path__ as assets
from minilava.data.validate import check_media, in_front, length, problems, too_long
from minilava.inputs import media
from minilava.tokenizer import Tokenizer, byte_tokenizer

H, G = {"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "a cat"}
PAIR = {"prompt": "<image>\nwhat?", "chosen": "a cat", "rejected": "a dog", "image": "a.png"}


def record(*turns, **more):
    return {"id": 1, "image": "a.png", "conversations": list(turns or (H, G))} | more


def says(text):
    return {"from": "human", "value": text}


@pytest.mark.parametrize(
    "good",
    [
        record(),
        record(image=["a.png"]),
        record(says("no marker"), G, image=["a.png", "b.png"]),
        record(says("<image> and <image>"), G, says("more"), G, image=["a.png", "b.png"]),
        record({"from": "system", "value": "be brief"}, H, G),
        record({"role": "user", "content": "<image>"}, {"role": "assistant", "content": "yes"}, sample_id=3),
        record({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}, G),
        record(says("text only"), G, image=None),
        record(says("text only"), G, image=[]),
        record(says("<video> what?"), G, image=None, video="v.mp4"),
        record(says("<image> what?"), G, image=None, video="v.mp4"),
        record(image=[Image.new("RGB", (2, 2))]),
        PAIR,
        PAIR | {"prompt": "what?"},
    ],
)
def test_sound_records(good):
    assert problems(good) == []


@pytest.mark.parametrize(
    "bad, reason",
    [
        ({"image": "a.png"}, "has no conversations"),
        (record(conversations={}), "conversations must be a list, not a dict"),
        (record(conversations=[]), "conversations is empty"),
        (record(H, "x"), "turn 2 must be an object, not a str"),
        (record(H, {"from": "bot", "value": "x"}), "turn 2 is from unknown role 'bot'"),
        (record(H, {"value": "x"}), "turn 2 is from unknown role None"),
        (record(H, {"from": [], "value": "x"}), r"turn 2 is from unknown role \[\]"),
        (record(G, says("<image>")), "the first turn is from gpt, not human: roles are swapped"),
        (record(H, says("again"), G), "turns 1 and 2 are both from human: roles must alternate"),
        (record(H, G, G), "turns 2 and 3 are both from gpt"),
        (record(H, {"from": "system", "value": "x"}, G), "turn 2 is from system, which may only come first"),
        (record(H), "no turn is an answer"),
        (record(H, G, says("and?")), "the last turn is from human: its answer is missing"),
        (record(H, {"from": "gpt", "value": "  \n"}), "turn 2: the answer is empty"),
        (record(H, {"from": "gpt", "value": "<image>"}, image=["a", "b"]), "turn 2: the answer is empty"),
        (record(H, {"from": "gpt"}), "turn 2 has no text"),
        (record(H, {"from": "gpt", "value": 4}), "turn 2: the text must be a string, not a int"),
        (record(H, {"from": "gpt", "content": [{"type": "audio"}]}), "turn 2: every part must be"),
        (record(H, {"from": "gpt", "value": "\ud83d"}), "turn 2: half a surrogate pair"),
        (record(says("<image><image>"), G), "2 placeholders but 1 image$"),
        (record(image=["a", "b", "c"]), "1 placeholder but 3 images"),
        (record(image=None), "1 placeholder but no image or video"),
        (record(says("<video><video>"), G, image=None, video="v"), "2 placeholders but 1 video"),
        (record(image=7), "image must be a path or a list of paths, not a int"),
        (record(image=["a", {}]), "image must be a path or a list of paths, not a dict"),
        (record(image=""), "image holds an empty path"),
        (record(image=None, video=1.5), "video must be a path or a list of paths, not a float"),
        (record(says("x"), G, video="v.mp4"), "has both image and video"),
        (record(id=[1]), "id must be a string or a number, not a list"),
        ({k: v for k, v in PAIR.items() if k != "chosen"}, "a preference record without 'chosen'"),
        ({k: v for k, v in PAIR.items() if k != "rejected"}, "a preference record without 'rejected'"),
        (PAIR | {"rejected": " a cat"}, "chosen and rejected are equal"),
        (PAIR | {"chosen": ""}, "chosen is empty"),
        (PAIR | {"prompt": ["x"]}, "prompt must be a string, not a list"),
        (PAIR | {"prompt": "<image><image>"}, "2 placeholders but 1 image"),
    ],
)
def test_every_damage_has_its_own_text(bad, reason):
    found = problems(bad)
    assert len(found) == 1 and re.search(reason, found[0]), found


def test_several_faults_are_all_told():
    bad = record({"from": "x", "value": 1}, {"from": "gpt", "value": ""}, image=3, id={})
    assert len(problems(bad)) == 5


def test_media_without_placeholder_go_in_front():
    assert in_front(record(says("x"), G)) and in_front(PAIR | {"prompt": "x"})
    assert not in_front(record()) and not in_front(record(says("x"), G, image=None))


def test_lengths():
    tokenizer = Tokenizer(byte_tokenizer())
    assert length(record()) == 4
    # The system block and two turns, each "?" a special token; <image> is no text.
    expected = "?system\nYou are a helpful assistant.?\n?user\n what??\n?assistant\na cat?\n"
    assert length(record(), tokenizer) == len(expected)
    assert length(PAIR | {"rejected": "a much longer dog"}, tokenizer) == len(expected) + 12
    long = record(image=["a"] * 3, conversations=[says("x"), G])
    assert problems(long, tokenizer, 3000) == []
    text = length(long, tokenizer)
    assert problems(long, tokenizer, 2000) == too_long(long, text, 2000)
    assert too_long(long, text, 2000)[0].startswith(f"too long: at least {3 * 729 + text:,} tokens")
    assert not too_long(long, text, 3 * 729 + text) and too_long(long, text, 3 * 729 + text - 1)
    assert too_long(record(says("x"), G, image=None, video="v"), 1, 7290)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures and videos, sound and damaged."""
    root = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(root / "good.png")
    whole = (root / "good.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "head.png").write_bytes(whole[:20])
    (root / "zero.png").write_bytes(b"")
    (root / "text.jpg").write_text("<html>404</html>")
    (root / "folder").mkdir()
    (root / "frames").mkdir()
    Image.fromarray(noise).save(root / "frames/0.png")
    (root / "bad_frames").mkdir()
    (root / "bad_frames/0.png").write_bytes(whole)
    (root / "bad_frames/1.png").write_bytes(whole[:300])
    (root / "text.mp4").write_text("not a video")
    return root


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(
    "name, reason",
    [
        ("good.png", None),
        ("none.png", "does not exist"),
        ("zero.png", "empty, 0 bytes"),
        ("text.jpg", "not a picture"),
        ("head.png", "not a picture|damaged"),
        ("folder", "is a folder"),
    ],
)
def test_pictures(files, name, reason, decode):
    found = check_media({"image": [str(files / name)]}, decode)
    assert found == [] if reason is None else len(found) == 1 and re.search(reason, found[0]), found
    if found:
        both = check_media({"image": [str(files / "good.png"), str(files / name)]}, decode)
        assert len(both) == 1 and both[0].startswith("image 2: ")


def test_a_picture_cut_short_shows_when_it_is_decoded(files, monkeypatch):
    for source in (str(files / "cut.png"), (files / "cut.png").read_bytes()):
        assert "truncated or damaged" in check_media({"image": [source]})[0]
        assert check_media({"image": [source]}, decode=False) == []
    monkeypatch.setattr(media, "MAX_PIXELS", 40 * 40 - 1)  # too large a picture is known from its header
    assert "pixels" in check_media({"image": [str(files / "good.png")]}, decode=False)[0]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("frames", None),
        ("none", "does not exist"),
        ("folder", "holds no picture"),
        ("bad_frames", "frame 2: .*truncated"),
        ("zero.png", "empty, 0 bytes"),
    ],
)
def test_videos(files, name, reason):
    found = check_media({"video": str(files / name)})
    assert found == [] if reason is None else len(found) == 1 and re.search(reason, found[0]), found


def test_video_files(files):
    pytest.importorskip("av")
    assert "not a video" in check_media({"video": str(files / "text.mp4")})[0]
    assert check_media({"video": str(files / "text.mp4")}, decode=False) == []
    assert check_media({"video": [Image.new("RGB", (4, 4))] * 2}) == []
    assert check_media({"image": [f"{assets[0]}/cat.jpg"]}) == []
