"""Pictures of every kind a person may have, and every broken one, through minilava.inputs.media."""

import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image

from minilava.errors import UserError
from minilava.inputs import media
from minilava.inputs.media import load_image, load_views, picture_files


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(image: Image.Image, expected: Image.Image) -> bool:
    return image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(expected))


def refusal(source, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_image(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def header_only_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_every_form_of_source_gives_the_same_pixels(picture, tmp_path):
    path = tmp_path / "a.png"
    picture.save(path)
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), picture, np.asarray(picture)):
        assert same(load_image(source), picture)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "WEBP", "GIF", "JPEG2000"])
def test_pixels_are_those_of_convert(picture, kind):
    data = encode(picture, kind)
    assert same(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_modes(picture, mode):
    source = picture.convert("LA").convert("PA") if mode == "PA" else picture.convert(mode)
    before = source.copy()
    assert same(load_image(source), source.convert("RGB"))
    assert source.mode == before.mode and source.tobytes() == before.tobytes()


def test_result_is_a_copy(picture):
    result = load_image(picture)
    result.putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) != (1, 2, 3)


def test_cmyk_jpeg(picture):
    data = encode(picture.convert("CMYK"), "JPEG")
    assert same(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_palette_with_transparency_drops_the_alpha(picture, transparency):
    indexed = picture.quantize(256)
    assert same(load_image(encode(indexed, "PNG", transparency=transparency)), indexed.convert("RGB"))


def test_alpha_is_dropped_not_blended(picture):
    clear = picture.copy()
    clear.putalpha(0)
    assert same(load_image(encode(clear, "PNG")), picture)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert same(load_image(data), frames[0])


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    grey = np.array([[0, 255, 256, 1000, 32768, 65535]], dtype=np.uint16)
    expected = Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    picture = Image.fromarray(grey)
    assert same(load_image(encode(picture, "PNG")), expected)
    assert same(load_image(encode(picture, "TIFF")), expected)
    assert same(load_image(b"P5 6 1 65535\n" + grey.astype(">u2").tobytes()), expected)  # Pillow reads it as mode I
    assert same(load_image(Image.fromarray(grey.astype(np.int32))), expected)
    big_endian = Image.frombytes("I;16B", (6, 1), grey.astype(">u2").tobytes())
    assert same(load_image(big_endian), expected)


def test_a_32_bit_picture_of_8_bits_is_no_darker(picture):
    grey = picture.convert("L")
    assert same(load_image(grey.convert("I")), grey.convert("RGB"))
    dark = np.full((2, 2), 200, dtype=np.uint16)  # of 65535
    assert load_image(Image.fromarray(dark)).getpixel((0, 0)) == (0, 0, 0)


def test_pixels_of_unknown_range_are_refused():
    assert "grey levels outside 0 to 65535" in refusal(Image.fromarray(np.array([[70000]], dtype=np.int32)))
    assert "floating-point pixels" in refusal(Image.fromarray(np.array([[0.5]], dtype=np.float32)))


def test_exif_orientation_is_applied_only_when_asked(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    data = encode(picture, "JPEG", exif=exif)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    assert same(load_image(data), stored)
    assert same(load_image(data, upright=True), stored.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3), (4, 5)])
