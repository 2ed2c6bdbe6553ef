"""Video suites in their published layouts, each in its own folder; what is not there is left out (spec 7.7).

nextqa/           test.csv or val.csv (video, question, answer, a0 to a4), perhaps map_vid_vidorID.json
mvbench/json/     NAME.json, lists of video, question, candidates, answer; of a clip also start and end
activitynet-qa/   test_q.json and test_a.json
videochatgpt/     generic_qa.json, temporal_qa.json, consistency_qa.json
vdd/              Test_Human_Annotated_Captions/VIDEO.txt

Videos are files, or folders of frames, anywhere below a suite's folder; they are found by name.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from minilava.errors import UserError
from minilava.eval.item import Column, Item, Layout, Suite, choice, find

WORD = "Answer the question using a single word or phrase."  # as the training data of the model family asks for one
DESCRIBE = "Describe the video in detail: who and what is in it, what happens, and in which order."
VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif", ".mpg")


class Videos:
    """Everything below a folder that may be a video: files by their names without suffix, and folders of frames."""

    def __init__(self, folder: Path):
        self.folder, self.paths = folder, {}
        for root, folders, files in os.walk(folder):
            self.paths.update({f: os.path.join(root, f) for f in folders})
            self.paths.update({os.path.splitext(f)[0]: os.path.join(root, f) for f in files if f.endswith(VIDEO)})

    def __call__(self, *names: str) -> list[tuple[str, Any]]:
        for name in names:
            stem = os.path.basename(name.rstrip("/"))
            stem = os.path.splitext(stem)[0] if stem.endswith(VIDEO) else stem
            if stem in self.paths:
                return [("video", self.paths[stem])]
        raise UserError(f"no video {names[0]} below {self.folder}")


def read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read as JSON: {e}") from None


def _nextqa(folder: Path, limit: int | None) -> Iterator[Item]:
    videos = Videos(folder)
    names = read(folder / "map_vid_vidorID.json") if (folder / "map_vid_vidorID.json").exists() else {}
    with open(find(folder, "test.csv", "val.csv"), newline="", encoding="utf-8") as f:
        for row in list(csv.DictReader(f))[:limit]:
            options = [row[f"a{i}"] for i in range(5)]
            question, reference = choice(row["question"].rstrip("?") + "?", options, int(row["answer"]))
            media = partial(videos, names.get(row["video"], row["video"]), row["video"])
            yield Item(f"NExT-QA/{row['video']}/{row['qid']}", "NExT-QA", "letter", [(question, reference)], media)


def _mvbench(folder: Path, limit: int | None) -> Iterator[Item]:
    videos = Videos(folder)
    for path in sorted((folder / "json").glob("*.json")):
        for i, row in enumerate(read(path)[:limit]):
            question, reference = choice(row["question"], row["candidates"], row["candidates"].index(row["answer"]))
            name = os.path.splitext(row["video"])[0]
            if "start" in row:  # loaders here take whole videos; clips are cut once, with any tool
                name = f"{name}_{row['start']}_{row['end']}"
            media = partial(videos, name)
            yield Item(f"MVBench/{path.stem}/{i}", "MVBench", "letter", [(question, reference)], media)


def _activitynet(folder: Path, limit: int | None) -> Iterator[Item]:
    videos, answers = Videos(folder), {a["question_id"]: a["answer"] for a in read(folder / "test_a.json")}
    for row in read(folder / "test_q.json")[:limit]:
        media = partial(videos, "v_" + row["video_name"], row["video_name"])
        turns = [(f"{row['question'].rstrip('?')}?\n{WORD}", answers[row["question_id"]])]
        yield Item(f"ActivityNet-QA/{row['question_id']}", "ActivityNet-QA", "judge-qa", turns, media)


def _videochatgpt(folder: Path, limit: int | None) -> Iterator[Item]:
    videos = Videos(folder)
    for kind in ("generic", "temporal", "consistency"):
        rows = read(folder / f"{kind}_qa.json") if (folder / f"{kind}_qa.json").exists() else []
        for i, row in enumerate(rows[:limit]):
            media, metric, name = partial(videos, row["video_name"]), f"judge-{kind}", f"VideoChatGPT/{kind}/{i}"
            task = f"VideoChatGPT-{kind}"
            if kind != "consistency":
                yield Item(name, task, metric, [(row["Q"], row["A"])], media)
                continue
            # One question in two wordings, asked apart; the judge sees both answers and grades the second line.
            yield Item(name + "/1", task, metric, [(row["Q1"], row["A"])], media, {"graded_with": name + "/2"})
            yield Item(name + "/2", task, metric, [(row["Q2"], row["A"])], media, {"other": name + "/1"})


def _vdd(folder: Path, limit: int | None) -> Iterator[Item]:
    videos = Videos(folder)
    for path in sorted(find(folder, "Test_Human_Annotated_Captions").glob("*.txt"))[:limit]:
        turns = [(DESCRIBE, path.read_text("utf-8", "replace").strip())]
        yield Item(f"VDD/{path.stem}", "VDD", "judge-caption", turns, partial(videos, path.stem))


READERS = {
    "nextqa": _nextqa, "mvbench": _mvbench, "activitynet-qa": _activitynet, "vdd": _vdd, "videochatgpt": _videochatgpt
}  # fmt: skip


def of_folders(readers: dict, data: Path | None, limit: int | None) -> Iterator[Item]:
    """The items of every reader whose folder is there. UserError where there is none, or one has another layout."""
    find(data, *readers)
    for name, reader in readers.items():
        if (data / name).is_dir():
            try:
                yield from reader(data / name, limit)
            except (KeyError, IndexError, ValueError, TypeError, AttributeError, OSError) as e:
                if isinstance(e, UserError):
                    raise
                raise UserError(f"{data / name} is not laid out as it is published: {type(e).__name__} {e}") from None


VIDEO_SUITE = Suite(
    partial(of_folders, READERS),
    Layout(
        (
            Column("NExT-QA", ("NExT-QA",)),
            Column("MVBench", ("MVBench",)),
            Column("ActivityNet-QA", ("ActivityNet-QA",), "accuracy"),
            Column("ActivityNet-QA score", ("ActivityNet-QA",), graded=True),
            Column("VDD", ("VDD",), graded=True),
            *(Column(name, ("VideoChatGPT-generic",), name, graded=True) for name in ("CI", "DO", "CU")),
            Column("TU", ("VideoChatGPT-temporal",), "TU", graded=True),
            Column("CO", ("VideoChatGPT-consistency",), "CO", graded=True),
        ),
        {"Avg": ("NExT-QA", "MVBench", "ActivityNet-QA", "VDD", "CI", "DO", "CU", "TU", "CO")},
        "Table 2",
    ),
    max_new_tokens=1024,
)
