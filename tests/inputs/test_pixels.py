"""Views of pictures against the original code's hashes, and the placement of tiles and pads."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minilava.config import ImageConfig
from minilava.errors import UserError
from minilava.inputs.pixels import patches, views

ROOT = Path(__file__).parents[1] / "golden"
PICTURES = json.loads((ROOT / "pixels.json").read_text())["pictures"]
GRIDS = json.loads((ROOT / "sequences.json").read_text())["grids"]


@pytest.mark.parametrize("row", PICTURES, ids=lambda r: str(r["size"]))
def test_like_the_original_code(row):
    w, h = row["size"]
    picture = np.random.default_rng(row["rng_seed"]).integers(0, 256, (h, w, 3), np.uint8)
    for aspect, key in (("anyres", "anyres"), ("pad", "pad"), ("square", "squash")):
        config = {"image_aspect_ratio": aspect, "image_grid_pinpoints": GRIDS[row["grid"]]}
        out = views(picture, config)
        assert len(out) == (row["views"] if aspect == "anyres" else 1)
        assert hashlib.sha256(out.tobytes()).hexdigest() == row[f"{key}_uint8_sha256"]


def test_canvas_is_black_and_pad_is_grey():
    white = np.full((100, 400, 3), 255, np.uint8)
    tiles = views(white, ImageConfig())[1:]
    assert (tiles[0, 0] == 0).all() and (tiles[0, 384 // 2] == 255).all()
    assert (views(white, ImageConfig("pad"))[0, 0] == 127).all()


def test_a_square_of_too_many_pixels_is_refused():
    """100,000 x 10 pixels are one million, and 30 GB once they are padded."""
    strip = np.zeros((10, 100_000, 3), np.uint8)
    for make in (views, lambda x, c: patches(x, c, 14)):
        with pytest.raises(UserError, match="100000 x 10 .* square"):
            make(strip, ImageConfig("pad"))


@pytest.mark.parametrize("aspect", ["anyres", "pad", "square"])
def test_patches_are_the_normalised_views(aspect):
    config = ImageConfig(aspect)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    pixels = ((views(picture, config) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
    grid = pixels[:, : 27 * 14, : 27 * 14].reshape(-1, 27, 14, 27, 14, 3).transpose(0, 1, 3, 5, 2, 4)
    np.testing.assert_array_equal(patches(picture, config, 14).numpy(), grid.reshape(len(pixels), 729, 588))
