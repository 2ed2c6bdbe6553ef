"""The suites by name, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from minilava.eval.item import Suite

SUITES = {
    "interleave-bench": ("bench", "INTERLEAVE"),
    "video": ("video", "VIDEO_SUITE"),
    "3d": ("bench", "THREE_D"),
    "single": ("single", "SINGLE"),
    "world": ("world", "WORLD"),
    "emerging": ("emerging", "EMERGING"),
}


def suite(name: str) -> Suite:
    module, attribute = SUITES[name]
    return getattr(import_module(f"minilava.eval.{module}"), attribute)
