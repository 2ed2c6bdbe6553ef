"""Token layout against the vectors of the original code, the spec's table, and properties over random sizes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava.config import RELEASED_GRID, ImageConfig
from minilava.errors import UserError
from minilava.inputs.geometry import (
    NEWLINE_POSITIONS,
    feature_rows,
    image_layout,
    parse_grid,
    unpad_box,
    video_layout,
    video_rows,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/sequences.json").read_text())
AM9 = ImageConfig("anyres_max_9", "(1x1),...,(6x6)")
RELEASED = ImageConfig()

TABLE = [  # (size, tokens under the released grid, tokens under the 36-cell grid with anyres_max_9): spec 3.5
    ((384, 384), 1513, 1485),
    ((640, 480), 2929, 2929),
    ((480, 640), 2943, 2943),
    ((768, 768), 3699, 3699),
    ((1000, 300), 2779, 2779),
    ((300, 1000), 2835, 2835),
    ((1920, 1080), 2379, 7269),
    ((2000, 500), 2451, 7249),
    ((333, 517), 1905, 1905),
    ((4000, 100), 975, 1544),
    ((107, 107), 1457, None),
    ((163, 163), 1457, None),
    ((198, 198), 1457, None),
    ((2304, 2304), None, 7371),
]


@pytest.mark.parametrize("row", GOLDEN["images"], ids=lambda r: f"{r['size']}-{r['ratio']}-{r['merge']}")
def test_images_like_the_original_code(row):
    config = {
        "image_aspect_ratio": row["ratio"],
        "image_grid_pinpoints": GOLDEN["grids"][row["grid"]],
        "mm_patch_merge_type": row["merge"],
    }
    rows = feature_rows(tuple(row["size"]), config)
    assert len(rows) == row["tokens"]
    if row["exact"]:
        assert rows.dtype == np.int64
        assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == row["indices_sha256_int64"]
    # The original resampled in float32, whose spacing at row numbers above 16,384 is 2^-9.
    np.testing.assert_allclose(rows[729 : 729 + len(row["head"])], row["head"], rtol=0, atol=0.01)
    np.testing.assert_allclose(rows[len(rows) - len(row["tail"]) :], row["tail"], rtol=0, atol=0.01)
    assert rows.sum() == pytest.approx(row["sum"], rel=1e-6)


@pytest.mark.parametrize("row", GOLDEN["videos"], ids=lambda r: f"{r['frames']}-{r['pool']}-{r['newline']}")
def test_videos_like_the_original_code(row):
    rows = video_rows(row["frames"], RELEASED, row["pool"], row["newline"])
    assert len(rows) == row["tokens"]
    np.testing.assert_allclose(rows[: len(row["head"])], row["head"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(rows[len(rows) - len(row["tail"]) :], row["tail"], rtol=0, atol=1e-3)
    assert rows.sum() == pytest.approx(row["sum"], rel=1e-6)


@pytest.mark.parametrize("size,released,am9", TABLE)
def test_token_table(size, released, am9):
    if released is not None:
        assert image_layout(size, RELEASED).tokens == released
    if am9 is not None:
        assert image_layout(size, AM9).tokens == am9


def test_one_view_images():
    for aspect in ("pad", "square"):
        assert image_layout((640, 480), ImageConfig(aspect)).tokens == 730
        assert image_layout((640, 480), ImageConfig(aspect, mm_patch_merge_type="flat")).tokens == 729


@pytest.mark.parametrize("newline,tokens", [("grid", 6720), ("frame", 6304), ("one_token", 6273), ("no_token", 6272)])
def test_bilinear_video_counts(newline, tokens):
    assert video_layout(32, RELEASED, "bilinear", newline).tokens == tokens


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_maxpool2x2"])
@pytest.mark.parametrize("newline", NEWLINE_POSITIONS)
def test_video_of_a_model_without_a_newline(merge, newline):
    assert video_layout(4, ImageConfig(mm_patch_merge_type=merge), "average", newline).tokens == 4 * 169


def test_grid_strings():
    assert parse_grid("(1x1),...,(2x2)", 384) == [(384, 384), (384, 768), (768, 384), (768, 768)]
    assert parse_grid("[[384, 768], [768, 384]]", 384) == [(384, 768), (768, 384)]
    for bad in ("nonsense", "1x1"):
        with pytest.raises(UserError, match="image_grid_pinpoints"):
            parse_grid(bad, 384)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="pooling"):
        video_layout(1, RELEASED, "median")
    with pytest.raises(UserError, match="newline position"):
        video_layout(1, RELEASED, "max", "middle")
    with pytest.raises(UserError, match="0 x 5"):
        image_layout((0, 5), RELEASED)


sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(size=sizes, aspect=st.sampled_from(["anyres", "anyres_max_4", "anyres_max_9"]), merge=st.sampled_from(
    ["flat", "spatial", "spatial_unpad", "spatial_unpad_nobase", "spatial_maxpool2x2"]
), grid=st.sampled_from([RELEASED_GRID, "(1x1),...,(6x6)"]))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_layout_is_consistent(size, aspect, merge, grid):
    config = ImageConfig(aspect, grid, merge)
    layout = image_layout(size, config)
    rows, mixed = layout.views * 729, 0 if layout.taps is None else len(layout.taps)
    # A picture thinner than one row of the map leaves nothing of it, as upstream; without a base, no token at all.
    assert layout.source.min(initial=-1) >= -1 and layout.source.max(initial=-1) < rows + mixed
    used = layout.source[layout.source >= 0]
    assert len(np.unique(used)) == len(used)  # no row lands twice
    if layout.taps is not None:
        assert layout.taps.min() >= 729 and layout.taps.max() < rows  # only tiles are mixed, never the base view
        assert set(range(rows, rows + mixed)) <= set(used.tolist())
    if layout.weights is not None:
        np.testing.assert_allclose(layout.weights.sum(1), 1)


@given(size=sizes, cols=st.integers(1, 6), rows=st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_unpad_box_is_centred(size, cols, rows):
    top, bottom, left, right = unpad_box(size, cols * 27, rows * 27)
    assert top == rows * 27 - bottom and left == cols * 27 - right and (top == 0 or left == 0)
