"""rope_kv and rope: rotation and its gradients against float64, what lands in the caches, and refusals."""

import pytest
import torch

from minilava_kernels.cached8 import pack, row_bytes, unpack
from minilava_kernels.rope_kv import rope, rope_kv
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within, assert_within, with_threads


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native(simd, t, h, g, d, dtype):
    q, k, v, cos, sin, positions, cache, slots = make(t, h, g, d, dtype)
    args = q, k, v, cos.to(dtype), sin.to(dtype), positions, cache, slots
    wide = [x.double() if x.is_floating_point() else x for x in args]
    native, plain, exact = run(*args, "native"), run(*args, "reference"), run(*wide, "reference")
    for a, b, c in zip(native, plain, exact, strict=True):
        assert_within(a, b, c)
    assert torch.equal(native[2], plain[2])


@pytest.mark.parametrize(("t", "g", "d"), [(1, 2, 64), (7, 2, 80), (300, 1, 72), (3, 1, 2), (2, 1, 512)])
def test_a_cache_of_8_bits_holds_what_pack_makes(simd, t, g, d):
    """All magnitudes: what rounds to zero, ties, the largest float, infinity and NaN."""
    q, k, v, cos, sin, positions, cache, slots = make(t, 2, g, d)
    v = v * torch.logspace(-40, 38, v.shape[1]) if t != 7 else (v * 127).round() / 2
    v[-1, 0], v[t // 2, -1] = float("nan"), float("inf")
    single, (keys, values) = cache.clone(), (torch.zeros(t + 5, g, row_bytes(d), dtype=torch.int8) for _ in "kv")
    rope_kv(q.clone(), k, v, cos, sin, positions, single, cache.clone(), slots)
    rope_kv(q.clone(), k, v, cos, sin, positions, keys, values, slots)
    assert torch.equal(keys, pack(single))
    want = torch.zeros_like(values)
    want[slots] = pack(v.reshape(t, g, d))
    torch.testing.assert_close(unpack(values, d), unpack(want, d), rtol=0, atol=0, equal_nan=True)
    plain = torch.zeros_like(keys), torch.zeros_like(values)
    rope_kv(q.clone(), k, v, cos, sin, positions, *plain, slots, impl="reference")
    assert torch.equal(plain[1], want)


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


def make_rope(t, h, g, d, dtype=torch.float32):
    q, k, v, cos, sin, positions, _, _ = make(t, h, g, d, dtype)
    q, k = q.reshape(t, h, d) if t % 2 else q.unflatten(1, (h, d)), k.unflatten(1, (g, d))  # strided rows or not
    return q, k, cos[positions].to(dtype), sin[positions].to(dtype)


def run_rope(q, k, cos, sin, grads, impl):
    """Rotated q and k, and the gradients of both."""
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    out = rope(q, k, cos, sin, impl=impl)
    return *out, *torch.autograd.grad(out, (q, k), grads)


@pytest.mark.parametrize("case", [(0, 2, 1, 64), (1, 4, 2, 64), (7, 2, 2, 80), (300, 4, 1, 72), (3, 1, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rope_and_gradients(simd, case, dtype):
    q, k, cos, sin = make_rope(*case, dtype)
    grads = [torch.randn(x.shape).to(dtype) for x in (q, k)]
    native, plain = (run_rope(q, k, cos, sin, grads, impl) for impl in ("native", "reference"))
    exact = run_rope(*(x.double() for x in (q, k, cos, sin)), [x.double() for x in grads], "reference")
    for a, b, c in zip(native, plain, exact, strict=True):
        assert_within(a, b, c, factor=3)


def test_rope_threads_and_one_input(simd):
    q, k, cos, sin = make_rope(500, 4, 2, 64)
    runs = [with_threads(n, lambda: run_rope(q, k, cos, sin, (q, k), "native")) for n in (1, 2, 3)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))
    q = q.clone().requires_grad_()
    assert torch.autograd.grad(rope(q, k, cos, sin)[0].sum(), q)[0].shape == q.shape


def test_rope_refuses_misfits():
    q, k, cos, sin = make_rope(4, 2, 1, 64)
    for bad in (
        (q[:3], k, cos, sin),
        (q, k[..., :32], cos, sin),
        (q, k, cos[:3], sin[:3]),
        (q, k, cos, sin[:, :31]),
        (q, k[..., None][..., :0], cos, sin),
    ):
        with pytest.raises(ValueError, match="rope"):
            rope(*bad)
    for bad in ((q.double(), k.double(), cos, sin), (q, k.bfloat16(), cos, sin)):
        with pytest.raises(ValueError, match="rope"):
            rope(*bad, impl="native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [(0, 2, 1, 64), (1, 4, 2, 64), (7, 2, 2, 80), (40, 7, 1, 72), (3, 1, 1, 2)])
def test_triton(dtype, case):
    args = [x.to(DEVICE) for x in make(*case, dtype)]
    args[3:5] = (x.to(dtype) for x in args[3:5])
    wide = [x.double() if x.is_floating_point() else x for x in args]
    triton, plain, exact = run(*args, "triton"), run(*args, "reference"), run(*wide, "reference")
    for a, b, c in zip(triton, plain, exact, strict=True):
        assert_within(a, b, c)
    assert torch.equal(triton[2], plain[2])
    untouched = torch.ones(len(args[6]), dtype=torch.bool)
    untouched[args[7].cpu()] = False
    assert not triton[1][untouched].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [(0, 2, 1, 64), (7, 2, 2, 80), (40, 7, 1, 72), (3, 1, 1, 2)])
def test_triton_rope_and_gradients(dtype, case):
    q, k, cos, sin = (x.to(DEVICE) for x in make_rope(*case))
    cos, sin = cos.to(dtype).float(), sin.to(dtype).float()  # as the model gives them: rounded to the dtype

    def through(impl):
        return lambda q, k: rope(q, k, cos, sin, impl=impl)

    assert_all_within(through("triton"), through("reference"), (q, k), dtype)
