"""Conversation -> token ids and labels: the published prompt formats, to the id (spec 5).

A recipe is how one code base writes a conversation down:
    authors  the original benchmark script: one newline token after every image (5.5)
    train    the original trainer, current main: whole messages are tokenised at once (5.1 to 5.3)
    hf       the Hugging Face port's chat template: no system block, images before text (5.10)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minilava.config import IGNORE, IMAGE
from minilava.errors import UserError

RECIPES = ("authors", "hf", "train")
LAYOUTS = ("interleaved", "front")
LABELS = ("clean", "main", "older")
SYSTEM = "You are a helpful assistant."
PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

# A message's content as pieces in order: a str is text, None stands for one image.
Pieces = list[str | None]


def encode(
    conversation: Sequence[dict],
    tokenizer: Any,
    recipe: str = "train",
    labels: str | None = None,
    layout: str = "interleaved",
) -> list[int] | tuple[list[int], list[int]]:
    """Token ids of a conversation, each image one IMAGE (-200).

    conversation: messages {"from": "human" | "gpt", "value": text} or {"role": ..., "content": text or a list of
    {"type": "image"} and {"type": "text", "text": ...}}; ``<image>`` in a text stands for an image.
    Without labels, a conversation that ends with the user's turn gets the opening of the assistant's turn.
    With labels, returns (ids, labels) of equal length, IGNORE where no loss is taken: ``clean`` keeps the answers and
    their end token; ``main`` (spec 5.3) and ``older`` (5.4) are the published rules, each with its own ids.
    layout ``front`` puts a message's images before its text, where the markers stay as plain text (paper, technique 2).
    """
    for value, allowed in ((recipe, RECIPES), (layout, LAYOUTS), (labels, (None, *LABELS))):
        if value not in allowed:
            raise UserError(f"{value!r} is not one of {', '.join(str(a) for a in allowed)}")
    if labels == "clean" and recipe == "hf":
        raise UserError("the hf recipe has no label rule: use recipe train or authors")
    recipe = {"main": "train", "older": "authors"}.get(labels, recipe)
    messages = [_parse(m) for m in conversation]
    if labels in ("main", "older") and messages and messages[0][0] != "user":
        messages = messages[1:]  # what both published rules do
    if layout == "front":
        messages = [(role, _to_front(pieces)) for role, pieces in messages]
    if labels == "older":
        _check_older(messages)

    tok = _encoder(tokenizer)
    if recipe != "hf" and (not messages or messages[0][0] != "system"):
        messages = [("system", [SYSTEM]), *messages]
    blocks = [(role, _render(recipe, role, pieces, tok)) for role, pieces in messages]
    ids = [i for _, block in blocks for i in block]
    if labels is None:
        if messages and messages[-1][0] == "user":
            ids += tok("<|im_start|>assistant\n")
        return ids
    return ids, [label for role, block in blocks for label in _label(labels, role, block, tok)]


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """text -> ids, from our Tokenizer or a bare tokenizers.Tokenizer."""

    def encode_text(text: str) -> list[int]:
        if not text:
            return []
        if PLACEHOLDER in text and hasattr(tokenizer, "encode_plain_image"):  # here no text stands for a picture
            return tokenizer.encode_plain_image(text)
        ids = tokenizer.encode(text)
        return ids if isinstance(ids, list) else ids.ids

    return encode_text


def _parse(message: dict) -> tuple[str, Pieces]:
    name = message.get("from", message.get("role"))
    if name not in ROLES:
        raise UserError(f"a message is from {name!r}; known roles are {', '.join(ROLES)}")
    content = message.get("value", message.get("content"))
    if isinstance(content, str):
        return ROLES[name], split_placeholders(content)
    if not isinstance(content, list | tuple):
        raise UserError(f"a message from {name!r} has no text: expected 'value' or 'content'")
    pieces: Pieces = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "text" and isinstance(item.get("text"), str):
            pieces.append(item["text"])
        elif kind == "image":
            pieces.append(None)
        else:
            raise UserError(f"a message part must be a dict with type text or image, not {item!r:.60}")
    return ROLES[name], pieces


def split_placeholders(text: str) -> Pieces:
    """ "a<image>b" -> ["a", None, "b"]."""
    pieces: Pieces = []
    for i, piece in enumerate(text.split(PLACEHOLDER)):
        pieces += [None] * (i > 0) + [piece] * bool(piece)
    return pieces


def _to_front(pieces: Pieces) -> Pieces:
    images = pieces.count(None)
    text = "".join(PLACEHOLDER if p is None else p for p in pieces)
    return [None] * images + ["\n" + text] if images else pieces


def _check_older(messages: list[tuple[str, Pieces]]) -> None:
    for _, pieces in messages:
        if None in pieces[1:]:
            raise UserError("the older label rule takes at most one image per message, at its start")


def _with_images(pieces: Pieces, tok: Callable, image: list[int]) -> list[int]:
    return [i for piece in pieces for i in (image if piece is None else tok(piece))]


def _render(recipe: str, role: str, pieces: Pieces, tok: Callable) -> list[int]:
    """The ids of one closed turn."""
    head, tail = f"<|im_start|>{role}\n", "<|im_end|>\n"
    if recipe == "authors":
        return tok(head) + _with_images(pieces, tok, [IMAGE, *tok("\n")]) + tok(tail)
    if recipe == "hf":
        # A newline that only separated a marker from the text goes with the marker; all else is the caller's.
        after_image = [i > 0 and pieces[i - 1] is None for i in range(len(pieces))]
        texts = [p.removeprefix("\n") if cut else p for p, cut in zip(pieces, after_image, strict=True) if p]
        pieces = [None] * pieces.count(None) + ["\n" + t for t in texts if t]
    # The turn is one string to the tokenizer, so a newline may fuse with its neighbours; images cut the string.
    merged: Pieces = []
    for piece in [head, *pieces, tail]:
        if merged and piece is not None and merged[-1] is not None:
            merged[-1] += piece
        else:
            merged.append(piece)
    return _with_images(merged, tok, [IMAGE])


def _label(rule: str, role: str, block: list[int], tok: Callable) -> list[int]:
    start, end, newline = tok("<|im_start|>"), tok("<|im_end|>"), tok("\n")
    head = tok(f"<|im_start|>{role}\n")
    if block[: len(head)] != head:  # the answer begins with a newline that fused with the head's own
        head = head[:-1]
    answer = role == "assistant"
    if rule == "main":
        kept = {*start, *end, *newline}
        return [IGNORE if i == IMAGE or not (answer or i in kept) else i for i in block]
    body = len(block) - len(head) - len(end) - len(newline)
    content = [IGNORE if i == IMAGE or not answer else i for i in block[len(head) : len(head) + body]]
    if rule == "clean":
        return [IGNORE] * len(head) + content + (end if answer else [IGNORE] * len(end)) + [IGNORE] * len(newline)
    return start + [IGNORE] * (len(head) - len(start)) + content + end + newline
