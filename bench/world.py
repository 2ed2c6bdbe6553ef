"""How much of the M4 world a checkpoint knows: exact-match accuracy per task, beside a blind run and chance.

    python -m bench.world [--model PATH] [--split test] [--per-task 200] [--seed 0] [--no-blind]
    python -m bench.world --speed        # how fast the world is drawn, on one core

Blind: the same questions with every picture grey. Chance: the mean of 1 / (equally likely answers).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import count

from PIL import Image
from tqdm import tqdm

import minilava
from bench import harness
from minilava.data.world import SPLITS, TASKS, make
from minilava.errors import command
from minilava.inputs.sample import Medium, place_media

EXACT = ("word", "phrase", "letter")
BATCH = 32
MAX_NEW_TOKENS = 32


def questions(task: str, split: str, number: int, seed: int) -> Iterator[dict]:
    """The first ``number`` records of a task whose question has one exact answer."""
    found = 0
    for index in count():
        record = make(task, split, index, seed=seed)
        if record["metadata"]["question_type"] in EXACT:
            yield record
            found += 1
            if found == number:
                return


def answers(vlm, records: list[dict], blind: bool = False) -> list[str]:
    """The model's answers, in batches."""
    requests = [_request(vlm, record, blind) for record in records]
    starts = range(0, len(requests), BATCH)
    return [reply.text for i in starts for reply in vlm.batch(requests[i : i + BATCH])]


def _request(vlm, record: dict, blind: bool):
    frames = record.get("video") or record["image"]
    if blind:
        frames = [Image.new("RGB", frame.size, (128, 128, 128)) for frame in frames]
    if "video" in record:
        media = [Medium("video", frames, vlm.config.asking.pool)]
    else:
        media = [Medium("image", [frame]) for frame in frames]
    content = place_media(record["conversations"][0]["value"], media)
    anyres = record["metadata"]["anyres"] or None
    return vlm.request([{"role": "user", "content": content}], max_new_tokens=MAX_NEW_TOKENS, anyres=anyres)


def right(answer: str, record: dict) -> bool:
    return answer.strip().rstrip(".").lower() == record["conversations"][1]["value"].lower()


def measure(vlm, split: str, per_task: int, seed: int, blind: bool = True) -> dict[str, dict[str, float]]:
    """task -> {"accuracy", "blind", "chance"}, shares of 1."""
    table = {}
    for task in tqdm(TASKS, desc="tasks", disable=None):
        records = list(questions(task, split, per_task, seed))
        runs = {"accuracy": answers(vlm, records)} | ({"blind": answers(vlm, records, blind=True)} if blind else {})
        row = {name: sum(map(right, texts, records)) / len(records) for name, texts in runs.items()}
        chance = [1 / c if (c := r["metadata"]["choices"]) else 0.0 for r in records]
        table[task] = row | {"chance": sum(chance) / len(chance)}
    return table


def means(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The macro average over tasks, of each scenario and of all."""
    groups: dict[str, list] = {}
    for task, row in table.items():
        groups.setdefault(TASKS[task][1], []).append(row)
    groups["all"] = list(table.values())
    return {name: {k: sum(r[k] for r in rows) / len(rows) for k in rows[0]} for name, rows in groups.items()}


def speed(samples: int = 300) -> list[dict]:
    """Samples per second of every task at 128 pixels with four questions each, in this one thread; best of three."""
    rows = []
    for task in TASKS:

        def run(task=task):
            for index in range(samples):
                make(task, "train", index, turns=4)

        rows.append({"task": task, "samples_per_s": samples / harness.best_of(run, 3)})
    return [*rows, {"task": "slowest", "samples_per_s": min(r["samples_per_s"] for r in rows)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--keep", action="store_true", help="append the result to bench/results")
    args = parser.parse_args()
    if args.speed:
        return show("world_speed", speed(), args.keep)
    by_task = measure(minilava.load(args.model), args.split, args.per_task, args.seed, args.blind)
    rows = [{"task": name, **row} for name, row in [*by_task.items(), *means(by_task).items()]]
    settings = {"model": args.model or "embedded", "split": args.split, "per_task": args.per_task, "seed": args.seed}
    show("world", rows, args.keep, **settings)


def show(name: str, rows: list[dict], keep: bool, **settings: object) -> None:
    columns = list(rows[0])
    if keep:
        harness.report(name, rows, columns, **settings)
    else:
        print(harness.table(rows, columns))


if __name__ == "__main__":
    sys.exit(command(main))
