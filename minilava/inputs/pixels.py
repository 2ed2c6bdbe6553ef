"""Picture -> views: squash, pad or tile (spec 3.1 to 3.4), then the normalised patches that the tower reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from minilava.config import ImageConfig
from minilava.errors import UserError
from minilava.inputs.geometry import as_image_config, canvas, is_anyres, placement
from minilava.inputs.media import MAX_PIXELS
from minilava_kernels.preprocess import patchify, resize, resize_patchify

PAD_GREY = 127  # int(0.5 * 255), the colour around a padded picture; an anyres canvas is black instead


def views(image: Any, config: Any) -> np.ndarray:
    """The views of one picture: uint8 (n, view, view, 3), base view first.

    image: an RGB PIL image or uint8 (H, W, 3). config: as for geometry.feature_rows. Aspect ``anyres`` and
    ``anyres_max_N`` give 1 + tiles views, ``pad`` and everything else (squash) one.
    """
    config = as_image_config(config)
    pixels = as_array(image)
    if is_anyres(config):
        return _tiles(pixels, config)
    if config.image_aspect_ratio == "pad":
        pixels = _pad(pixels)
    return resize(pixels, (config.view, config.view))[None]


def patches(image: Any, config: ImageConfig, patch_size: int) -> Tensor:
    """The same views as float32 patches (n, P, 3 * patch_size ** 2), normalised to [-1, 1]."""
    if is_anyres(config):
        return patchify(views(image, config), patch_size)
    pixels = as_array(image)
    if config.image_aspect_ratio == "pad":
        pixels = _pad(pixels)
    return resize_patchify(pixels, config.view, patch_size)  # one pass from bytes to patches


def as_array(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        image = image.convert("RGB")  # a no-op for RGB
    return np.ascontiguousarray(np.asarray(image))


def _pad(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    side = max(height, width)
    if side * side > MAX_PIXELS:
        raise UserError(
            f"a picture of {width} x {height} has too many pixels once it is padded to a square: crop it, or tile it "
            "(--anyres)"
        )
    square = np.full((side, side, 3), PAD_GREY, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _tiles(pixels: np.ndarray, config: ImageConfig) -> np.ndarray:
    height, width, _ = pixels.shape
    view = config.view
    cw, ch = canvas((width, height), config)
    new_w, new_h, left, top = placement((width, height), (cw, ch))
    board = np.zeros((ch, cw, 3), np.uint8)
    board[top : top + new_h, left : left + new_w] = resize(pixels, (new_w, new_h))
    tiles = board.reshape(ch // view, view, cw // view, view, 3).swapaxes(1, 2).reshape(-1, view, view, 3)
    # One row of tiles makes them a strided view of the board, and concatenate would keep that order.
    return np.ascontiguousarray(np.concatenate([resize(pixels, (view, view))[None], tiles]))
