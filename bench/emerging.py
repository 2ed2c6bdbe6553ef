"""What a checkpoint can do that it was never trained to: the suite ``emerging``, beside a blind run and chance.

    python -m bench.emerging [--model PATH] [--per-task 200] [--keep]

--keep also draws the gallery, bench/results/emerging.png: the first sample of every task with the model's answer.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean

from PIL import Image

import minilava
from bench.harness import RESULTS, report
from bench.world import measure, replies
from minilava.data.world.sheet import contact_sheet
from minilava.errors import command
from minilava.eval.emerging import TASKS, items
from minilava.eval.item import Item


def gallery(vlm) -> Image.Image:
    return contact_sheet([_record(item, line) for t in TASKS for item in items(t, 1) for line in replies(vlm, [item])])


def _record(item: Item, line: dict) -> dict:
    """As the world writes them, for a contact sheet. The pictures of two videos stand in one row."""
    pictures = [p for kind, source in item.media() for p in (source if kind == "video" else [source])]
    said = line["answer"] if line["score"] else f"{line['answer']} (right: {line['reference']})"
    question = f"{item.task}: {line['question']}"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": said}]
    return {"image": pictures, "conversations": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--keep", action="store_true", help="append the result to bench/results")
    args = parser.parse_args()
    vlm = minilava.load(args.model)
    table = measure(vlm, {name: list(items(name, args.per_task)) for name in TASKS})
    rows = [{"task": name, **row, "trained on": ", ".join(TASKS[name].trained)} for name, row in table.items()]
    all = {key: mean(row[key] for row in table.values()) for key in ("accuracy", "blind", "chance")}
    rows.append({"task": "all", **all, "trained on": ""})
    settings = {"model": args.model or "embedded", "per_task": args.per_task}
    report("emerging", rows, list(rows[0]), args.keep, **settings)
    if args.keep:
        gallery(vlm).save(RESULTS / "emerging.png", optimize=True)


if __name__ == "__main__":
    sys.exit(command(main))
