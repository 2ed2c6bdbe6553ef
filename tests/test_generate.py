"""The command a person runs: output, exit status and one-line errors."""

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import zlib

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

import minilava
from minilava.generate import main, parser

FLAGS = {
    "--help", "--model", "--image", "--video", "--views", "--frames", "--prompt", "--chat", "--layout", "--recipe",
    "--anyres", "--no-anyres", "--pool", "--newline", "--max-new-tokens", "--temperature", "--top-p", "--top-k",
    "--repetition-penalty", "--seed", "--dtype", "--quant", "--device", "--json", "-h", "--draft", "--cache-dir",
    "--cache-mb", "--threads",
}  # fmt: skip
TIMINGS = {
    "load_s", "media_s", "preprocess_s", "encode_s", "prefill_s", "decode_s", "ttft_s", "prefill_tokens_per_s",
    "decode_tokens_per_s", "peak_memory_bytes", "cached_views", "cached_prompt_tokens", "draft_tokens",
    "draft_accepted",
}  # fmt: skip


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(capfd, *args):
    """(status, stdout, stderr) of the command in this process."""
    status = main([str(a) for a in args])
    out, err = capfd.readouterr()
    return status, out, err


def refused(capfd, *args):
    """The message of a command that must fail in the way a person can fix: one line, status 2, nothing on stdout."""
    status, out, err = run(capfd, *args)
    assert status == 2 and out == "" and err.startswith("minilava: error: ") and err.count("\n") == 1, err
    return err


def test_flags_are_frozen():
    assert {o for a in parser()._actions for o in a.option_strings} == FLAGS


def test_text_goes_to_stdout_and_the_rest_to_stderr(capfd, tiny, photo):
    status, out, err = run(capfd, "--model", tiny, "--image", photo, "--max-new-tokens", 8, "--device", "cpu")
    assert status == 0 and out.endswith("\n") and "prompt tokens" in err and "decode" in err


def test_json_is_one_object(capfd, tiny, photo):
    args = ("--model", tiny, "--image", photo, "--image", photo, "--prompt", "<image> or <image>?", "--json")
    status, out, err = run(capfd, *args, "--max-new-tokens", 8, "--dtype", "float32", "--device", "cpu")
    reply = json.loads(out)
    assert status == 0 and out.count("\n") == 1
    assert set(reply) == {
        "text", "token_ids", "finish_reason", "prompt_tokens", "image_tokens", "model", "recipe", "dtype", "quant",
        "timings",
    }  # fmt: skip
    assert set(reply["timings"]) == TIMINGS and all(v >= 0 for v in reply["timings"].values())
    assert reply["recipe"] == "authors" and reply["dtype"] == "float32" and reply["image_tokens"] == 2 * 17
    assert reply["finish_reason"] == "length" and len(reply["token_ids"]) == 8


