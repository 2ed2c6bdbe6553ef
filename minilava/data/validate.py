"""What is wrong with a record: its structure without touching a file, and its media with opening them."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from minilava.config import IMAGE
from minilava.data.record import media_of, media_problem
from minilava.errors import UserError
from minilava.inputs import media, video
from minilava.inputs.chat import ROLES, encode
from minilava.inputs.sample import MARKERS

VIEW_TOKENS = 729  # of one view of the released models; a lone tiled picture takes more
FRAMES = 10  # of a video in training


def problems(record: dict, tokenizer: Any = None, max_tokens: int | None = None) -> list[str]:
    """Everything wrong with a record's structure, one short text each; empty for a good record.

    With a tokenizer and ``max_tokens``, also a record that is too long, its media counted as in ``too_long``.
    """
    found = [text for text in (media_problem(record), _id_problem(record)) if text]
    images, clip = media_of(record)
    if images and clip is not None:
        found.append("has both image and video; keep one")
    found += _preference(record) if is_preference(record) else _conversation(record)
    if not media_problem(record) and not (images and clip is not None):
        found += _placeholders(record)
    if not found and tokenizer is not None and max_tokens is not None:
        found += too_long(record, length(record, tokenizer), max_tokens)
    return found


def is_preference(record: dict) -> bool:
    """A DPO record rather than one of instruction tuning."""
    return "conversations" not in record and any(key in record for key in ("prompt", "chosen", "rejected"))


def in_front(record: dict) -> bool:
    """Its texts have no marker at all, so that its media go in front of the first one; this is no fault."""
    images, clip = media_of(record)
    return bool(images or clip is not None) and not _markers(record)


def length(record: dict, tokenizer: Any = None) -> int:
    """Tokens of the text of a sound record with its chat format; without a tokenizer, words."""
    if is_preference(record):
        answer = max(record["chosen"], record["rejected"], key=len)
        turns = [{"from": "human", "value": record["prompt"]}, {"from": "gpt", "value": answer}]
    else:
        turns = record["conversations"]
    if tokenizer is None:
        return sum(len(text.split()) for turn in turns for text in _texts(_content(turn)))
    ids = encode(turns, tokenizer, "train")
    return len(ids) - ids.count(IMAGE)


def too_long(record: dict, text: int, max_tokens: int) -> list[str]:
    """text: the record's text tokens. Every picture counts 729 and a video ten pictures: at least what they take."""
    images, clip = media_of(record)
    pictures = len(images) + FRAMES * (clip is not None)
    total = text + VIEW_TOKENS * pictures
    if total <= max_tokens:
        return []
    return [f"too long: at least {total:,} tokens ({text:,} of text, {pictures} pictures), more than {max_tokens:,}"]


def _id_problem(record: dict) -> str | None:
    name = record.get("id", record.get("sample_id"))
    if name is None or isinstance(name, str | int):
        return None
    return f"id must be a string or a number, not a {type(name).__name__}"


def _content(turn: dict) -> Any:
    return turn.get("value", turn.get("content"))


