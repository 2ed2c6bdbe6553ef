"""Several processes: the same curve as one, whatever is sharded how, and checkpoints that any number goes on from.

BOUND: processes add gradients in another order, which moves a float32 sum by about 1e-7 of it. AdamW divides a gradient
by its own size, so an entry that is nothing but rounding can move by the whole rate in either direction; its effect on
the loss is its gradient times that, of the order of rounding again. Over 8 steps 1e-5 of the loss is the generous end
of that, and a missing or doubled micro-batch, a wrong mean or a lost optimizer state are 1e-3 and more.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.train import state
from minilava.train.log import read_log
from tests.train.small import free_port, picture, record, settings, tools, train_with, write_config

BOUND = 1e-5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Mostly text: many steps have pictures in some lanes only, some in none."""
    folder = tmp_path_factory.mktemp("data")
    picture(1, (100, 48)).save(folder / "a.png")
    picture(2).save(folder / "b.png")
    records = [record(i, question="words " * (i % 5), answer="answer " * (1 + i % 3)) for i in range(16)]
    for i in range(0, 16, 4):
        names = ["a.png", "b.png"][: 1 + i % 8 // 4]
        records[i] = records[i] | {"image": names}
    (folder / "data.json").write_text(json.dumps(records))
    return str(folder / "data.json")


def stage(tiny, folder, data, **other):
    """(arguments of the command, OUT). The rate does not depend on the number of steps."""
    base = dict(data=data, steps=8, budget=130, schedule="constant", warmup=0.0, lr=2e-3, save_every=4)
    out = folder / "out"
    return [str(write_config(folder / "stage.yaml", settings(tiny, out, **base | other)))], out


def curve(world, tiny, folder, data, then=(), **other):
    """Losses and gradient norms of a run of ``world`` processes for 4 steps, then of the next number for 4 more..."""
    folder.mkdir()
    argv, out = stage(tiny, folder, data, **other)
    worlds = (world, *then)
    for k, processes in enumerate(worlds):
        steps = 8 if not then else 4 * (k + 1)
        codes = train_with(processes, [*argv, "--set", f"steps={steps}"], folder / "stderr")
        assert codes == [0] * processes, (folder / "stderr").read_text()
    rows = read_log(out)
    assert [row["step"] for row in rows] == list(range(1, (8 if not then else 4 * len(worlds)) + 1))
    return [x for row in rows for x in (row["loss"], row["grad_norm"])], rows


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory, data):
    """The curve of one process by the number of micro-batches, made when first asked for."""
    known = {}

    def of(micro_batches, **other):
        key = (micro_batches, str(other))
        if key not in known:
            folder = tmp_path_factory.mktemp("single") / "run"
            known[key] = curve(1, tiny, folder, data, micro_batches=micro_batches, **other)
        return known[key]

    return of


def near(ours, theirs):
    """Losses and norms agree to BOUND; counts are the same."""
    assert len(ours[0]) == len(theirs[0])
    for a, b in zip(ours[0], theirs[0], strict=True):  # without a picture, a norm may be 0
        assert abs(a - b) <= BOUND * abs(b), (a, b)
    for name in ("tokens", "labelled", "images", "samples"):
        assert [row[name] for row in ours[1]] == [row[name] for row in theirs[1]]


def test_the_data_has_steps_where_only_one_lane_has_pictures(tiny, data):
    tokenizer, model = tools(tiny)
    stream = Stream(load_mixture(data), tokenizer, model, 130, lanes=2, seed=42)
    loader = stream.loader(0)
    lanes = [[next(loader).packed.patches is not None for _ in range(2)] for _ in range(8)]
    assert [True, False] in lanes and [False, True] in lanes and [False, False] in lanes


