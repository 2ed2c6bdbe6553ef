"""Records to samples: which rule, which layout, which form; and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava.config import IGNORE, IMAGE
from minilava.data.convert import FORMS, to_samples
from minilava.data.mixture import Source
from minilava.errors import UserError
from minilava.inputs.chat import LABELS
from minilava.inputs.geometry import image_layout
from minilava.inputs.pack import pack
from minilava.inputs.sample import Recipe
from tests.train.small import picture, record, talk, tools

SYSTEM = "You are a helpful assistant."


@pytest.fixture(scope="module")
def convert(tiny):
    tokenizer, config = tools(tiny)

    def one(rec, form="chat", draw=0.5, **settings):
        return to_samples(rec, Source("data", [rec], **settings), form, tokenizer, config, draw)

    one.tokenizer, one.config = tokenizer, config
    return one


def written(convert, sample):
    """(the sample as text with <image> for pictures, its trained-on runs as text)."""
    tok, text, runs, before = convert.tokenizer, [], [], False
    for token, label in zip(sample.ids, sample.labels, strict=True):
        assert label in (IGNORE, token) and not (token == IMAGE and label != IGNORE)
        piece = [None] if token == IMAGE else [token]
        text += piece
        if label != IGNORE:
            runs = runs + [piece] if not before else runs[:-1] + [runs[-1] + piece]
        before = label != IGNORE
    return "".join("<image>" if i is None else tok.raw.decode([i], skip_special_tokens=False) for i in text), [
        "".join(tok.raw.decode([i], skip_special_tokens=False) for i in run) for run in runs
    ]


RECORD = {"id": 1, "image": [picture(0), picture(1)], "conversations": talk("<image>a<image>b?", "cd", "ef")}
PROMPT = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>a<image>b?<|im_end|>\n"


@pytest.mark.parametrize(
    "question, begin, rest",
    [
        ("<image>a<image>b?", "<image>a<image>", "b?"),
        ("First <image> then <image>.\nWhat?\nSay it.", "First <image> then <image>.\n", "What?\nSay it."),
        ("<image><image>\nWhat?", "<image><image>\n", "What?"),
        ("What is <image> beside <image>?\nSay it.", "What is <image> beside <image>?\n", "Say it."),
        ("What is <image> like in <image> there?\nSay.", "What is <image> like in <image>", " there?\nSay."),
    ],
)
def test_split_turns_ask_each_question_about_the_same_media(convert, question, begin, rest):
    rec = RECORD | {"conversations": talk(question, "cd", "ef")}
    made = convert(rec, split_turns=True)
    alone = [*convert(rec | {"conversations": talk(begin + rest, "cd")}),
             *convert(rec | {"conversations": talk(begin + "more", "ef")})]  # fmt: skip
    assert [written(convert, s) for s in made] == [written(convert, s) for s in alone]
    assert made[1].leader is made[0] and made[1].patches is made[0].patches
    assert made[1].ids[: made[1].shared] == made[0].ids[: made[1].shared] and IMAGE not in made[1].ids[made[1].shared :]


def test_split_turns_need_media_in_front_and_answers_in_turns(convert):
    later = [*talk("<image>a", "b")[:2], {"from": "human", "value": "<image>c"}, {"from": "gpt", "value": "d"}]
    with pytest.raises(UserError, match="all media in the first question"):
        convert(RECORD | {"conversations": later}, split_turns=True)
    twice = [{"from": "human", "value": "<image>a<image>"}, {"from": "human", "value": "b"}]
    with pytest.raises(UserError, match="questions and answers in turns"):
        convert(RECORD | {"conversations": twice}, split_turns=True)


def test_clean_labels_are_the_answers_and_their_end(convert):
    (sample,) = convert(RECORD)
    text, trained = written(convert, sample)
    assert text == PROMPT + (
        "<|im_start|>assistant\ncd<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\nef<|im_end|>\n"
    )
    assert trained == ["cd<|im_end|>", "ef<|im_end|>"]


def test_main_labels_as_the_table_of_5_3(convert):
    rec = {"image": [picture()], "conversations": talk("<image>u", "a")}
    text, trained = written(convert, convert(rec, labels="main")[0])
    assert text == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>u<|im_end|>\n" + (
        "<|im_start|>assistant\na<|im_end|>\n"
    )
    # T - T - T T for the system block, T - T - T T for the user's, all of the assistant's; runs touch across blocks.
    assert trained == [
        "<|im_start|>", "\n", "<|im_end|>\n<|im_start|>", "\n", "<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n",
    ]  # fmt: skip


def test_older_labels_as_the_table_of_5_4(convert):
    rec = {"image": [picture()], "conversations": talk("<image>\nu", "a")}
    text, trained = written(convert, convert(rec, labels="older")[0])
    assert text == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<image>\n\nu<|im_end|>\n" + (
        "<|im_start|>assistant\na<|im_end|>\n"
    )
    assert trained == [
        "<|im_start|>", "<|im_end|>\n<|im_start|>", "<|im_end|>\n<|im_start|>", "a<|im_end|>\n",
    ]  # fmt: skip
    with pytest.raises(UserError, match="older label rule"):
        convert(RECORD, labels="older")


@pytest.mark.parametrize("labels", LABELS)
def test_the_first_answer_of_a_role_swapped_record(convert, labels):
    """The published rules drop a leading answer; the clean one keeps it."""
    rec = {"conversations": [{"from": "gpt", "value": "zz"}, *talk("q", "a")]}
    text, trained = written(convert, convert(rec, labels=labels)[0])
    assert ("zz" in text) == (labels == "clean") and trained[-1].endswith("a<|im_end|>" + "\n" * (labels != "clean"))


def test_front_layout_and_mixed_ratio(convert):
    front = written(convert, convert(RECORD, layout="front")[0])[0]
    assert "user\n<image><image>\n" in front
    # The textual markers stay, as plain text of several tokens, not as the placeholder's.
    assert convert(RECORD, layout="front")[0].ids.count(IMAGE) == 2
    assert front.count("<image>") == 4 and front.count("<image>a<image>b?") == 1
    for draw, ratio, wanted in ((0.0, 0.25, "front"), (0.2499, 0.25, "front"), (0.25, 0.25, "interleaved"),
                                (0.999, 1.0, "front"), (0.0, 0.0, "interleaved")):  # fmt: skip
        mixed = convert(RECORD, draw=draw, layout="mixed", front_ratio=ratio)[0]
        assert mixed.ids == convert(RECORD, layout=wanted)[0].ids


@pytest.mark.parametrize("layout", ["interleaved", "front"])
def test_plain_form(convert, layout):
    """Spec 5.9: pictures, caption, newline; everything but the pictures is trained on; no special token."""
    rec = {"image": [picture()], "conversations": talk("<image>\nDescribe.", "a cap")}
    (sample,) = convert(rec, "plain", layout=layout)
    assert written(convert, sample) == ("<image>a cap\n", ["a cap\n"])
    assert len(sample.patches) == 1
    for bad in ({"conversations": talk("q", "a")}, {"image": [picture()], "conversations": []},
                {"image": [picture()]}, {"image": [picture()], "conversations": talk("q", "a")[:1]}):  # fmt: skip
        with pytest.raises(UserError, match="picture and a caption"):
            convert(bad, "plain")


def frames(tmp_path, count):
    """A video as a folder of frames, of a size that tiling would cut into views."""
    folder = tmp_path / "frames"
    folder.mkdir(exist_ok=True)
    for i in range(count):
        picture(i, (100, 48)).save(folder / f"{i:03}.png")
    return str(folder)


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("pool", ["none", "average", "max", "bilinear"])
@pytest.mark.parametrize("anyres", [None, True, False])
def test_layouts_and_patches_of_a_video_agree(convert, tmp_path, form, pool, anyres):
    rec = {"video": frames(tmp_path, 3), "conversations": talk("<video>what", "a")}
    (sample,) = convert(rec, form, pool=pool, anyres=anyres, frames=3)
    packed = pack([sample], convert.config.vision.patches)
    assert len(packed.patches) == 3 == sum(layout.views for layout in sample.layouts)
    assert sample.ids.count(IMAGE) == (3 if pool == "none" else 1)


def test_a_lone_picture_is_tiled_unless_told_otherwise(convert):
    config = convert.config
    wide = {"image": [picture(0, (100, 48))], "conversations": talk("<image>", "a")}
    tiled = image_layout((100, 48), Recipe("train").image_config(config, lone=True))
    assert tiled.views > 1
    for rec, source, views in (
        (wide, None, tiled.views), (wide, False, 1), (wide, True, tiled.views),
        (wide | {"metadata": {"anyres": False}}, None, 1), (wide | {"metadata": {"anyres": True}}, False, tiled.views),
    ):  # fmt: skip
        for form in ("chat", "plain"):
            (sample,) = convert(rec, form, anyres=source)
            assert sum(layout.views for layout in sample.layouts) == views == sum(len(p) for p in sample.patches)


def test_the_scenario_says_what_pictures_are(convert):
    """Images are padded to the square, frames squashed; a pooling source pools frames given one by one; a lone picture
    is tiled, a lone view is not."""
    wide = [picture(i, (100, 48)) for i in range(4)]
    several = {"image": wide, "conversations": talk("<image>" * 4 + "q", "a")}
    (images,), (views,), (frames,) = (convert(several, scenario=s) for s in (None, "multi-view", "video"))
    assert all((a == b).all() for a, b in zip(images.patches, views.patches, strict=True))
    assert len(frames.patches) == 4 and (images.patches[0] != frames.patches[0]).any()
    named = several | {"metadata": {"scenario": "video"}}
    assert (convert(named)[0].patches[0] == frames.patches[0]).all()
    clip = {"image": wide, "conversations": talk("<image>q", "a")}
    (pooled,) = convert(clip, scenario="video", pool="average")
    assert len(pooled.layouts) == 1 and pooled.layouts[0].views == 4
    lone = {"image": wide[:1], "conversations": talk("<image>q", "a")}
    assert convert(lone)[0].layouts[0].views > 1 == convert(lone, scenario="multi-view")[0].layouts[0].views


def test_media_without_markers_stand_in_front_of_the_first_question(convert):
    rec = {"image": [picture()], "conversations": [{"from": "system", "value": "s"}, *talk("q", "a")]}
    for labels in LABELS:
        text, _ = written(convert, convert(rec, labels=labels)[0])
        assert "user\n<image>\n" in text and text.count("<image>") == 1


def test_pairs(convert):
    rec = {"image": [picture()], "prompt": "<image>which", "chosen": "good", "rejected": "bad one"}
    chosen, rejected = convert(rec, "pairs")
    assert written(convert, chosen)[1] == ["good<|im_end|>"] and written(convert, rejected)[1] == ["bad one<|im_end|>"]
    head = len(chosen.ids) - len("good") - 2
    assert chosen.ids[:head] == rejected.ids[:head]
    for missing in ("prompt", "chosen", "rejected"):
        with pytest.raises(UserError, match=missing):
            convert({k: v for k, v in rec.items() if k != missing}, "pairs")


def test_zero_labels_are_refused(convert):
    for messages in ([{"from": "human", "value": "q"}], []):
        with pytest.raises(UserError):
            convert({"conversations": messages})


def test_too_long_is_refused_with_the_counts(convert, tiny):
    rec = {"image": [picture(), picture()], "conversations": talk("<image><image>" + "q" * 99, "a")}
    tokens = convert(rec)[0].tokens
    tight = replace(convert.config, max_length=tokens - 1)
    with pytest.raises(UserError, match=f"{tokens} tokens exceed the context of {tokens - 1}"):
        to_samples(rec, Source("data", [rec]), "chat", convert.tokenizer, tight, 0.5)
    to_samples(rec, Source("data", [rec]), "chat", convert.tokenizer, replace(tight, max_length=tokens), 0.5)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("<image>vdo\n\ud800a", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "role"]), inner),
    max_leaves=6,
)
message = st.fixed_dictionaries({}, optional={"from": st.sampled_from(["human", "gpt", "x"]) | junk, "value": junk})
records = st.fixed_dictionaries(
    {},
    optional={
        "image": junk | st.just([picture()]),
        "video": junk,
        "conversations": junk | st.lists(message | junk, max_size=3),
        "metadata": junk | st.just({"anyres": "?"}),
        "prompt": junk,
        "chosen": junk,
        "rejected": junk,
    },
)


@settings(max_examples=300, deadline=None)
@given(records, st.sampled_from(FORMS), st.sampled_from(LABELS), st.sampled_from(["front", "interleaved"]))
def test_whatever_a_record_holds_it_is_used_or_refused(convert, rec, form, labels, layout):
    try:
        made = convert(rec, form, labels=labels, layout=layout)
    except UserError as e:
        assert "\n" not in str(e)
    else:
        packed = pack(made, convert.config.vision.patches)
        assert packed.tokens == sum(s.tokens for s in made) and (packed.labels != IGNORE).any()
        views = sum(layout.views for s in made[:1] for layout in s.layouts)
        assert views == sum(len(p) for p in made[0].patches)


def test_records_of_a_file(convert, tmp_path):
    """The same record from a JSON file, where media are names."""
    picture(0).save(tmp_path / "a.png")
    rec = record("r", 1)
    (tmp_path / "d.json").write_text(json.dumps([rec | {"image": "a.png"}]))
    from minilava.data.mixture import load_mixture

    (source,) = load_mixture(str(tmp_path / "d.json")).sources
    (sample,) = to_samples(source.records[0], source, "chat", convert.tokenizer, convert.config, 0.0)
    (wanted,) = convert(rec)
    assert sample.ids == wanted.ids and np.array_equal(sample.patches[0], wanted.patches[0])
