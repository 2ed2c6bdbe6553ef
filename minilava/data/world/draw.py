"""Pictures of the world: anti-aliased silhouettes from a cache, text, and nothing that varies between machines.

A picture is S x S pixels and has 3 x 3 cells. Sprites are masks drawn once at four times their size, so placing one
costs microseconds.
"""

from __future__ import annotations

import math
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 210, 30),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (135, 55, 175),
    "pink": (245, 130, 180),
    "black": (30, 30, 30),
}
BACKGROUNDS = {"white": (252, 252, 252), "gray": (205, 205, 205), "beige": (240, 225, 195), "cyan": (200, 240, 245)}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
OBJECTS = ("house", "tree", "car", "boat", "fish", "cup")
KINDS = SHAPES + OBJECTS
SIZES = {"small": 0.17, "large": 0.29}  # of the picture's side
OVERSAMPLE = 4


def canvas(size: int | tuple[int, int], background: str | tuple[int, int, int] = "white") -> Image.Image:
    """An empty picture; size: one side in pixels, or (width, height)."""
    color = BACKGROUNDS[background] if isinstance(background, str) else background
    return Image.new("RGB", (size, size) if isinstance(size, int) else size, color)


def place(picture: Image.Image, kind: str, color: str | tuple, x: float, y: float, pixels: int, turn: int = 0) -> None:
    """Draw one silhouette of ``pixels`` x ``pixels`` with its centre at (x, y). turn: degrees anticlockwise."""
    fill = COLORS[color] if isinstance(color, str) else color
    picture.paste(fill, (round(x - pixels / 2), round(y - pixels / 2)), sprite(kind, pixels, turn % 360))


@lru_cache(4096)
def sprite(kind: str, pixels: int, turn: int = 0) -> Image.Image:
    """The mask (mode L) of a silhouette."""
    side = pixels * OVERSAMPLE
    mask = Image.new("L", (side, side))
    _SILHOUETTES[kind](ImageDraw.Draw(mask), side)
    if turn:
        mask = mask.rotate(turn, Image.Resampling.BICUBIC)
    return mask.resize((pixels, pixels), Image.Resampling.BOX)


@lru_cache(64)
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: the same glyphs on every machine."""
    return ImageFont.load_default(pixels)


def write(picture: Image.Image, text: str, x: float, y: float, pixels: int, color: str | tuple = "black") -> None:
    """Write ``text`` with its middle at (x, y), letters ``pixels`` high."""
    fill = COLORS[color] if isinstance(color, str) else color
    ImageDraw.Draw(picture).text((x, y), text, fill, font(pixels), anchor="mm")


def _points(draw: ImageDraw.ImageDraw, s: int, *points: tuple[float, float], fill: int = 255) -> None:
    draw.polygon([(x * (s - 1), y * (s - 1)) for x, y in points], fill)


def _box(draw: ImageDraw.ImageDraw, s: int, x0: float, y0: float, x1: float, y1: float, fill: int = 255) -> None:
    draw.rectangle([x0 * (s - 1), y0 * (s - 1), x1 * (s - 1), y1 * (s - 1)], fill)


def _disc(draw: ImageDraw.ImageDraw, s: int, x: float, y: float, r: float, fill: int = 255) -> None:
    draw.ellipse([(x - r) * (s - 1), (y - r) * (s - 1), (x + r) * (s - 1), (y + r) * (s - 1)], fill)


def _star(d, s):
    radii = ((0.5, 0.21)[i % 2] for i in range(10))
    _points(
        d,
        s,
        *((0.5 + r * math.sin(i * math.pi / 5), 0.52 - r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)),
    )


def _heart(d, s):
    _disc(d, s, 0.27, 0.30, 0.26)
    _disc(d, s, 0.73, 0.30, 0.26)
    _points(d, s, (0.05, 0.43), (0.5, 0.97), (0.95, 0.43), (0.5, 0.25))


def _ring(d, s):
    _disc(d, s, 0.5, 0.5, 0.5)
    _disc(d, s, 0.5, 0.5, 0.26, 0)


def _cross(d, s):
    _box(d, s, 0.34, 0, 0.66, 1)
    _box(d, s, 0, 0.34, 1, 0.66)


def _house(d, s):
    _points(d, s, (0, 0.45), (0.5, 0), (1, 0.45))
    _box(d, s, 0.12, 0.45, 0.88, 1)
    _box(d, s, 0.4, 0.62, 0.6, 1, 0)


def _tree(d, s):
    _points(d, s, (0.5, 0), (0.9, 0.42), (0.1, 0.42))
    _points(d, s, (0.5, 0.22), (1, 0.76), (0, 0.76))
    _box(d, s, 0.4, 0.76, 0.6, 1)


def _car(d, s):
    _points(d, s, (0.2, 0.5), (0.32, 0.2), (0.68, 0.2), (0.82, 0.5))
    _box(d, s, 0, 0.46, 1, 0.74)
    _box(d, s, 0.36, 0.28, 0.48, 0.45, 0)
    _box(d, s, 0.54, 0.28, 0.66, 0.45, 0)
    _disc(d, s, 0.25, 0.76, 0.14)
    _disc(d, s, 0.75, 0.76, 0.14)


def _boat(d, s):
    _points(d, s, (0, 0.66), (1, 0.66), (0.8, 0.98), (0.2, 0.98))
    _points(d, s, (0.46, 0), (0.46, 0.6), (0.05, 0.6))
    _points(d, s, (0.54, 0.12), (0.54, 0.6), (0.9, 0.6))


def _fish(d, s):
    d.ellipse([0.22 * s, 0.2 * s, s - 1, 0.8 * s], 255)
    _points(d, s, (0, 0.2), (0.36, 0.5), (0, 0.8))
    _disc(d, s, 0.78, 0.42, 0.06, 0)


def _cup(d, s):
    _disc(d, s, 0.74, 0.45, 0.26)
    _disc(d, s, 0.74, 0.45, 0.13, 0)
    _points(d, s, (0.05, 0.12), (0.75, 0.12), (0.65, 0.95), (0.15, 0.95))


_SILHOUETTES = {
    "circle": lambda d, s: _disc(d, s, 0.5, 0.5, 0.5),
    "square": lambda d, s: _box(d, s, 0.04, 0.04, 0.96, 0.96),
    "triangle": lambda d, s: _points(d, s, (0.5, 0.04), (1, 0.96), (0, 0.96)),
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "cross": _cross,
    "diamond": lambda d, s: _points(d, s, (0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)),
    "house": _house,
    "tree": _tree,
    "car": _car,
    "boat": _boat,
    "fish": _fish,
    "cup": _cup,
}
