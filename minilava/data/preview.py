"""Prints the first samples of a packed batch so that a person sees what is trained on and what is not."""

from __future__ import annotations

import os
import re
import sys
from itertools import groupby
from typing import Any, TextIO

import numpy as np

from minilava.config import IGNORE
from minilava.packed import Packed

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
# Data is from strangers: a record must not be able to move the cursor or rename the terminal's window.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def preview(packed: Packed, tokenizer: Any, file: TextIO | None = None, samples: int = 2) -> None:
    """Text that is trained on in green, the rest in grey, images as "[36 image tokens]".

    Where ``file`` (stdout by default) is no terminal, or NO_COLOR is set, what is trained on stands in «».
    """
    file = sys.stdout if file is None else file
    colour = file.isatty() and not os.environ.get("NO_COLOR")
    trained, rest = ((GREEN, RESET), (GREY, RESET)) if colour else (("«", "»"), ("", ""))
    images = np.zeros(packed.tokens, bool)
    if packed.splice_rows is not None:
        images[packed.splice_rows.cpu().numpy()] = True
    ids = packed.ids.cpu().numpy()
    labelled = np.zeros_like(images) if packed.labels is None else packed.labels.cpu().numpy() != IGNORE
    ends = np.cumsum(packed.lengths)
    for s in range(min(samples, len(ends))):
        rows = range(int(ends[s]) - packed.lengths[s], int(ends[s]))
        print(_heading(s, images[rows], labelled[rows]), file=file)
        for (is_image, is_trained), run in groupby(rows, key=lambda row: (images[row], labelled[row])):
            run = list(run)
            before, after = trained if is_trained else rest
            text = f"[{len(run)} image tokens]" if is_image else _text(ids[run].tolist(), tokenizer)
            print(before + text + after, end="", file=file)
        print(file=file)


def _heading(s: int, images: np.ndarray, labelled: np.ndarray) -> str:
    share = 100 * labelled.mean() if len(labelled) else 0
    return (
        f"sample {s + 1}: {len(images)} tokens, {images.sum()} of images, {labelled.sum()} trained on ({share:.1f} %)"
    )


def _text(ids: list[int], tokenizer: Any) -> str:
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", tokenizer.decode(ids, skip_special=False))
