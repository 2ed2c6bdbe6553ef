"""Pixels: equal to Pillow's bicubic resize and to the image processor's floats, bit for bit, on every SIMD level."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minilava_kernels import preprocess

GOLDEN = Path(__file__).parents[1] / "golden" / "pixels.json"
MODES = ["RGB", "L", "CMYK", "RGBA", "P", "I;16", "1", "LA"]
# Pillow 13 chooses which axis to resize first; before, it was always x (but for a few extremely tall pictures).
ORDER = None if int(PIL.__version__.split(".")[0]) >= 13 else False


@pytest.fixture(params=["avx512", "avx2", "portable", "numpy"])
def level(request, monkeypatch):
    """Each implementation in turn; "numpy" is the fallback for when the extension is not built."""
    if request.param == "numpy":
        monkeypatch.setattr(preprocess, "_native", lambda: None)
        yield request.param
        return
    native = pytest.importorskip("minilava._C")
    before = native.simd_level()
    try:
        native.set_simd(request.param)
    except ValueError as lacking:
        pytest.skip(str(lacking))
    yield request.param
    native.set_simd(before)


def noise(rng, h, w, channels=3):
    """Bytes that clip on both ends now and then: random, or only black and white."""
    image = rng.integers(0, 256, (h, w, channels), np.uint8)
    return image if rng.random() < 0.7 else (image > 127).astype(np.uint8) * np.uint8(255)


def picture(rng, mode, h, w):
    """A picture as the model gets it: anything but RGB, L and CMYK is converted to RGB first."""
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (h, w), np.uint16))
    else:
        channels = {"L": 1, "P": 1, "1": 1, "LA": 2, "RGB": 3}.get(mode, 4)
        pixels = noise(rng, h, w, channels)
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, {"P": "L", "1": "L"}.get(mode, mode))
        image = image.convert(mode)
    return image if mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def sizes(rng):
    """(h, w, out_h, out_w): anything, a line of pixels, the model's own target, or one axis that keeps its size."""
    h, w, out_h, out_w = (int(2 ** rng.uniform(0, np.log2(700))) for _ in range(4))
    shapes = [(h, w, out_h, out_w)] * 3
    shapes += [(1, w, out_h, out_w), (h, 1, out_h, out_w), (h, w, 384, 384), (h, w, h, out_w), (h, w, out_h, w)]
    return shapes[rng.integers(len(shapes))]


def by_pillow(image, out_w, out_h):
    pixels = np.asarray(image.resize((out_w, out_h), Image.Resampling.BICUBIC))
    return pixels.reshape(out_h, out_w, -1)


def test_resize_equals_pillow(level):
    rng = np.random.default_rng(7)
    for case in range(40 if level == "numpy" else 640):
        mode = MODES[case % len(MODES)]
        h, w, out_h, out_w = sizes(rng)
        image = picture(rng, mode, h, w)
        if ORDER is False and h > 100 * w:
            continue
        pixels = np.asarray(image).reshape(h, w, -1)
        ours = preprocess.resize(pixels, (out_w, out_h), vertical_first=ORDER)
        assert np.array_equal(ours, by_pillow(image, out_w, out_h)), (mode, (h, w), (out_h, out_w))


