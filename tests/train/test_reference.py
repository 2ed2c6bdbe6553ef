"""DPO's reference: right values, computed once, resumable, refused when stale; a pair's pictures are encoded once."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from minilava.checkpoint import write_random
from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.errors import UserError
from minilava.inputs.pack import pack
from minilava.train import reference
from minilava.train.config import TrainConfig
from minilava.train.log import read_log
from minilava.train.loop import Run, train
from minilava.train.objective import Preferences, log_probabilities
from minilava.train.ranks import Ranks
from minilava.train.weights import load_for_training

CPU = Ranks(0, 1, torch.device("cpu"))
DATA = {
    "sources": [
        {"world": "spot_difference", "what": "preferences", "samples": 3, "size": 56, "layout": "mixed"},
        {"world": "video_qa", "what": "preferences", "samples": 2, "size": 56, "frames": 3, "pool": "average"},
        {"world": "scene_vqa", "what": "preferences", "samples": 1, "size": 56},  # refused: it has none
    ]
}
PAIRS = 5


def config(tiny, out, **changes):
    base = dict(init=str(tiny), out=str(out), data=DATA, steps=2, form="pairs", budget=1200, workers=0, lr=1e-3,
                dtype="float32")  # fmt: skip
    return TrainConfig(**base | changes)


@pytest.fixture(scope="module")
def made(tiny):
    """(model, stream) of the mixture of pairs."""
    model, tokenizer = load_for_training(tiny, torch.device("cpu"))
    return model, Stream(load_mixture(DATA), tokenizer, model.config, 1200, "pairs", seed=42)


def prepare(tiny, out, made, ranks=CPU):
    return reference.prepare(out, tiny, *made, ranks)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory, made):
    """(OUT, the finished store)."""
    out = tmp_path_factory.mktemp("whole")
    return out, prepare(tiny, out, made)


def single(made, name):
    """log-probabilities of one pair alone, its pictures encoded for each answer."""
    model, stream = made
    number = [s.name for s in stream.mixture.sources].index(name.rpartition("[")[0])
    samples = stream.read(number, int(name.rpartition("[")[2][:-1]))[1]
    with torch.no_grad():
        return log_probabilities(model, pack(samples, model.config.vision.patches))[0]


def test_shared_pictures_change_neither_loss_nor_gradients(made):
    model, stream = made
    samples = [s for number, index in ((0, 0), (1, 0), (0, 1)) for s in stream.read(number, index)[1]]
    patches = model.config.vision.patches
    shared, plain = pack(samples, patches), pack([replace(s, leader=None) for s in samples], patches)
    assert len(plain.patches) == 2 * len(shared.patches) and plain.tokens > 1.5 * shared.tokens
    assert len(shared.max_taps if shared.mix_taps is None else shared.mix_taps)  # pooled rows are among them
    results = []
    for packed in (shared, plain):
        model.zero_grad(set_to_none=True)
        loss, _ = Preferences(model, 0.1, 0.5)(packed, torch.tensor([[-90.0, -91.0], [-80.0, -70.0], [-60.0, -61.0]]))
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()]))
    model.zero_grad(set_to_none=True)
    torch.testing.assert_close(results[0][0], results[1][0])
    size = max(float(b.abs().max()) for b in results[1][1])  # a key's bias has no gradient but rounding
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * size)


def test_store_holds_the_log_probabilities_of_every_pair(whole, made):
    _, store = whole
    assert (store.marks >= 0).sum() == PAIRS and store.marks[-1] == reference.REFUSED
    for name, row in store.rows.items():
        if store.marks[row] >= 0:
            torch.testing.assert_close(store.values[row], single(made, name), rtol=1e-5, atol=1e-3)


def test_a_pair_that_fits_because_it_shares_is_used(tiny, tmp_path, made, whole):
    """Two answers about the same pictures have one copy of them in a pack, and in the store's packs."""
    model, stream = made
    sources = enumerate(stream.mixture.sources[:2])
    pairs = [stream.read(n, i)[1] for n, source in sources for i in range(len(source.records))]
    budget = max(sum(s.tokens - s.shared_tokens for s in p) for p in pairs)
    assert any(sum(s.tokens for s in p) > budget for p in pairs)
    narrow = Stream(stream.mixture, stream.tokenizer, model.config, budget, "pairs", seed=42)
    store = reference.prepare(tmp_path, tiny, model, narrow, CPU)
    assert torch.equal(store.marks, whole[1].marks)
    torch.testing.assert_close(store.values, whole[1].values, rtol=1e-5, atol=1e-3)


def test_a_batch_gets_the_values_of_its_names(whole, made):
    _, store = whole
    batch = next(made[1].loader(0))
    assert batch.names[::2] == batch.names[1::2]
    expected = torch.stack([single(made, name) for name in batch.names[::2]])
    torch.testing.assert_close(store.of(batch), expected, rtol=1e-5, atol=1e-3)


def test_pairs_keep_their_layout_in_every_epoch(made):
    """The reference is computed once, so a mixed source must not draw anew."""
    stream = made[1]
    first, second = (stream.read(0, 1, position)[1] for position in (1, 7))
    assert [s.ids for s in first] == [s.ids for s in second]
    chat = Stream(load_mixture({"sources": [{"world": "spot_difference", "size": 56, "layout": "mixed"}]}),
                  stream.tokenizer, stream.config, 1200)  # fmt: skip
    assert len({tuple(chat.read(0, 1, position)[1][0].ids) for position in range(8)}) > 1


