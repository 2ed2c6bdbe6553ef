"""attention and its gradients: awkward lengths against float64; the same bits alone, in a batch, on any threads."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava_kernels import cached8
from minilava_kernels.attention import attention, attention_reference, implementation
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within, assert_within, with_threads

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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


def check(args, causal, impl="native", max_q=None, max_k=None, **options):
    q, k, v, *rest = args
    assert_within(
        attention(*args, causal, max_q, max_k, impl=impl, **options),
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


@pytest.mark.parametrize("case", CASES)
def test_a_cache_of_8_bits_is_that_cache_in_float32(simd, case):
    """To the bit: a value is one product in float32, and everything else is the same."""
    q, k, v, *rest = make(*case)
    k[0, 0, :3], v[-1, -1, :2] = torch.tensor([6e-8, -5.9e-30, 65504.0]), torch.tensor([-0.0, 3e-35])
    dim, k, v = q.shape[-1], cached8.pack(k), cached8.pack(v)
    wide = [cached8.unpack(x, dim) for x in (k, v)]
    assert torch.equal(attention(q, k, v, *rest, True), attention(q, *wide, *rest, True))
    torch.testing.assert_close(
        attention(q, k, v, *rest, True, impl="reference"), attention_reference(q, *wide, *rest, True)
    )
    for wrong in ((k, wide[1]), (k[..., 1:], v[..., 1:]), (wide[0].half(), wide[1].half())):
        with pytest.raises(ValueError):
            attention(q, *wrong, *rest, True, impl="native")
    rows = torch.cat([k, k[..., :1]], -1)[..., :-1]  # not whole groups from row to row
    assert torch.equal(attention(q, rows, v, *rest, True), attention(q, k, v, *rest, True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("eight", [False, True])
def test_narrow(simd, case, causal, eight):
    """No further from float64 than bfloat16 is; and nothing changes where a CPU has no such products."""
    q, k, v, *rest = make(*case)
    cache = (cached8.pack(k), cached8.pack(v)) if eight else (k, v)
    k, v = (cached8.unpack(x, q.shape[-1]) for x in cache) if eight else cache
    narrow, plain = (attention(q, *cache, *rest, causal, impl="native", narrow=n) for n in (True, False))
    exact = attention_reference(q.double(), k.double(), v.double(), *rest, causal)
    assert_within(narrow, attention_reference(q.bfloat16(), k.bfloat16(), v.bfloat16(), *rest, causal).float(), exact)
    assert torch.equal(narrow, plain) == (simd != "avx512_bf16")


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


@pytest.mark.parametrize("narrow", [False, True])
def test_same_bits_alone_in_a_batch_and_on_any_threads(simd, narrow):
    run = partial(attention, causal=True, impl="native", narrow=narrow)
    queries, keys = [70, 1, 130, 2, 5], [70, 600, 400, 300, 5]
    q, k, v, cu, start, length = make(queries, keys, 4, 2, 72)
    whole = [with_threads(n, lambda: run(q, k, v, cu, start, length)) for n in (1, 2, 3)]
    assert all(torch.equal(whole[0], other) for other in whole)
    for s, n in enumerate(queries):
        rows = slice(cu[s], cu[s + 1])
        alone = run(q[rows], k, v, i32([0, n]), start[s : s + 1], length[s : s + 1])
        assert torch.equal(alone, whole[0][rows])


@pytest.mark.parametrize("narrow", [False, True])
def test_nan_stays_visible(simd, narrow):
    q, k, v, *rest = make([20, 1], [20, 30], 2, 2, 64)
    for position in (3, 20):
        bad = q.clone()
        bad[position, 1, 5] = float("nan")
        out = attention(bad, k, v, *rest, True, impl="native", narrow=narrow)
        assert out[position, 1].isnan().all()
        assert not out[:, 0].isnan().any()


def packed(lengths, heads, kv_heads, dim, dtype=torch.float32):
    """q, k, v, the gradient of the output, and cu_q, k_start, k_len as a caller without a cache passes them."""
    t, g = sum(lengths), torch.Generator().manual_seed(2)
    q, k, v, grad = (torch.randn(t, n, dim, generator=g).to(dtype) for n in (heads, kv_heads, kv_heads, heads))
    cu = i32([0, *torch.tensor(lengths).cumsum(0).tolist()])
    return (q, k, v, grad), (cu, cu[:-1], i32(lengths))


def gradients(tensors, offsets, causal, function=attention, **options):
    *leaves, grad = (t.detach() for t in tensors)
    leaves = [t.requires_grad_() for t in leaves]
    return torch.autograd.grad(function(*leaves, *offsets, causal, **options), leaves, grad)


PACKED = [
    ([5, 0, 1, 70, 130, 3], 4, 2, 64),
    ([200, 0, 61, 7], 2, 1, 80),  # more than one block of queries and of keys
    ([1, 9, 2, 0], 4, 4, 72),
    ([0, 129, 60], 6, 2, 128),
    ([17, 2], 3, 1, 36),
    ([3, 4], 1, 1, 1),
    ([], 2, 1, 8),
]


@pytest.mark.parametrize("case", PACKED)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(simd, case, causal, dtype):
    tensors, offsets = packed(*case, dtype)
    if not case[0]:
        assert all(g.shape == t.shape for g, t in zip(gradients(tensors, offsets, causal), tensors, strict=False))
        return
    native = gradients(tensors, offsets, causal, scale=0.2)
    plain = gradients(tensors, offsets, causal, attention_reference, scale=0.2)
    exact = gradients([t.double() for t in tensors], offsets, causal, attention_reference, scale=0.2)
    for t, n, p, e in zip(tensors, native, plain, exact, strict=False):
        assert n.dtype == t.dtype
        assert_within(n, p, e, factor=3)


def test_gradients_with_large_scores(simd):
    tensors, offsets = packed([50, 70], 2, 2, 64)
    native = gradients(tensors, offsets, True, scale=3.0)
    plain = gradients(tensors, offsets, True, attention_reference, scale=3.0)
    exact = gradients([t.double() for t in tensors], offsets, True, attention_reference, scale=3.0)
    for n, p, e in zip(native, plain, exact, strict=True):
        assert_within(n, p, e, factor=3)


def test_training_forward_and_gradients_are_the_same_bits_alone_in_a_batch_and_on_any_threads(simd):
    lengths = [70, 1, 130, 2, 5, 300]
    tensors, offsets = packed(lengths, 4, 2, 72)
    whole = [with_threads(n, lambda: gradients(tensors, offsets, True)) for n in (1, 2, 3)]
    assert all(torch.equal(a, b) for other in whole[1:] for a, b in zip(whole[0], other, strict=True))
    q, k, v, _ = tensors
    assert torch.equal(
        attention(q.clone().requires_grad_(), k, v, *offsets, True), attention(q, k, v, *offsets, True, impl="native")
    )
    for s, n in enumerate(lengths):
        rows, cu = slice(offsets[0][s], offsets[0][s + 1]), i32([0, n])
        alone = gradients([t[rows] for t in tensors], (cu, cu[:-1], i32([n])), True)
        assert all(torch.equal(a, b[rows]) for a, b in zip(alone, whole[0], strict=True))


def test_gradients_of_strided_views_and_of_one_input(simd):
    cu = i32([0, 40, 41])
    offsets, qkv, grad = (cu, cu[:-1], cu.diff()), torch.randn(41, 3, 4, 64), torch.randn(41, 64, 4).transpose(1, 2)
    views = qkv.unbind(1)
    want = gradients([*(x.contiguous() for x in views), grad.contiguous()], offsets, True)
    assert all(torch.equal(a, b) for a, b in zip(gradients([*views, grad], offsets, True), want, strict=True))
    q, k, v = views
    v = v.detach().requires_grad_()
    assert torch.equal(torch.autograd.grad(attention(q, k, v, *offsets, True), v, grad)[0], want[2])


def test_gradients_where_keys_are_not_packed_as_queries():
    q, k, v, *rest = make([6], [9], 2, 1, 16)
    q.requires_grad_()
    attention(q, k, v, *rest, True).sum().backward()
    assert q.grad.abs().sum() > 0


def test_lengths_that_contradict_packed_offsets_are_refused():
    pytest.importorskip("minilava._C")
    (q, k, v, _), (cu, start, length) = packed([3, 4], 2, 1, 16)
    q.requires_grad_()
    for cu_q, lengths in ((cu, length - 1), (cu + 1, length), (cu, length.long()), (cu, length[:, None][:, :0])):
        with pytest.raises(ValueError, match="attention"):
            attention(q, k, v, cu_q, cu_q[:-1], lengths, True)
    with pytest.raises(ValueError, match="fit"):
        attention(q, k[:, :, :8], v[:, :, :8], cu, start, length, True)
    with pytest.raises(ValueError, match="packed"):
        attention(q, k, v, cu, start.clone(), length, True, impl="native")
    with pytest.raises(ValueError, match="fit"):
        attention(*(x.double() for x in (q, k, v)), cu, start, length, True, impl="native")


def test_offsets_outside_the_tensors_are_refused():
    pytest.importorskip("minilava._C")
    q, k, v, cu, start, length = make([3, 4], [3, 4], 2, 1, 16)
    for bad in ((cu + 1, start, length), (cu, start - 3, length), (cu, start, length + 1), (cu.flip(0), start, length)):
        with pytest.raises(ValueError, match="attention"):
            attention(q, k, v, *bad, True, impl="native")
    with pytest.raises(ValueError, match="int32"):
        attention(q, k, v, cu.long(), start, length, True, impl="native")


def on_device(args):
    return [x.to(DEVICE) for x in args]


TRITON = [
    ([130, 0, 1, 5], [131, 3, 90, 2], 2, 1, 64),  # two blocks of queries, no query, one, some that see no key
    ([40, 1, 2], [40, 0, 70], 2, 2, 72),
    ([9, 3], [75, 64], 7, 1, 80),
    ([20, 3], [20, 65], 2, 1, 128),  # the first of the three queries sees a block of keys less one
    ([17, 2], [19, 1], 3, 3, 16),
    ([5], [3], 1, 1, 36),
]


@pytest.mark.parametrize("case", TRITON)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_triton_matches_float64(case, causal, dtype):
    check(on_device(make(*case, dtype=dtype)), causal, impl="triton")


def test_triton_scale_large_scores_and_strided_views():
    q, k, v, *rest = make([50, 1], [50, 90], 2, 2, 64)
    both = torch.stack([k, v], 1)
    check(on_device((q, k, v, *rest)), True, impl="triton", scale=8.0)
    check([q.to(DEVICE), *both.to(DEVICE).unbind(1), *on_device(rest)], True, impl="triton")


TRITON_PACKED = [
    ([130, 0, 1], 2, 1, 64),
    ([66, 9], 2, 2, 72),
    ([40, 1], 7, 1, 80),
    ([70, 3], 2, 1, 128),
    ([17, 0, 2], 3, 3, 16),
    ([4, 1], 1, 1, 36),
]


def triton_inputs(case):
    (q, k, v, _), (cu, _, lengths) = packed(*case)
    cu = cu.to(DEVICE)
    return on_device((q, k, v)), (cu, cu[:-1], lengths.to(DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("case", TRITON_PACKED[:4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", FLOATS[1:])
def test_the_library_that_a_gpu_uses_matches_float64(case, causal, dtype):
    """flash-attn, or PyTorch's packed attention: whichever is taken where nothing is forced."""
    inputs, offsets = triton_inputs(case)
    assert implementation("cuda", dtype) in ("flash", "torch")
    assert_all_within(
        lambda *x: attention(*x, *offsets, causal), lambda *x: attention_reference(*x, *offsets, causal), inputs, dtype
    )


