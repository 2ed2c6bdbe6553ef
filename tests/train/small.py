"""Helpers of the trainer's tests: small records, configs, and children that run the trainer's command."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from minilava.config import ModelConfig
from minilava.data.mixture import Mixture, Source
from minilava.tokenizer import Tokenizer
from minilava.train.config import TrainConfig, parse

PICTURES = {"world": "spot_difference,single_image", "samples": 40, "turns": 2, "size": 48}
POOLED = {"world": "video_qa", "samples": 10, "size": 48, "frames": 4, "pool": "average"}
DATA = {"sources": [PICTURES, POOLED]}


def picture(color: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A gradient, so that rows, columns and channels all differ."""
    x, y = torch.arange(size[0])[None, :, None], torch.arange(size[1])[:, None, None]
    channels = torch.tensor([3, 5, 7]) * (color + 1)
    return Image.fromarray(((x * channels + y * 4) % 256).to(torch.uint8).numpy())


def talk(question: str, *answers: str) -> list[dict]:
    """question, answer, then "more" and answer for the others."""
    turns = [(question if i == 0 else "more", answer) for i, answer in enumerate(answers)]
    return [m for q, a in turns for m in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]


def record(name: object, pictures: int = 0, answer: str = "yes", question: str = "what") -> dict:
    image = {"image": [picture(i) for i in range(pictures)]} if pictures else {}
    return {"id": name, **image, "conversations": talk("<image>" * pictures + question, answer)}


def mixture(*records: dict, **settings) -> Mixture:
    return Mixture([Source("data", list(records), **settings)])


def tools(path: Path) -> tuple[Tokenizer, ModelConfig]:
    return Tokenizer.load(path), ModelConfig.load(path)


def settings(init: Path, out: Path, **other) -> dict:
    """A run of seconds, as plain values."""
    base = dict(data=DATA, steps=12, budget=500, micro_batches=2, lr=1e-3, dtype="float32", device="cpu",
                workers=0, save_every=2, warmup=0.2, weight_decay=0.01)  # fmt: skip
    return {"init": str(init), "out": str(out), **base, **other}


def config(init: Path, out: Path, **other) -> TrainConfig:
    return parse(settings(init, out, **other))


def write_config(path: Path, values: dict) -> Path:
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


# --- children: forked from a server that has torch loaded and no thread started, so one costs little ----------------


def server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minilava.train.loop", "torch.distributed.fsdp", "tests.train.small"])
    return context


def command(argv: list[str], stderr: str, die_at: int, file_limit: int, environment: dict[str, str]) -> None:
    """The child's body: ``python -m minilava.train ARGV``, in a process group of its own."""
    from minilava.train.__main__ import main

    os.setpgrp()
    os.environ.update(environment)
    if die_at:
        die_at_call(die_at)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    torch.set_num_threads(1)
    sink = os.open(stderr, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(sink, 1), os.dup2(sink, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    sys.exit(main(argv))


def die_at_call(number: int) -> None:
    """SIGKILL this process instead of its number-th call of what makes a write final."""
    calls = itertools.count(1)

    def mortal(real):
        def call(*args, **kwargs):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    os.fsync, os.replace = mortal(os.fsync), mortal(os.replace)


def child(
    argv: list[str], stderr: Path, die_at: int = 0, file_limit: int = 0, **environment: str
) -> multiprocessing.Process:
    """Start the command; what it prints is appended to the file ``stderr``. die_at: see die_at_call.
    file_limit: bytes that no file can exceed, as on a disk that is full."""
    process = server().Process(target=command, args=(argv, str(stderr), die_at, file_limit, environment))
    process.start()
    return process


def finish(process: multiprocessing.Process, seconds: float = 300) -> int:
    """Its exit status; a process that hangs is killed and fails the test."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError("the process hangs")
    return process.exitcode


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def ranks(world: int, argv: list[str], stderr: Path):
    """``world`` processes as torchrun starts them, killed when the block is left."""
    port = str(free_port())
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    started = [child(argv, stderr, RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(world)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def train_with(world: int, argv: list[str], stderr: Path) -> list[int]:
    """Exit statuses of a run of one process, or of several."""
    if world == 1:
        return [finish(child(argv, stderr))]
    with ranks(world, argv, stderr) as started:
        return [finish(process) for process in started]
