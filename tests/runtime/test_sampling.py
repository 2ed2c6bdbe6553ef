"""Sampling rules on small hand-made logits, and text streaming across token borders."""

import math

import pytest
import torch

from minilava.errors import UserError
from minilava.runtime.sampling import Sampler, Sampling
from minilava.runtime.text import TextStream
from minilava.tokenizer import Tokenizer, byte_tokenizer


def draws(sampling, logits, n=400):
    sampler = Sampler(sampling)
    sampler_ids = [sampler(torch.tensor(logits)) for _ in range(n)]
    return torch.bincount(torch.tensor(sampler_ids), minlength=len(logits)).float() / n


def test_greedy_takes_the_first_of_equals():
    assert Sampler(Sampling())(torch.tensor([0.0, 2.0, 2.0])) == 1


def test_repetition_penalty_hits_generated_tokens_only():
    """Positive logits are divided, negative ones multiplied (spec 2.3); the prompt does not count."""
    sampler = Sampler(Sampling(repetition_penalty=2.0))
    logits = torch.tensor([4.0, 3.0, -1.0])
    assert [sampler(logits) for _ in range(4)] == [0, 1, 0, 0]  # 4 -> 2 < 3; then 3 -> 1.5 < 2
    assert logits.tolist() == [4.0, 3.0, -1.0]  # the caller's logits are left alone
    negative = Sampler(Sampling(repetition_penalty=4.0))
    assert [negative(torch.tensor([-1.0, -2.0])) for _ in range(2)] == [0, 1]


def test_distribution_follows_temperature():
    logits = [1.0, 0.0, -1.0]
    for temperature in (0.5, 1.0, 3.0):
        expected = (torch.tensor(logits) / temperature).softmax(-1)
        assert (draws(Sampling(temperature, seed=1), logits, 4000) - expected).abs().max() < 0.03


def test_top_k_and_top_p():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert draws(Sampling(1.0, top_k=2), logits)[2:].sum() == 0
    assert draws(Sampling(1.0, top_p=0.69), logits)[2:].sum() == 0  # 0.4 + 0.3 reaches 0.69
    assert draws(Sampling(1.0, top_p=0.71), logits)[2] > 0
    assert draws(Sampling(1.0, top_p=0.71), logits)[3] == 0


def test_same_seed_same_tokens():
    logits = torch.randn(50).tolist()
    assert torch.equal(draws(Sampling(1.0, seed=3), logits), draws(Sampling(1.0, seed=3), logits))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_logits_are_an_error_not_a_token(temperature, broken):
    with pytest.raises(UserError, match="NaN"):
        Sampler(Sampling(temperature))(torch.tensor([0.0, broken, 1.0]))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 1 << 63},
        {"repetition_penalty": 0},
        {"seed": 1 << 63},
    ],
)
def test_refusals(bad):
    with pytest.raises(UserError):
        Sampling(**bad)


def test_extreme_settings_draw():
    logits = torch.tensor([0.0, 2.0, -math.inf])
    assert Sampler(Sampling(1e-40, seed=-(1 << 63)))(logits) == 1
    assert {Sampler(Sampling(1e30, top_k=1 << 40, seed=s))(logits) for s in range(20)} == {0, 1}


def test_stream_never_shows_half_a_character():
    tok = Tokenizer(byte_tokenizer())
    text = "naïve 世界 😀 end"
    stream, pieces = TextStream(tok), []
    for i in tok.encode(text):
        pieces.append(stream.add(i))
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces) and stream.finish() == ""


def test_stream_ends_with_what_is_left():
    tok = Tokenizer(byte_tokenizer())
    stream = TextStream(tok)
    shown = "".join(stream.add(i) for i in tok.encode("a世")[:-1])
    assert shown == "a" and stream.finish().startswith("\ufffd")
