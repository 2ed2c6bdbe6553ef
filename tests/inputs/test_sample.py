"""Placement of media in a prompt, and packing: every feature row lands where the layout says, on the right sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minilava.config import IGNORE, IMAGE, ImageConfig
from minilava.errors import UserError
from minilava.inputs.geometry import NEWLINE, image_layout, video_layout
from minilava.inputs.pack import check_length, pack
from minilava.inputs.sample import Medium, Sample, place_media

P = 16  # patches of a view in these tests
CONFIGS = [
    ImageConfig(aspect, ((56, 112), (112, 56), (112, 112)), merge, 56, 4)
    for aspect in ("square", "anyres", "anyres_max_1")
    for merge in ("flat", "spatial_unpad", "spatial_maxpool2x2")
]
PICTURE = Image.new("RGB", (8, 8))


def kinds(parts):
    return [p["media"].kind if p["type"] == "media" else p["text"] for p in parts]


def test_markers_take_media_by_kind_and_the_rest_go_in_front():
    image, other, video = Medium("image", [PICTURE]), Medium("image", [PICTURE] * 1), Medium("video", [PICTURE] * 3)
    assert kinds(place_media("a <video> b <image>", [image, video])) == ["a ", "video", " b ", "image"]
    parts = place_media("see <image>", [image, other])
    assert parts[0]["media"] is other and kinds(parts) == ["image", "\nsee ", "image"]
    assert kinds(place_media("<image>", [video])) == ["video"]
    assert kinds(place_media("x", [])) == ["x"]
    for text, media in (("<image><image>", [image]), ("<video>", [image])):
        with pytest.raises(UserError):
            place_media(text, media)


def test_pooled_video_is_one_placeholder():
    assert Medium("video", [PICTURE] * 5).placeholders == 5
    assert Medium("video", [PICTURE] * 5, "max").placeholders == 1


def random_sample(rng, tag):
    layouts = []
    for _ in range(rng.integers(0, 4)):
        config = CONFIGS[rng.integers(len(CONFIGS))]
        if rng.random() < 0.3:
            pool = ["average", "max", "bilinear"][rng.integers(3)]
            layouts.append(video_layout(int(rng.integers(1, 4)), config, pool, "frame"))
        else:
            layouts.append(image_layout(tuple(int(i) for i in rng.integers(1, 300, 2)), config))
    ids = [tag]
    for _ in layouts:
        ids += [IMAGE] + [tag] * int(rng.integers(0, 3))
    labels = [IGNORE if i == IMAGE else i for i in ids]
    return Sample(ids, layouts, [torch.zeros(la.views, P, 3) for la in layouts], labels)


@given(st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_rows_land_where_the_layout_says(seed):
    """Feature row r carries the number r; spliced, every token must show the numbers its own layout promises."""
    rng = np.random.default_rng(seed)
    samples = [random_sample(rng, i + 1) for i in range(rng.integers(1, 5))]
    packed = pack(samples, P)
    views = sum(la.views for s in samples for la in s.layouts)
    bank = torch.arange(views * P, dtype=torch.float64)
    if packed.mix_taps is not None:
        bank = torch.cat([bank, (bank[packed.mix_taps] * packed.mix_weights.double()).sum(1)])
    if packed.max_taps is not None:
        bank = torch.cat([bank, bank[packed.max_taps].amax(1)])
    bank = torch.cat([bank, torch.tensor([float(NEWLINE)], dtype=torch.float64)])
    tokens = packed.ids.double()
    if packed.splice_rows is not None:
        tokens[packed.splice_rows] = bank[packed.splice_source]
        assert len(packed.splice_rows.unique()) == len(packed.splice_rows)

    expected, labels, view = [], [], 0
    for s in samples:
        layouts = iter(s.layouts)
        for i, label in zip(s.ids, s.labels, strict=True):
            if i != IMAGE:
                expected.append(np.array([i]))
                labels.append([label])
                continue
            layout = next(layouts)
            numbers = layout.numbers(4)
            expected.append(np.where(layout.source == NEWLINE, NEWLINE, numbers + view * P))
            labels.append([IGNORE] * layout.tokens)
            view += layout.views
    np.testing.assert_allclose(tokens.numpy(), np.concatenate(expected), atol=1e-4)
    assert packed.labels.tolist() == [x for part in labels for x in part]
    assert packed.lengths == tuple(s.tokens for s in samples)
    assert packed.positions.tolist() == [i for n in packed.lengths for i in range(n)]
    assert packed.cu_seqlens.tolist() == [0, *np.cumsum(packed.lengths)]


def test_counts_that_differ_are_refused():
    with pytest.raises(UserError, match="1 image placeholders but 0 images"):
        pack([Sample([IMAGE], [])], P)


def test_overlong_sample_is_refused_with_the_counts():
    sample = Sample([1, IMAGE, 2], [image_layout((10, 10), CONFIGS[0])])
    check_length(sample, 18)
    with pytest.raises(UserError, match=r"18 tokens \(16 of them from 1 images\) and 3 new tokens exceed .* 20"):
        check_length(sample, 20, reserve=3)


def test_recipes_fix_the_pixels(tiny):
    """Spec 3.6: what is tiled, padded and squashed, and that frames never are tiled."""
    from minilava.config import ModelConfig
    from minilava.inputs.sample import Recipe

    config = ModelConfig.load(tiny)

    def aspect(name, kind, lone=False, anyres=None):
        return Recipe(name, anyres=anyres).image_config(config, kind, lone).image_aspect_ratio

    assert aspect("train", "image", lone=True) == "anyres" and aspect("train", "image") == "pad"
    assert aspect("train", "image", lone=True, anyres=False) == "pad"
    for name in ("authors", "hf"):
        assert aspect(name, "image", lone=True) == "square" and aspect(name, "image", anyres=True) == "anyres"
    for name in ("authors", "hf", "train"):
        assert aspect(name, "video", anyres=True) == aspect(name, "video") == "square"
    assert aspect("train", "views", anyres=True) == "pad"
    assert Recipe("hf").image_config(config).mm_patch_merge_type == "flat"
