"""The stream of packs: nothing lost, nothing twice, the same for every number of processes and workers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minilava.data.stream as stream_module
from minilava.data.mixture import Mixture, Source
from minilava.data.stream import MAX_REFUSED_IN_A_ROW, Stream
from minilava.errors import UserError
from minilava.inputs.sample import Sample
from tests.train.small import mixture, picture, record, talk, tools


def sized(record, source, form, tokenizer, config, draw):
    """In place of to_samples: a record is its number of tokens, or a refusal."""
    if not record["tokens"]:
        raise UserError("no tokens")
    return [Sample([record["id"]] * record["tokens"], [], labels=[1] * record["tokens"])]


def summary(batch):
    return (batch.names, batch.lane, batch.after, batch.refused, batch.packed.ids.tolist(), batch.packed.lengths)


def take(stream, count, workers=0):
    loader = stream.loader(workers)
    return [summary(next(loader)) for _ in range(count)]


@st.composite
def lines(draw):
    """(mixture, lanes, budget): some records refused, some above the budget, at least one usable."""
    sizes = draw(st.lists(st.integers(0, 14), min_size=1, max_size=12)) + [2]
    records = [{"id": i, "tokens": n} for i, n in enumerate(sizes)]
    cut = draw(st.integers(1, len(records)))
    parts = [records[:cut], records[cut:]]
    sources = [Source(f"s{k}", part, weight=draw(st.sampled_from([1, 2, 1.5]))) for k, part in enumerate(parts) if part]
    return Mixture(sources), draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.integers(2, 12)), draw(st.integers(0, 9))


@pytest.fixture(scope="module")
def make(tiny):
    tokenizer, config = tools(tiny)

    def stream(mix, budget, lanes=1, max_length=300, **other):
        return Stream(mix, tokenizer, replace(config, max_length=max_length), budget, lanes=lanes, **other)

    return stream


def order_of(mix, epochs, seed):
    """Every position's record over some epochs, straight from the mixture."""
    rows = [row for e in range(epochs) for row in mix.epoch(e, seed)]
    return [mix.sources[int(s)].records[int(i)] for s, i in rows]


@settings(max_examples=60, deadline=None)
@given(lines())
def test_every_record_once_and_packs_as_full_as_they_can_be(make, line):
    mix, lanes, budget, seed = line
    order = order_of(mix, 3, seed)
    end = 2 * len(mix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "to_samples", sized)
        loader = make(mix, budget, lanes, seed=seed).loader(0)
        at, seen, refused = list(range(lanes)), {}, {}
        for _ in range(10_000):
            if min(at) >= end:
                break
            batch = next(loader)
            lane = batch.lane
            names, out = list(batch.names), list(batch.refused)
            assert sum(batch.packed.lengths) == batch.packed.tokens <= budget
            for position in range(at[lane], batch.after, lanes):
                if position < len(order):
                    wanted = order[position]
                    if 0 < wanted["tokens"] <= budget:
                        assert names.pop(0) == str(wanted["id"])
                        seen[position] = seen.get(position, 0) + 1
                    else:
                        assert out.pop(0).startswith(f"{wanted['id']}: ")
                        refused[position] = refused.get(position, 0) + 1
            if batch.after < len(order):
                assert not names and not out
                following = order[batch.after]["tokens"]  # what made the pack full
                assert batch.packed.tokens + following > budget >= following > 0
            at[lane] = batch.after
        counts = [seen.get(p, 0) + refused.get(p, 0) for p in range(end)]
        assert counts == [1] * end