@pytest.mark.parametrize("shard", ["fsdp", "ddp"])
def test_two_processes_are_one(tiny, tmp_path, data, single, shard):
    """Also where one of them has no pictures: nothing hangs, nothing differs."""
    near(curve(2, tiny, tmp_path / "run", data, micro_batches=2, shard=shard), single(2))


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["fsdp", "ddp"])
@pytest.mark.parametrize("worlds", [(3,), (2, 1), (2, 3), (3, 2), (1, 2), (1, 3)], ids=str)
def test_other_numbers_of_processes_go_on_with_the_same_curve(tiny, tmp_path, data, single, shard, worlds):
    ours = curve(worlds[0], tiny, tmp_path / "run", data, worlds[1:], micro_batches=6, shard=shard, recompute="all")
    near(ours, single(6))


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["fsdp", "ddp"])
@pytest.mark.parametrize("parts", [["projector"], ["projector", "text"], ["vision"]], ids=str)
def test_freeze_sets(tiny, tmp_path, data, single, shard, parts):
    other = dict(micro_batches=2, train=parts)
    near(curve(2, tiny, tmp_path / "run", data, shard=shard, **other), single(**other))


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["fsdp", "ddp"])
def test_bfloat16_trains(tiny, tmp_path, data, shard):
    """Masters are float32 and products bfloat16: near the curve in float32 at bfloat16's 3 digits."""
    wide, _ = curve(1, tiny, tmp_path / "wide", data, micro_batches=2)
    narrow, _ = curve(2, tiny, tmp_path / "narrow", data, micro_batches=2, shard=shard, dtype="bfloat16")
    for a, b in zip(wide[::2], narrow[::2], strict=True):
        assert abs(a - b) < 0.02 * a
    assert wide != narrow


@pytest.mark.slow
def test_the_same_bits_whoever_resumes(tiny, tmp_path, data):
    """Two processes stopped half-way and two that are not end in the same bits."""
    a, b = (curve(2, tiny, tmp_path / n, data, then, micro_batches=2) for n, then in (("a", ()), ("b", (2,))))
    assert a[0] == b[0]
    models = [sorted((tmp_path / n / "out" / "model").iterdir()) for n in "ab"]
    assert [p.read_bytes() for p in models[0]] == [p.read_bytes() for p in models[1]]


@pytest.mark.slow
def test_three_processes_cannot_share_two_packs(tiny, tmp_path, data):
    argv, _ = stage(tiny, tmp_path, data)
    assert train_with(3, argv, tmp_path / "stderr") == [2, 2, 2]
    assert "2 micro-batches per step cannot be shared by 3 processes" in (tmp_path / "stderr").read_text()


# --- torchrun ---------------------------------------------------------------------------------------------------------


def processes():
    """pid -> (parent, start time) of all that live."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent, *rest = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        if state != "Z":
            found[int(entry)] = int(parent), rest[17]
    return found


def family(pid):
    """Descendants of a process, the elder first, as processes() gives them. torchrun's are in sessions of their own."""
    living, found = processes(), {}
    while more := {p: e for p, e in living.items() if p not in found and (e[0] == pid or e[0] in found)}:
        found |= more
    return found


@pytest.fixture
def torchrun(tiny, tmp_path, data):
    """A started run of two processes with data workers, past its second step: (its process, its family, OUT, stderr)"""
    argv, out = stage(tiny, tmp_path, data, steps=100_000, workers=1, micro_batches=2, save_every=100_000)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    with open(tmp_path / "stderr", "w") as sink:
        run = subprocess.Popen([sys.executable, *launch, "-m", "minilava.train", *argv], stdout=sink, stderr=sink,
                               start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    while run.poll() is None and len(read_log(out)) < 2:
        time.sleep(0.05)
    born = family(run.pid)
    yield run, born, out, tmp_path / "stderr"
    run.kill()
    run.wait()
    for pid in left(born):
        os.kill(pid, signal.SIGKILL)


def left(born, seconds=0):
    """Who of them still lives after so long."""
    until = time.monotonic() + seconds
    while True:
        living = processes()
        rest = [pid for pid, (_, started) in born.items() if pid in living and living[pid][1] == started]
        if not rest or time.monotonic() > until:
            return rest
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_that_dies_leaves_no_orphans(torchrun):
    run, born, _, errors = torchrun
    ranks = [pid for pid, (parent, _) in born.items() if parent == run.pid]
    assert len(ranks) == 2 and len(born) == 4, errors.read_text()  # and a data worker each
    os.kill(ranks[0], signal.SIGKILL)
    assert run.wait(120) != 0 and not left(born, 60)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_of_torchrun_saves_the_step(torchrun):
    """A terminal sends it to torchrun, which passes it on and then asks again with SIGTERM."""
    run, born, out, errors = torchrun
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(120) != 0 and not left(born, 60)
    last = state.latest(out)
    assert last is not None, errors.read_text()
    assert state.read(last)["step"] == read_log(out)[-1]["step"] == int(last.name[-8:])


def test_a_process_alone_needs_no_group():
    from minilava.train.ranks import Ranks

    ranks = Ranks.start("cpu")
    assert (ranks.rank, ranks.world, ranks.first, ranks.device) == (0, 1, True, torch.device("cpu"))
    assert ranks.sum(1.5, 2) == [1.5, 2]
    ranks.barrier(), ranks.stop()
