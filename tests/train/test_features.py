"""Features on disk: the tower runs once per view, the loss stays the same to the bit, nothing stale is ever used."""

import json
import os
import subprocess
import sys

import pytest
import torch

from minilava.checkpoint import write_random
from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.errors import UserError
from minilava.train.config import TrainConfig
from minilava.train.features import Features
from minilava.train.loop import Run, train
from minilava.train.ranks import Ranks
from minilava.train.weights import load_for_training

CPU = Ranks(0, 1, torch.device("cpu"))
DATA = {
    "sources": [
        {"world": "multi_image_vqa", "samples": 4, "size": 56},
        {"world": "single_image", "samples": 2, "size": 56},  # tiled: several views of one picture
        {"world": "video_qa", "samples": 2, "size": 56, "frames": 3, "pool": "average"},
    ]
}
RECORDS = 8


def config(tiny, out, **changes):
    base = dict(init=str(tiny), out=str(out), data=DATA, steps=12, budget=1000, workers=0, lr=1e-2, warmup=0.0,
                dtype="float32", train=("projector", "text"))  # fmt: skip
    return TrainConfig(**base | changes)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """36 patches per view: beyond the few rows of kernels/linear.py, where a row's bits do not depend on the others."""
    path = tmp_path_factory.mktemp("tiny36") / "model"
    grid = [[84 * w, 84 * h] for w, h in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    overrides = {"vision_config": {"image_size": 84}, "image_grid_pinpoints": grid}
    return write_random(path, dtype="float32", tokenizer="byte", config_overrides=overrides)


def steps(run, count=12):
    return [run.advance() for _ in range(count)]


@pytest.fixture
def model(tiny):
    return load_for_training(tiny, CPU.device)[0]


def a_pack(tiny, model):
    return next(Stream(load_mixture(DATA), load_for_training(tiny, CPU.device)[1], model.config, 1000).loader(0)).packed


def test_later_epochs_never_run_the_tower(tiny, tmp_path, calls):
    run = Run(config(tiny, tmp_path / "run", features=str(tmp_path / "store")), CPU)
    views = []
    while run.positions[0] < 3 * RECORDS:
        before = len(calls)
        began = run.positions[0]
        run.advance()
        if began >= RECORDS:
            assert len(calls) == before
        views.append(sum(calls[before:]))
    files = list((tmp_path / "store").rglob("*.safetensors"))
    assert len(files) <= sum(views) and views[0] > 0
    again = Run(config(tiny, tmp_path / "other", features=str(tmp_path / "store")), CPU)
    before = len(calls)
    steps(again)
    assert len(calls) == before  # another run finds them as well


def test_the_loss_is_the_same_to_the_bit(tiny, tmp_path):
    plain = steps(Run(config(tiny, tmp_path / "a"), CPU))
    stored = steps(Run(config(tiny, tmp_path / "b", features=str(tmp_path / "store")), CPU))
    for a, b in zip(plain, stored, strict=True):
        assert (a["loss"], a["grad_norm"], a["images"]) == (b["loss"], b["grad_norm"], b["images"])
    assert plain[0]["images"] > 0


def test_a_store_does_not_change_what_resume_does(tiny, tmp_path):
    straight = train(config(tiny, tmp_path / "a", steps=4))
    first = Run(config(tiny, tmp_path / "b", steps=4, features=str(tmp_path / "s1")), CPU)
    steps(first, 2)
    first.save()
    resumed = train(config(tiny, tmp_path / "b", steps=4, features=str(tmp_path / "s2")))  # moved, and empty again
    assert (straight / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_pack_with_features_equals_pack_with_pixels(tiny, tmp_path, model):
    packed = a_pack(tiny, model)
    store = Features(tmp_path, model.vision, torch.float32)
    missed, keys = store.load(packed)
    assert missed is packed and len(keys) == packed.views
    filled = store.fill(packed, keys, model)
    found, none = store.load(packed)
    assert found.patches is None and none == [] and found.views == packed.views
    assert torch.equal(found.tower, filled.tower)
    with torch.no_grad():
        assert torch.equal(model(found), model(packed))


def test_other_pixels_towers_and_dtypes_miss(tiny, tmp_path, model):
    packed = a_pack(tiny, model)
    store = Features(tmp_path, model.vision, torch.float32)
    store.fill(packed, store.load(packed)[1], model)
    assert store.load(packed)[0].tower is not None
    packed.patches[0, 0, 0] += 1e-3
    assert store.load(packed)[0].tower is None
    packed.patches[0, 0, 0] -= 1e-3
    assert Features(tmp_path, model.vision, torch.bfloat16).folder != store.folder
    with torch.no_grad():
        model.vision.blocks[0].fc1.bias[0] += 1e-3
    assert Features(tmp_path, model.vision, torch.float32).folder != store.folder


def test_damaged_files_count_as_missing(tiny, tmp_path, model):
    packed = a_pack(tiny, model)
    store = Features(tmp_path, model.vision, torch.float32)
    keys = store.load(packed)[1]
    good = store.fill(packed, keys, model).tower
    path = store.path(keys[1])
    path.write_bytes(path.read_bytes()[:40])
    missed, keys = store.load(packed)
    assert missed.tower is None
    store.fill(packed, keys, model)
    assert torch.equal(store.load(packed)[0].tower, good)
    assert not list(tmp_path.rglob("*.tmp"))


def test_unwritable_store_is_one_line(tiny, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    run = Run(config(tiny, tmp_path / "run", features=str(tmp_path / "file")), CPU)
    with pytest.raises(UserError, match="cannot write features"):
        run.advance()


def test_a_tower_that_learns_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="frozen tower"):
        config(tiny, tmp_path, features="store", train=("vision", "text"))


def test_works_with_workers_and_pairs(tiny, tmp_path, calls):
    pairs = {"sources": [{"world": "spot_difference", "what": "preferences", "samples": 3, "size": 56}]}
    settings = dict(data=pairs, form="pairs", features=str(tmp_path / "store"), lr=1e-3)
    rows = steps(Run(config(tiny, tmp_path / "a", **settings), CPU), 4)
    again = Run(config(tiny, tmp_path / "a2", workers=1, **settings), CPU)  # its reference runs the tower once more
    before = len(calls)
    assert [r["loss"] for r in steps(again, 4)] == [r["loss"] for r in rows]
    assert len(calls) == before


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_processes(tiny, tmp_path, shard):
    """Where one process has new pictures and the other none, nothing waits for ever; adapters learn as well."""
    code = (
        "import json, sys; from minilava.train.config import parse; from minilava.train.loop import train;"
        "train(parse(json.loads(sys.argv[1])))"
    )
    (tmp_path / "main.py").write_text(code)
    losses = []
    for processes, out in ((2, "two"), (1, "one")):
        settings = dict(init=str(tiny), out=str(tmp_path / out), data=DATA, steps=4, budget=1000, workers=0, lora=4,
                        micro_batches=2, device="cpu", dtype="float32", train=["projector", "text"], shard=shard,
                        features=str(tmp_path / f"store-{out}"))  # fmt: skip
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [str(tmp_path / "main.py"), json.dumps(settings)]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        rows = [json.loads(line) for line in (tmp_path / out / "log.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
        assert (tmp_path / out / "adapter" / "adapter_model.safetensors").exists()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