@settings(max_examples=150, deadline=None)
@given(
    source=st.tuples(*[st.integers(1, 90)] * 2),
    target=st.tuples(*[st.integers(1, 90)] * 2),
    channels=st.integers(1, 4),
    vertical_first=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_level_equals_the_reference(source, target, channels, vertical_first, seed):
    """Both orders and row strides too, which Pillow cannot show; the picture ends where its memory ends."""
    native = pytest.importorskip("minilava._C")
    rng = np.random.default_rng(seed)
    (h, w), (out_h, out_w) = source, target
    left = int(rng.integers(0, 9))
    image = noise(rng, h, left + w, channels)[:, left:]
    expected = preprocess.resize_reference(image, (out_w, out_h), vertical_first)
    before = native.simd_level()
    try:
        for name in supported_levels(native):
            native.set_simd(name)
            threads = int(rng.integers(1, 4))
            ours = preprocess.resize(image, (out_w, out_h), vertical_first=vertical_first, threads=threads)
            assert np.array_equal(ours, expected), name
    finally:
        native.set_simd(before)


def supported_levels(native):
    names = ["portable", "avx2", "avx512", "avx512_bf16"]
    native.set_simd("auto")
    return names[: names.index(native.simd_level()) + 1]


def test_golden_views(level):
    pictures = json.loads(GOLDEN.read_text())["pictures"]
    for row in pictures[:3] if level == "numpy" else pictures:
        w, h = row["size"]
        image = np.random.default_rng(row["rng_seed"]).integers(0, 256, (h, w, 3), np.uint8)
        view = preprocess.resize(image, (384, 384))
        assert hashlib.sha256(view.tobytes()).hexdigest() == row["squash_uint8_sha256"], row["size"]
        assert torch.equal(preprocess.resize_patchify(image, 384, 14), preprocess.patchify(view[None], 14))


def test_patchify_equals_the_image_processor(level):
    """Every byte in every position class, against the processor's arithmetic and a convolution's own unfolding."""
    views = np.random.default_rng(3).integers(0, 256, (3, 33, 33, 3), np.uint8)
    views.reshape(-1)[:256] = np.arange(256)
    scaled = (views.astype(np.float64) * (1 / 255)).astype(np.float32)
    normalised = torch.from_numpy((scaled - np.float32(0.5)) / np.float32(0.5)).permute(0, 3, 1, 2)
    for patch in (1, 5, 7, 14, 33):
        expected = torch.nn.functional.unfold(normalised, patch, stride=patch).transpose(1, 2)
        patches = preprocess.patchify(views, patch)
        assert patches.dtype == torch.float32 and torch.equal(patches, expected), patch


def test_fused_equals_unfused(level):
    rng = np.random.default_rng(11)
    for _ in range(10 if level == "numpy" else 120):
        h, w = (int(2 ** rng.uniform(0, 8)) for _ in range(2))
        view, patch = int(rng.integers(2, 100)), int(rng.integers(1, 20))
        patch = min(patch, view)
        if rng.random() < 0.3:
            h = view
        if rng.random() < 0.3:
            w = view
        images = [noise(rng, h, w), noise(rng, w, h)]
        views = np.stack([preprocess.resize(image, (view, view)) for image in images])
        assert torch.equal(preprocess.resize_patchify(images, view, patch), preprocess.patchify(views, patch))


def test_same_size_is_a_copy(level):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    copy = preprocess.resize(image, (7, 5))
    assert np.array_equal(copy, image) and not np.shares_memory(copy, image)


def test_bad_input_is_refused():
    image = np.zeros((6, 8, 3), np.uint8)
    bad = [
        (image.astype(np.float32), "uint8"),
        (image[:, :, 0], "picture"),
        (np.zeros((6, 8, 5), np.uint8), "picture"),
        (np.zeros((0, 8, 3), np.uint8), "picture"),
        (image[:, ::2], "contiguous"),
        (image[::-1], "contiguous"),
        (image[:, :, ::-1], "contiguous"),
        (image.transpose(1, 0, 2), "contiguous"),
        (np.broadcast_to(image[:1], (6, 8, 3)), "contiguous"),
        (torch.from_numpy(image), "CUDA"),
        ("picture.png", "numpy array"),
    ]
    for value, message in bad:
        with pytest.raises(ValueError, match=message):
            preprocess.resize(value, (4, 4))
        with pytest.raises(ValueError, match=message):
            preprocess.resize_patchify(value, 4, 2)
    for size in [(0, 4), (4, -1)]:
        with pytest.raises(ValueError, match="resize to"):
            preprocess.resize(image, size)
    with pytest.raises(ValueError, match="RGB"):
        preprocess.resize_patchify(np.zeros((6, 8, 4), np.uint8), 4, 2)
    for patch in (0, 5):
        with pytest.raises(ValueError, match="no patch"):
            preprocess.resize_patchify(image, 4, patch)
    for views in (image, np.zeros((1, 4, 5, 3), np.uint8), np.zeros((1, 4, 4, 1), np.uint8)):
        with pytest.raises(ValueError, match="views"):
            preprocess.patchify(views, 2)
    with pytest.raises(ValueError, match="all numpy"):
        preprocess.resize_patchify([image, np.zeros((6, 8, 1), np.uint8)], 4, 2)
    with pytest.raises(ValueError, match="contiguous"):
        preprocess.patchify(np.zeros((2, 4, 8, 3), np.uint8)[:, :, ::2], 2)


def test_a_simd_level_can_be_forced():
    native = pytest.importorskip("minilava._C")
    with pytest.raises(ValueError, match="unknown SIMD level"):
        native.set_simd("mmx")
    command = [sys.executable, "-c", "from minilava import _C; print(_C.simd_level())"]
    for name in [*supported_levels(native), "mmx"]:
        done = subprocess.run(command, env={**os.environ, "MINILAVA_SIMD": name}, capture_output=True, text=True)
        if name == "mmx":
            assert done.returncode != 0 and "unknown SIMD level" in done.stderr
        else:
            assert done.stdout.strip() == name, done.stderr


def test_the_gpu_kernel_on_the_host():
    """Every line of the CUDA kernel but the launch: its threads run one after the other in host memory."""
    pytest.importorskip("minilava._cuda")
    rng = np.random.default_rng(13)
    images = [noise(rng, h, w) for h, w in [(50, 90), (90, 50), (40, 40), (1, 70), (70, 1), (40, 9), (900, 31)]]
    images.append(noise(rng, 60, 80)[:, 7:60])
    tensors = [torch.from_numpy(image) for image in images]
    for vertical_first in (None, False, True):
        out = torch.full((len(images), 25, 147), np.nan)
        preprocess._resize_cuda(tensors, (40, 40), (35, 35), list(out), 7, vertical_first)
        assert torch.equal(out, preprocess.resize_patchify(images, 40, 7, vertical_first=vertical_first))
        for image, tensor in zip(images, tensors, strict=True):
            for size in [(31, 200), (200, 31), (1, 1)]:
                out = torch.empty(size[1], size[0], 3, dtype=torch.uint8)
                preprocess._resize_cuda([tensor], size, size, [out], 0, vertical_first)
                assert np.array_equal(out.numpy(), preprocess.resize(image, size, vertical_first=vertical_first))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape, size", [((4000, 17), (3, 5)), ((17, 4000), (5, 3)), ((3001, 3001), (7, 7))])
def test_tiles_of_the_gpu_kernel_shrink_for_large_pictures(channels, shape, size):
    pytest.importorskip("minilava._cuda")
    image = noise(np.random.default_rng(3), *shape, channels)
    for vertical_first in (False, True):
        rows, cols, shared = preprocess._tile(*shape, size, channels, vertical_first)
        assert shared <= preprocess._native_cuda().SHARED_BYTES and min(rows, cols) >= 1
        out = torch.empty(size[1], size[0], channels, dtype=torch.uint8)
        preprocess._resize_cuda([torch.from_numpy(image)], size, size, [out], 0, vertical_first)
        assert np.array_equal(out.numpy(), preprocess.resize(image, size, vertical_first=vertical_first))


@pytest.mark.gpu
def test_gpu_equals_cpu():
    rng = np.random.default_rng(5)
    images = [noise(rng, h, w) for h, w in [(1080, 1920), (1920, 1080), (384, 384), (1, 700), (700, 1), (37, 53)] * 8]
    on_gpu = [torch.from_numpy(image).cuda() for image in images]
    patches = preprocess.resize_patchify(images, 384, 14)
    assert torch.equal(preprocess.resize_patchify(on_gpu, 384, 14).cpu(), patches)
    views = np.stack([preprocess.resize(image, (384, 384)) for image in images[:6]])
    assert torch.equal(preprocess.patchify(torch.from_numpy(views).cuda(), 14).cpu(), patches[:6])
    for channels in (1, 2, 3, 4):
        image = noise(rng, 123, 77, channels)
        for vertical_first in (False, True):
            for size in [(31, 200), (200, 31), (77, 60), (1, 1)]:
                ours = preprocess.resize(torch.from_numpy(image).cuda(), size, vertical_first=vertical_first)
                expected = preprocess.resize(image, size, vertical_first=vertical_first)
                assert np.array_equal(ours.cpu().numpy(), expected)
