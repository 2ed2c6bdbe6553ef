"""Guessed tokens: what is guessed from what, and that no guess, right or wrong, ever changes a reply."""

import pytest
import torch

import minilava
from minilava.inputs.pack import pack
from minilava.inputs.sample import Sample
from minilava.runtime.draft import Draft
from minilava.runtime.sampling import Sampler, Sampling
from tests.runtime.test_invariance import requests, vlm  # noqa: F401


def test_guesses_follow_the_longest_and_latest_run():
    assert Draft([1, 2, 3, 4, 9, 1, 2], 3).guess(8) == [3, 4, 9]
    assert Draft([1, 2, 3, 4, 9, 1, 2], 9).guess(2) == [3, 4]
    assert Draft([5, 1, 2, 7, 6, 1, 2, 8, 5, 1, 2], 2).guess(8) == [7, 6]  # 5 1 2 before the later 1 2
    assert Draft([1, 2, 7, 1, 2, 8, 3, 1, 2], 1).guess(8) == [8]
    assert Draft([1, 2, 3, 4], 4).guess(8) == Draft([7, 1, 7], 4).guess(8) == Draft([], 4).guess(8) == []


def test_guesses_go_round_where_the_text_does():
    assert Draft([9, 1, 2, 3, 1, 2, 3], 7).guess(8) == [1, 2, 3, 1, 2, 3, 1]
    assert Draft([4, 4, 4], 3).guess(8) == [4, 4, 4]


def test_no_guess_goes_through_a_picture():
    assert Draft([1, 2, 3, -1, -1, 1, 2], 8).guess(8) == [3]
    assert Draft([1, -1, -1, 7, -1, -1], 8).guess(8) == []
    assert Draft([1, 2, -1, 1, 2], 8).guess(8) == []


def test_nothing_is_guessed_without_room():
    assert Draft([1, 2, 1, 2], 8).guess(0) == Draft([1, 2, 1, 2], 8).guess(-1) == []


@pytest.mark.parametrize("draft", [1, 4, 15, 100])
def test_same_tokens_alone_and_in_a_batch(vlm, draft):  # noqa: F811
    """Whatever is drawn from the logits: greedy, with a penalty, at random."""
    batch = requests(vlm)
    plain = vlm.batch(batch)
    for request in batch:
        request.draft = draft
    batch[1].draft = 0
    together = vlm.batch(batch)
    alone = [vlm.batch([r])[0] for r in batch]
    assert [r.token_ids for r in plain] == [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert [r.finish_reason for r in plain] == [r.finish_reason for r in together]


def run(engine, prompts, drafts, limit=40, sampling=None, eos=()):
    packed = pack([Sample(list(p), []) for p in prompts], 1)
    out, steps = [[] for _ in prompts], 0
    settings = [sampling or Sampling()] * len(prompts)
    for step in engine.generate(packed, settings, [limit] * len(prompts), eos, draft=drafts):
        steps += 1
        for s, token in step:
            out[s].append(token)
    return out, steps


@pytest.fixture(scope="module")
def repeating(tiny):
    """At its initial values a random model repeats itself, so that many guesses are right."""
    return minilava.load(tiny, dtype="float32", device="cpu").engine


def many(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 60, (count,), generator=g).tolist()
    return [torch.randint(0, 40, (n,), generator=g).tolist() for n in lengths]


def test_right_guesses_save_steps(repeating):
    prompts, saved = many(60), 0
    for prompt in prompts:
        plain, slow = run(repeating, [prompt], None)
        guessed, fast = run(repeating, [prompt], [6])
        assert guessed == plain and fast <= slow == 40
        saved += slow - fast
    assert saved > 10 * len(prompts)
    for i in range(0, len(prompts), 4):
        plain, _ = run(repeating, prompts[i : i + 4], None)
        assert run(repeating, prompts[i : i + 4], [5] * 4)[0] == plain
    assert run(repeating, prompts, [9] * 60)[0] == run(repeating, prompts, None)[0]  # too many rows to guess any


def test_wrong_guesses_change_nothing(vlm, monkeypatch):  # noqa: F811
    """Seven of ten guesses are what will come, the others are wrong."""
    g = torch.Generator().manual_seed(3)
    coming = []

    def guess(self, most):
        whole = next(t for t in coming if t[: len(self.tokens)] == self.tokens)
        most = min(most, self.most, len(whole) - len(self.tokens))
        return [t if torch.rand((), generator=g) < 0.7 else (t + 1) % 300 for t in whole[len(self.tokens) :][:most]]

    monkeypatch.setattr(Draft, "guess", guess)
    prompts = many(12, seed=4)
    for sampling in (Sampling(), Sampling(1.5, seed=5), Sampling(repetition_penalty=1.4)):
        plain = [run(vlm.engine, [p], None, sampling=sampling)[0][0] for p in prompts]
        coming[:] = [p + t for p, t in zip(prompts, plain, strict=True)]
        for most in (1, 3, 12):
            found = [run(vlm.engine, [p], [most], sampling=sampling) for p in prompts]
            assert [out[0] for out, _ in found] == plain and all(steps < 40 for _, steps in found)
            assert run(vlm.engine, prompts[:3], [most] * 3, sampling=sampling)[0] == plain[:3]


def test_an_end_token_among_the_guesses_ends_the_reply(vlm, monkeypatch):  # noqa: F811
    prompt = [5, 6, 7, 8]
    whole = run(vlm.engine, [prompt], None)[0][0]
    coming = prompt + whole
    monkeypatch.setattr(Draft, "guess", lambda self, most: coming[len(self.tokens) :][: min(most, self.most)])
    assert len(set(whole)) > 6
    for end in set(whole):
        until = whole[: whole.index(end) + 1]
        assert run(vlm.engine, [prompt], [6], eos=(end,))[0] == [until]
    for limit in (1, 2, 3, 7):
        found, steps = run(vlm.engine, [prompt], [6], limit)
        assert found == [whole[:limit]] and steps <= 2


def test_a_guessed_row_has_the_bits_of_a_step(vlm, monkeypatch):  # noqa: F811
    """What is drawn from: the same logits to the bit, however many guesses are in a step, so no tie can fall apart."""
    drawn, real = [], Sampler.__call__

    def recorded(self, logits):
        drawn.append((id(self), logits.clone()))
        return real(self, logits)

    def logits(prompts, drafts):
        drawn.clear()
        out, _ = run(vlm.engine, prompts, drafts)
        owners = list(dict.fromkeys(owner for owner, _ in drawn))
        return out, [torch.stack([row for who, row in drawn if who == owner]) for owner in owners]

    monkeypatch.setattr(Sampler, "__call__", recorded)
    prompts = many(3, seed=9)
    plain, wanted = logits(prompts, None)
    coming = [p + t for p, t in zip(prompts, plain, strict=True)]

    def guess(self, most):
        whole = next(t for t in coming if t[: len(self.tokens)] == self.tokens)
        return whole[len(self.tokens) :][: min(most, self.most)]

    monkeypatch.setattr(Draft, "guess", guess)
    for most in (2, 7, 15, 100):
        for chosen in (prompts, prompts[:1]):
            for row, expected in zip(logits(chosen, [most] * len(chosen))[1], wanted, strict=False):
                assert torch.equal(row, expected)
