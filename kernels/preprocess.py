"""A picture of bytes -> what the vision tower reads: bicubic resize as Pillow does it, normalise, lay out as patches.

All of it is exact: resizing gives Pillow's own bytes, and a patch holds the image processor's own floats. Shapes:
h, w source size; S side of a view; p side of a patch; P = (S // p) ** 2 patches per view, row-major; 3 * p * p floats
per patch in (channel, row, column) order, so that a patch multiplies a convolution weight viewed as (D, 3 * p * p).
Pixels beyond the last whole patch are dropped.

Cost of 1920x1080 -> 384x384: 6.2 MB read and 1.7 MB of float32 written, 26 M multiply-adds along x (21 taps) and 5 M
along y (12 taps). At three 8-bit dot products per tap the arithmetic is below a millisecond of one core, near the time
that reading the picture takes. The fused call writes no resized picture: each row goes from the vertical pass, in
cache, straight to its place in the patches.

Which axis goes first decides last bits, since the picture between the passes is rounded to bytes. Pillow before 13
always goes along x first; Pillow 13 goes along y first where the height shrinks by more than twice as many pixels as
the width. The default is Pillow 13's rule; vertical_first=False gives the earlier bytes everywhere.
"""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch

FRACTION_BITS = 22


def goes_down_first(h: int, w: int, out_h: int, out_w: int) -> bool:
    """Whether Pillow 13 resizes along y before x."""
    return out_h < h and h - out_h > 2 * (w - out_w)


# The reference: plain numpy, and the fallback where the extension is not built.


def coefficients_reference(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """First source pixel (out,) and fixed-point coefficients (out, taps) of one axis, padded with zero taps."""
    scale = size / out
    stretch = max(scale, 1.0)
    centre = (np.arange(out) + 0.5) * scale
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), size)
    tap = np.arange((end - first).max())
    x = np.abs((tap + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch))
    near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    weight = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    weight[tap >= (end - first)[:, None]] = 0.0
    total = np.cumsum(weight, axis=1)[:, -1:]  # one addition after the other: np.sum would round differently
    fixed = weight / np.where(total == 0.0, 1.0, total) * (1 << FRACTION_BITS)
    return first, np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int64)


def _pass_reference(image: np.ndarray, out: int, axis: int) -> np.ndarray:
    if image.shape[axis] == out:
        return image
    first, coef = coefficients_reference(image.shape[axis], out)
    shape = (out, 1, 1) if axis == 0 else (1, out, 1)
    total = np.int64(1 << (FRACTION_BITS - 1))
    for tap in range(coef.shape[1]):
        source = np.minimum(first + tap, image.shape[axis] - 1)
        total = total + image.take(source, axis=axis) * coef[:, tap].reshape(shape)
    return np.clip(total >> FRACTION_BITS, 0, 255).astype(np.uint8)


def resize_reference(image: np.ndarray, size: tuple[int, int], vertical_first: bool) -> np.ndarray:
    for axis in (0, 1) if vertical_first else (1, 0):
        image = _pass_reference(image, size[1 - axis], axis)
    return np.array(image)


def patchify_reference(views: np.ndarray, patch_size: int) -> torch.Tensor:
    n, side, p = len(views), views.shape[1] // patch_size, patch_size
    grid = views[:, : side * p, : side * p].reshape(n, side, p, side, p, 3)
    patches = grid.transpose(0, 1, 3, 5, 2, 4).reshape(n, side * side, 3 * p * p)
    return torch.from_numpy(_byte_values()[patches])


@cache
def _byte_values() -> np.ndarray:
    return ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


@cache
def _native():
    try:
        from minilava import _C
    except ImportError:
        return None
    return _C


# CUDA: one launch for pictures of any sizes, see csrc/cuda/ops.h and resize_tile.h.


@cache
def _native_cuda():
    try:
        from minilava import _cuda
    except ImportError as error:
        raise RuntimeError("minilava._cuda is not built; reinstall with nvcc on PATH and MINILAVA_CUDA=1") from error
    return _cuda


