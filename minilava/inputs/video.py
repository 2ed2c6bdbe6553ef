"""Samples frames of a video (file, folder of frames, array) as RGB PIL images; nothing trusts the file's header."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from PIL import Image

from minilava.errors import UserError
from minilava.inputs import media

# Containers that hold their own data. Playlists (hls, concat, dash) name other files and addresses to be opened.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,ogg,gif,apng,m4v,h264,hevc,av1,ivf,mxf,"
    "nut,dv,rm,wtv,wav,mp3,flac,aac"
)


def sample_indices(total: int, frames: int) -> list[int]:
    """Indices of ``frames`` frames spread evenly over ``total``, first and last included (spec section 4.2).

    linspace truncated toward zero, as in the reference, but no frame is given twice: a video shorter than ``frames``
    gives each of its frames once, since a repeat costs tokens and shows nothing new. UserError if either is below 1.
    """
    if frames < 1:
        raise UserError(f"cannot sample {frames} frames; ask for at least 1")
    if total < 1:
        raise UserError("the video holds no frames; give another")
    if frames >= total:
        return list(range(total))
    return np.linspace(0, total - 1, frames).astype(int).tolist()


def load_video(source: object, frames: int = 16, fps: float | None = None) -> list[Image.Image]:
    """At most ``frames`` frames of a video, in order, each a PIL image of mode RGB.

    ``source``: a video file, a folder of frame pictures (in name order), a uint8 array (F, H, W, 3), or a sequence of
    anything ``media.load_image`` takes. Frames are spread evenly (``sample_indices``). With ``fps``, for files only,
    every round(native rate / fps)-th frame is taken instead, unless those are more than ``frames`` (spec section 4.2).
    A file is counted by decoding, in memory bounded by the frames kept; rotation metadata is ignored, and damaged
    parts are skipped with a warning. Raises UserError when no frame can be had, and when PyAV is not installed.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise UserError(f"cannot sample at {fps} frames per second; give a number above 0")
    if isinstance(source, str | os.PathLike) and not os.path.isdir(source):
        return _load_file(source, frames, fps)
    if fps is not None:
        raise UserError("sampling by fps needs a video file, whose frame rate is known; leave fps out")
    pictures = _pictures(source)
    return [media.load_image(pictures[i]) for i in sample_indices(len(pictures), frames)]


def _pictures(source: object) -> Sequence:
    if isinstance(source, str | os.PathLike):
        return media.picture_files(source)
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.dtype != np.uint8:
            raise UserError(f"a video array must be uint8 (F, H, W, 3), not {source.dtype} {source.shape}; convert it")
        return source
    if isinstance(source, Sequence) and not isinstance(source, bytes | bytearray | memoryview):
        return source
    raise UserError(
        f"cannot make a video of a {type(source).__name__}; give a file, a folder, an array (F, H, W, 3) or a list"
    )


def _load_file(path: str | os.PathLike, frames: int, fps: float | None) -> list[Image.Image]:
    """The number of packets is a cheap guess at the number of frames; where decoding proves it wrong, decode again."""
    name = media.check_file(path, "video")
    packets, step = _survey(path, name, fps)
    wanted = _choose(packets, frames, step)
    for _ in range(2):
        kept, count, damaged = _decode(path, name, set(wanted))
        if count == 0:
            raise UserError(f"{name}: no frame can be decoded; check that it plays, or convert it to MP4")
        wanted = _choose(count, frames, step)
        if kept.keys() >= set(wanted):
            break
    if damaged:
        warnings.warn(f"{name}: damaged; only the {count} frames that decode are used", stacklevel=3)
    return [kept[i] for i in wanted if i in kept]


def _choose(total: int, frames: int, step: int | None) -> list[int]:
    if step is not None and len(range(0, total, step)) <= frames:
        return list(range(0, total, step))
    return sample_indices(total, frames)


def _survey(path: str | os.PathLike, name: str, fps: float | None) -> tuple[int, int | None]:
    """(Number of packets, at least 1; frames per wanted frame at this ``fps``), from reading the file undecoded."""
    packets, step = 0, None
    with _opened(path, name) as (container, stream):
        if fps is not None:
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise UserError(f"{name}: its frame rate is unknown; leave fps out")
            step = max(1, round(float(rate) / fps))
        with suppress(_pyav().FFmpegError):
            for packet in container.demux(stream):
                packets += packet.size > 0  # the last is empty: it makes the decoder give up what it still holds
    return max(1, packets), step


def _decode(path: str | os.PathLike, name: str, wanted: set[int]) -> tuple[dict[int, Image.Image], int, bool]:
    """One pass over the whole file: (wanted frames by index, number of frames that decode, any damage met)."""
    kept, count, damaged = {}, 0, False
    for frame in _frames(path, name):
        if frame is None:
            damaged = True
            continue
        _check_size(frame.width, frame.height, name)  # it may change within a stream
        if count in wanted:
            kept[count] = frame.to_image()
        count += 1
    return kept, count, damaged


def _frames(path: str | os.PathLike, name: str) -> Iterator:
    """Every frame that decodes, and None for each damaged part, which is skipped, as players do."""
    error = _pyav().FFmpegError
    with _opened(path, name) as (container, stream):
        try:
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except error:
                    yield None
        except error:  # the rest of the file cannot be cut into packets
            yield None


@contextmanager
def _opened(path: str | os.PathLike, name: str) -> Iterator[tuple]:
    """PyAV's (container, first video stream); "file:" and the lists keep FFmpeg from opening anything but this file."""
    av = _pyav()
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        container = av.open(f"file:{os.path.abspath(path)}", container_options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        message = f"{name}: not a video, or one cut short; check that it plays, or convert it to MP4"
        raise UserError(message) from error
    with container:
        cover = av.stream.Disposition.attached_pic  # the picture of a music album, which FFmpeg lists as a video
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise UserError(f"{name}: holds no video stream, only sound or data; give another file")
        context = streams[0].codec_context
        if context is None:
            raise UserError(f"{name}: the installed PyAV has no decoder for it; convert it to H.264 MP4")
        _check_size(context.width, context.height, name)
        context.thread_type = "AUTO"
        yield container, streams[0]


def _pyav():
    try:
        import av
    except ImportError as error:
        raise UserError('reading video files needs PyAV; run: pip install "minilava[video]"') from error
    return av


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > media.MAX_PIXELS:
        raise UserError(f"{name}: frames of more than {media.MAX_PIXELS:,} pixels; scale the video down")
