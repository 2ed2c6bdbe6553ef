"""The HTML page and the radar chart of a run."""

import base64
import io
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from PIL import Image

from minilava.eval.__main__ import main
from minilava.eval.item import Item
from minilava.eval.page import page
from minilava.eval.run import read_lines


class Scripts(HTMLParser):
    """The text of every script by its id, and every address that the page would fetch."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.fetched, self.inside = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.inside = attributes.get("id", "code") if tag == "script" else self.inside
        self.fetched += [v for k, v in attributes.items() if k in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = None if tag == "script" else self.inside

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of the embedded model with everything that can be drawn of it."""
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("world")
    arguments = ["world", "--limit", "2", "--out", str(out), "--html", "1", "--radar", "--device", "cpu"]
    assert main(arguments) == 0
    return out


def test_the_page_holds_everything_it_shows(world):
    parsed = Scripts((world / "page.html").read_text())
    data = json.loads(parsed.scripts["data"])
    assert parsed.fetched == [] and "http" not in parsed.scripts["code"]
    lines = {line["id"]: line for line in read_lines(world / "samples.jsonl")}
    assert len(data["samples"]) == 14 and data["of"] == 28
    for sample in data["samples"]:
        line = lines[sample["id"]]
        assert sample["answer"] == line["answer"] and sample["right"] == (line["score"] == 1)
        assert sample["pictures"]
        for address in sample["pictures"]:
            kind, _, body = address.partition("base64,")
            picture = Image.open(io.BytesIO(base64.b64decode(body)))
            assert kind == "data:image/jpeg;" and max(picture.size) <= 192


def test_text_of_strangers_stays_text():
    evil = "</script><script>alert(1)</script><!-- \u2028 &lt;"
    item = Item("a", evil, "exact", [(evil, evil)], lambda: [("image", "no such file")])
    line = {"id": "a", "turn": 0, "task": evil, "question": evil, "reference": [evil], "answer": evil, "score": None}
    parsed = Scripts(page([item], [line], {"suite": evil}, 16, 0))
    assert sorted(parsed.scripts) == ["code", "data"] and "alert" not in parsed.scripts["code"]
    (sample,) = json.loads(parsed.scripts["data"])["samples"]
    assert sample["question"] == sample["answer"] == sample["reference"] == evil
    assert sample["pictures"] == [] and sample["right"] is None
    assert "innerHTML" not in parsed.scripts["code"]


def test_the_radar_chart(world):
    with Image.open(world / "radar.png") as picture:
        assert min(picture.size) >= 900
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    texts = "".join(ET.parse(world / "radar.svg").getroot().itertext())
    assert "puzzle" in texts and "this run" in texts and "chance" in texts
