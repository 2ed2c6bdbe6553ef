"""What the readers make of the published formats, and both suites through the command."""

import json

import pytest

from minilava.errors import UserError
from minilava.eval.__main__ import main
from minilava.eval.suites import suite
from tests.eval import fixtures

LETTERS = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return fixtures.video(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return fixtures.single(tmp_path_factory.mktemp("single"))


def by_id(name, data, limit=None):
    return {item.id: item for item in suite(name).items(data, limit)}


def test_video_formats(video):
    items = by_id("video", video)
    assert items["NExT-QA/v1/0"].turns == [
        (f"why, then, run?\nA. a\nB. b\nC. c\nD. d\nE. e\n{LETTERS}", "B. b")
    ]  # fmt: skip
    assert items["NExT-QA/v1/1"].turns[0][1] == "E. e"
    assert items["MVBench/moving_direction/0"].turns == [(f"What?\nA. red\nB. blue\n{LETTERS}", "B. blue")]
    for name, folder in (("NExT-QA/v1/0", "v1"), ("MVBench/action_sequence/0", "clip_0.5_3.0"), ("VDD/v_abc", "v_abc")):
        ((kind, path),) = items[name].media()
        assert kind == "video" and path.endswith(folder)
    question, answer = items["ActivityNet-QA/v_abc_x"].turns[0]
    assert question.startswith("is it x?\n") and answer == "yes"
    assert items["VDD/v_abc"].turns[0][1] == "A man runs in a park."
    pair = [items[f"VideoChatGPT/consistency/0/{i}"] for i in (1, 2)]
    assert pair[0].extra == {"graded_with": pair[1].id} and pair[1].extra == {"other": pair[0].id}
    assert len(items) == 2 + 2 + 3 + 2 + 2 + 2 + 1
    assert len(by_id("video", video, 1)) == 1 + 2 + 1 + 1 + 1 + 2 + 1


def test_single_formats(single):
    items = by_id("single", single)
    assert items["AI2D/0.png-0"].turns == [(f"What shines?\nA. moon\nB. sun\n{LETTERS}", "B. sun")]
    assert items["DocVQA/7"].turns[0][1] == ["Ann", "ann b."]
    assert items["ScienceQA-IMG/5"].turns[0] == (f"Look.\nWhich?\nA. a\nB. b\nC. c\n{LETTERS}", "C. c")
    assert {k: items["MME/artwork/9/1"].extra[k] for k in ("subtask", "picture")} == {
        "subtask": "artwork",
        "picture": "9",
    }
    assert items["MME/existence/1/0"].turns == [("Is it red? Please answer yes or no.", "Yes")]
    assert len(items) == 1 + 2 + 1 + 4 + 6 + 1
    for item in items.values():
        ((kind, path),) = item.media()
        assert kind == "image" and open(path, "rb").read()


@pytest.mark.parametrize("name", ["video", "single"])
def test_through_the_command(name, tiny, request, tmp_path, capsys):
    data = request.getfixturevalue(name)
    arguments = [name, "--model", str(tiny), "--data", str(data), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--frames", "2", "--max-new-tokens", "4"]) == 0
    made = json.loads((tmp_path / "report.json").read_text())
    text = (tmp_path / "report.md").read_text()
    if name == "video":
        assert set(made["columns"]) == {"NExT-QA", "MVBench"}
        assert made["unscored"]["ActivityNet-QA"] == 3 and made["unscored"]["VideoChatGPT-consistency"] == 1
        assert "| 3.25 " in text  # the paper's grades keep two digits
    else:
        assert made["averages"]["Avg"]["missing"] == [] and made["averages"]["Avg"]["samples"] == 15
        assert set(made["tasks"]["MME"]) == {"score", "perception", "cognition"}
        assert "yes-ratio" in made["tasks"]["POPE-random"]


def test_what_is_not_there_or_laid_out_otherwise_is_named(single, tmp_path):
    with pytest.raises(UserError, match="holds no ai2d or chartqa or"):
        by_id("single", tmp_path)
    (tmp_path / "docvqa").mkdir()
    with pytest.raises(UserError, match="holds no val_v1.0.json or"):
        by_id("single", tmp_path)
    fixtures.write(tmp_path / "docvqa/val_v1.0.json", {"data": [{"question": "?"}]})
    with pytest.raises(UserError, match="docvqa is not laid out as it is published: KeyError 'questionId'"):
        by_id("single", tmp_path)
    (tmp_path / "docvqa/val_v1.0.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        by_id("single", tmp_path)


def test_missing_videos_are_named(video, tmp_path):
    fixtures.write(tmp_path / "vdd/Test_Human_Annotated_Captions/x.json", {})
    (tmp_path / "vdd/Test_Human_Annotated_Captions/gone.txt").write_text("A cat.")
    (item,) = by_id("video", tmp_path).values()
    with pytest.raises(UserError, match="no video gone below"):
        item.media()
