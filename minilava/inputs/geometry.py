"""Integer geometry: from a picture's size to its tiles, and from views to the feature row behind every token.

This is the only place that decides token counts, so the counts can never disagree with the features (spec 3.4, 3.5,
4.3). Sizes are (width, height). A feature row is numbered view * P + patch with P = side * side.

    best_resolution -> placement            which canvas a picture is tiled on, and where it sits there
    image_layout / video_layout -> Layout   which row lands on which token
    feature_rows / video_rows               the same as plain numbers, for people and tests
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilava.config import ImageConfig
from minilava.errors import UserError

NEWLINE = -1
POOLS = ("none", "average", "max", "bilinear")
NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one medium (an image with its tiles, or a pooled video) come from.

    views: how many views are encoded. source: int64 (T,), a feature row, NEWLINE, or views * P + m for mixed row m.
    taps: int64 (M, 4), the feature rows that mixed row m is made of. weights: float64 (M, 4) of their weighted sum,
    or None for their maximum.
    """

    views: int
    source: np.ndarray
    taps: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def tokens(self) -> int:
        return len(self.source)

    def numbers(self, side: int) -> np.ndarray:
        """What the layout does to the row numbers themselves: int64 where every token is one row, else float64."""
        if self.taps is None:
            return self.source
        mixed = self.taps.max(1) if self.weights is None else (self.taps * self.weights).sum(1)
        bank = np.concatenate([np.arange(self.views * side * side), mixed, [NEWLINE]])
        return bank[self.source]


def as_image_config(config: Any) -> ImageConfig:
    """Accept an ImageConfig, a ModelConfig, or a mapping with the field names of a checkpoint's config.json."""
    if isinstance(config, ImageConfig):
        return config
    if isinstance(config, Mapping):
        known = {k: v for k, v in config.items() if k in ImageConfig.__dataclass_fields__}
        return ImageConfig(**known)
    return config.image


def parse_grid(pinpoints: Any, view: int) -> list[tuple[int, int]]:
    """The canvas sizes of ``image_grid_pinpoints``: a list, its text, or a range "(1x1),...,(6x6)" in views."""
    if isinstance(pinpoints, str):
        if "x" in pinpoints:
            pairs = re.findall(r"\((\d+)x(\d+)\)", pinpoints)
            if not pairs:
                raise UserError(f"image_grid_pinpoints {pinpoints!r} is not a range such as (1x1),...,(6x6)")
            (a, b), (c, d) = (tuple(map(int, pairs[i])) for i in (0, -1))
            return [(view * i, view * j) for i in range(a, c + 1) for j in range(b, d + 1)]
        try:
            pinpoints = ast.literal_eval(pinpoints)
        except (ValueError, SyntaxError):
            raise UserError(f"image_grid_pinpoints {pinpoints!r} is not a list of (width, height)") from None
    return [(int(w), int(h)) for w, h in pinpoints]


