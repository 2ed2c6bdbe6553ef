"""linear_i8: bit for bit against integers in numpy on every instruction set, and the formats of its weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilava import _C
from minilava_kernels.linear_i8 import GROUPS, Panels, linear_i8, pack, round_rows, shapes, unpack
from tests.numerics import assert_within, with_threads


def make(m, n, k, bits, group=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w, b, r = (torch.randn(*s, generator=g) for s in ((m, k), (n, k), (n,), (m, n)))
    return x, pack(w / k**0.5, bits, group), b, r


def stored_values(p: Panels) -> np.ndarray:
    """int32 (N, K'), zero taken off, read out of the panels byte by byte."""
    raw, groups = p.values.numpy().astype(np.int32), p.scales.shape[1]
    out = np.zeros((len(raw) * 16, groups * p.group), np.int32)
    for n in range(len(out)):
        for k in range(out.shape[1]):
            quad, byte = divmod(k, 4)
            if p.bits == 8:
                out[n, k] = raw[n // 16, quad, n % 16, byte] - 128
            else:
                both = raw[n // 16, quad // 2, n % 16, byte]
                out[n, k] = (both >> 4 if quad % 2 else both & 15) - 8
    return out


def in_integers(x, p, bias, residual, fused):
    """What linear_i8 says it computes: exact sums per group, added to a float32 in the groups' order."""
    groups, group = p.scales.shape[1], p.group
    x = np.pad(x.numpy(), ((0, 0), (0, groups * group - x.shape[1]))).reshape(len(x), groups, group)
    top = np.abs(x).max(2)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(top > 1e-35, np.float32(127) / top, np.float32(0)).astype(np.float32)
    q = np.rint(x * inverse[:, :, None]).astype(np.int64)
    w = stored_values(p)[: p.n].reshape(p.n, groups, group).astype(np.int64)
    ws = p.scales.transpose(1, 2).flatten(0, 1).float().numpy()[: p.n]
    total = np.zeros((len(x), p.n), np.float32)
    for g in range(groups):
        sums = (q[:, g] @ w[:, g].T).astype(np.float32)
        scale = (ws[None, :, g] * (top / np.float32(127))[:, g, None]).astype(np.float32)
        if fused:  # one rounding: 64 bits of mantissa hold the product exactly
            total = (sums.astype(np.longdouble) * scale + total).astype(np.float32)
        else:
            total = sums * scale + total
    return torch.from_numpy((total + bias.numpy()) + residual.numpy())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("m", "n", "k", "group"),
    [(1, 1, 1, 32), (1, 200, 96, 32), (2, 16, 64, 64), (3, 33, 100, 32), (5, 70, 130, 128), (7, 64, 256, 64),
     (13, 47, 65, 32), (18, 100, 384, 128)],
)  # fmt: skip
def test_the_same_bits_as_integers(simd, m, n, k, group, bits):
    x, p, b, r = make(m, n, k, bits, group)
    expected = in_integers(x, p, b, r, fused=simd != "portable")
    assert torch.equal(linear_i8(x, p, b, residual=r), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_extreme_values_do_not_saturate(simd, bits):
    k, top = 4352, 127 / 128 if bits == 8 else 1.0  # whose scale, a power of two, is no rounded one
    x = torch.ones(2, k) * torch.tensor([[1.0], [-1.0]])
    w = torch.full((3, k), top) * torch.tensor([[1.0], [-1.0], [1.0]])
    w[2, ::2] = -top if bits == 8 else -7 / 8
    p = pack(w, bits)
    assert torch.equal(unpack(p), w)
    assert torch.allclose(linear_i8(x, p), x @ w.T, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_is_the_same_bits_in_any_batch_and_on_any_threads(simd, bits):
    x, p, b, r = make(23, 300, 200, bits)
    whole = linear_i8(x, p, b, residual=r)
    for m in (1, 2, 3, 4, 5, 6, 7, 12):
        assert torch.equal(linear_i8(x[:m], p, b, residual=r[:m]), whole[:m])
    assert torch.equal(with_threads(3, lambda: linear_i8(x, p, b, residual=r)), whole)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("activation", [None, "gelu_tanh", "gelu"])
def test_activations_against_float64(simd, bits, activation):
    x, p, b, r = make(33, 65, 190, bits)
    rounded, weight = round_rows(x, p.group), unpack(p)

    def plain(dtype):
        from minilava_kernels.linear import linear_reference

        return linear_reference(rounded.to(dtype), weight.to(dtype), b.to(dtype), activation, r.to(dtype))

    assert_within(linear_i8(x, p, b, activation, r), plain(torch.float32), plain(torch.float64))
    assert_within(linear_i8(x, p, b, activation, r, impl="reference"), plain(torch.float32), plain(torch.float64))


@given(st.integers(1, 40), st.integers(1, 150), st.sampled_from([8, 4]), st.sampled_from([None, 32, 96, 128]))
@settings(max_examples=60, deadline=None)
def test_packing_loses_half_a_step_at_most(n, k, bits, group):
    """At 4 bits a whole one where the group has a value almost as far from 0 as its farthest on the other side."""
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(n * k)) * torch.logspace(-3, 3, n)[:, None]
    p = pack(w, bits, group)
    assert (p.n, p.k, p.group) == (n, k, group or GROUPS[bits])
    if group is None:
        assert (tuple(p.values.shape), tuple(p.scales.shape)) == shapes(n, k, bits)
    scales = p.scales.transpose(1, 2).flatten(0, 1)[:n].float().repeat_interleave(p.group, 1)[:, :k]
    found = unpack(p)
    half = scales.abs() * (0.5000001 if bits == 8 else 0.52)  # at 4 bits a scale is rounded either way, by 1/256
    beyond = w / scales > 7.5 if bits == 4 else torch.zeros_like(w, dtype=torch.bool)
    assert ((found - w).abs() <= half)[~beyond].all()
    assert ((found - w).abs() <= scales.abs() * 1.05)[beyond].all()
    rows = torch.tensor([[n - 1, 0], [n // 2, 0]])
    assert torch.equal(unpack(p, rows), found[rows])


@given(st.integers(1, 20), st.integers(1, 100), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_importance_lowers_the_error_it_measures(n, k, seed):
    g = torch.Generator().manual_seed(seed)
    w, h = torch.randn(n, k, generator=g), torch.rand(k, generator=g) ** 4 + 1e-6
    plain, searched = ((unpack(pack(w, 4, importance=i)) - w).square() @ h for i in (None, h))
    assert (searched <= plain * 1.00001).all()
    assert n * k < 500 or searched.sum() < 0.95 * plain.sum()


def test_rows_are_rounded_as_the_reference_rounds_them(simd):
    """The identity as a weight shows the rounded values themselves, here all at the edge between two."""
    top, p = torch.rand(2000, 1) + 0.5, pack(torch.eye(64) * 127, 8)
    x = torch.cat((top, (torch.arange(63) + 0.5) * top / 127), 1)
    assert torch.equal(unpack(p), torch.eye(64) * 127)
    torch.testing.assert_close(linear_i8(x, p), round_rows(x, 64) * 127, rtol=1e-6, atol=0)


def test_what_is_broken_shows(simd):
    x, p, _, _ = make(3, 20, 100, 8)
    x[1, 70], x[2, 3] = torch.nan, -torch.inf
    y = linear_i8(x, p)
    assert y[0].isfinite().all() and y[1:].isnan().all()


def test_zeros_and_denormals_give_zeros(simd):
    _, p, _, _ = make(1, 20, 100, 8)
    for x in (torch.zeros(1, 100), torch.full((1, 100), 1e-40)):
        assert torch.equal(linear_i8(x, p), torch.zeros(1, 20))
    assert torch.equal(unpack(pack(torch.zeros(3, 40), 4)), torch.zeros(3, 40))


@pytest.mark.parametrize("tails", ["activations", "weights"])
def test_channels_fifty_times_larger_cost_little(tails):
    """Every hundredth channel; the group that holds it loses precision, the others keep theirs."""
    g = torch.Generator().manual_seed(4)
    x, w = torch.randn(64, 1024, generator=g), torch.randn(512, 1024, generator=g)
    (x if tails == "activations" else w)[:, ::100] *= 50
    y = linear_i8(x, pack(w, 8))
    assert torch.nn.functional.cosine_similarity(y.flatten(), (x @ w.T).flatten(), dim=0) >= 0.999


def test_what_does_not_fit_is_refused():
    x, p, b, r = make(2, 16, 64, 8)
    for call in (
        lambda: linear_i8(x[:, :63], p),
        lambda: linear_i8(x, p, b[:3]),
        lambda: linear_i8(x, p, residual=r[:1]),
        lambda: linear_i8(x.double(), p),
        lambda: pack(x, 8, 48),
        lambda: pack(x, 3),
    ):
        with pytest.raises(ValueError):
            call()
    values, scales = p.values, p.scales
    for wrong in (
        (values[:, :-1], scales), (values, scales[..., :-1]), (values.int(), scales), (values, scales.float()),
        (values, scales[..., :1].expand(scales.shape)), (values.flatten(), scales), (values, scales[:, :0]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Panels"):
            Panels(*wrong, p.n, p.k, p.bits)
    with pytest.raises(ValueError):
        unpack(p, torch.tensor([1], dtype=torch.int32))
    with pytest.raises(IndexError):
        unpack(p, torch.tensor([16]))
    with pytest.raises(IndexError):
        unpack(p, torch.tensor([-1]))
    assert _C is not None
