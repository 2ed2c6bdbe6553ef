"""What a run says: one JSON line per step on disk, a progress bar for people, TensorBoard if asked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from minilava.errors import UserError

LOG = "log.jsonl"


class Log:
    """OUT/log.jsonl. ``step``: where the run (re)starts; lines of later steps, which will be run again, are dropped."""

    def __init__(self, out: Path, step: int, steps: int, tensorboard: bool = False):
        self.path = out / LOG
        kept = [line for line in read_log(out) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        with self._writing():
            self.path.with_suffix(".tmp").write_text(text, "utf-8")
            os.replace(self.path.with_suffix(".tmp"), self.path)
            self.file = open(self.path, "a", encoding="utf-8")
        self.bar = tqdm(total=steps, initial=step, unit="step", desc="training", dynamic_ncols=True, file=sys.stderr,
                        disable=None)  # fmt: skip
        self.board = _board(out) if tensorboard else None

    def write(self, row: dict) -> None:
        """One step's figures. Numbers are plain Python ones; ``loss`` and ``step`` are among them."""
        with self._writing():
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        self.bar.update(row["step"] - self.bar.n)
        self.bar.set_postfix_str(
            f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s, {row['images_per_s']:.0f} images/s"
        )
        for key, value in row.items() if self.board else ():
            if isinstance(value, int | float):
                self.board.add_scalar(key, value, row["step"])

    def close(self) -> None:
        self.bar.close()
        with suppress(OSError):  # what a full disk refused is still in the buffer
            self.file.close()
        if self.board:
            self.board.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise UserError(f"cannot write {self.path}: {e.strerror or e}") from None


def read_log(out: Path) -> list[dict]:
    """The lines of a run's log so far. A last line that a kill cut in half is left out."""
    path = Path(out) / LOG
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _board(out: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("tensorboard: true needs it installed: pip install tensorboard") from None
    return SummaryWriter(out / "tensorboard")
