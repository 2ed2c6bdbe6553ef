"""Messages and media as a caller names them, files or pictures -> with their frames decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minilava.errors import UserError
from minilava.inputs.media import load_image, load_views
from minilava.inputs.sample import Medium
from minilava.inputs.video import load_video


def load_media(media: Sequence[tuple[str, Any]], frames: int, pool: str) -> list[Medium]:
    """(kind, source) pairs -> Medium with decoded frames. frames and pool apply to the videos."""
    return [_load_medium(kind, source, frames, pool) for kind, source in media]


def _load_medium(kind: str, source: Any, frames: int, pool: str) -> Medium:
    if kind == "image":
        return Medium("image", [load_image(source)])
    if kind == "video":
        return Medium("video", load_video(source, frames), pool)
    return Medium("views", load_views(source))


def load_message(message: dict, frames: int, pool: str) -> dict:
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise UserError(f"a message needs a 'content' that is a text or a list of parts, not {content!r:.60}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "video", "views") and kind in part:
            parts.append({"type": "media", "media": _load_medium(kind, part[kind], frames, pool)})
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part)
        else:
            raise UserError(f"a message part needs a type of text, image, video or views and its value: {part!r:.80}")
    return {"role": message.get("role"), "content": parts}
