"""How much of the M4 world a checkpoint knows: exact-match accuracy per task, beside a blind run and chance.

    python -m bench.world [--model PATH] [--per-task 200] [--seed 0] [--no-blind]
    python -m bench.world --speed        # how fast the world is drawn, on one core

Blind: the same questions with every picture grey. Chance: the mean of 1 / (equally likely answers).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

import minilava
from bench import harness
from minilava.data.world import TASKS, make
from minilava.errors import command
from minilava.eval.item import Item
from minilava.eval.run import Options, answer
from minilava.eval.world import MAX_NEW_TOKENS, items


def questions(per_task: int, seed: int = 0) -> dict[str, list[Item]]:
    return {task: list(items(task, per_task, seed=seed)) for task in TASKS}


def measure(vlm, tasks: dict[str, list[Item]], blind: bool = True) -> dict[str, dict[str, float]]:
    """task -> {"accuracy", "blind", "chance"}, shares of 1."""
    table = {}
    for task, asked in tqdm(tasks.items(), desc="tasks", disable=None):
        runs = {name: replies(vlm, asked, grey) for name, grey in (("accuracy", False), ("blind", True))[: 1 + blind]}
        row = {name: sum(line["score"] for line in lines) / len(lines) for name, lines in runs.items()}
        table[task] = row | {"chance": sum(item.extra["chance"] for item in asked) / len(asked)}
    return table


def replies(vlm, asked: Sequence[Item], blind: bool = False, **asking: object) -> list[dict]:
    """A line per question, with the answer and its score (minilava.eval.run). asking: as in Options."""
    options = Options(blind=blind, asking={"max_new_tokens": MAX_NEW_TOKENS, **asking})
    return [line for lines in answer(vlm, asked, options) for line in lines]


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
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--keep", action="store_true", help="append the result to bench/results")
    args = parser.parse_args()
    if args.speed:
        rows = speed()
        return harness.report("world_speed", rows, list(rows[0]), args.keep)
    by_task = measure(minilava.load(args.model), questions(args.per_task, args.seed), args.blind)
    rows = [{"task": name, **row} for name, row in [*by_task.items(), *means(by_task).items()]]
    settings = {"model": args.model or "embedded", "split": "test", "per_task": args.per_task, "seed": args.seed}
    harness.report("world", rows, list(rows[0]), args.keep, **settings)


if __name__ == "__main__":
    sys.exit(command(main))
