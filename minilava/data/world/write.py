"""python -m minilava.data world: write samples of the M4 world to a folder as M4-Instruct records with PNG pictures.

records.jsonl        one record a line, task after task, each by index
preferences.jsonl    with --preferences: DPO records on the same pictures
images/TASK/         pictures as INDEX_FRAME.png, a video as the folder INDEX with 000.png, 001.png, ...
sheets/TASK.png      with --sheet: some samples of a task to look at
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image
from tqdm import tqdm

from minilava.data.world import SPLITS, TASKS, World, make, preference
from minilava.data.world.sheet import SAMPLES, contact_sheet
from minilava.errors import UserError

SIZES = (64, 384)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run`` needs."""
    parser.add_argument("--out", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument("--per-task", type=int, default=200, metavar="N", help="samples of a task (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed is another world (%(default)s)")
    parser.add_argument("--task", default="all", metavar="NAME,...", help=f"some of {', '.join(TASKS)} (all)")
    parser.add_argument("--size", type=int, default=128, metavar="PIXELS", help="side of a picture (%(default)s)")
    parser.add_argument("--turns", type=int, default=1, metavar="N", help="most questions in a record (%(default)s)")
    parser.add_argument("--sheet", action="store_true", help="also draw a contact sheet for each task")
    parser.add_argument("--preferences", action="store_true", help="also write preferences.jsonl for DPO")


def run(args: argparse.Namespace) -> None:
    if args.per_task < 1 or args.turns < 1:
        raise UserError("--per-task and --turns must be at least 1")
    if not SIZES[0] <= args.size <= SIZES[1]:
        raise UserError(f"--size must be from {SIZES[0]} to {SIZES[1]} pixels")
    tasks = World(args.task, args.split).tasks
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} is not empty: name a new folder")
        _write(args, tasks, out)
    except OSError as e:
        raise UserError(f"cannot write {out}: {e.strerror or e}") from None


def _write(args: argparse.Namespace, tasks: tuple[str, ...], out: Path) -> None:
    samples = [(task, i) for task in dict.fromkeys(tasks) for i in range(args.per_task)]
    shown: list[dict] = []
    with _lines(out / "records.jsonl") as records, _lines(out / "preferences.jsonl", args.preferences) as preferences:
        for task, i in tqdm(samples, desc="world", unit=" samples", file=sys.stderr, disable=None):
            record = make(task, args.split, i, args.size, args.seed, args.turns)
            media = save_media(record, out, f"images/{task}/{i:06}")
            _line(records, record | media)
            if args.preferences:
                pair = preference(task, args.split, i, args.size, args.seed)
                if pair is not None:
                    _line(preferences, pair | media)
            if args.sheet and len(shown) < SAMPLES:
                shown.append(record)
            if args.sheet and i == args.per_task - 1:
                save_picture(contact_sheet(shown), out / f"sheets/{task}.png")
                shown = []


def save_media(record: dict, out: Path, stem: str) -> dict[str, list[str] | str]:
    """Write a record's pictures under ``out``; what stands in their place in the published record."""
    if "video" in record:
        for k, frame in enumerate(record["video"]):
            save_picture(frame, out / stem / f"{k:03}.png")
        return {"video": stem}
    names = [f"{stem}_{k}.png" for k in range(len(record["image"]))]
    for name, picture in zip(names, record["image"], strict=True):
        save_picture(picture, out / name)
    return {"image": names}


def save_picture(picture: Image.Image, path: Path) -> None:
    """A PNG file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    picture.save(part, "PNG")
    os.replace(part, path)


def _line(file: IO[str], record: dict) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def _lines(path: Path, wanted: bool = True) -> Iterator[IO[str] | None]:
    """A text file that gets its name once everything is written; None if it is not wanted."""
    if not wanted:
        yield None
        return
    part = path.with_suffix(".tmp")
    try:
        with open(part, "w", encoding="utf-8") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
