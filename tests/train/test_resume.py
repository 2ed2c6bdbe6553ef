"""A run that is killed, stopped or out of disk goes on to the same bits, and damage is refused by name."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from minilava.errors import UserError
from minilava.train import state
from minilava.train.log import read_log
from minilava.train.loop import Run, train
from minilava.train.ranks import Ranks
from tests.train.small import PICTURES, child, config, finish, settings, write_config

STEPS = 12


def start(tiny, folder, **other) -> tuple[list[str], object]:
    """(arguments of the command, OUT)."""
    out = folder / "out"
    return [str(write_config(folder / "stage.yaml", settings(tiny, out, steps=STEPS, **other)))], out


def contents(out) -> dict[str, bytes]:
    """The final model's files, and all of the last checkpoint but torch's own index, which holds a random id."""
    last = state.latest(out)
    files = [p for p in (*sorted((out / "model").iterdir()), *sorted(last.iterdir()))]
    skipped = (".metadata", state.MANIFEST)
    return {str(p.relative_to(out)): p.read_bytes() for p in files if p.name not in skipped}


def same(a: dict[str, bytes], b: dict[str, bytes]) -> None:
    assert a.keys() == b.keys() and [k for k in a if a[k] != b[k]] == []


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """contents() of a run that nothing interrupts, and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    argv, out = start(tiny, folder)
    assert finish(child(argv, folder / "stderr")) == 0, (folder / "stderr").read_text()
    return contents(out), [row["loss"] for row in read_log(out)]


def check(out, whole, errors) -> None:
    """OUT is what the uninterrupted run made, every step is in the log once, and nobody saw a traceback."""
    same(contents(out), whole[0])
    rows = read_log(out)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == whole[1]
    assert not list(out.glob("*.tmp")) and len(list(out.glob("step-*"))) == 2
    assert errors is None or "Traceback" not in errors.read_text()


def test_killed_in_every_part_of_a_write(tiny, tmp_path, whole):
    """SIGKILL before the n-th fsync or rename since the start; the last of them fall into the final model's files."""
    argv, out = start(tiny, tmp_path)
    deaths = 0
    for n in (1, 2, 4, 7, 9, 10, 11, 12, 15, 26):
        code = finish(child(argv, tmp_path / "stderr", die_at=n))
        assert code in (0, -signal.SIGKILL)
        deaths += code != 0
        for checkpoint in state.finished(out):
            state.read(checkpoint)
    assert deaths >= 8
    assert finish(child(argv, tmp_path / "stderr")) == 0
    check(out, whole, tmp_path / "stderr")


def test_killed_at_random_moments(tiny, tmp_path, whole):
    argv, out = start(tiny, tmp_path, workers=1)
    draw = random.Random(0)
    for _ in range(5):
        began = len(read_log(out))
        process = child(argv, tmp_path / "stderr")
        while process.is_alive() and len(read_log(out)) in (0, began):  # up to the first step of this life
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        process.join()
    assert finish(child(argv, tmp_path / "stderr")) == 0
    check(out, whole, None)  # a worker whose run was killed may complain


def test_killed_while_the_final_model_is_written(tiny, tmp_path, whole):
    argv, out = start(tiny, tmp_path)
    assert finish(child(argv, tmp_path / "stderr")) == 0
    shutil.rmtree(out / "model")
    for n in (1, 3, 6, 8, 11, 100):
        code = finish(child(argv, tmp_path / "stderr", die_at=n))
        assert code == (0 if n == 100 else -signal.SIGKILL)
        assert (out / "model").exists() == (n == 100)
    check(out, whole, tmp_path / "stderr")