@lru_cache(maxsize=128)
def _axis_on(device: torch.device, size: int, out: int) -> torch.Tensor:
    cuda = _native_cuda()
    table = torch.zeros(2 + cuda.axis_taps(size, out), out, dtype=torch.int32)
    cuda.fill_axis(table.data_ptr(), size, out)
    return table.to(device)


def _tile(h: int, w: int, size: tuple[int, int], channels: int, down_first: bool) -> tuple[int, int, int]:
    """(rows, columns, bytes of shared memory) of the tile that a block makes of a picture: 32 x 32 pixels, or fewer
    where so many source pixels go into them that they do not fit."""
    cuda = _native_cuda()
    rows = cols = 32
    while True:
        n, into, scale = (cols, w, w / size[0]) if down_first else (rows, h, h / size[1])
        reach = min(into, int(n * scale) + 2 + cuda.axis_taps(into, size[0] if down_first else size[1]))
        need = reach * (rows if down_first else cols) * channels
        if need <= cuda.SHARED_BYTES:
            return rows, cols, need
        if rows == cols == 1:
            raise ValueError(f"a picture of {w}x{h} is too large to become {size[0]}x{size[1]} on the GPU")
        if n > 4 or (rows if down_first else cols) == 1:
            rows, cols = (rows, cols // 2) if down_first else (rows // 2, cols)
        else:
            rows, cols = (rows // 2, cols) if down_first else (rows, cols // 2)


def _resize_cuda(images, size, crop, outputs, patch_size, vertical_first):
    """Resizes to size, both (w, h); keeps the top left crop and writes it to outputs as bytes or patches."""
    cols, rows = crop
    device, channels = images[0].device, images[0].shape[2]
    pictures, tables, shared = [], [], 0
    for image, output in zip(images, outputs, strict=True):
        h, w, _ = image.shape
        down_first = _order(vertical_first, h, w, size[1], size[0])
        across, down = _axis_on(device, w, size[0]), _axis_on(device, h, size[1])
        tables += across, down  # kept until the launch is in the stream
        *tile, need = _tile(h, w, size, channels, down_first)
        shared = max(shared, need)
        axes = across.data_ptr(), across.shape[1], down.data_ptr(), down.shape[1]
        source = image.data_ptr(), image.stride(0)
        pictures.append((*source, *axes, rows, cols, *tile, down_first, output.data_ptr()))
    if device.type == "cpu":  # a test of the kernel's lines
        return _native_cuda().resize(pictures, channels, patch_size, shared, -1, 0)
    stream = torch.cuda.current_stream(device).cuda_stream
    _native_cuda().resize(pictures, channels, patch_size, shared, device.index, stream)


# The public functions.


def resize(image, size: tuple[int, int], *, vertical_first: bool | None = None, threads: int = 0):
    """Resize (h, w, c) bytes to size = (out_w, out_h), equal to PIL's image.resize(size, BICUBIC).

    A numpy array gives a numpy array, a CUDA tensor a CUDA tensor. threads: 0 for as many as pay, up to
    torch.get_num_threads().
    """
    _check_picture(image)
    out_w, out_h = size
    if out_w < 1 or out_h < 1:
        raise ValueError(f"cannot resize to {out_w}x{out_h}")
    h, w, channels = image.shape
    if isinstance(image, torch.Tensor):
        out = torch.empty(out_h, out_w, channels, dtype=torch.uint8, device=image.device)
        _resize_cuda([image], size, size, [out], 0, vertical_first)
        return out
    down_first = _order(vertical_first, h, w, out_h, out_w)
    if (native := _native()) is None:
        return resize_reference(image, size, down_first)
    out = np.empty((out_h, out_w, channels), np.uint8)
    source = image.ctypes.data, h, w, channels, _row_stride(image)
    native.resize(*source, out.ctypes.data, out_h, out_w, down_first, threads)
    return out


def patchify(views, patch_size: int, *, threads: int = 0) -> torch.Tensor:
    """Views (n, S, S, 3) of bytes -> float32 patches (n, P, 3 * p * p) in [-1, 1]."""
    if views.ndim != 4 or views.shape[1] != views.shape[2] or views.shape[3] != 3:
        raise ValueError(f"expected square RGB views (n, S, S, 3), got {tuple(views.shape)}")
    n, view = views.shape[:2]
    side = _side(view, patch_size)
    if isinstance(views, torch.Tensor):
        out = torch.empty(n, side * side, 3 * patch_size**2, dtype=torch.float32, device=views.device)
        for image in views:
            _check_picture(image)
        if n:  # a resize to the same size moves no byte
            _resize_cuda(list(views), (view, view), (side * patch_size,) * 2, list(out), patch_size, False)
        return out
    if not isinstance(views, np.ndarray) or views.dtype != np.uint8 or not views.flags.c_contiguous:
        raise ValueError("expected a C-contiguous numpy array of uint8; see np.ascontiguousarray")
    if (native := _native()) is None:
        return patchify_reference(views, patch_size)
    out = torch.empty(n, side * side, 3 * patch_size**2, dtype=torch.float32)
    native.patchify(views.ctypes.data, out.data_ptr(), n, view, patch_size, threads)
    return out


def resize_patchify(
    images, view: int, patch_size: int, *, vertical_first: bool | None = None, threads: int = 0
) -> torch.Tensor:
    """One RGB picture (h, w, 3) of bytes, or several of any sizes -> patches (n, P, 3 * p * p).

    Equal to patchify(resize(image, (view, view))), without the picture in between.
    """
    images = list(images) if isinstance(images, Sequence) else [images]
    side = _side(view, patch_size)
    for image in images:
        _check_picture(image)
        if image.shape[2] != 3 or isinstance(image, torch.Tensor) != isinstance(images[0], torch.Tensor):
            raise ValueError("expected RGB pictures (h, w, 3), all numpy arrays or all CUDA tensors")
    device = images[0].device if images and isinstance(images[0], torch.Tensor) else torch.device("cpu")
    out = torch.empty(len(images), side * side, 3 * patch_size**2, dtype=torch.float32, device=device)
    if device.type == "cuda":
        if any(image.device != device for image in images):
            raise ValueError("the pictures are on different devices")
        _resize_cuda(images, (view, view), (side * patch_size,) * 2, list(out), patch_size, vertical_first)
        return out
    native = _native()
    for i, image in enumerate(images):
        h, w, _ = image.shape
        down_first = _order(vertical_first, h, w, view, view)
        if native is None:
            out[i] = patchify_reference(resize_reference(image, (view, view), down_first)[None], patch_size)[0]
        else:
            source = image.ctypes.data, h, w, _row_stride(image)
            native.resize_patchify(*source, out[i].data_ptr(), view, patch_size, down_first, threads)
    return out


def _order(vertical_first: bool | None, h: int, w: int, out_h: int, out_w: int) -> bool:
    return goes_down_first(h, w, out_h, out_w) if vertical_first is None else vertical_first


def _side(view: int, patch_size: int) -> int:
    if not 1 <= patch_size <= view:
        raise ValueError(f"a view of {view} pixels holds no patch of {patch_size}")
    return view // patch_size


def _row_stride(image: np.ndarray) -> int:
    return image.strides[0] if image.shape[0] > 1 else image.shape[1] * image.shape[2]


def _check_picture(image) -> None:
    """Bytes (h, w, 1 to 4) whose rows are contiguous, in a numpy array or a CUDA tensor."""
    if isinstance(image, torch.Tensor):
        if not image.is_cuda or image.dtype != torch.uint8:
            raise ValueError(f"expected a CUDA tensor of uint8 (or a numpy array), got {image.dtype} on {image.device}")
        strides = image.stride()
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels, got {image.dtype}")
        strides = image.strides
    else:
        raise ValueError(f"expected a numpy array or a CUDA tensor, got {type(image).__name__}")
    if image.ndim != 3 or not 1 <= image.shape[2] <= 4 or 0 in image.shape:
        raise ValueError(f"expected a picture (h, w, 1 to 4 channels), got {tuple(image.shape)}")
    h, w, channels = image.shape
    rows_apart = h == 1 or strides[0] >= w * channels
    if not rows_apart or (w > 1 and strides[1] != channels) or (channels > 1 and strides[2] != 1):
        raise ValueError("a picture's rows must be contiguous and in order; see np.ascontiguousarray")
