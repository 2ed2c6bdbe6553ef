"""Checkpoints on disk, in both dialects: open and check, load, write, convert, make random ones."""

from minilava.checkpoint.convert import convert
from minilava.checkpoint.names import canonical, expected, stored
from minilava.checkpoint.reader import Checkpoint, find_non_finite, load_tensors, open_checkpoint
from minilava.checkpoint.synthetic import write_random
from minilava.checkpoint.writer import Source, write_checkpoint

__all__ = [
    "Checkpoint",
    "Source",
    "canonical",
    "convert",
    "expected",
    "find_non_finite",
    "load_tensors",
    "open_checkpoint",
    "stored",
    "write_checkpoint",
    "write_random",
]
