"""Videos, honest, lying and broken, through minilava.inputs.video. The brightness of a frame tells its index."""

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minilava.errors import UserError
from minilava.inputs import media, video
from minilava.inputs.video import load_video, sample_indices

av = pytest.importorskip("av")


def write_video(path, count, codec="libx264", step=5, options=None, sound=False):
    """``count`` frames of 64 x 48 at 10 per second, frame i grey at level i * step."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000  # so that a level survives within half a step
        if sound:
            write_sound(container)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i * step, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(container):
    stream = container.add_stream("aac", rate=16000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_damaged_video(path, count, damaged):
    """A motion JPEG file, each frame on its own, in which the frames of these indices are zeros."""
    data = bytearray(write_video(path, count, "mjpeg").read_bytes())
    start = data.index(b"movi")
    for i in range(count):
        start = data.index(b"00dc", start) + 8
        length = int.from_bytes(data[start - 4 : start], "little")
        if i in damaged:
            data[start : start + length] = bytes(length)
        start += length
    path.write_bytes(data)
    return path


def seen(frames, step=5):
    """Frame indices, read back from the brightness."""
    assert all(isinstance(frame, Image.Image) and frame.mode == "RGB" for frame in frames)
    return [round(np.asarray(frame).mean() / step) for frame in frames]


def refusal(source, *args, **options):
    with pytest.raises(UserError) as caught:
        load_video(source, *args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(st.integers(1, 10**6), st.integers(1, 300))
def test_sample_indices(total, frames):
    indices = sample_indices(total, frames)
    assert len(indices) == min(total, frames) == len(set(indices))
    assert indices == sorted(indices) and indices[0] == 0
    assert indices[-1] == total - 1 or frames == 1
    if frames < total:
        assert indices == [int(x) for x in np.linspace(0, total - 1, frames)]


def test_sample_indices_by_hand():
    assert sample_indices(100, 16) == [0, 6, 13, 19, 26, 33, 39, 46, 52, 59, 66, 72, 79, 85, 92, 99]
    assert sample_indices(3, 16) == [0, 1, 2]
    with pytest.raises(UserError, match="cannot sample 0 frames; ask for at least 1"):
        sample_indices(5, 0)
    with pytest.raises(UserError, match="holds no frames; give another"):
        sample_indices(0, 5)


@pytest.mark.parametrize(
    "name, codec",
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "mjpeg"), ("a.mkv", "ffv1")],
)
def test_files(tmp_path, name, codec, capfd):
    path = write_video(tmp_path / name, 50, codec)
    for frames in (1, 7, 16, 49, 50, 80):
        assert seen(load_video(path, frames)) == sample_indices(50, frames)
    assert load_video(str(path))[0].size == (64, 48)
    assert capfd.readouterr() == ("", "")


def test_animated_gif(tmp_path):
    frames = [Image.new("RGB", (16, 16), (i * 25,) * 3) for i in range(10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert seen(load_video(tmp_path / "a.gif", 4), 25) == [0, 3, 6, 9]


def test_sound_beside_the_picture_is_passed_over(tmp_path):
    assert seen(load_video(write_video(tmp_path / "a.mp4", 30, sound=True), 5)) == sample_indices(30, 5)


@pytest.mark.parametrize(
    "fps, frames, expected", [(2, 16, [0, 5, 10, 15, 20, 25]), (100, 3, [0, 14, 29]), (2, 5, [0, 7, 14, 21, 29])]
)
def test_fps(tmp_path, fps, frames, expected):
    assert seen(load_video(write_video(tmp_path / "a.mp4", 30), frames, fps)) == expected


def test_fps_that_cannot_be_had(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    for fps in (0, -1, float("nan"), float("inf")):
        assert f"cannot sample at {fps} frames per second" in refusal(path, fps=fps)
    assert "needs a video file" in refusal(np.zeros((4, 8, 8, 3), np.uint8), fps=1)


def test_header_that_claims_more_frames_than_there_are(tmp_path):
    """The index in front lists 50 frames, the data ends early: what is there is sampled from end to end."""
    path = write_video(tmp_path / "a.mp4", 50, "mpeg4", options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 6 // 10])
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 50
    with warnings.catch_warnings(record=True):
        everything, some = seen(load_video(path, 50)), seen(load_video(path, 5))
    assert everything == list(range(len(everything))) and 5 < len(everything) < 50
    assert some == sample_indices(len(everything), 5)


def test_avi_header_with_a_false_count(tmp_path):
    path = write_video(tmp_path / "a.avi", 20, "mpeg4")
    data = bytearray(path.read_bytes())
    data[48:52] = (444).to_bytes(4, "little")  # dwTotalFrames of the main header
    length = data.index(b"strh") + 8 + 32
    data[length : length + 4] = (444).to_bytes(4, "little")  # dwLength of the stream header
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 444
    assert seen(load_video(path, 4)) == [0, 6, 12, 19]


@pytest.mark.parametrize("guess", [1, 3, 29, 31, 1000])
def test_a_wrong_guess_costs_a_second_pass_and_no_frame(tmp_path, monkeypatch, guess):
    path = write_video(tmp_path / "a.mp4", 30)
    monkeypatch.setattr(video, "_survey", lambda *_: (guess, None))
    assert seen(load_video(path, 6)) == sample_indices(30, 6)


def test_an_honest_file_is_decoded_once(tmp_path, monkeypatch):
    passes = []
    decode = video._decode
    monkeypatch.setattr(video, "_decode", lambda *args: passes.append(args) or decode(*args))
    load_video(write_video(tmp_path / "a.mkv", 30), 6)  # a container that states no count
    assert len(passes) == 1


def test_damage_is_skipped_with_a_warning(tmp_path, capfd):
    path = write_damaged_video(tmp_path / "a.avi", 30, {12, 13, 29})
    with pytest.warns(UserWarning, match="a.avi': damaged; only the 27 frames that decode are used") as caught:
        frames = load_video(path, 27)
    assert caught[0].filename == __file__
    assert seen(frames) == [i for i in range(30) if i not in (12, 13, 29)]
    assert capfd.readouterr() == ("", "")


def test_files_without_a_frame(tmp_path):
    path = write_damaged_video(tmp_path / "a.avi", 3, {0, 1, 2})
    message = refusal(path)
    assert repr(str(path)) in message and "no frame can be decoded; check that it plays" in message


def test_a_valid_file_of_zero_frames(tmp_path):
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    assert repr(str(path)) in refusal(path)


def test_sound_only(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        write_sound(container)
    assert refusal(path) == f"video {str(path)!r}: holds no video stream, only sound or data; give another file"


def test_the_cover_of_an_album_is_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        write_sound(container)
        container.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        container.mux(cover.encode())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert "holds no video stream, only sound or data" in refusal(path)


def test_unknown_codec(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert "no decoder for it; convert it to H.264 MP4" in refusal(path)


def test_files_that_are_no_video(tmp_path, capfd):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"hello" * 1000)
    expected = f"video {str(path)!r}: not a video, or one cut short; check that it plays, or convert it to MP4"
    assert refusal(path) == expected
    Image.new("RGB", (8, 8)).save(path, "PNG")
    assert refusal(path) == expected
    path.write_bytes(write_video(tmp_path / "b.mp4", 20).read_bytes()[:700])  # the index was at the end
    assert refusal(path) == expected
    path.write_bytes(b"")
    assert "empty, 0 bytes" in refusal(path)
    assert refusal(tmp_path / "c.mp4") == f"video {str(tmp_path / 'c.mp4')!r} does not exist; check the path"
    assert "check the path" in refusal("x" * 5000)
    assert "check the path" in refusal("nul\0byte")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:5,\nb.mp4\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile b.mp4\n"])
def test_playlists_that_open_other_files_are_refused(tmp_path, text):
    write_video(tmp_path / "b.mp4", 5)
    (tmp_path / "a.m3u8").write_text(text)
    assert "not a video" in refusal(tmp_path / "a.m3u8")


def test_addresses_are_file_names(tmp_path, monkeypatch):
    assert "does not exist" in refusal("http://localhost/a.mp4")
    write_video(tmp_path / "concat:b%03d.mp4", 5)
    monkeypatch.chdir(tmp_path)
    assert seen(load_video("concat:b%03d.mp4")) == [0, 1, 2, 3, 4]


def test_large_frames_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 3)
    monkeypatch.setattr(media, "MAX_PIXELS", 64 * 48 - 1)
    assert "frames of more than 3,071 pixels; scale the video down" in refusal(path)


def test_without_pyav(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    assert refusal(path) == 'reading video files needs PyAV; run: pip install "minilava[video]"'
    assert len(load_video(np.zeros((4, 8, 8, 3), np.uint8))) == 4


def test_folder_of_frames(tmp_path):
    for i in range(20):
        Image.new("L", (8, 8), i * 10).save(tmp_path / f"{i:03}.png")
    (tmp_path / "fps.txt").write_text("10")
    assert seen(load_video(tmp_path, 5), 10) == sample_indices(20, 5)
    assert seen(load_video(str(tmp_path), 99), 10) == list(range(20))
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in refusal(tmp_path / "empty")


def test_arrays_and_sequences(tmp_path):
    array = np.stack([np.full((8, 9, 3), i * 10, np.uint8) for i in range(20)])
    pictures = [Image.fromarray(frame) for frame in array]
    pictures[0].save(tmp_path / "first.png")
    for source in (array, list(array), pictures, tuple(pictures), [tmp_path / "first.png", *pictures[1:]]):
        frames = load_video(source, 5)
        assert seen(frames, 10) == sample_indices(20, 5)
        assert frames[0].size == (9, 8)


def test_sources_of_a_wrong_kind():
    assert "must be uint8 (F, H, W, 3), not float32 (2, 4, 4, 3)" in refusal(np.zeros((2, 4, 4, 3), np.float32))
    assert "not uint8 (4, 4, 3); convert it" in refusal(np.zeros((4, 4, 3), np.uint8))
    assert "(H, W, 3) or (H, W)" in refusal(np.zeros((2, 4, 4, 4), np.uint8))
    assert "holds no frames" in refusal(np.zeros((0, 4, 4, 3), np.uint8))
    assert "holds no frames" in refusal([])
    assert "video of a bytes; give a file" in refusal(b"abc")
    assert "video of a int; give a file" in refusal(7)
    assert "ask for at least 1" in refusal([Image.new("RGB", (4, 4))], 0)
