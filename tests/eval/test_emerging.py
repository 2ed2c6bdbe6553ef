"""The suite of tasks that no stage trains: that none does, and that a question still has its answer."""

import re

import pytest

from minilava.data.mixture import read_yaml
from minilava.data.world import TASKS as WORLD
from minilava.data.world import example, make
from minilava.eval.__main__ import main
from minilava.eval.emerging import TASKS, items
from minilava.recipes.ablations.plan import HERE, TINY

MARKER = re.compile("<(image|video)>")


@pytest.mark.parametrize("name", TASKS)
def test_an_item_is_its_record_in_another_form(name):
    task = TASKS[name]
    for item in items(name, 8):
        made, _ = example(task.source, "test", int(item.id.rsplit("/", 1)[1]))
        ((prompt, answer),) = item.turns
        media = item.media()
        assert MARKER.findall(prompt) == [kind for kind, _ in media]
        shown = [list(source) if kind == "video" else [source] for kind, source in media]
        frames = [[f.tobytes() for f in clip] for clip in shown]
        own = [f.tobytes() for f in made.frames]
        if task.form.of == 1:
            assert sum(frames, []) == own
        else:  # the one that the prompt says to look at
            asked = int(re.search(r"Look at (?:video|picture) (\d)\.", prompt)[1])
            assert frames[asked - 1] == own and len(frames) == task.form.of
            assert all(f != own for i, f in enumerate(frames) if i != asked - 1)
        possible = [q for q in made.questions if q.answer == answer]
        said = prompt.lower().replace("frame", "picture").replace("view", "picture")
        assert any(q.text.lower().replace("frame", "picture").replace("view", "picture") in said for q in possible)
        assert item.metric == "exact" and 0 <= item.extra["chance"] <= 1
        assert set(item.extra["trained"].split(", ")) <= set(WORLD)
    assert [i.id for i in items(name, 3)] == [i.id for i in items(name, 6)][:3]


def test_no_stage_trains_these_forms():
    """Training shows pictures of a multi-image or multi-view record as pictures, one video as a video and nothing
    else: the markers are the record's own, and no source of a recipe changes them."""
    for task, (_, scenario) in WORLD.items():
        for index in range(20):
            markers = MARKER.findall(make(task, "train", index)["conversations"][0]["value"])
            if scenario == "video":
                assert markers == ["video"]
            else:
                assert set(markers) == {"image"} and (scenario != "single-image" or len(markers) == 1)
    for folder in (TINY, HERE):
        for path in folder.glob("*.yaml"):
            for source in read_yaml(path).get("data", {}).get("sources", []):
                assert "world" in source and source.get("split", "train") == "train"


def test_the_report_lists_the_neighbours(tmp_path, capsys):
    assert main(["emerging", "--limit", "1", "--out", str(tmp_path), "--html", "1", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    for name, task in TASKS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
        assert row.rstrip(" |").endswith(", ".join(task.trained))
    assert "trained on" in text and "<video>" in (tmp_path / "page.html").read_text().replace("\\u003c", "<")
