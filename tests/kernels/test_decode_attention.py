"""decode_attention against float64 over contiguous and paged caches, and each result's bits in any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava_kernels.attention import attention, attention_reference
from minilava_kernels.decode_attention import decode_attention, decode_attention_reference
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_within

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def i32(values):
    return torch.tensor(list(values), dtype=torch.int32, device=DEVICE)


def make(lengths, heads, kv_heads, dim, dtype=torch.float32, page=None):
    """q, k, v, k_start, k_len and block_table of a cache whose unused rows are NaN; pages lie in no order."""
    shape = (kv_heads, dim)
    q = torch.randn(len(lengths), heads, dim, device=DEVICE).to(dtype)
    if page is None:
        k, v = (torch.full((sum(lengths) + 3 * len(lengths), *shape), float("nan"), device=DEVICE) for _ in "kv")
        rows, starts = [], []
        for n in lengths:
            starts.append(starts[-1] + rows[-1] + 3 if rows else 2)
            rows.append(n)
        for start, n in zip(starts, lengths, strict=True):
            k[start : start + n], v[start : start + n] = torch.randn(2, n, *shape, device=DEVICE)
        return q, k.to(dtype), v.to(dtype), i32(starts), i32(lengths), None
    used = [-(-n // page) for n in lengths]
    order = torch.randperm(sum(used) + 1).tolist()
    k, v = (torch.full((len(order), page, *shape), float("nan"), device=DEVICE) for _ in "kv")
    table = torch.full((len(lengths), max(used) + 1), 2**30, dtype=torch.int32)  # what no one may look up
    for s, n in enumerate(lengths):
        for i in range(used[s]):
            table[s, i] = order.pop()
            left = min(page, n - i * page)
            k[table[s, i], :left], v[table[s, i], :left] = torch.randn(2, left, *shape, device=DEVICE)
    return q, k.to(dtype), v.to(dtype), None, i32(lengths), table.to(DEVICE)


def check(args, scale=None):
    q, k, v, start, length, table = args
    result = decode_attention(q, k, v, start, length, int(length.max()), table, scale, impl="triton")
    plain, exact = (
        decode_attention_reference(*(x.to(d) for x in (q, k, v)), start, length, table, scale)
        for d in (q.dtype, torch.float64)
    )
    assert result.dtype == q.dtype
    assert_within(result, plain, exact)
    return result


CASES = [
    ([1, 0, 256, 257, 600], 2, 1, 64),
    ([70, 3], 2, 2, 72),
    ([300], 7, 1, 80),
    ([5, 258], 2, 1, 128),
    ([40, 2], 20, 1, 16),  # more heads of a group than a tensor core's 16 rows
    ([9], 1, 1, 36),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page", [None, 16, 64])
@pytest.mark.parametrize("dtype", FLOATS)
def test_matches_float64(case, page, dtype):
    check(make(*case, dtype, page))


def test_more_splits_than_are_added_at_a_time():
    out = check(make([256 * 16 + 1, 256 * 17, 100], 1, 1, 16, torch.float16))
    assert out.isfinite().all()


def test_scale_and_large_scores():
    check(make([300, 20], 2, 1, 64), scale=8.0)


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=3),
    st.sampled_from([(1, 1), (2, 1), (6, 2), (3, 3)]),
    st.sampled_from([8, 24, 64, 72, 100]),
    st.sampled_from([None, 16, 32, 128]),
    st.sampled_from(FLOATS),
)
def test_takes_any_lengths_heads_dims_and_pages(lengths, heads, dim, page, dtype):
    check(make(lengths, *heads, dim, dtype, page))


def test_the_same_bits_alone_in_a_batch_in_pages_and_with_room_to_grow():
    lengths = [257, 1, 530]
    q, k, v, start, length, _ = make(lengths, 4, 2, 64, torch.float16)
    whole = decode_attention(q, k, v, start, length, 530, impl="triton")
    assert torch.equal(decode_attention(q, k, v, start, length, 10_000, impl="triton"), whole)
    for s, n in enumerate(lengths):
        one = slice(s, s + 1)
        assert torch.equal(decode_attention(q[one], k, v, start[one], length[one], n, impl="triton"), whole[one])
    pages = [-(-n // 16) for n in lengths]
    paged = [torch.zeros(sum(pages), 16, 2, 64, dtype=q.dtype, device=DEVICE) for _ in "kv"]
    table, first = torch.zeros(3, max(pages), dtype=torch.int32, device=DEVICE), 0
    for s, n in enumerate(lengths):
        for mine, theirs in zip(paged, (k, v), strict=True):
            mine[first : first + pages[s]].view(-1, 2, 64)[:n] = theirs[start[s] : start[s] + n]
        table[s, : pages[s]] = torch.arange(first, first + pages[s])
        first += pages[s]
    assert torch.equal(decode_attention(q, *paged, None, length, 530, table, impl="triton"), whole)


def test_lengths_may_change_under_one_launch(monkeypatch):
    """A captured CUDA graph repeats the launch of its capture: grids may depend on max_k and the shapes alone."""
    import minilava_kernels.gpu.decode_attention as gpu

    grids = []

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            grids.append(grid)
            return self.kernel[grid]

    for name in ("decode_kernel", "combine_kernel"):
        monkeypatch.setattr(gpu, name, Recorded(getattr(gpu, name)))
    q, k, v, start, length, _ = make([300, 270], 2, 1, 16)
    for lengths in ([300, 270], [1, 0], [257, 256]):
        length.copy_(i32(lengths))
        out = decode_attention(q, k, v, start, length, 600, impl="triton")
        exact, plain = (
            decode_attention_reference(*(x.to(d) for x in (q, k, v)), start, length) for d in (torch.float64, q.dtype)
        )
        assert_within(out, plain, exact)
    assert grids == [(3, 1, 2), (2, 2)] * 3


def test_writes_all_of_its_result_and_reads_no_more_of_its_workspace_than_it_wrote(poisoned):
    check(make([1, 0, 258, 30], 7, 1, 72, torch.float16))
    assert len(poisoned) == 4


def test_strided_queries_and_no_sequence():
    q, k, v, start, length, _ = make([9, 4], 2, 1, 16)
    wide = torch.stack([q, q], 1)[:, 0]
    assert torch.equal(
        decode_attention(wide, k, v, start, length, 9, impl="triton"),
        decode_attention(q, k, v, start, length, 9, impl="triton"),
    )
    assert decode_attention(q[:0], k, v, start[:0], length[:0], 0, impl="triton").shape == (0, 2, 16)


def test_agrees_with_attention():
    q, k, v, start, length, _ = make([9, 40, 1], 4, 2, 16)
    args = q, k, v, i32(range(4)), start, length
    assert torch.equal(
        attention(*args, True, 1, 40, impl="decode"), decode_attention(q, k, v, start, length, 40, impl="triton")
    )
    exact = attention_reference(*(x.double() for x in (q, k, v)), *args[3:], True)
    assert_within(decode_attention(q, k, v, start, length, 40), attention_reference(*args, True), exact)


def test_refuses_misfits():
    q, k, v, start, length, _ = make([9, 40], 4, 2, 16)
    paged = make([9, 40], 4, 2, 16, page=16)
    for bad in (
        (q, k, v[:5], start, length),
        (q[:, :3], k, v, start, length),
        (q, k[:, :, :8], v[:, :, :8], start, length),
    ):
        with pytest.raises(ValueError, match="fit"):
            decode_attention(*bad, 40, impl="triton")
    for bad in ((q, k, v, start.long(), length), (q, k, v, start[:1], length), (q.half(), k, v, start, length)):
        with pytest.raises(ValueError, match="int32"):
            decode_attention(*bad, 40, impl="triton")
    for page in (8, 24):
        with pytest.raises(ValueError, match="power of two"):
            pages = (x[:, :1].expand(-1, page, -1, -1) for x in paged[1:3])
            decode_attention(paged[0], *pages, None, paged[4], 40, paged[5], impl="triton")
