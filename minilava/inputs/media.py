"""Reads pictures from outside (files, bytes, arrays; all untrusted) into RGB PIL images."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minilava.errors import UserError

MAX_PIXELS = 178_956_970  # where Pillow itself refuses by default; 512 MiB of RGB
MAX_BYTES = 512 * 2**20

# Only raster formats with a signature: Pillow would also hand EPS files to Ghostscript, and take noise for TGA.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF")


def load_image(source: object, upright: bool = False) -> Image.Image:
    """One picture as a new PIL image of mode RGB.

    ``source``: a path, encoded bytes, a PIL image, or a uint8 array (H, W, 3) or (H, W). The pixels are those of
    ``Image.convert("RGB")``, as the spec's section 3.1 wants: alpha is dropped (not blended), an animated file gives
    its first frame, and an EXIF orientation is ignored, as the reference ignores it; ``upright=True`` applies it.
    One exception: 16-bit greyscale keeps its high byte, where ``convert`` would clip nearly all of it to white.

    Raises UserError for anything else: missing, empty, truncated, not a picture of ``FORMATS``, more than
    ``MAX_PIXELS`` pixels (known from the header, before any pixel is decoded) or ``MAX_BYTES`` bytes.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "the array", upright)
    if isinstance(source, Image.Image):
        with _plain_errors("the PIL image"):
            return _to_rgb(source, "the PIL image", upright)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        _check_length(len(data), "the picture's bytes", MAX_BYTES)
        return _decode(io.BytesIO(data), "the picture's bytes", upright)
    if isinstance(source, str | os.PathLike):
        name = check_file(source, "picture", MAX_BYTES)
        try:
            with open(source, "rb") as file:
                return _decode(file, name, upright)
        except OSError as error:
            raise UserError(f"{name} cannot be read ({_reason(error)}); check its permissions") from error
    raise UserError(
        f"cannot make a picture of a {type(source).__name__}; give a path, bytes, a PIL image, a uint8 array (H, W, 3)"
    )


def load_views(directory: str | os.PathLike, limit: int = 128) -> list[Image.Image]:
    """All pictures of a folder, RGB, sorted by file name (spec section 4.1: 3D views are a multi-image sample).

    The order is that of plain strings: ``10.png`` comes before ``9.png``, so pad numbers with zeros. Raises UserError
    when the folder is missing, holds no picture or more than ``limit``, or when one of them cannot be read.
    """
    paths = picture_files(directory)
    if len(paths) > limit:
        raise UserError(f"folder {os.fspath(directory)!r} holds {len(paths)} pictures, more than {limit}; remove some")
    return [load_image(path) for path in paths]


def picture_files(directory: str | os.PathLike) -> list[Path]:
    """A folder's pictures (told by extension, hidden files left out) as paths sorted by name; UserError if none."""
    name = f"folder {os.fspath(directory)!r}"
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in FORMATS}
    try:
        paths = [path for path in Path(directory).iterdir() if path.suffix.lower() in extensions and path.is_file()]
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be listed ({_reason(error)}); give an existing folder of pictures") from error
    paths = sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: path.name)
    if not paths:
        raise UserError(f"{name} holds no picture; put files such as .png or .jpg in it")
    return paths


def check_file(path: str | os.PathLike, kind: str, limit: int | None = None) -> str:
    """The name to call this file by in messages; UserError unless it is a regular file of 1 to ``limit`` bytes."""
    name = f"{kind} {os.fspath(path)!r}"
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read ({_reason(error)}); check the path and its permissions") from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{name} is a folder; give one file")
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        raise UserError(f"{name} is not a regular file; copy its contents to one")
    _check_length(status.st_size, name, limit)
    return name


def _check_length(length: int, name: str, limit: int | None) -> None:
    if length == 0:
        raise UserError(f"{name}: empty, 0 bytes; export or download it again")
    if limit is not None and length > limit:
        raise UserError(f"{name}: {length:,} bytes, more than {limit:,}; scale the picture down")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise UserError(f"a picture array must be uint8 with values 0 to 255, not {array.dtype}; convert it")
    if not (array.ndim == 2 or array.ndim == 3 and array.shape[2] == 3) or array.size == 0:
        raise UserError(f"a picture array must be (H, W, 3) or (H, W) and not empty, not {array.shape}; reshape it")
    return Image.fromarray(array)


def _decode(file: io.BufferedIOBase, name: str, upright: bool) -> Image.Image:
    with _plain_errors(name):
        return _to_rgb(_open(file), name, upright)


def _open(file: io.BufferedIOBase) -> Image.Image:
    def known() -> list[str]:  # an older Pillow has no AVIF, and Image.open wants known names only
        return [kind for kind in FORMATS if kind in Image.OPEN]

    Image.preinit()  # the common formats; the readers of all take 20 ms to import
    try:
        return Image.open(file, formats=known())
    except UnidentifiedImageError:
        Image.init()
        return Image.open(file, formats=known())


def _to_rgb(image: Image.Image, name: str, upright: bool) -> Image.Image:
    """The size is checked first: a file that has only been opened gets its pixels decoded in ``load``."""
    if 0 in image.size:
        raise UserError(f"{name}: {image.width} x {image.height}, no pixels; give another")
    if image.width * image.height > MAX_PIXELS:
        raise UserError(_too_large(name))
    image.load()
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError(f"{name}: floating-point pixels of unknown range; save it with 8 bits per channel")
    if image.mode.startswith("I"):
        image = _high_byte(np.asarray(image), name, image.mode)
    return image.convert("RGB")


def _high_byte(grey: np.ndarray, name: str, mode: str) -> Image.Image:
    """Pillow reads 16-bit files as I;16 or, by format, as 32-bit I; >> 8 is what it does to 16-bit colour. A 32-bit
    picture without a value above 255 is one of 8 bits."""
    if grey.min() < 0 or grey.max() > 65535:
        raise UserError(f"{name}: grey levels outside 0 to 65535; save it with 8 or 16 bits per channel")
    eight = mode == "I" and grey.max() < 256
    return Image.fromarray((grey if eight else grey >> 8).astype(np.uint8))


@contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """Turns whatever Pillow raises on a bad file into one UserError, and keeps its warnings off the terminal."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(name)) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: not a picture of a known format ({', '.join(FORMATS)}); convert it to PNG") from error
    except Exception as error:  # the decoders raise nearly every built-in type on hostile bytes
        message = f"{name}: truncated or damaged ({_reason(error)}); export or download it again"
        raise UserError(message) from error


def _too_large(name: str) -> str:
    return f"{name}: more than {MAX_PIXELS:,} pixels; scale the picture down"


def _reason(error: Exception) -> str:
    """On one line: an OSError's text would name the path a second time, and other texts may hold line breaks."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