def test_ctrl_c_saves_and_exits_130(tiny, tmp_path, whole):
    """The real command, with Ctrl-C for the whole process group as a terminal sends it: data workers too."""
    argv, out = start(tiny, tmp_path, workers=1, save_every=1000)
    with open(tmp_path / "stderr", "w") as sink:
        command = [sys.executable, "-m", "minilava.train", *argv]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as the other children: sums depend on their number
        run = subprocess.Popen(command, stderr=sink, start_new_session=True, env=one_thread)
        while run.poll() is None and len(read_log(out)) < 2:
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(120) == 130
    steps = [row["step"] for row in read_log(out)]
    assert 2 <= len(steps) < STEPS and int(state.latest(out).name[-8:]) == steps[-1]
    assert "minilava: interrupted" in (tmp_path / "stderr").read_text()
    assert finish(child(argv, tmp_path / "stderr")) == 0
    model = {k: v for k, v in contents(out).items() if k.startswith("model")}
    same(model, {k: v for k, v in whole[0].items() if k.startswith("model")})
    assert [row["loss"] for row in read_log(out)] == whole[1]
    assert "Traceback" not in (tmp_path / "stderr").read_text()


CRASH = """
import sys
from minilava.train.__main__ import main
from minilava.train.loop import Run
Run.save = None
main(sys.argv[1:])
"""