def _texts(content: Any) -> Iterator[str]:
    """The texts of a message; a content of parts gives <image> for an image, so that markers can be counted."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict):
                yield "<image>" if part.get("type") == "image" else str(part.get("text"))


def _conversation(record: dict) -> list[str]:
    turns = record.get("conversations")
    if turns is None:
        return ["has no conversations"]
    if not isinstance(turns, list):
        return [f"conversations must be a list, not a {type(turns).__name__}"]
    if not turns:
        return ["conversations is empty"]
    found = [text for i, turn in enumerate(turns) for text in _turn(i + 1, turn)]
    return found or _roles(turns)


def _turn(number: int, turn: Any) -> Iterator[str]:
    if not isinstance(turn, dict):
        yield f"turn {number} must be an object, not a {type(turn).__name__}"
        return
    role, content = turn.get("from", turn.get("role")), _content(turn)
    if not isinstance(role, str) or role not in ROLES:
        yield f"turn {number} is from unknown role {role!r:.40}; known are {', '.join(ROLES)}"
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, dict) and p.get("type") in ("text", "image")]
        if len(parts) < len(content) or any(p["type"] == "text" and not isinstance(p.get("text"), str) for p in parts):
            yield f"turn {number}: every part must be {{type: text, text: ...}} or {{type: image}}"
            return
    elif content is None:
        yield f"turn {number} has no text (value or content)"
        return
    elif not isinstance(content, str):
        yield f"turn {number}: the text must be a string, not a {type(content).__name__}"
        return
    text = "".join(_texts(content))
    if isinstance(role, str) and ROLES.get(role) == "assistant" and not MARKERS.sub("", text).strip():
        yield f"turn {number}: the answer is empty, so nothing would be trained on"
    if not _is_unicode(text):
        yield f"turn {number}: half a surrogate pair (\\ud800 to \\udfff), which is no character"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _roles(turns: Sequence[dict]) -> list[str]:
    names = [turn.get("from", turn.get("role")) for turn in turns]
    first = int(ROLES[names[0]] == "system")
    if "assistant" not in (ROLES[n] for n in names):
        return ["no turn is an answer (gpt or assistant), so nothing would be trained on"]
    if ROLES[names[first]] == "assistant":
        return [f"the first turn is from {names[first]}, not human: roles are swapped, or a question is missing"]
    for i in range(first + 1, len(names)):
        if ROLES[names[i]] == "system":
            return [f"turn {i + 1} is from system, which may only come first"]
        if ROLES[names[i]] == ROLES[names[i - 1]]:
            return [f"turns {i} and {i + 1} are both from {names[i]}: roles must alternate"]
    if ROLES[names[-1]] != "assistant":
        return [f"the last turn is from {names[-1]}: its answer is missing"]
    return []


def _preference(record: dict) -> list[str]:
    found = []
    for field in ("prompt", "chosen", "rejected"):
        text = record.get(field)
        if text is None:
            found.append(f"a preference record without {field!r}")
        elif not isinstance(text, str):
            found.append(f"{field} must be a string, not a {type(text).__name__}")
        elif not _is_unicode(text):
            found.append(f"{field}: half a surrogate pair (\\ud800 to \\udfff), which is no character")
        elif field != "prompt" and not text.strip():
            found.append(f"{field} is empty")
    if not found and record["chosen"].strip() == record["rejected"].strip():
        found.append("chosen and rejected are equal, so there is nothing to prefer")
    return found


def _markers(record: dict) -> int:
    turns = record.get("conversations")
    contents = [_content(turn) for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    texts = [text for content in contents for text in _texts(content)] + list(_texts(record.get("prompt")))
    return sum(len(MARKERS.findall(text)) for text in texts)


def _placeholders(record: dict) -> list[str]:
    images, clip = media_of(record)
    markers, given = _markers(record), len(images) + (clip is not None)
    if markers == given or not markers:
        return []
    what = f"{given} image{'s' * (given != 1)}" if clip is None else f"{given} video{'s' * (given != 1)}"
    return [f"{markers} placeholder{'s' * (markers != 1)} but {what if given else 'no image or video'}"]


def check_media(record: dict, decode: bool = True) -> list[str]:
    """What is wrong with the media of a record whose media are resolved (``records[i]``).

    decode: read every pixel, which alone finds pictures that are cut short. Without it only existence and headers are
    checked, some fifty times faster. Video files are decoded where PyAV is installed.
    """
    images, clip = media_of(record)
    found = []
    for i, source in enumerate(images):
        text = _picture_problem(source, decode)
        if text:
            found.append(f"image {i + 1}: {text}" if len(images) > 1 else text)
    if clip is not None:
        found += _video_problems(clip, decode)
    return found


def _picture_problem(source: Any, decode: bool) -> str | None:
    try:
        if decode or not isinstance(source, str | bytes):
            media.load_image(source)
        else:
            _read_header(source)
    except UserError as e:
        return str(e)
    return None


def _read_header(source: str | bytes) -> None:
    name = media.check_file(source, "picture", media.MAX_BYTES) if isinstance(source, str) else "the picture's bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                size, known = image.size, image.format in media.FORMATS
    except Exception as e:  # Pillow raises nearly every built-in type on hostile bytes
        raise UserError(f"{name}: not a picture, or damaged ({' '.join(str(e).split())})") from None
    if not known or 0 in size or size[0] * size[1] > media.MAX_PIXELS:
        raise UserError(f"{name}: {size[0]} x {size[1]} pixels, or of a format that is not read; convert it to PNG")


def _video_problems(clip: Any, decode: bool) -> list[str]:
    if isinstance(clip, list):
        texts = [(i, _picture_problem(frame, decode)) for i, frame in enumerate(clip)]
        return [f"frame {i + 1}: {text}" for i, text in texts if text]
    try:
        if isinstance(clip, str) and os.path.isdir(clip):
            return _video_problems([str(path) for path in media.picture_files(clip)], decode)
        if isinstance(clip, str):
            media.check_file(clip, "video")
            if not decode or importlib.util.find_spec("av") is None:
                return []
        video.load_video(clip, 1)
    except UserError as e:
        return [str(e)]
    return []
