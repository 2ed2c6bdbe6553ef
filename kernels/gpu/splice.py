"""Token embeddings, features, mixtures of features and newlines into packed rows, in one pass, and its backward.

A program makes BLOCK values of one row, from wherever the row's source says: no bank of pooled features, no gathered
copy and no second write of a row exist in between.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, sum_dtype, wide
from minilava_kernels.gpu.pool import mixed, unmix

BLOCK = 1024


@triton.jit
def splice_kernel(
    TABLE, IDS, SOURCE, FEATURES, MIX_TAPS, MIX_WEIGHTS, MAX_TAPS, NEWLINE, Y, D, features, mixtures, maxima,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < D
    source = tl.load(SOURCE + row)
    if source < 0:
        x = wide(tl.load(TABLE + tl.load(IDS + row) * D + at, mask=inside, other=0.0))
    elif source < features:
        x = wide(tl.load(FEATURES + source * D + at, mask=inside, other=0.0))
    elif source < features + mixtures:
        x = mixed(FEATURES, MIX_TAPS, MIX_WEIGHTS, source - features, at, inside, D, False)
    elif source < features + mixtures + maxima:
        x = mixed(FEATURES, MAX_TAPS, MIX_WEIGHTS, source - features - mixtures, at, inside, D, True)
    else:
        x = wide(tl.load(NEWLINE + at, mask=inside, other=0.0))
    tl.store(Y + row * D + at, x.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def splice_backward_kernel(
    SOURCE, FEATURES, MIX_TAPS, MIX_WEIGHTS, MAX_TAPS, GRAD, DFEATURES, D, features, mixtures, maxima,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < D
    source = tl.load(SOURCE + row)
    grad = wide(tl.load(GRAD + row * D + at, mask=inside, other=0.0))
    if source >= 0:
        if source < features:
            tl.atomic_add(DFEATURES + source * D + at, grad, mask=inside, sem="relaxed")
        elif source < features + mixtures:
            unmix(FEATURES, DFEATURES, MIX_TAPS, MIX_WEIGHTS, grad, source - features, at, inside, D, False)
        elif source < features + mixtures + maxima:
            first = features + mixtures
            unmix(FEATURES, DFEATURES, MAX_TAPS, MIX_WEIGHTS, grad, source - first, at, inside, D, True)


def splice(table, ids, source, features, mix_taps, mix_weights, max_taps, newline, y):
    """Fill y (T, D). source int64 (T,): -1 for a text row, else a row of [features, mixtures, maxima, newline].
    Everything is contiguous; absent parts are any tensor of the right dtype with no row."""
    rows, dim = y.shape
    if rows:
        splice_kernel[rows, triton.cdiv(dim, BLOCK)](
            table, ids, source, features, mix_taps, mix_weights, max_taps, newline, y, dim,
            len(features), len(mix_taps), len(max_taps), BLOCK=BLOCK,
        )  # fmt: skip
    return y


def splice_backward(source, features, mix_taps, mix_weights, max_taps, grad):
    """The gradient of features, (F, D), summed in float32."""
    rows, dim = grad.shape
    dfeatures = features.new_zeros(features.shape, dtype=sum_dtype(grad.dtype))
    if rows:
        splice_backward_kernel[rows, triton.cdiv(dim, BLOCK)](
            source, features, mix_taps, mix_weights, max_taps, grad, dfeatures, dim,
            len(features), len(mix_taps), len(max_taps), BLOCK=BLOCK,
        )  # fmt: skip
    return dfeatures.to(features.dtype)


def variants() -> Iterator[Variant]:
    bank = {"FEATURES": "*bf16", "MIX_TAPS": "*i64", "MIX_WEIGHTS": "*fp32", "MAX_TAPS": "*i64"}
    numbers = dict.fromkeys(("D", "features", "mixtures", "maxima"), "i32")
    free = ("features", "mixtures", "maxima")
    for table in ("*bf16", "*fp32"):  # float32 masters in training
        types = bank | numbers | {"IDS": "*i64", "SOURCE": "*i64", "NEWLINE": table, "TABLE": table, "Y": "*bf16"}
        yield Variant(f"splice, table {table[1:]}", splice_kernel, types, {"BLOCK": BLOCK}, unaligned=free)
    types = bank | numbers | {"SOURCE": "*i64", "GRAD": "*bf16", "DFEATURES": "*fp32"}
    yield Variant("splice backward", splice_backward_kernel, types, {"BLOCK": BLOCK}, unaligned=free)
