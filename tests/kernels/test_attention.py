"""attention: packed sequences of awkward lengths against float64; the same bits alone, in a batch, on any threads."""

import pytest
import torch

from minilava_kernels.attention import attention, attention_reference
from tests.numerics import assert_within, with_threads


def i32(values):
    return torch.tensor(list(values), dtype=torch.int32)


def make(queries, keys, heads, kv_heads, dim, dtype=torch.float32, gap=2):
    """q, k, v, cu_q, k_start, k_len, with `gap` unused rows before every sequence's keys."""
    g = torch.Generator().manual_seed(1)
    starts, rows = [], 0
    for n in keys:
        starts.append(rows + gap)
        rows += n + gap
    q, k, v = (
        torch.randn(*s, generator=g).to(dtype)
        for s in ((sum(queries), heads, dim), (rows, kv_heads, dim), (rows, kv_heads, dim))
    )
    return q, k, v, i32([0, *torch.tensor(queries).cumsum(0).tolist()]), i32(starts), i32(keys)


def check(args, causal, **options):
    q, k, v, *rest = args
    assert_within(
        attention(*args, causal, impl="native", **options),
        attention_reference(*args, causal, **options),
        attention_reference(q.double(), k.double(), v.double(), *rest, causal, **options),
    )


CASES = [
    ([5, 0, 1, 70, 130, 3], [5, 3, 9, 70, 300, 700], 4, 2, 64),  # whole prompts, chunks, decoding, an empty sequence
    ([61, 257, 9], [61, 257, 3], 2, 1, 80),  # fewer keys than queries: some see none
    ([5, 1, 8, 2], [300, 1, 1, 0], 4, 4, 72),
    ([1, 1, 1], [1, 256, 600], 6, 2, 128),
    ([17, 2], [17, 33], 3, 1, 36),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("causal", [True, False])
def test_matches_float64(simd, case, causal):
    check(make(*case), causal)


@pytest.mark.parametrize("case", CASES[:2])
def test_bfloat16(simd, case):
    check(make(*case, dtype=torch.bfloat16), True)


def test_scale_and_large_scores(simd):
    check(make([50, 1], [50, 300], 2, 2, 64), True, scale=8.0)


def test_strided_views(simd):
    pytest.importorskip("minilava._C")
    cu, start, length = i32([0, 40, 41]), i32([0, 0]), i32([40, 41])
    qkv = torch.randn(41, 3, 4, 64)
    views = qkv.unbind(1)
    assert torch.equal(
        attention(*views, cu, start, length, True, impl="native"),
        attention(*(x.contiguous() for x in views), cu, start, length, True, impl="native"),
    )


def test_same_bits_alone_in_a_batch_and_on_any_threads(simd):
    queries, keys = [70, 1, 130, 2, 5], [70, 600, 400, 300, 5]
    q, k, v, cu, start, length = make(queries, keys, 4, 2, 72)
    whole = [with_threads(n, lambda: attention(q, k, v, cu, start, length, True, impl="native")) for n in (1, 2, 3)]
    assert all(torch.equal(whole[0], other) for other in whole)
    for s, n in enumerate(queries):
        rows = slice(cu[s], cu[s + 1])
        alone = attention(q[rows], k, v, i32([0, n]), start[s : s + 1], length[s : s + 1], True, impl="native")
        assert torch.equal(alone, whole[0][rows])


def test_nan_stays_visible(simd):
    q, k, v, *rest = make([20, 1], [20, 30], 2, 2, 64)
    for position in (3, 20):
        bad = q.clone()
        bad[position, 1, 5] = float("nan")
        out = attention(bad, k, v, *rest, True, impl="native")
        assert out[position, 1].isnan().all()
        assert not out[:, 0].isnan().any()


def test_gradients_take_the_plain_path():
    q, k, v, *rest = make([6], [6], 2, 1, 16)
    q.requires_grad_()
    attention(q, k, v, *rest, True).sum().backward()
    assert q.grad.abs().sum() > 0


def test_offsets_outside_the_tensors_are_refused():
    pytest.importorskip("minilava._C")
    q, k, v, cu, start, length = make([3, 4], [3, 4], 2, 1, 16)
    for bad in ((cu + 1, start, length), (cu, start - 3, length), (cu, start, length + 1), (cu.flip(0), start, length)):
        with pytest.raises(ValueError, match="attention"):
            attention(q, k, v, *bad, True, impl="native")
    with pytest.raises(ValueError, match="int32"):
        attention(q, k, v, cu.long(), start, length, True, impl="native")
