"""One self-contained HTML page of a run: the pictures, question, answer, reference and score of its samples."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files

from PIL import Image

from minilava.errors import UserError
from minilava.eval.item import Item
from minilava.inputs.messages import load_media

SIDE = 192  # of a thumbnail
RIGHT = 0.5  # a score from here on counts as right


def page(items: Iterable[Item], lines: Sequence[dict], settings: dict, frames: int, per_task: int) -> str:
    """The page as text. per_task: how many samples of a data set it holds, since every picture is inside; 0: all."""
    by_id: dict[str, list[dict]] = {}
    for line in lines:
        by_id.setdefault(line["id"], []).append(line)
    shown: Counter[str] = Counter()
    samples = []
    for item in items:
        if item.id not in by_id or per_task and shown[item.task] >= per_task:
            continue
        shown[item.task] += 1
        samples += [_sample(line, _thumbnails(item, frames) if i == 0 else []) for i, line in enumerate(by_id[item.id])]
    data = json.dumps({"settings": settings, "samples": samples, "of": len(lines)}, ensure_ascii=False)
    # Text of strangers: the browser must find no end of the script in it. It is only ever shown as text.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return (files("minilava.eval") / "page.html").read_text("utf-8").replace("DATA_OF_THE_RUN", data)


def _sample(line: dict, pictures: list[str]) -> dict:
    reference = line.get("reference", "")
    return {
        "id": line["id"],
        "task": line["task"],
        "question": line.get("question", ""),
        "reference": reference if isinstance(reference, str) else " | ".join(reference),
        "answer": line.get("answer", line.get("error", "")),
        "score": line["score"],
        "right": None if line["score"] is None else line["score"] >= RIGHT,
        "pictures": pictures,
    }


def _thumbnails(item: Item, frames: int) -> list[str]:
    """Data addresses of the item's pictures; of none where they cannot be read."""
    try:
        media = load_media(item.media(), frames, "none")
    except UserError:
        return []
    return [_address(frame) for medium in media for frame in medium.frames]


def _address(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    small.save(held, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
