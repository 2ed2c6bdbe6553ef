"""make demo: one exchange per scenario with the embedded model, on pictures made on the spot from a fresh seed.

The model is tiny and knows only the M4 world: coloured shapes, rooms and short clips. The right answer stands beside
the model's, and the pictures are saved so that a person can check both.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

import minilava
from bench.world import replies
from minilava.data.world.sheet import contact_sheet
from minilava.errors import command
from minilava.eval.world import items, records

EXCHANGES = ("multi_image_vqa", "video_qa", "scene_vqa", "single_image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the pictures go")
    parser.add_argument("--seed", type=int, help="default: a new one every time")
    args = parser.parse_args()
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    vlm = minilava.load(args.model)
    asked = [next(items(task, 1, seed=seed)) for task in EXCHANGES]
    drawn = [next(records(task, 1, seed=seed))[1] for task in EXCHANGES]
    args.out.mkdir(parents=True, exist_ok=True)
    correct = 0
    for record, line in zip(drawn, replies(vlm, asked), strict=True):
        scenario, file = record["metadata"]["scenario"], args.out / f"{record['metadata']['scenario']}.png"
        contact_sheet([record]).save(file)
        correct += line["score"] == 1
        print(f"{scenario} ({file})")
        print("  prompt   " + line["question"].replace("\n", "\n           "))
        print(f"  minilava {line['answer']}\n  right    {line['reference']}\n")
    print(f"{correct} of {len(asked)} right, seed {seed}. The model has {_millions(vlm)} million parameters and knows")
    print("only this world of drawn pictures: ask it about photographs and it will talk about shapes.")


def _millions(vlm) -> str:
    return f"{sum(p.numel() for p in vlm.model.parameters()) / 1e6:.1f}"


if __name__ == "__main__":
    sys.exit(command(main))
