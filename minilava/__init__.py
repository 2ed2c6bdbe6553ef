"""minilava: a minimal, fast runtime and lean trainer for LLaVA-NeXT-Interleave.

vlm = minilava.load("path/to/checkpoint")
vlm.generate("What changed between <image> and <image>?", images=["a.jpg", "b.jpg"]).text
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["UserError", "load"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that commands which need no torch start at once.
    if name == "load":
        from minilava.runtime.vlm import load

        return load
    if name == "UserError":
        from minilava.errors import UserError

        return UserError
    raise AttributeError(f"module 'minilava' has no attribute {name!r}")