def best_resolution(size: tuple[int, int], grid: list[tuple[int, int]]) -> tuple[int, int]:
    """The canvas that keeps most of the picture's pixels, then wastes least; the first of equals (spec 3.4)."""
    width, height = size
    best, best_kept, best_waste = grid[0], -1, math.inf
    for w, h in grid:
        scale = min(w / width, h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = w * h - kept
        if kept > best_kept or (kept == best_kept and waste < best_waste):
            best, best_kept, best_waste = (w, h), kept, waste
    return best


def placement(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """(new width, new height, left, top) of a picture resized into a canvas and centred (spec 3.4)."""
    (width, height), (cw, ch) = size, canvas
    scale_w, scale_h = cw / width, ch / height
    if scale_w < scale_h:
        new_w, new_h = cw, min(math.ceil(height * scale_w), ch)
    else:
        new_w, new_h = min(math.ceil(width * scale_h), cw), ch
    return new_w, new_h, (cw - new_w) // 2, (ch - new_h) // 2


def unpad_box(size: tuple[int, int], cols: int, rows: int) -> tuple[int, int, int, int]:
    """(row begin, row end, column begin, column end) of the map that the picture covers (spec 3.5).

    The float order (scale first, then multiply, then truncate) is upstream's: a correctly rounded version keeps one
    more row for sizes such as 107 x 107.
    """
    width, height = size
    if width / height > cols / rows:
        scale = cols / width
        pad = (rows - int(height * scale)) // 2
        return pad, rows - pad, 0, cols
    scale = rows / height
    pad = (cols - int(width * scale)) // 2
    return 0, rows, pad, cols - pad


def is_anyres(config: ImageConfig) -> bool:
    return config.image_aspect_ratio == "anyres" or "anyres_max" in config.image_aspect_ratio


def canvas(size: tuple[int, int], config: ImageConfig) -> tuple[int, int]:
    """The pixels (width, height) of the canvas whose tiles follow the base view of an anyres picture."""
    if min(size) < 1:
        raise UserError(f"a picture of {size[0]} x {size[1]} pixels has nothing in it")
    grid = parse_grid(config.image_grid_pinpoints, config.view)
    if any(w % config.view or h % config.view or min(w, h) < 1 for w, h in grid):
        raise UserError(f"image_grid_pinpoints {grid} are not all multiples of the view, {config.view} pixels")
    return best_resolution(size, grid)


def image_layout(size: tuple[int, int], config: ImageConfig) -> Layout:
    """The tokens of one picture of ``size`` (width, height) under a checkpoint's merge type (spec 3.5)."""
    merge, side = config.mm_patch_merge_type, config.side
    patches = side * side
    if not is_anyres(config):
        newline = [NEWLINE] if merge.startswith("spatial") and "unpad" in merge else []
        return Layout(1, np.concatenate([np.arange(patches), np.array(newline, np.int64)]))
    cw, ch = canvas(size, config)
    gw, gh = cw // config.view, ch // config.view
    views = 1 + gw * gh
    if not merge.startswith("spatial"):
        return Layout(views, np.arange(views * patches))
    base = np.arange(0 if "nobase" in merge else patches)
    tiles = (patches + np.arange(gh * gw * patches)).reshape(gh, gw, side, side)
    rows = tiles.transpose(0, 2, 1, 3).reshape(gh * side, gw * side)  # one spatially contiguous map
    if "maxpool2x2" in merge:
        taps = pool_taps(rows)
        return Layout(views, np.concatenate([base, views * patches + np.arange(len(taps))]), taps)
    if "unpad" not in merge:
        return Layout(views, np.concatenate([base, rows.ravel()]))
    top, bottom, left, right = unpad_box(size, rows.shape[1], rows.shape[0])
    rows = rows[top:bottom, left:right]
    taps = weights = None
    shape = _anyres_max(rows.shape, config)
    if shape != rows.shape:
        taps, weights = bilinear_taps(rows, *shape)
        rows = views * patches + np.arange(shape[0] * shape[1]).reshape(shape)
    return Layout(views, np.concatenate([base, _newline_column(rows).ravel()]), taps, weights)


def _anyres_max(shape: tuple[int, int], config: ImageConfig) -> tuple[int, int]:
    """The map's size after the anyres_max_N rule: unchanged unless it exceeds N views by more than 1.1 squared."""
    match = re.search(r"anyres_max_(\d+)", config.image_aspect_ratio)
    if match is None:
        return shape
    h, w = shape
    t = math.sqrt(h * w / (int(match.group(1)) * config.side**2))
    return (int(h // t), int(w // t)) if t > 1.1 else shape


def video_layout(frames: int, config: ImageConfig, pool: str, newline: str = "grid") -> Layout:
    """The tokens of one pooled video (spec 4.3). Unpooled videos are not this: their frames are ordinary images.

    pool: average or max (floor(side / 2) per side) or bilinear (ceil). newline: grid, frame, one_token or no_token.
    """
    side = config.side
    if newline not in NEWLINE_POSITIONS:
        raise UserError(f"newline position {newline!r} is not one of {', '.join(NEWLINE_POSITIONS)}")
    if pool not in POOLS[1:]:
        raise UserError(f"pooling {pool!r} is not one of {', '.join(POOLS[1:])}")
    rows = np.arange(side * side).reshape(side, side)
    weights = None
    if pool == "bilinear":
        s = (side + 1) // 2
        taps, weights = bilinear_taps(rows, s, s)
    else:
        s, taps = side // 2, pool_taps(rows)
        weights = np.full(taps.shape, 0.25) if pool == "average" else None
    frame_taps = (taps[None] + np.arange(frames)[:, None, None] * side * side).reshape(-1, 4)
    grid = frames * side * side + np.arange(frames * s * s).reshape(frames, s * s)
    if "unpad" not in config.mm_patch_merge_type:  # the model then has no newline vector
        newline = "no_token"
    if newline == "grid":
        source = _newline_column(grid.reshape(frames * s, s)).ravel()
    elif newline == "frame":
        source = _newline_column(grid).ravel()
    elif newline == "one_token":
        source = np.append(grid.ravel(), NEWLINE)
    else:
        source = grid.ravel()
    return Layout(frames, source, frame_taps, None if weights is None else np.tile(weights, (frames, 1)))


def pool_taps(rows: np.ndarray) -> np.ndarray:
    """int64 (M, 4): the four rows of each 2 x 2 window of a map; an odd last row or column is left out."""
    h, w = rows.shape[0] // 2 * 2, rows.shape[1] // 2 * 2
    return np.stack([rows[i:h:2, j:w:2].ravel() for i in (0, 1) for j in (0, 1)], 1)


def bilinear_taps(rows: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Taps and weights of a bilinear resize of a map (half-pixel centres, no antialias), each (height * width, 4)."""

    def axis(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.maximum((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0)
        low = at.astype(np.int64)
        return low, np.minimum(low + 1, n_in - 1), at - low

    top, bottom, fy = axis(rows.shape[0], height)
    left, right, fx = axis(rows.shape[1], width)
    taps = [rows[np.ix_(y, x)] for y in (top, bottom) for x in (left, right)]
    weights = [np.outer(y, x) for y in (1 - fy, fy) for x in (1 - fx, fx)]
    return np.stack([t.ravel() for t in taps], 1), np.stack([w.ravel() for w in weights], 1)


def _newline_column(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.full((len(rows), 1), NEWLINE)], 1)


def feature_rows(size: tuple[int, int], config: Any) -> np.ndarray:
    """Which feature row lands on which token of one picture; newline -1.

    size: (width, height). config: an ImageConfig, a ModelConfig, or a mapping with image_aspect_ratio,
    image_grid_pinpoints and mm_patch_merge_type. Returns int64 (tokens,). A max-pooled token carries the last row of
    its window. Where anyres_max resamples the map a token is a mixture of rows, and the array is float64.
    """
    config = as_image_config(config)
    return image_layout(size, config).numbers(config.side)


def video_rows(frames: int, config: Any, pool: str, newline: str = "grid") -> np.ndarray:
    """As feature_rows, for a pooled video of ``frames`` frames."""
    config = as_image_config(config)
    return video_layout(frames, config, pool, newline).numbers(config.side)
