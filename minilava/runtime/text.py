"""Token ids -> text as they arrive, never showing half of a multi-byte character."""

from __future__ import annotations

from minilava.tokenizer import Tokenizer


class TextStream:
    """Feed ids one by one; each call returns the text that has become certain.

    Byte-level tokens may end inside a UTF-8 sequence, so text that ends in U+FFFD waits for more tokens. Only the
    tail is decoded again, which keeps the cost of a long reply linear.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = 0  # first id of the tail that is decoded again
        self.shown = 0  # ids before this one are already in the text

    def add(self, token: int) -> str:
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.start : self.shown])
        now = self.tokenizer.decode(self.ids[self.start :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self.start, self.shown = self.shown, len(self.ids)
        return now[len(before) :]

    def finish(self) -> str:
        """What is left when no more ids come, an incomplete character included."""
        before = self.tokenizer.decode(self.ids[self.start : self.shown])
        now = self.tokenizer.decode(self.ids[self.start :])
        self.start = self.shown = len(self.ids)
        return now[len(before) :]
