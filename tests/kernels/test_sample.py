"""sample: the settings' meaning, the random numbers, and Triton against the reference, token for token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava_kernels.sample import philox, sample
from tests.kernels.interpreter import DEVICE

IMPLS = ["reference", "triton"]


@pytest.fixture(autouse=True)
def many_rows_a_program(monkeypatch):
    """Triton's interpreter runs programs one after the other. And tokens that nothing wrote are -7."""
    from minilava_kernels.gpu import sample as module

    if DEVICE == "cpu":
        monkeypatch.setattr(module, "ROWS", 512)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(-7))


def draw(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, counter=0, impl="reference"):
    """Every setting a number for all rows or a value for each."""
    rows, x = len(logits), logits.to(DEVICE)
    values = (temperature, torch.float32), (top_k, torch.int64), (top_p, torch.float32), (min_p, torch.float32)
    values += (seed, torch.int64), (counter, torch.int64)
    return sample(x, *(torch.as_tensor(v, dtype=t, device=DEVICE).expand(rows) for v, t in values), impl).cpu()


def mixed(rows, size):
    """Logits and settings of all kinds: ties, thresholds beyond the row, and infinities that mask."""
    spread = torch.tensor([0.5, 3.0, 20.0])[torch.randint(3, (rows, 1))]
    logits = torch.randn(rows, size) * spread
    tied = torch.rand(rows, 1) < 0.4
    logits = torch.where(tied, logits.round(), logits)
    logits = logits.masked_fill(torch.rand(rows, size) < torch.rand(rows, 1) * 0.3, -torch.inf)

    def one_of(*values):
        return torch.tensor(values)[torch.randint(len(values), (rows,))]

    return logits, {
        "temperature": one_of(0.0, 0.1, 0.7, 1.0, 2.5), "top_k": one_of(0, 1, 2, size // 2 + 1, size, 10 * size),
        "top_p": one_of(1e-30, 0.1, 0.5, 0.9, 0.999, 1.0), "min_p": one_of(0.0, 0.05, 0.5, 1.0),
        "seed": torch.randint(-(2**62), 2**62, (rows,)), "counter": torch.randint(0, 2**40, (rows,)),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows, size", [(1500, 50), (300, 1), (60, 300)])
def test_triton_draws_what_the_reference_draws(rows, size, dtype):
    logits, chosen = mixed(rows, size)
    logits = logits.to(dtype)
    expected = draw(logits, **chosen)
    assert torch.equal(draw(logits, **chosen, impl="triton"), expected)
    assert (expected >= 0).float().mean() > (0.5 if size == 1 else 0.99)


def test_rows_longer_than_a_block(monkeypatch):
    from minilava_kernels.gpu import sample as module

    monkeypatch.setattr(module, "TILE", 64)
    logits, chosen = mixed(256, 300)
    assert torch.equal(draw(logits, **chosen, impl="triton"), draw(logits, **chosen))


def test_a_vocabulary(monkeypatch):
    """Qwen's, with one row a program, as on a GPU."""
    from minilava_kernels.gpu import sample as module

    monkeypatch.setattr(module, "ROWS", 1)
    logits = torch.randn(1, 151_936) * 4
    chosen = {"temperature": 0.8, "top_k": 5000, "top_p": 0.95, "min_p": 1e-4, "seed": 5}
    assert torch.equal(draw(logits, **chosen, impl="triton"), draw(logits, **chosen))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([-torch.inf, -3.0, -0.0, 0.0, 0.5, 1.0, 80.0, torch.nan, torch.inf]),
                      min_size=6, max_size=6), min_size=1, max_size=20),
    st.sampled_from([0.0, 1e-30, 0.3, 1.0, 50.0]), st.integers(0, 8), st.sampled_from([1e-6, 0.3, 0.5, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_any_row_and_setting(rows, temperature, top_k, top_p, min_p, seed, counter):
    logits = torch.tensor(rows)
    chosen = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, counter=counter)
    tokens = draw(logits, **chosen)
    assert torch.equal(draw(logits, **chosen, impl="triton"), tokens)
    broken = (logits.isnan() | (logits == torch.inf)).any(1) | (logits == -torch.inf).all(1)
    assert torch.equal(tokens == -1, broken)
    value = logits.gather(1, tokens.clamp(min=0)[:, None])[:, 0]
    assert (value[~broken] > -torch.inf).all()
    k = min(top_k or 6, 6)
    assert (value >= logits.sort(1, descending=True).values[:, k - 1])[~broken].all()


@pytest.mark.parametrize("impl", IMPLS)
def test_greedy_takes_the_first_of_equals(impl):
    logits = torch.tensor([[1.0, 5.0, 5.0, 2.0], [-0.0, 0.0, -1.0, -0.0], [-torch.inf, -torch.inf, -4.0, -4.0]])
    assert draw(logits, temperature=0.0, impl=impl).tolist() == [1, 0, 2]
    assert draw(logits, temperature=1e-30, top_p=0.1, seed=3, impl=impl)[1] in (0, 1, 3)


@pytest.mark.parametrize("impl", IMPLS)
def test_both_zeros_are_equal(impl):
    tokens = draw(torch.tensor([[-1.0, -0.0, 0.0]]).expand(64, 3), top_k=1, counter=torch.arange(64), impl=impl)
    assert set(tokens.tolist()) == {1, 2}


@pytest.mark.parametrize("impl", IMPLS)
def test_a_number_on_a_border_belongs_to_the_next_token(monkeypatch, impl):
    """2^16 equal tokens: the upper bits of the random number are the token, also where the others are 0."""
    from minilava_kernels.gpu import sample as module

    monkeypatch.setattr(module, "ROWS", 1)
    counters = torch.arange(2**17)
    uniform = philox(torch.zeros_like(counters), counters) >> 1
    border = int((uniform % 2**15 == 0).nonzero()[0, 0])
    assert draw(torch.zeros(1, 2**16), counter=border, impl=impl).item() == uniform[border] >> 15


@pytest.mark.parametrize("impl", IMPLS)
def test_broken_rows_and_no_rows(impl):
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor([[0.0, nan, 1.0], [inf, 0.0, 0.0], [-inf, -inf, -inf], [-inf, 0.0, -inf], [nan, nan, nan]])
    for temperature in (0.0, 1.0):
        assert draw(logits, temperature, impl=impl).tolist() == [-1, -1, -1, 1, -1]
    assert draw(logits[:0], impl=impl).shape == (0,)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "chosen, expected",
    [
        ({}, [0.4, 0.3, 0.2, 0.05, 0.05]),
        ({"temperature": 0.5}, [0.16, 0.09, 0.04, 0.0025, 0.0025]),
        ({"top_k": 2}, [0.4, 0.3, 0, 0, 0]),
        ({"top_k": 4}, [0.4, 0.3, 0.2, 0.05, 0.05]),  # the fourth has an equal
        ({"top_p": 0.69}, [0.4, 0.3, 0, 0, 0]),
        ({"top_p": 0.71}, [0.4, 0.3, 0.2, 0, 0]),
        ({"top_k": 2, "top_p": 0.56}, [0.4, 0, 0, 0, 0]),  # of what top-k leaves it is 0.57
        ({"top_p": 0.01}, [0.4, 0, 0, 0, 0]),
        ({"min_p": 0.49}, [0.4, 0.3, 0.2, 0, 0]),
        ({"min_p": 0.51}, [0.4, 0.3, 0, 0, 0]),
        ({"min_p": 1.0, "top_p": 0.95}, [0.4, 0, 0, 0, 0]),
    ],
)
def test_frequencies(impl, chosen, expected):
    """Pearson's chi-squared over draws that differ in their counters: below what 1 in 10,000 exceeds."""
    draws, logits = 2048, torch.tensor([0.2, 0.05, 0.4, 0.05, 0.3]).log()
    tokens = draw(logits.expand(draws, 5), **chosen, seed=11, counter=torch.arange(draws), impl=impl)
    counts = tokens.bincount(minlength=5)[[2, 4, 0, 1, 3]].double()
    wanted = torch.tensor(expected).double()
    wanted *= draws / wanted.sum()
    assert not counts[wanted == 0].any()
    some = wanted > 0
    assert ((counts - wanted)[some] ** 2 / wanted[some]).sum() < 23.5  # at most 4 degrees of freedom


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_draws_the_same_alone_and_in_any_batch(impl):
    logits, chosen = mixed(64, 30)
    whole = draw(logits, **chosen, impl=impl)
    for i in (0, 17, 63):
        assert torch.equal(
            draw(logits[i : i + 1], **{k: v[i : i + 1] for k, v in chosen.items()}, impl=impl), whole[[i]]
        )
    strided = torch.cat((logits, logits), 1)[:, :30]
    assert torch.equal(draw(strided, **chosen, impl=impl), whole)
    assert torch.equal(draw(logits.T.contiguous().T, **chosen, impl=impl), whole)


def test_philox():
    """Against the published words for a key and counter of zeros, and Triton's own generator elsewhere."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert philox(zero, zero).item() == 0x6627E8D5
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(SEED, COUNTER, OUT):
        at = tl.arange(0, 512)
        tl.store(OUT + at, tl.randint(tl.load(SEED + at), tl.load(COUNTER + at)).to(tl.int64))

    seed, counter = torch.randint(-(2**63), 2**63 - 1, (2, 512), device=DEVICE)
    out = torch.zeros_like(seed)
    kernel[(1,)](seed, counter, out)
    assert torch.equal(philox(seed, counter), out & 0xFFFFFFFF)


def test_misfits_are_refused():
    ones = [torch.ones(3)] * 6
    for logits, chosen in ((torch.randn(4), ones), (torch.randn(4, 5), ones), (torch.randn(3, 0), ones)):
        with pytest.raises(ValueError, match="sample"):
            sample(logits, *chosen)
