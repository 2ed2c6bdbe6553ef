"""Sampling for the GPU: a row of logits -> a token, in one launch for the batch.

A row of 151,936 logits exceeds what a program can hold, so a program reads its row once for each question it asks: the
maximum (1), the k-th largest (16), the mass kept (1), the threshold of top-p (16), the mass again (1) and the draw (1);
what no row of the program asks for is left out. All but the first reading come from L2.

A threshold is found exactly, by bisection over the float32's bits in an order that follows the values, two bits a
reading: of the three values that the next two bits could raise it to, the highest that enough of the row still reaches.
Masses are integers, in units of 2^-40 of the largest probability: their sums depend on no order.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from minilava_kernels.gpu import Variant, power_of_2

TILE = 8192  # logits of a row that a program holds at a time
ROWS = 1  # of a program; tests take more, since Triton's interpreter runs one program after the other


@triton.jit
def _key(x):
    """float32 -> uint32 in the order of the values; both zeros are the same."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def _probability(x, peak, slope):
    """Of each value, relative to the largest."""
    return tl.exp((x - peak[:, None]) * slope[:, None])


@triton.jit
def _mass(probability, kept):
    return tl.where(kept, (probability * 1099511627776.0).to(tl.int64), 0)


@triton.jit
def _threshold(LOGITS, V, good, peak, slope, wanted, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Per row the largest key that at least `wanted` values (MASS: values of that mass) reach."""
    at = tl.arange(0, BLOCK)[None, :]
    found = (wanted * 0).to(tl.uint32)
    for step in range(16):
        unit = (found * 0 + 1) << (30 - 2 * step)
        first, second, third = found + unit, found + 2 * unit, found + 3 * unit
        reach_1, reach_2, reach_3 = wanted * 0, wanted * 0, wanted * 0
        for start in range(0, V, BLOCK):
            inside = good[:, None] & (start + at < V)
            x = tl.load(LOGITS + start + at, mask=inside, other=-float("inf")).to(tl.float32)
            key = _key(x)
            amount = _mass(_probability(x, peak, slope), inside) if MASS else inside.to(tl.int64)
            reach_1 += tl.sum(tl.where(key >= first[:, None], amount, 0), 1)
            reach_2 += tl.sum(tl.where(key >= second[:, None], amount, 0), 1)
            reach_3 += tl.sum(tl.where(key >= third[:, None], amount, 0), 1)
        raised = (reach_1 >= wanted).to(tl.uint32) + (reach_2 >= wanted).to(tl.uint32)
        found += (raised + (reach_3 >= wanted).to(tl.uint32)) * unit
    return found


@triton.jit
def _kept_mass(LOGITS, start, V, good, peak, slope, floor, min_p, BLOCK: tl.constexpr):
    """A block's masses, 0 where top-k, top-p or min-p leave a value out."""
    at = start + tl.arange(0, BLOCK)[None, :]
    inside = good[:, None] & (at < V)
    x = tl.load(LOGITS + at, mask=inside, other=-float("inf")).to(tl.float32)
    probability = _probability(x, peak, slope)
    return _mass(probability, inside & (_key(x) >= floor[:, None]) & (probability >= min_p[:, None]))


@triton.jit
def sample_kernel(
    LOGITS, TEMPERATURE, TOP_K, TOP_P, MIN_P, SEED, COUNTER, TOKEN, rows, V, stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid, at = row < rows, tl.arange(0, BLOCK)[None, :]
    LOGITS += row.to(tl.int64)[:, None] * stride
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    best, broken = tl.zeros((ROWS,), tl.int32), tl.zeros((ROWS,), tl.int32)
    for start in range(0, V, BLOCK):
        x = tl.load(LOGITS + start + at, mask=valid[:, None] & (start + at < V), other=-float("inf")).to(tl.float32)
        broken += tl.sum((x != x).to(tl.int32), 1)
        top = tl.max(x, 1)
        index = tl.min(tl.where(x == top[:, None], start + at, V), 1)
        best = tl.where(top > peak, index, best)
        peak = tl.maximum(peak, top)
    good = valid & (broken == 0) & (tl.abs(peak) < float("inf"))
    peak = tl.where(good, peak, 0.0)
    slope = 1.0 / tl.maximum(tl.load(TEMPERATURE + row, mask=valid, other=1.0), 1e-30)

    floor = tl.zeros((ROWS,), tl.uint32)
    everything = tl.zeros((ROWS,), tl.int64) + V
    k = tl.load(TOP_K + row, mask=valid, other=0).to(tl.int64)
    k = tl.where((k > 0) & (k < V), k, everything)
    if tl.min(k, 0) < V:
        floor = _threshold(LOGITS, V, good, peak, slope, k, False, BLOCK)
    top_p = tl.load(TOP_P + row, mask=valid, other=1.0)
    if tl.min(top_p, 0) < 1.0:
        total = tl.zeros((ROWS,), tl.int64)
        for start in range(0, V, BLOCK):
            total += tl.sum(_kept_mass(LOGITS, start, V, good, peak, slope, floor, top_p * 0.0, BLOCK), 1)
        head = (total.to(tl.float32) * top_p).to(tl.int64)
        head = tl.minimum(tl.maximum(head, 1), total)
        head = tl.where(top_p < 1.0, head, total)
        # Of what top-k left: since that has the mass, what it left out lies below the threshold.
        floor = _threshold(LOGITS, V, good, peak, slope, head, True, BLOCK)

    min_p = tl.minimum(tl.load(MIN_P + row, mask=valid, other=0.0), 1.0)
    total = tl.zeros((ROWS,), tl.int64)
    for start in range(0, V, BLOCK):
        total += tl.sum(_kept_mass(LOGITS, start, V, good, peak, slope, floor, min_p, BLOCK), 1)
    seed, counter = tl.load(SEED + row, mask=valid, other=0), tl.load(COUNTER + row, mask=valid, other=0)
    uniform = (tl.randint(seed, counter) >> 1).to(tl.int64)  # of 2^31
    # total * uniform / 2^31, rounded down, in 64 bits
    drawn = (total >> 31) * uniform + ((total & 0x7FFFFFFF) * uniform >> 31)
    before, token = tl.zeros((ROWS,), tl.int64), tl.zeros((ROWS,), tl.int32)
    for start in range(0, V, BLOCK):
        mass = _kept_mass(LOGITS, start, V, good, peak, slope, floor, min_p, BLOCK)
        reached = before[:, None] + tl.cumsum(mass, 1)
        token += tl.sum(((reached <= drawn[:, None]) & (start + at < V)).to(tl.int32), 1)
        before += tl.sum(mass, 1)
    token = tl.where(tl.load(TEMPERATURE + row, mask=valid, other=0.0) > 0.0, token, best)
    tl.store(TOKEN + row, tl.where(good, token, -1).to(tl.int64), mask=valid)


def sample(logits, temperature, top_k, top_p, min_p, seed, counter):
    """logits (B, V) with contiguous rows, the rest (B,): float32, int64, float32, float32, int64, int64."""
    rows, size = logits.shape
    token = seed.new_empty(rows)
    block, warps = _shape(size)
    if rows:
        sample_kernel[(triton.cdiv(rows, ROWS),)](
            logits, temperature, top_k, top_p, min_p, seed, counter, token, rows, size, logits.stride(0),
            ROWS=ROWS, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return token


def _shape(size: int) -> tuple[int, int]:
    """(BLOCK, warps): 16 logits a thread."""
    block = min(power_of_2(size), TILE)
    return block, max(1, block // 512)


def variants() -> Iterator[Variant]:
    names = {"TEMPERATURE": "*fp32", "TOP_K": "*i64", "TOP_P": "*fp32", "MIN_P": "*fp32", "SEED": "*i64"}
    names |= {"COUNTER": "*i64", "TOKEN": "*i64", "rows": "i32", "V": "i32", "stride": "i32"}
    for size, dtype in ((151936, "*fp32"), (151936, "*bf16"), (4096, "*fp32"), (512, "*fp32"), (64, "*fp32")):
        block, warps = _shape(size)
        kind, shape = f"V={size} {dtype[1:]}", {"ROWS": ROWS, "BLOCK": block}
        yield Variant(kind, sample_kernel, names | {"LOGITS": dtype}, shape, warps, unaligned=("rows",))