@pytest.mark.parametrize("case", TRITON_PACKED)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_triton_gradients(case, causal, dtype):
    inputs, offsets = triton_inputs(case)
    assert_all_within(
        lambda *x: attention(*x, *offsets, causal, impl="triton"),
        lambda *x: attention_reference(*x, *offsets, causal),
        inputs,
        dtype,
    )


def test_triton_gradients_are_the_derivatives():
    (q, k, v), offsets = triton_inputs(([2, 1], 2, 1, 2))
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    for causal in (True, False):
        assert torch.autograd.gradcheck(lambda *x, c=causal: attention(*x, *offsets, c, impl="triton"), leaves)


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 140)), min_size=1, max_size=2),
    st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 2)]),
    st.sampled_from([8, 24, 64, 72, 100]),
    st.booleans(),
    st.sampled_from(FLOATS[1:]),
)
def test_triton_takes_any_lengths_heads_and_dims(lengths, heads, dim, causal, dtype):
    check(on_device(make(*zip(*lengths, strict=True), *heads, dim, dtype)), causal, impl="triton")


def test_triton_writes_all_of_its_results_and_nothing_else(poisoned):
    q, k, v, cu, start, length = on_device(make([30, 0, 5], [30, 4, 150], 2, 1, 72, torch.float16))
    unused = torch.ones(len(k), dtype=torch.bool, device=DEVICE)
    for s, n in zip(start.tolist(), length.tolist(), strict=True):
        unused[s : s + n] = False
    k[unused] = v[unused] = float("nan")  # the rest of a cache may hold anything
    check((q, k, v, cu, start, length), True, impl="triton")
    inputs, offsets = triton_inputs(([3, 0, 70], 2, 1, 24))
    grads = gradients((*inputs, torch.ones_like(inputs[0])), offsets, True, impl="triton")
    assert not any(g.isnan().any() for g in grads)


