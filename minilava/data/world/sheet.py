"""Contact sheets: some samples of a task, their pictures in order and questions with answers below as text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw

from minilava.data.world import draw

SAMPLES = 6
COLUMNS = 2
WIDTH = 480  # of a column
GAP = 20
FRAME = 112  # side of a picture, where there is room
SMALLEST = 54
TEXT = 16
INK, ANSWER, BORDER = (40, 40, 40), (20, 90, 190), (150, 150, 150)


def contact_sheet(records: Sequence[dict]) -> Image.Image:
    """Records in columns, each below the shorter one so far."""
    blocks = [_block(r) for r in records]
    used = COLUMNS if len(blocks) > 1 else 1
    heights, places = [GAP] * used, []
    for block in blocks:
        column = heights.index(min(heights))
        places.append((GAP + column * (WIDTH + GAP), heights[column]))
        heights[column] += block.height + GAP
    sheet = Image.new("RGB", (GAP + used * (WIDTH + GAP), max(heights)), "white")
    for block, place in zip(blocks, places, strict=True):
        sheet.paste(block, place)
    return sheet


def _block(record: dict) -> Image.Image:
    """Pictures in rows, then every turn."""
    strips = _strips(record.get("video") or record["image"])
    lines = [(line, color) for text, color in _turns(record) for line in _wrap(text)]
    top = sum(s.height + 4 for s in strips) + 4
    block = Image.new("RGB", (WIDTH, top + len(lines) * (TEXT + 5)), "white")
    y = 0
    for strip in strips:
        block.paste(strip, (0, y))
        y += strip.height + 4
    pen = ImageDraw.Draw(block)
    for i, (line, color) in enumerate(lines):
        pen.text((0, top + i * (TEXT + 5)), line, color, draw.font(TEXT))
    return block


def _strips(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """Rows of pictures of one height; many pictures become smaller, then fill several rows."""
    ratio = max(f.width / f.height for f in frames)
    room = int((WIDTH / len(frames) - 4) / ratio)
    side = min(FRAME if len(frames) > 1 else 2 * FRAME, max(SMALLEST, room))
    row = int(WIDTH // (side * ratio + 4))
    strips = []
    for start in range(0, len(frames), row):
        strip = Image.new("RGB", (WIDTH, side), "white")
        x = 0
        for frame in frames[start : start + row]:
            small = frame.resize((round(frame.width * side / frame.height), side), Image.Resampling.LANCZOS)
            ImageDraw.Draw(small).rectangle((0, 0, small.width - 1, side - 1), outline=BORDER)
            strip.paste(small, (x, 0))
            x += small.width + 4
        strips.append(strip)
    return strips


def _turns(record: dict) -> list[tuple[str, tuple[int, int, int]]]:
    """What is said, with [1], [2] ... where the pictures stand."""
    number = itertools.count(1)
    said = []
    for message in record["conversations"]:
        text = re.sub("<image>", lambda _: f"[{next(number)}]", message["value"]).replace("<video>", "[video]")
        said.append((" ".join(text.split()), INK if message["from"] == "human" else ANSWER))
    return said


def _wrap(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.font(TEXT).getlength(longer) <= WIDTH or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
