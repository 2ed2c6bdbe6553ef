"""The preview shows exactly what is trained on, in colour on a terminal and in plain text elsewhere."""

import io

import pytest
import torch

from minilava.config import IGNORE, IMAGE, ImageConfig
from minilava.data.preview import CONTROL, GREEN, GREY, RESET, preview
from minilava.inputs.chat import encode
from minilava.inputs.geometry import image_layout
from minilava.inputs.pack import pack
from minilava.inputs.sample import Sample
from minilava.tokenizer import Tokenizer, byte_tokenizer

CONFIG = ImageConfig("square", ((56, 56),), "flat", 56, 4)
TOKENIZER = Tokenizer(byte_tokenizer())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def sample(question, answer, labels="clean"):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    ids, marks = encode(turns, TOKENIZER, "train", labels)
    layouts = [image_layout((8, 8), CONFIG) for _ in range(ids.count(IMAGE))]
    return Sample(ids, layouts, [torch.zeros(1, 16, 3) for _ in layouts], marks)


BATCH = [sample("<image>see <image>", "two cats"), sample("hello", "hi"), sample("third", "not shown")]


def shown(file, samples=2, batch=BATCH):
    preview(pack(batch, 16), TOKENIZER, file, samples)
    return file.getvalue()


def test_plain_text():
    tokens = image_layout((8, 8), CONFIG).tokens
    text = shown(io.StringIO())
    assert text == (
        f"sample 1: {BATCH[0].tokens} tokens, {2 * tokens} of images, 9 trained on ({900 / BATCH[0].tokens:.1f} %)\n"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n[{tokens} image tokens]see [{tokens} image tokens]<|im_end|>\n"
        "<|im_start|>assistant\n«two cats<|im_end|>»\n\n"
        f"sample 2: {BATCH[1].tokens} tokens, 0 of images, 3 trained on ({300 / BATCH[1].tokens:.1f} %)\n"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n«hi<|im_end|>»\n\n"
    )


def test_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(Terminal())
    assert f"{GREEN}two cats<|im_end|>{RESET}{GREY}\n{RESET}" in text and f"{GREY}[" in text and "«" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(Terminal()) == shown(io.StringIO())


def test_batches_without_labels_and_without_media():
    bare = sample("x", "y")
    bare.labels = None
    text = shown(io.StringIO(), 5, [bare])
    assert "0 trained on (0.0 %)" in text and "«" not in text
    assert shown(io.StringIO(), 0) == ""


def test_the_other_label_rules_show():
    assert "«<|im_start|>»system«\n»" in shown(io.StringIO(), 1, [sample("q", "a", "main")])


@pytest.mark.parametrize("evil", ["\x1b[2J", "\x1b]0;title\x07", "\r", "\x9b2J"])
def test_a_record_cannot_steer_the_terminal(evil):
    text = shown(io.StringIO(), 1, [sample(f"a{evil}b", f"c{evil}d")])
    assert not CONTROL.search(text) and "\N{REPLACEMENT CHARACTER}" in text


def test_labels_are_read_as_the_loss_reads_them():
    packed = pack([sample("q", "a")], 16)
    assert int((packed.labels != IGNORE).sum()) == 2
