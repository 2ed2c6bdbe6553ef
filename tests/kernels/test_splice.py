"""splice in Triton against plain PyTorch: every source of a row, gradients, and rows that nothing asked for."""

import pytest
import torch

from minilava_kernels.splice import splice, splice_reference
from tests.kernels.interpreter import DEVICE
from tests.numerics import assert_all_within

FEATURES, MIXED, MAXIMA = 9, 5, 4


def make(parts, dim=40, tokens=30, seed=0):
    """Arguments of splice with these parts of the bank; every row of the bank is used once, some rows twice."""
    torch.manual_seed(seed)
    taps = [torch.randint(FEATURES, (n, 4)) if name in parts else None for name, n in (("mix", MIXED), ("max", MAXIMA))]
    weights = torch.rand(MIXED, 4) if "mix" in parts else None
    newline = torch.randn(dim) if "newline" in parts else None
    bank = FEATURES + MIXED * ("mix" in parts) + MAXIMA * ("max" in parts) + ("newline" in parts)
    source = torch.cat([torch.randperm(bank), torch.tensor([0, bank - 1])])
    rows = torch.randperm(tokens)[: len(source)]
    ids = torch.randint(1, 12, (tokens,)).index_fill_(0, rows, 0)
    arguments = (
        torch.randn(12, dim),
        ids,
        rows,
        source,
        torch.randn(FEATURES, dim),
        taps[0],
        weights,
        taps[1],
        newline,
    )
    return [x if x is None else x.to(DEVICE) for x in arguments]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parts", ["", "mix", "max", "newline", "mix max newline"])
def test_triton(dtype, parts):
    table, ids, rows, source, features, mix, weights, most, newline = make(parts)

    def through(function, **options):
        def run(table, features, newline):
            given = newline if "newline" in parts else None
            y = function(table, ids, rows, source, features, mix, weights, most, given, **options)
            return y, newline  # so that an unused newline has a gradient too

        return run

    newline = torch.zeros(40, device=DEVICE) if newline is None else newline
    assert_all_within(
        through(splice, impl="triton"), through(splice_reference), (table, features, newline), dtype
    )  # fmt: skip


@pytest.mark.parametrize("dim", [1, 7, 1030])
def test_triton_widths_are_exact(dim):
    arguments = make("max newline", dim)
    assert torch.equal(splice(*arguments, impl="triton"), splice_reference(*arguments))


def test_float32_table_under_bfloat16_features():
    """Training: masters are float32, activations bfloat16, and gradients come back in each one's own dtype."""
    arguments = make("mix newline")
    arguments[4] = arguments[4].bfloat16()
    leaves = [arguments[i].requires_grad_() for i in (0, 4, 8)]
    for impl in ("triton", "reference"):
        y = splice(*arguments, impl=impl)
        gradients = torch.autograd.grad(y.float().square().sum(), leaves)
        assert y.dtype == torch.bfloat16 and [g.dtype for g in gradients] == [x.dtype for x in leaves]


def test_no_token_and_no_splice():
    table, ids, _, _, features, *_ = make("")
    none = ids[:0]
    y = splice(table, ids, none, none, features, impl="triton")
    assert torch.equal(y, torch.nn.functional.embedding(ids, table))
    assert splice(table, none, none, none, features, impl="triton").shape == (0, 40)


def test_triton_gradients_are_the_derivatives():
    table, ids, rows, source, features, mix, weights, most, newline = make("mix max newline", dim=3)
    leaves = [x.double().requires_grad_() for x in (table, features, newline)]

    def run(table, features, newline):
        return splice(table, ids, rows, source, features, mix, weights, most, newline, impl="triton")

    assert torch.autograd.gradcheck(run, leaves)
