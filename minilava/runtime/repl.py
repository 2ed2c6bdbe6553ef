"""A conversation in the terminal: text turns, media attached to the next turn, earlier ones kept."""

from __future__ import annotations

import sys
from typing import Any

from minilava.errors import UserError
from minilava.inputs.messages import load_media
from minilava.inputs.sample import Medium, place_media
from minilava.runtime.vlm import VLM

MAX_LINE = 1 << 22
HELP = "/image FILE, /video FILE and /views DIR attach to the next message; /reset starts over; /quit ends"


def chat(vlm: VLM, media: list[tuple[str, Any]], options: dict) -> None:
    """Read turns from stdin until /quit or end of file. media: (kind, source) pairs attached to the first turn.
    A bad file or an overlong conversation is reported and the conversation goes on as it was."""
    frames, pool = vlm.take_frames(options)
    attached = load_media(media, frames, pool)
    messages: list[dict] = []
    _say(HELP)
    while True:
        try:
            line = _ask(attached)
        except EOFError:
            return
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            if word == "/reset":
                messages, attached = [], []
                _say("the conversation starts over")
            elif word in ("/image", "/video", "/views"):
                attached += load_media([(word[1:], rest.strip())], frames, pool)
            elif word.startswith("/"):
                _say(f"unknown command {word}. {HELP}")
            elif line:
                turn = {"role": "user", "content": place_media(line, attached)}
                answer = _answer(vlm, [*messages, turn], options)
                messages += [turn, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
                attached = []
        except UserError as e:
            _say(f"minilava: error: {e}")


def _ask(attached: list[Medium]) -> str:
    if not sys.stdin.isatty():
        try:
            line = sys.stdin.readline(MAX_LINE + 1)
        except UnicodeDecodeError:
            raise UserError("stdin is not UTF-8") from None
        if not line:
            raise EOFError
        if len(line) > MAX_LINE:  # the rest of it is still unread, so there is no going on
            raise UserError(f"a line on stdin is longer than {MAX_LINE} characters")
        return line.strip()
    kinds = ", ".join(m.kind for m in attached)
    return input(f"[{kinds}] > " if kinds else "> ").strip()


def _answer(vlm: VLM, messages: list[dict], options: dict) -> str:
    stream = vlm.answer(vlm.request(messages, **options))
    for piece in stream:
        print(piece, end="", flush=True)
    print(flush=True)
    return stream.reply.text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