def test_triton_gives_the_same_bits_alone_and_in_a_batch():
    lengths = [70, 1, 140]
    (q, k, v), (cu, start, length) = triton_inputs((lengths, 2, 1, 64))
    q, k, v = (x.half() for x in (q, k, v))
    whole = gradients((q, k, v, q), (cu, start, length), True, impl="triton")
    out = attention(q, k, v, cu, start, length, True, impl="triton")
    for s, n in enumerate(lengths):
        rows = slice(int(cu[s]), int(cu[s + 1]))
        one = torch.tensor([0, n], dtype=torch.int32, device=DEVICE)
        own = [x[rows] for x in (q, k, v)]
        assert torch.equal(attention(*own, one, one[:-1], one.diff(), True, impl="triton"), out[rows])
        alone = gradients((*own, q[rows]), (one, one[:-1], one.diff()), True, impl="triton")
        assert all(torch.equal(a, b[rows]) for a, b in zip(alone, whole, strict=True))


def test_triton_log_sum_exp():
    q, k, v, *spans = on_device(make([3, 4], [5, 2], 2, 1, 16))
    _, lse = torch.ops.minilava.attention(q, k, v, *spans, True, 4, 0.5, "triton")
    hidden = torch.ones(3, 5, dtype=torch.bool, device=DEVICE).triu(5 - 3 + 1)

    def plain(q, k):
        scores = torch.einsum("qhk,rk->qhr", q[:3], k[spans[1][0] :][:5, 0]) * 0.5
        return scores.masked_fill(hidden[:, None], float("-inf")).logsumexp(2)

    assert_within(lse[:3], plain(q, k), plain(q.double(), k.double()))
    assert lse[3:5].eq(float("-inf")).all() and lse[5:].isfinite().all()


def test_triton_refuses_what_it_cannot_compute():
    q, k, v, *spans = on_device(make([2], [3], 2, 1, 16))
    for bad in ((q, k[:, :, :8], v[:, :, :8]), (q.half(), k, v)):
        with pytest.raises(ValueError, match="fit"):
            attention(*bad, *spans, True, impl="triton")
    with pytest.raises(ValueError, match="above 0"):
        attention(q, k, v, *spans, True, scale=-1.0, impl="triton")
    with pytest.raises(ValueError, match="128"):
        attention(*(x.repeat(1, 1, 9) for x in (q, k, v)), *spans, True, impl="triton")
    with pytest.raises(ValueError, match="packed"):
        attention(q.requires_grad_(), k, v, *spans, True, impl="triton")
