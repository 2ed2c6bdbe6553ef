"""rope_kv: rotation against float64, what lands in the caches, and refusals."""

import pytest
import torch

from minilava_kernels.rope_kv import rope_kv
from tests.numerics import assert_within


def make(t, h, g, d, dtype=torch.float32):
    q, k, v = torch.randn(t, (h + 2 * g) * d).to(dtype).split([h * d, g * d, g * d], 1)  # strided rows
    angles = torch.arange(90)[:, None] * 10000.0 ** (-torch.arange(d // 2) * 2 / d)
    positions, slots = torch.randint(90, (t,)), torch.randperm(t + 5)[:t]
    return q, k, v, angles.cos(), angles.sin(), positions, torch.zeros(t + 5, g, d, dtype=dtype), slots


def run(q, k, v, cos, sin, positions, cache, slots, impl):
    q, keys, values = q.clone(), cache.clone(), cache.clone()
    rope_kv(q, k, v, cos, sin, positions, keys, values, slots, impl=impl)
    return q, keys, values


@pytest.mark.parametrize(
    ("t", "h", "g", "d"), [(0, 2, 1, 64), (1, 4, 2, 64), (7, 2, 2, 80), (300, 4, 1, 72), (3, 1, 1, 2)]
)
def test_native(simd, t, h, g, d):
    args = make(t, h, g, d)
    wide = [x.double() if x.is_floating_point() else x for x in args]
    native, plain, exact = run(*args, "native"), run(*args, "reference"), run(*wide, "reference")
    for a, b, c in zip(native, plain, exact, strict=True):
        assert_within(a, b, c)
    assert torch.equal(native[2], plain[2])


def test_rotates_a_strided_q_in_place():
    q, k, v, cos, sin, positions, cache, slots = make(9, 2, 1, 64)
    want = run(q, k, v, cos, sin, positions, cache, slots, "native")[0]
    k_before = k.clone()
    rope_kv(q, k, v, cos, sin, positions, cache, cache.clone(), slots)
    assert torch.equal(q, want)
    assert torch.equal(k, k_before)


def test_bad_rows_are_refused_before_anything_is_written():
    pytest.importorskip("minilava._C")
    for name in ("positions", "slots"):
        q, k, v, cos, sin, positions, cache, slots = make(4, 2, 1, 64)
        (positions if name == "positions" else slots)[3] = 1000
        before = q.clone()
        with pytest.raises(IndexError, match="rope_kv"):
            rope_kv(q, k, v, cos, sin, positions, cache, cache.clone(), slots)
        assert torch.equal(q, before) and not cache.any()