@settings(max_examples=40, deadline=None)
@given(lines(), st.data())
def test_resume_and_processes_give_the_same_batches(make, line, data):
    mix, lanes, budget, seed = line
    world = data.draw(st.sampled_from([w for w in (1, 2, 3, 6) if lanes % w == 0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "to_samples", sized)
        whole = take(make(mix, budget, lanes, seed=seed), 6 * lanes)
        steps = [whole[i : i + lanes] for i in range(0, len(whole), lanes)]
        own = lanes // world
        parts = [take(make(mix, budget, lanes, seed=seed, rank=r, world=world), 6 * own) for r in range(world)]
        for k, step in enumerate(steps):
            together = [b for part in parts for b in part[k * own : (k + 1) * own]]
            assert sorted(together, key=lambda b: b[1]) == step
        cut = data.draw(st.integers(0, 5))
        positions = list(range(lanes)) if cut == 0 else [b[2] for b in steps[cut - 1]]
        again = take(make(mix, budget, lanes, seed=seed, positions=positions), (6 - cut) * lanes)
        assert again == whole[cut * lanes :]


@pytest.mark.parametrize("lanes", [1, 3, 4])
def test_workers_do_not_change_the_order(make, lanes):
    mix = mixture(*(record(i, pictures=i % 3, question="q" * (7 * i % 50)) for i in range(9)), {"id": "bad"})
    wanted = take(make(mix, 150, lanes), 3 * lanes)
    for workers in (1, 2):
        assert take(make(mix, 150, lanes), 3 * lanes, workers) == wanted


def test_a_seed_gives_an_order_and_an_epoch_its_own(make):
    mix = mixture(*(record(i) for i in range(20)))
    budget = take(make(mix, 100), 1)[0][5][0]  # of one record
    names = [n for b in take(make(mix, budget), 40) for n in b[0]]
    assert sorted(names[:20]) == sorted(names[20:40]) and names[:20] != names[20:40]
    assert names == [n for b in take(make(mix, budget), 40) for n in b[0]]
    assert names != [n for b in take(make(mix, budget, seed=1), 40) for n in b[0]]


def broken():
    """(record, what its refusal says)."""
    data = b"\x89PNG\r\n\x1a\n" + b"\0" * 40
    return [
        ({"id": "bytes", "image": [data], "conversations": talk("<image>", "a")}, "picture"),
        ({"id": "absent", "image": ["/no/such/file.png"], "conversations": talk("<image>", "a")}, "file.png"),
        ({"id": "video", "video": "/no/such/file.mp4", "conversations": talk("<video>", "a")}, "file.mp4"),
        ({"id": "count", "image": [picture()], "conversations": talk("<image><image>", "a")}, "2 placeholders but 1"),
        ({"id": "silent", "conversations": [{"from": "human", "value": "q"}]}, "no token carries a loss"),
        ({"id": "none"}, "no conversation"),
        ({"id": "role", "conversations": [{"from": "cat", "value": "q"}]}, "cat"),
        ({"id": "long", "conversations": talk("q" * 500, "a")}, "context of 300"),
        ({"id": "big", "conversations": talk("q" * 150, "a")}, "budget of 150"),
        ({"id": "text", "conversations": [{"from": "human", "value": None}]}, "no text"),
    ]


def test_refusals_are_counted_with_their_reason(make):
    bad = broken()
    loader = make(mixture(*(r for r, _ in bad), *(record(i) for i in range(3))), 150).loader(0)
    batches = [next(loader) for _ in range(6)]
    refused = [line for b in batches for line in b.refused]
    first = {}
    for line in refused:
        name, _, reason = line.partition(": ")
        first.setdefault(name, reason)
    assert set(first) == {r["id"] for r, _ in bad}
    for r, reason in bad:
        assert reason in first[r["id"]] and "\n" not in first[r["id"]], first[r["id"]]


@pytest.mark.parametrize("number", range(len(broken())))
def test_strict_stops_at_the_first_refusal(make, number):
    bad, reason = broken()[number]
    stream = make(mixture(bad), 150, strict=True)
    for workers in (0, 1) if number == 0 else (0,):
        with pytest.raises(UserError, match=bad["id"] + ".*" + reason):
            next(stream.loader(workers))


def test_a_source_without_anything_usable_stops(make):
    with pytest.raises(UserError, match=f"no usable record among {MAX_REFUSED_IN_A_ROW + 1}.*silent"):
        next(make(mixture({"id": "silent", "conversations": []}), 100).loader(0))


def test_an_oversized_record_does_not_cut_the_pack(make):
    """It is refused where it stands; the records around it still share a pack."""
    mix = mixture(*(record(i) for i in range(6)), record("big", question="q" * 300))
    first = next(make(mix, 290).loader(0))
    size = first.packed.lengths[0]
    assert len(first.names) == 290 // size and len(set(first.packed.lengths)) == 1


def test_lanes_on_both_sides_of_many_epochs_do_not_shuffle_again_and_again(make, monkeypatch):
    mix = mixture(*(record(i) for i in range(60)))
    shuffles = []
    real = Mixture.epoch
    monkeypatch.setattr(Mixture, "epoch", lambda self, e, seed=0: shuffles.append(e) or real(self, e, seed))
    take(make(mix, 120, 3, positions=[0, 61, 122]), 15)
    assert sorted(shuffles) == [0, 1, 2]


def test_processes_must_share_the_lanes_equally(make):
    with pytest.raises(UserError, match="3 micro-batches.*2 processes"):
        make(mixture(record(0)), 100, 3, world=2)


def test_the_loader_leaves_the_global_random_state_alone(make):
    """Dropout after a resume must draw what it would have drawn."""
    stream = make(mixture(record(0)), 100)
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(stream.loader(workers))
    assert torch.equal(torch.get_rng_state(), before)
