"""linear: against float64, whatever the batch, the threads and the instruction set."""

import pytest
import torch

from minilava_kernels.linear import implementation, linear, linear_reference
from tests.numerics import assert_within, with_threads


def make(m, n, k, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w, b, r = (torch.randn(*s, generator=g).to(dtype) for s in ((m, k), (n, k), (n,), (m, n)))
    return x, w / k**0.5, b, r


def exact(x, w, b=None, activation=None, r=None):
    return linear_reference(
        *(None if t is None else t.double() for t in (x, w, b)), activation, None if r is None else r.double()
    )


@pytest.mark.parametrize("m", [1, 2, 3, 5, 7, 8, 13, 16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (33, 129), (18, 100), (64, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_matches_float64(simd, m, n, k, dtype):
    for parts in ((), ("bias",), ("bias", "residual")):
        triples = []
        for seed in range(1 + 2000 // (m * n)):  # the largest error of a handful of outputs is mere luck
            x, w, b, r = make(m, n, k, dtype, seed)
            b, r = b if "bias" in parts else None, r if "residual" in parts else None
            triples.append(
                (linear(x, w, b, None, r, impl="native"), linear_reference(x, w, b, None, r), exact(x, w, b, None, r))
            )
        assert_within(*(torch.cat(t) for t in zip(*triples, strict=True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_row_is_the_same_bits_in_any_batch(simd, dtype):
    x, w, b, r = make(16, 203, 331, dtype)
    whole = linear(x, w, b, residual=r, impl="native")
    for m in range(1, 16):
        assert torch.equal(linear(x[:m], w, b, residual=r[:m], impl="native"), whole[:m])
    assert torch.equal(linear(x[9], w, b, residual=r[9], impl="native"), whole[9])


def test_native_does_not_depend_on_threads():
    pytest.importorskip("minilava._C")
    x, w, b, _ = make(6, 530, 700)
    results = [with_threads(n, lambda: linear(x, w, b, impl="native")) for n in (1, 2, 3)]
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("impl", ["native", "onednn"])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh"])
@pytest.mark.parametrize("with_residual", [False, True])
def test_epilogues(impl, activation, with_residual):
    x, w, b, r = make(16, 40, 96)
    r = r if with_residual else None
    with torch.no_grad():
        # oneDNN adds k in one chain, MKL in blocks: the plain version here is the chain, in float32.
        plain = torch.zeros(16, 40)
        for k in range(96):
            plain += x[:, k : k + 1] * w[:, k]
        plain = linear_reference(plain, torch.eye(40), b, activation, r)
        assert_within(linear(x, w, b, activation, r, impl=impl), plain, exact(x, w, b, activation, r))


def test_leading_dimensions_and_strided_rows():
    x, w, b, r = make(12, 40, 96)
    with torch.no_grad():
        want = linear(x, w, b, residual=r)
        assert torch.equal(linear(x.view(3, 4, 96), w, b, residual=r.view(3, 4, 40)), want.view(3, 4, 40))
        assert torch.equal(linear(x.t().contiguous().t(), w, b, residual=r), want)
        assert linear(x[:0], w, b).shape == (0, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
def test_gradients_match_float64(dtype, wide):
    """wide: float32 masters under activations of the narrow dtype, as in mixed-precision training."""
    x, w, b, r = make(37, 29, 53, dtype)
    w, b = (w.float(), b.float()) if wide else (w, b)
    grad = torch.randn(37, 29, generator=torch.Generator().manual_seed(1))

    def run(function, kind, activation="gelu", **options):
        leaves = [t.detach().to(k).requires_grad_() for t, k in zip((x, w, b, r), kind, strict=True)]
        y = function(leaves[0], leaves[1], leaves[2], activation, leaves[3], **options)
        y.backward(grad.to(y.dtype))
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    own = [t.dtype for t in (x, w, b, r)]
    assert implementation(x, w.requires_grad_(), b) == "train"
    ours, plain = run(linear, own), run(linear_reference, own)
    exact = run(linear_reference, [torch.float64] * 4)
    for result, reference, truth in zip(ours, plain, exact, strict=True):
        assert result.dtype == reference.dtype
        assert_within(result, reference, truth, 3)


def test_misfits_are_refused():
    pytest.importorskip("minilava._C")
    x, w, b, r = make(3, 8, 16)
    for bad in ((x[:, :15], w, b, r), (x, w, b[:7], r), (x, w, b, r[:2]), (x, w.t(), b, r), (x.double(), w, b, r)):
        with pytest.raises(ValueError, match="linear"):
            linear(bad[0], bad[1], bad[2], None, bad[3], impl="native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_in_place(dtype):
    """What a GPU does without gradients; on a CPU by name."""
    x, w, r = torch.randn(3, 5, 40).to(dtype), torch.randn(24, 40).to(dtype), torch.randn(3, 5, 24).to(dtype)
    exact = linear_reference(x.double(), w.double(), residual=r.double())
    plain, kept = linear_reference(x, w, residual=r), r.clone()
    y = linear(x, w, residual=kept, impl="inplace")
    assert y.data_ptr() == kept.data_ptr()
    assert_within(y, plain, exact)
