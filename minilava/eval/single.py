"""Single-image suites in their published layouts, each in its own folder; what is not there is left out (spec 7.7).

ai2d/        questions/NAME.json, images/, and perhaps ai2d_test_ids.csv
chartqa/     test/test_human.json, test/test_augmented.json, test/png/
docvqa/      val_v1.0.json or val_v1.0_withQT.json, and the documents/ it names
mme/         SUBTASK/*.txt of "question TAB answer" lines beside the pictures, or questions_answers_YN/ and images/
pope/        coco_pope_{random,popular,adversarial}.json, and val2014/
scienceqa/   problems.json, pid_splits.json, test/ID/image.png
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from minilava.eval.item import Column, Item, Layout, Suite, choice, find
from minilava.eval.video import WORD, of_folders, read

POPE = ("random", "popular", "adversarial")
PICTURES = (".jpg", ".png", ".jpeg")


def _item(name: str, task: str, metric: str, question: str, reference: Any, path: Path, **extra: Any) -> Item:
    return Item(name, task, metric, [(question, reference)], partial(list, [("image", str(path))]), extra)


def _ai2d(folder: Path, limit: int | None) -> Iterator[Item]:
    ids = folder / "ai2d_test_ids.csv"
    wanted = set(ids.read_text().split()) if ids.exists() else None
    found = 0
    for path in sorted((folder / "questions").glob("*.json")):
        made = read(path)
        if wanted is not None and Path(made["imageName"]).stem not in wanted:
            continue
        for text, q in made["questions"].items():
            if found == limit:
                return
            found += 1
            question, reference = choice(text, q["answerTexts"], q["correctAnswer"])
            yield _item(f"AI2D/{q['questionId']}", "AI2D", "letter", question, reference,
                        folder / "images" / made["imageName"])  # fmt: skip


def _chartqa(folder: Path, limit: int | None) -> Iterator[Item]:
    for part in ("human", "augmented"):
        for i, row in enumerate(read(folder / "test" / f"test_{part}.json")[:limit]):
            yield _item(f"ChartQA-{part}/{i}", f"ChartQA-{part}", "relaxed", f"{row['query']}\n{WORD}", row["label"],
                        folder / "test/png" / row["imgname"])  # fmt: skip


def _docvqa(folder: Path, limit: int | None) -> Iterator[Item]:
    for row in read(find(folder, "val_v1.0.json", "val_v1.0_withQT.json"))["data"][:limit]:
        question = f"{row['question']}\n{WORD}"
        yield _item(f"DocVQA/{row['questionId']}", "DocVQA", "anls", question, row["answers"], folder / row["image"])


def _mme(folder: Path, limit: int | None) -> Iterator[Item]:
    for subtask in sorted(p for p in folder.iterdir() if p.is_dir()):
        split = (subtask / "questions_answers_YN").is_dir()
        texts, pictures = (subtask / "questions_answers_YN", subtask / "images") if split else (subtask, subtask)
        for path in sorted(texts.glob("*.txt"))[:limit]:
            named = [p for s in PICTURES if (p := pictures / (path.stem + s)).exists()]
            for i, line in enumerate(path.read_text("utf-8").strip().splitlines()):
                question, reference = line.rsplit("\t", 1)
                yield _item(f"MME/{subtask.name}/{path.stem}/{i}", "MME", "mme", question, reference.strip(),
                            named[0] if named else pictures / path.stem, subtask=subtask.name, picture=path.stem,
                            )  # fmt: skip


def _pope(folder: Path, limit: int | None) -> Iterator[Item]:
    for part in POPE:
        path = folder / f"coco_pope_{part}.json"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        for row in map(json.loads, lines[:limit]):
            question = f"{row['text']}\n{WORD}"
            yield _item(f"POPE-{part}/{row['question_id']}", f"POPE-{part}", "pope", question, row["label"],
                        folder / "val2014" / row["image"])  # fmt: skip


def _scienceqa(folder: Path, limit: int | None) -> Iterator[Item]:
    problems = read(folder / "problems.json")
    with_picture = [i for i in read(folder / "pid_splits.json")["test"] if problems[i].get("image")]
    for i in with_picture[:limit]:
        row = problems[i]
        text = "\n".join(t for t in (row.get("hint"), row["question"]) if t)
        question, reference = choice(text, row["choices"], row["answer"])
        yield _item(f"ScienceQA-IMG/{i}", "ScienceQA-IMG", "letter", question, reference,
                    folder / "test" / i / row["image"])  # fmt: skip


READERS = {
    "ai2d": _ai2d, "chartqa": _chartqa, "docvqa": _docvqa, "mme": _mme, "pope": _pope, "scienceqa": _scienceqa
}  # fmt: skip
COLUMNS = (
    Column("AI2D", ("AI2D",)),
    Column("ChartQA", ("ChartQA-human", "ChartQA-augmented")),
    Column("DocVQA", ("DocVQA",)),
    Column("MME*", ("MME",)),
    Column("ScienceQA-IMG", ("ScienceQA-IMG",)),
    Column("POPE", tuple(f"POPE-{part}" for part in POPE)),
)
SINGLE = Suite(
    partial(of_folders, READERS),
    Layout(COLUMNS, {"Avg": tuple(c.name for c in COLUMNS)}, "Table 4"),
    max_new_tokens=64,
)