def test_arrays_of_any_shape(shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    expected = array if array.ndim == 3 else np.stack([array] * 3, axis=-1)
    assert np.array_equal(np.asarray(load_image(array)), expected)
    assert np.array_equal(np.asarray(load_image(array[::-1])), expected[::-1])  # not contiguous


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0), (4, 4, 4), (4, 4, 1), (3,), (2, 4, 4, 3)])
def test_arrays_of_a_wrong_shape(shape):
    assert f"(H, W, 3) or (H, W) and not empty, not {shape}" in refusal(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
def test_arrays_of_a_wrong_dtype(dtype):
    assert f"must be uint8 with values 0 to 255, not {np.dtype(dtype)}" in refusal(np.zeros((2, 2, 3), dtype))


def test_other_types_are_refused():
    assert "picture of a int; give a path, bytes" in refusal(3)
    assert "0 x 5, no pixels" in refusal(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_refused(kind, tmp_path):
    picture = Image.effect_noise((200, 200), 90).convert("RGB")
    path = tmp_path / "cut.img"
    data = encode(picture, kind)
    path.write_bytes(data[: len(data) // 2])
    message = refusal(path)
    assert repr(str(path)) in message and "download it again" in message


def test_files_that_are_no_picture(tmp_path):
    path = tmp_path / "a\nb.png"
    path.write_bytes(b"hello" * 100)
    message = refusal(path)
    assert "a\\nb.png" in message and "not a picture of a known format" in message and "convert it to PNG" in message
    path.write_bytes(b"")
    assert "empty, 0 bytes" in refusal(path)
    assert "empty, 0 bytes" in refusal(b"")
    assert "convert it to PNG" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # would run Ghostscript


def test_paths_that_are_no_file(tmp_path):
    missing = tmp_path / "nothing.png"
    assert refusal(missing) == f"picture {str(missing)!r} does not exist; check the path"
    assert "is a folder; give one file" in refusal(tmp_path)
    assert "check the path" in refusal("nul\0byte.png")
    assert "check the path" in refusal("x" * 5000)
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refusal(tmp_path / "pipe.png")


def test_huge_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    with open(path, "wb") as file:
        file.truncate(media.MAX_BYTES + 1)  # sparse
    assert "536,870,913 bytes, more than 536,870,912" in refusal(path)
    monkeypatch.setattr(media, "MAX_BYTES", 10)
    assert refusal(bytes(11)) == "the picture's bytes: 11 bytes, more than 10; scale the picture down"


def test_a_bomb_costs_no_memory(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(header_only_png(60_000, 60_000))
    script = """
        import resource, sys
        from minilava.errors import UserError
        from minilava.inputs.media import load_image
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            load_image(sys.argv[1])
        except UserError as error:
            print(error)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=os.getcwd())
    message, mebibytes = run.stdout.splitlines()
    assert message == f"picture {str(path)!r}: more than 178,956,970 pixels; scale the picture down"
    assert int(mebibytes) < 64
    assert run.stderr == ""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pillow_limit", [None, 10])
def test_the_limit_does_not_hang_on_pillows_own(picture, monkeypatch, pillow_limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    monkeypatch.setattr(media, "MAX_PIXELS", picture.width * picture.height - 1)
    assert "pixels; scale the picture down" in refusal(encode(picture, "PNG"))
    assert "pixels; scale the picture down" in refusal(np.asarray(picture))


@pytest.mark.filterwarnings("error")
def test_pillows_bomb_warning_is_not_shown(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", picture.width * picture.height - 1)
    assert same(load_image(encode(picture, "PNG")), picture)


def test_views_come_in_name_order(tmp_path, picture):
    for level, name in enumerate(("10.png", "2.PNG", "a.jpg", "b.webp")):
        Image.new("RGB", (4, 4), (50 * level,) * 3).save(tmp_path / name)
    picture.save(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "folder.png").mkdir()
    views = load_views(tmp_path)
    assert [path.name for path in picture_files(str(tmp_path))] == ["10.png", "2.PNG", "a.jpg", "b.webp"]
    assert [view.getpixel((0, 0))[0] // 10 for view in views] == [0, 5, 10, 15]
    assert all(view.mode == "RGB" for view in views)


def test_views_that_cannot_be_had(tmp_path, picture):
    with pytest.raises(UserError, match=r"nowhere' cannot be listed \(No such file or directory\); give an existing"):
        load_views(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no picture; put files"):
        load_views(tmp_path)
    for i in range(3):
        picture.save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="holds 3 pictures, more than 2; remove some"):
        load_views(tmp_path, limit=2)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="1.png': not a picture"):
        load_views(tmp_path)