def test_goes_on_after_a_kill(tiny, tmp_path, made, whole, monkeypatch):
    read = []
    real = Stream.read

    def counted(self, number, index, position=0):
        read.append((number, index))
        if len(read) == 4:
            raise KeyboardInterrupt
        return real(self, number, index, position)

    monkeypatch.setattr(reference, "SAVE_EVERY", 1)
    monkeypatch.setattr(Stream, "read", counted)
    small = made[0], Stream(made[1].mixture, made[1].tokenizer, made[1].config, 700, "pairs", seed=42)
    with pytest.raises(KeyboardInterrupt):
        prepare(tiny, tmp_path, small)
    before = len(read)
    store = prepare(tiny, tmp_path, small)
    assert before - 1 < len(read) < before + PAIRS + 1  # some were there already
    torch.testing.assert_close(store.values, whole[1].values, rtol=1e-5, atol=1e-3)
    assert torch.equal(store.marks, whole[1].marks)
    again = len(read)
    prepare(tiny, tmp_path, small)
    assert len(read) == again


def test_processes_share_the_work(tiny, tmp_path, made, whole, monkeypatch):
    monkeypatch.setattr(Ranks, "barrier", lambda self: None)
    partial = prepare(tiny, tmp_path, made, Ranks(1, 2, CPU.device))
    assert 0 < (partial.marks == reference.LEFT).sum() < len(partial.marks)
    monkeypatch.setattr(reference, "_compute", _only(range(0, 6, 2), reference._compute))
    store = prepare(tiny, tmp_path, made, Ranks(0, 2, CPU.device))
    assert (store.marks == reference.LEFT).sum() > 0  # of what was left, rank 0 took its half
    monkeypatch.undo()
    store = prepare(tiny, tmp_path, made)
    assert torch.equal(store.marks, whole[1].marks)
    torch.testing.assert_close(store.values, whole[1].values, rtol=1e-5, atol=1e-3)


def _only(allowed, compute):
    def checked(path, weights, store, rows, *rest):
        assert set(rows) <= set(allowed)
        return compute(path, weights, store, rows, *rest)

    return checked


def test_stale_stores_are_refused(tmp_path, whole, made, tiny):
    out, store = whole
    other = write_random(tmp_path / "other", shape="tiny", seed=9, dtype="float32", tokenizer="byte")
    with pytest.raises(UserError, match="other starting weights"):
        reference.prepare(out, other, *made, CPU)
    fewer = load_mixture({"sources": DATA["sources"][:2]})
    with pytest.raises(UserError, match="other data"):
        prepare(tiny, out, (made[0], Stream(fewer, made[1].tokenizer, made[1].config, 1200, "pairs")))
    batch = next(made[1].loader(0))
    ids = batch.packed.ids.clone()
    ids[-3] += 1
    with pytest.raises(UserError, match="has changed"):
        store.of(replace(batch, packed=replace(batch.packed, ids=ids)))


def test_damaged_store_is_refused(tiny, tmp_path, made):
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "part-00000.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match="part-00000"):
        prepare(tiny, tmp_path, made)


def test_a_run_starts_at_log_two_and_learns(tiny, tmp_path):
    run = Run(config(tiny, tmp_path / "run", steps=6, warmup=0.0), CPU)
    rows = [run.advance() for _ in range(6)]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and rows[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert rows[-1]["margin"] > rows[0]["margin"] + 0.01
    assert rows[-1]["loss"] < math.log(2)


def test_a_resumed_run_uses_the_store_of_the_starting_weights(tiny, tmp_path, monkeypatch):
    straight = train(config(tiny, tmp_path / "a", steps=4))
    first = Run(config(tiny, tmp_path / "b", steps=4), CPU)
    for _ in range(2):
        first.advance()
    first.save()
    monkeypatch.setattr(reference, "_compute", lambda *a: pytest.fail("computed again"))
    resumed = train(config(tiny, tmp_path / "b", steps=4))
    assert (straight / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def two_processes(tiny, folder, **other):
    """A run of two steps, by torchrun."""
    code = (
        "import sys; from minilava.train.config import parse; from minilava.train.loop import train; import json;"
        "train(parse(json.loads(sys.argv[1])))"
    )
    settings = dict(init=str(tiny), out=str(folder), data=DATA, steps=2, form="pairs", budget=1200, workers=0,
                    micro_batches=2, device="cpu", dtype="float32") | other  # fmt: skip

    (folder / "main.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, folder / "main.py", json.dumps(settings)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_sharded_in_bfloat16_the_reference_keeps_its_digits(tiny, tmp_path):
    """Log-probabilities of -50 are a quarter of a nat off in bfloat16; the first step's loss is log 2 by definition."""
    two_processes(tiny, tmp_path, shard="fsdp", dtype="bfloat16", beta=1.0)
    first = read_log(tmp_path)[0]
    assert abs(first["loss"] - math.log(2)) < 0.01


@pytest.mark.slow
def test_two_processes(tiny, tmp_path, whole):
    """The same store as one process makes, and a run that ends with a model."""
    two_processes(tiny, tmp_path)
    assert (tmp_path / "model" / "config.json").exists()
    assert len(list((tmp_path / "reference").glob("part-*"))) == 2
    model, tokenizer = load_for_training(tiny, torch.device("cpu"))
    stream = Stream(load_mixture(DATA), tokenizer, model.config, 1200, "pairs", seed=42)
    store = reference.prepare(tmp_path, tiny, model, stream, CPU)
    assert torch.equal(store.marks, whole[1].marks)
    torch.testing.assert_close(store.values, whole[1].values, rtol=1e-5, atol=1e-3)
