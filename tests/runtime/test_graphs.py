"""Decoding in fixed memory, uncaptured as on a CPU, against decoding from the host; what a capture must not meet."""

import math

import pytest
import torch

import minilava
from minilava.errors import UserError
from minilava.inputs.pack import pack
from minilava.runtime import graphs
from minilava.runtime.engine import Engine
from minilava.runtime.graphs import Graphs
from minilava.runtime.sampling import Sampling
from tests.runtime.test_invariance import picture, requests, vlm  # noqa: F401
from tests.runtime.test_prompts import talk, user


def run(engine, vlm, batch, sampling=None, eos=None):  # noqa: F811
    packed = pack([vlm.sample(r) for r in batch], vlm.config.vision.patches)
    out = [[] for _ in batch]
    sampling = sampling or [Sampling() for _ in batch]
    limits = [r.max_new_tokens for r in batch]
    for step in engine.generate(packed, sampling, limits, vlm.eos_ids if eos is None else eos):
        for s, token in step:
            out[s].append(token)
    return out


def engine(vlm, static=True):  # noqa: F811
    old = vlm.engine
    return Engine(vlm.model, old.usable_ids, tuple(old.banned_ids.tolist()), static=static)


def test_same_tokens_as_from_the_host(vlm):  # noqa: F811
    batch = requests(vlm)
    for i, request in enumerate(batch):
        request.max_new_tokens = 1 + 3 * i % 11  # rows end one after the other: the step shrinks
    fixed = engine(vlm)
    assert run(fixed, vlm, batch) == run(engine(vlm, False), vlm, batch)
    assert len(fixed.graphs.steps) > 2
    assert run(fixed, vlm, batch[:3]) == run(engine(vlm, False), vlm, batch[:3])  # memory that was used before


def test_an_end_token_ends_a_row(vlm):  # noqa: F811
    batch = requests(vlm)[:4]
    whole = run(engine(vlm), vlm, batch, eos=())
    ends = whole[0][2], whole[2][4]
    fixed = run(engine(vlm), vlm, batch, eos=ends)
    assert fixed == run(engine(vlm, False), vlm, batch, eos=ends) != whole
    assert all(set(tokens[:-1]).isdisjoint(ends) for tokens in fixed)


def test_draws_are_the_same_in_any_company(vlm):  # noqa: F811
    batch = requests(vlm)[:5]
    sampling = [Sampling(temperature=0.5 + i / 4, top_k=20 * i, top_p=1 - i / 10, seed=i) for i in range(5)]
    together = run(engine(vlm), vlm, batch, sampling)
    assert together == [run(engine(vlm), vlm, [r], [s])[0] for r, s in zip(batch, sampling, strict=True)]
    assert together == run(engine(vlm, False), vlm, batch, sampling)
    others = [Sampling(s.temperature, s.top_p, s.top_k, seed=9) for s in sampling]
    assert run(engine(vlm), vlm, batch, others) != together


def test_two_batches_at_once_do_not_share_memory(vlm):  # noqa: F811
    batch, fixed = requests(vlm)[:2], engine(vlm)
    packed = pack([vlm.sample(batch[1])], vlm.config.vision.patches)
    alone = run(fixed, vlm, [batch[1]])[0]
    first = fixed.generate(packed, [Sampling()], [batch[1].max_new_tokens], vlm.eos_ids)
    tokens = [next(first)[0][1], next(first)[0][1]]
    run(fixed, vlm, batch)
    assert tokens + [step[0][1] for step in first] == alone
    assert fixed.graphs.free.acquire(blocking=False)


def test_a_penalty_counts_what_each_sequence_generated(vlm):  # noqa: F811
    batch, fixed = requests(vlm), engine(vlm)
    for i, request in enumerate(batch):
        request.max_new_tokens = 12 + i  # the step shrinks
    sampling = [Sampling(repetition_penalty=(1.0, 1.3, 1.05)[i % 3]) for i in range(len(batch))]
    penalized = run(fixed, vlm, batch, sampling, eos=())
    assert penalized == run(engine(vlm, False), vlm, batch, sampling, eos=())
    assert penalized != run(fixed, vlm, batch, eos=())
    assert run(fixed, vlm, batch, sampling, eos=()) == penalized  # what others generated is forgotten


def test_the_next_turn_reads_only_what_is_new(fresh):
    """As from the host: what the memory still holds of the last sequence is not read again, and nothing else is."""
    ours, plain = fresh(), fresh(cache_bytes=0)
    ours.engine.graphs = Graphs(ours.model, ours.engine._logits)
    pair = [picture(1, 90, 60), picture(2, 40, 50)]
    turns = [user("What changed?", *pair), user("Why?"), user("Really?")]
    replies = talk(ours, turns)
    assert [r.token_ids for r in replies] == [r.token_ids for r in talk(plain, turns)]
    for before, after in zip(replies, replies[1:], strict=False):
        assert after.timings["cached_prompt_tokens"] >= before.prompt_tokens - 3
    for piece in ours.stream("<image> and <image>?", pair, max_new_tokens=12):  # noqa: B007
        break
    again = ours.generate("<image> and <image>?", pair, max_new_tokens=12)
    assert again.timings["cached_prompt_tokens"] == again.prompt_tokens - 1
    assert again.token_ids == plain.generate("<image> and <image>?", pair, max_new_tokens=12).token_ids
    ours.batch([ours.request([user(t)], max_new_tokens=2) for t in ("One", "Two")])
    assert ours.generate("<image> and <image>?", pair, max_new_tokens=12).timings["cached_prompt_tokens"] == 0


def test_broken_weights_are_told(tiny):
    broken = minilava.load(tiny, dtype="float32", device="cpu")
    broken.model.text.norm.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="NaN"):
        run(engine(broken), broken, [broken.request([{"role": "user", "content": [{"type": "text", "text": "x"}]}])])


def test_a_failed_capture_is_announced(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("operation not permitted\nwith details")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", fail)
    assert graphs._capture(lambda: None, "decoding") is None
    assert capsys.readouterr().err == "minilava: decoding without CUDA graphs: operation not permitted\n"


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_nothing_in_a_step_goes_through_the_host(vlm, penalty, monkeypatch):  # noqa: F811
    """A capture forbids what needs a value on the host. The draw, which reads values on a CPU, is one launch there."""
    monkeypatch.setattr(graphs, "draw", lambda logits, settings, seeds, draws: logits.argmax(1))
    batch, fixed = requests(vlm)[:2], engine(vlm)
    run(fixed, vlm, batch, [Sampling(repetition_penalty=p) for p in (1.0, penalty)])
    step = next(iter(fixed.graphs.steps.values()))
    with torch.inference_mode(), NoHostValues():
        step.run()


class NoHostValues(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails on every operation that reads a tensor's value to the host or makes a tensor from host data."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.lift_fresh.default,
        ), f"{function} inside a step"
        return function(*args, **(kwargs or {}))