def test_order_of_media_is_the_order_given(capfd, tiny, photo, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(other)

    def tokens(*media):
        args = [x for kind, path in media for x in (kind, path)]
        _, out, _ = run(capfd, "--model", tiny, *args, "--prompt", "Say", "--json", "--max-new-tokens", 12)
        return json.loads(out)["token_ids"]

    folder = tmp_path / "views"
    folder.mkdir()
    Image.open(other).save(folder / "1.png")
    assert tokens(("--image", photo), ("--views", folder)) == tokens(("--image", photo), ("--image", other))
    assert tokens(("--views", folder), ("--image", photo)) == tokens(("--image", other), ("--image", photo))


def test_a_second_run_finds_the_pictures(capfd, tiny, photo, tmp_path, calls):
    def reply(*args):
        args = ("--model", tiny, "--image", photo, "--json", "--max-new-tokens", 8, "--device", "cpu", *args)
        return json.loads(run(capfd, *args)[1])

    plain = reply("--cache-mb", 0)
    folder = ("--cache-dir", tmp_path / "pictures")
    replies = [reply(*folder), reply(*folder, "--cache-mb", 0), reply(*folder, "--draft", 4)]
    assert len(calls) == 2 and [r["timings"]["cached_views"] for r in replies] == [0, 1, 1]
    assert all(r["token_ids"] == plain["token_ids"] for r in replies)
    assert "cannot write" in refused(capfd, "--model", tiny, "--image", photo, "--cache-dir", photo)


def test_seed_and_temperature(capfd, tiny):
    def tokens(*args):
        args = ("--model", tiny, "--prompt", "Hi", "--json", "--max-new-tokens", 12, "--temperature", 2, *args)
        return json.loads(run(capfd, *args)[1])["token_ids"]

    assert tokens("--seed", 1) == tokens("--seed", 1) != tokens("--seed", 2)
    assert tokens("--top-k", 1, "--seed", 1) == tokens("--top-k", 1, "--seed", 2)
    assert tokens("--top-p", 1e-6, "--seed", 1) == tokens("--top-k", 1, "--seed", 2)


@pytest.mark.parametrize(
    "args,what",
    [
        ((), "nothing to answer"),
        (("--prompt", "x", "--model", "/nowhere"), "/nowhere"),
        (("--bogus",), "--bogus"),
        (("--prompt", "x", "--frames", "0"), "--frames"),
        (("--prompt", "x", "--max-new-tokens", "0"), "--max-new-tokens"),
        (("--prompt", "x", "--max-new-tokens", "many"), "--max-new-tokens"),
        (("--prompt", "x", "--draft", "-1"), "--draft"),
        (("--prompt", "x", "--cache-mb", "-1"), "--cache-mb"),
        (("--chat", "--json"), "--chat and --json"),
    ],
)
def test_wrong_arguments(capfd, args, what):
    assert what in refused(capfd, *args)


@pytest.mark.parametrize(
    "args,what",
    [
        (("--image", "/no/such.png"), "/no/such.png"),
        (("--prompt", "<image> <image>"), "2 placeholders but 0 media"),
        (("--prompt", "<video>", "--image", "PHOTO"), "<video>"),
        (("--prompt", "x", "--temperature", "-1"), "temperature"),
        (("--prompt", "x", "--top-p", "0"), "top-p"),
        (("--prompt", "x", "--repetition-penalty", "0"), "repetition penalty"),
        (("--prompt", "x", "--dtype", "float16", "--device", "cpu"), "float16"),
        (("--prompt", "x", "--quant", "int4", "--dtype", "bfloat16"), "float32"),
        (("--prompt", "x" * 40000), "exceed the context"),
        (("--prompt", "x", "--max-new-tokens", "40000"), "40000 new tokens"),
    ],
)
def test_wrong_input(capfd, tiny, photo, args, what):
    args = [photo if a == "PHOTO" else a for a in args]
    assert what in refused(capfd, "--model", tiny, *args)


def test_a_bomb_is_refused_from_its_header(capfd, tiny, tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert "bomb.png" in refused(capfd, "--model", tiny, "--image", bomb)


def test_an_enormous_prompt_line_is_refused_before_it_is_tokenised(capfd, tiny):
    began = time.perf_counter()
    assert "too long" in refused(capfd, "--model", tiny, "--prompt", "x" * 200_000_000)
    assert time.perf_counter() - began < 60  # tokenising it would take minutes and gigabytes


def test_chat_keeps_earlier_images(tiny, photo):
    script = f"/image {photo}\nWhat is it?\nAnd again?\n/image /no/such\n/bogus\n/reset\nHello\n/quit\n"
    done = subprocess.run(
        [sys.executable, "-m", "minilava.generate", "--model", str(tiny), "--chat", "--max-new-tokens", "4"],
        input=script, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
    assert "/no/such" in done.stderr and "unknown command /bogus" in done.stderr and "starts over" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_enormous_line_of_a_chat_is_refused(tiny):
    args = [sys.executable, "-m", "minilava.generate", "--model", str(tiny), "--chat"]
    done = subprocess.run(args, input=b"x" * (1 << 23), capture_output=True)
    assert done.returncode == 2 and b"longer than" in done.stderr and b"Traceback" not in done.stderr


def test_weights_with_nan_are_an_error(capfd, tiny, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    tensors = safetensors.torch.load_file(tiny / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
    (broken / "model.safetensors").unlink()
    safetensors.torch.save_file(tensors, broken / "model.safetensors")
    assert "NaN" in refused(capfd, "--model", broken, "--prompt", "Hi")


def test_chat_of_the_library_equals_a_repeated_conversation(tiny, photo):
    vlm = minilava.load(tiny, device="cpu", dtype="float32")
    first = [{"role": "user", "content": [{"type": "image", "image": photo}, {"type": "text", "text": "What?"}]}]
    one = vlm.chat(first, max_new_tokens=5)
    second = [*first, {"role": "assistant", "content": one.text}, {"role": "user", "content": "Sure?"}]
    two = vlm.chat(second, max_new_tokens=5)
    assert two.image_tokens == one.image_tokens == 17 and two.prompt_tokens > one.prompt_tokens


def test_interrupt_ends_quietly(tiny):
    """Ctrl-C in the middle of a reply: status 130, one line, no traceback."""
    args = ["--model", str(tiny), "--prompt", "x" * 500, "--max-new-tokens", "30000", "--temperature", "1"]
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", "minilava.generate", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout.read(1)  # it has begun to answer
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and b"Traceback" not in err and b"interrupted" in err


def test_progress_is_shown_on_a_terminal_only(tiny, photo):
    args = [
        sys.executable,
        "-m",
        "minilava.generate",
        "--model",
        str(tiny),
        "--image",
        str(photo),
        "--max-new-tokens",
        "2",
    ]
    piped = subprocess.run(args, capture_output=True)
    assert b"encoding" not in piped.stderr
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=theirs)
    child.communicate()
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert b"encoding pictures" in shown