def test_a_crash_ends_the_process(tiny, tmp_path):
    """Its data workers wait for more to do and are deaf to SIGTERM, by which Python would end them as it exits."""
    argv, _ = start(tiny, tmp_path, workers=1, save_every=1)
    done = subprocess.run([sys.executable, "-c", CRASH, *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.endswith("TypeError: 'NoneType' object is not callable\n")


@pytest.mark.parametrize("file", ["checkpoint", "log"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(tiny, tmp_path, whole, file):
    """The system refuses to let any file grow beyond a limit: the checkpoint's, or already the log."""
    argv, out = start(tiny, tmp_path)
    assert finish(child([*argv, "--set", "save_every=4"], tmp_path / "stderr", die_at=13)) == -signal.SIGKILL
    assert state.latest(out).name == "step-00000004"
    errors, log = tmp_path / "errors", out / "log.jsonl"
    kept = "".join(log.read_text().splitlines(True)[:4])
    limit = 50_000 if file == "checkpoint" else len(kept) + 100  # no room for step 5
    assert finish(child(argv, errors, file_limit=limit)) == 2
    (line,) = [x for x in errors.read_text().splitlines() if x]
    place = f"cannot write the checkpoint of step 6 to {out}" if file == "checkpoint" else f"cannot write {log}"
    last = "; the last good one is step-00000004" * (file == "checkpoint")
    assert line == f"minilava: error: {place}: File too large{last}"
    assert [p.name for p in out.glob("*.tmp")] == ["step-00000008.tmp"] * (file == "log")  # the killed run's
    state.read(state.latest(out))
    assert finish(child(argv, tmp_path / "stderr")) == 0
    check(out, whole, tmp_path / "stderr")


def test_a_full_disk_while_the_final_model_is_written(tiny, tmp_path, whole):
    argv, out = start(tiny, tmp_path)
    assert finish(child(argv, tmp_path / "stderr")) == 0
    shutil.rmtree(out / "model")
    errors = tmp_path / "errors"
    assert finish(child(argv, errors, file_limit=50_000)) == 2
    (line,) = [x for x in errors.read_text().splitlines() if x]
    assert line.startswith("minilava: error: cannot write ") and "File too large" in line
    assert not (out / "model").exists() and finish(child(argv, tmp_path / "stderr")) == 0
    check(out, whole, tmp_path / "stderr")


@pytest.fixture(scope="module")
def six(tiny, tmp_path_factory):
    """A finished run of 6 steps whose rate does not depend on their number."""
    out = tmp_path_factory.mktemp("six") / "out"
    train(config(tiny, out, steps=6, schedule="constant", warmup=0.0))
    return out


def test_any_damage_is_refused_by_name(six):
    last = state.latest(six)
    damages = (
        lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: None,
    )
    files = [p for p in last.iterdir() if p.name != state.MANIFEST]
    assert {"run.json", ".metadata"} < {p.name for p in files}
    for file in files:
        whole = file.read_bytes()
        for damage in damages:
            file.unlink()
            if (damaged := damage(whole)) is not None:
                file.write_bytes(damaged)
            with pytest.raises(UserError, match=f"{file.name} is damaged: remove .*{last.name}"):
                state.read(last)
            file.write_bytes(whole)
    manifest = last / state.MANIFEST
    whole = manifest.read_bytes()
    for damaged in (b"", b"[]", b"{", b'{"run.json": 3}', b'{"run.json": {"bytes": 1}}', b"\xff", None):
        manifest.unlink()
        if damaged is not None:
            manifest.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            state.read(last)
        manifest.write_bytes(whole)
    state.read(last)


@pytest.mark.parametrize(
    "change",
    [{"lr": 2e-3}, {"budget": 501}, {"micro_batches": 3}, {"seed": 1}, {"train": ["projector"]}, {"betas": [0.9, 0.9]},
     {"dtype": "bfloat16"}, {"clip": 2.0}, {"data": {"sources": [PICTURES]}}],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_a_run_does_not_go_on_with_other_settings(tiny, six, change):
    base = dict(steps=8, schedule="constant", warmup=0.0)
    with pytest.raises(UserError, match=f"holds a run with {next(iter(change))} .*: name another out"):
        Run(config(tiny, six, **base | change), Ranks.start("cpu"))
    free = dict(workers=0, save_every=3, keep=1, strict=True)
    assert Run(config(tiny, six, **base | free), Ranks.start("cpu")).step == 6


def test_the_contents_of_a_mixture_file_count_and_its_name_does_not(tiny, tmp_path):
    base = dict(steps=1, warmup=0.0)
    (tmp_path / "a.yaml").write_text(json.dumps({"sources": [PICTURES]}))
    train(config(tiny, tmp_path / "out", data=str(tmp_path / "a.yaml"), **base))
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    later = config(tiny, tmp_path / "out", data=str(tmp_path / "b.yaml"), **base | {"steps": 2})
    assert Run(later, Ranks.start("cpu")).step == 1
    for change in ({"samples": 41}, {"layout": "front"}, {"labels": "main"}, {"weight": 2}, {"size": 57}):
        (tmp_path / "b.yaml").write_text(json.dumps({"sources": [PICTURES | change]}))
        with pytest.raises(UserError, match="holds a run with data .*: name another out"):
            Run(later, Ranks.start("cpu"))


def test_another_model_is_refused(tiny, six, tmp_path):
    from minilava.checkpoint import write_random

    write_random(tmp_path / "other", shape="tiny", dtype="float32", tokenizer="byte",
                 config_overrides={"intermediate_size": 96})  # fmt: skip
    c = config(tmp_path / "other", six, steps=8, schedule="constant", warmup=0.0)
    with pytest.raises(UserError, match="step-00000006 does not fit the model of init") as e:
        Run(c, Ranks.start("cpu"))
    assert "\n" not in str(e.value)


def test_more_steps_go_on_and_replace_the_model(tiny, tmp_path):
    """As if they had been asked for at once, where the rate does not depend on their number."""
    base = dict(schedule="constant", warmup=0.0)
    for out, lengths in (("at once", [6]), ("in two", [4, 6])):
        for steps in lengths:
            train(config(tiny, tmp_path / out, steps=steps, **base))
    assert [row["step"] for row in read_log(tmp_path / "in two")] == list(range(1, 7))
    same(contents(tmp_path / "in two"), contents(tmp_path / "at once"))


def test_a_finished_run_without_its_checkpoints_is_still_finished(tiny, tmp_path):
    out = tmp_path / "out"
    train(config(tiny, out, steps=2))
    for checkpoint in state.finished(out):
        shutil.rmtree(checkpoint)
    before = {p.name: p.read_bytes() for p in (out / "model").iterdir()}
    assert train(config(tiny, out, steps=2)) == out / "model"
    assert {p.name: p.read_bytes() for p in (out / "model").iterdir()} == before
    assert not state.finished(out)
