"""A fuzzer of every operation of the CPU extension; tests/fuzz.py draws cases and finds an operation without one."""

import itertools
import math
from dataclasses import replace
from functools import partial

import torch

from minilava_kernels import cached8, preprocess
from minilava_kernels.attention import attention
from minilava_kernels.decoder_i8 import Decoder
from minilava_kernels.encoder_i8 import EncoderBlock, free_scratch
from minilava_kernels.linear import linear
from minilava_kernels.linear_i8 import Panels, linear_i8, pack, unpack
from minilava_kernels.norm import layer_norm, rms_norm
from minilava_kernels.rope_kv import _KINDS, rope, rope_kv
from minilava_kernels.swiglu import swiglu

FUZZERS = []  # (function of a case, names of the operations that it calls)
INT32 = torch.int32


def fuzzes(*names):
    """Marks a function of a case and the operations that it calls; a method is class.method."""

    def register(function):
        FUZZERS.append((function, names))
        return function

    return register


@fuzzes("resize")
def fuzz_resize(case):
    h, w, channels, out_h, out_w = case.size(300), case.size(300), case.randint(1, 4), case.size(300), case.size(300)
    picture, threads = case.rows(h, w, channels, dtype=torch.uint8), case.randint(0, 3)
    out = case.memory(out_h * out_w * channels, torch.uint8)  # the public function's own would never be guarded
    source = picture.data_ptr(), h, w, channels, picture.stride(0)
    preprocess._native().resize(*source, out.data_ptr(), out_h, out_w, case.random() < 0.5, threads)

    def public(picture):
        return torch.from_numpy(preprocess.resize(picture.numpy(), (out_w, out_h), threads=threads))

    case.spoil(public, picture)


@fuzzes("resize_patchify", "patchify")
def fuzz_patches(case):
    view, threads = case.size(130), case.randint(0, 3)
    patch = case.randint(1, view)
    pictures = [case.rows(case.size(200), case.size(200), 3, dtype=torch.uint8) for _ in range(case.randint(1, 3))]
    views = case.memory(len(pictures) * view * view * 3, torch.uint8).random_(256).view(-1, view, view, 3)

    def resized(*pictures):
        return preprocess.resize_patchify([p.numpy() for p in pictures], view, patch, threads=threads)

    def plain(views):
        return preprocess.patchify(views.numpy(), patch, threads=threads)

    case.sound(resized(*pictures), plain(views))
    case.spoil(resized, *pictures)
    case.spoil(plain, views)


@fuzzes("linear_rows")
def fuzz_linear(case):
    m, n, k, dtype = case.size(20, 0), case.size(400, 0), case.size(400), case.dtype()
    arguments = (
        case.rows(m, k, dtype=dtype), case.floats(n, k, dtype=dtype), case.maybe(n, dtype=dtype),
        case.choice((None, None, "gelu", "gelu_tanh")), case.maybe(m, n, dtype=dtype),
    )  # fmt: skip
    case.sound(linear(*arguments, impl="native"))
    case.spoil(partial(linear, impl="native"), *arguments)


def panels(case, n, k, bits, group):
    p = pack(torch.randn(n, k) / k**0.5, bits, group)
    return replace(p, values=case.same(p.values), scales=case.same(p.scales))


@fuzzes("linear_i8", "dequantize_rows")
def fuzz_linear_i8(case):
    m, n, k, bits = case.size(70, 0), case.size(300), case.size(400), case.choice((8, 4))
    p, x = panels(case, n, k, bits, case.choice((None, 32, 96, 128))), case.rows(m, k)
    bias, residual, activation = case.maybe(n), case.maybe(m, n), case.choice((None, None, "gelu", "gelu_tanh"))

    def product(x, values, scales, bias, residual):
        return linear_i8(x, Panels(values, scales, n, k, bits), bias, activation, residual, impl="native")

    def rows(values, scales, ids):
        return unpack(Panels(values, scales, n, k, bits), ids)

    arguments, ids = (p.values, p.scales), case.ints(case.choices(range(n), k=case.size(20, 0)))
    case.sound(product(x, *arguments, bias, residual), rows(*arguments, ids))
    case.spoil(product, x, *arguments, bias, residual)
    case.refused(rows, (*arguments, ids), {2: n})
    case.spoil(rows, *arguments, ids)
    if m:
        broken = case.choice((math.nan, math.inf, -math.inf, 3e38, 1e-40, 0.0))
        x[case.randrange(m), -case.size(k) :].fill_(broken)
        product(x, *arguments, bias, residual)


@fuzzes("DecoderI8.add", "DecoderI8.run")
def fuzz_decoder(case):
    kv, dim, width, hidden = case.randint(1, 3), 2 * case.size(20), case.size(150), case.size(150)
    heads, rows, table = kv * case.randint(1, 3), case.size(case.choice((90, 90, 90, 600))), case.size(50)
    q, k = heads * dim, kv * dim
    shapes = [(q, width), (k, width), (k, width), (width, q), (hidden, width), (hidden, width), (width, hidden)]
    blocks, cache, eight = [], [], case.random() < 0.5
    for _ in range(case.randint(1, 2)):
        read, up = ((case.choice((8, 4)), case.choice((None, 32, 96))) for _ in range(2))
        forms = zip(shapes, [read] * 4 + [up] * 3, strict=True)
        matrices = [(panels(case, n, k, *form), case.maybe(n)) for (n, k), form in forms]
        blocks.append((case.floats(width), case.floats(width), matrices))
        pair = (case.floats(rows, kv, dim) for _ in "kv")
        cache.append(tuple(case.same(cached8.pack(x)) if eight else x for x in pair))
    cu = [min(c, rows) for c in case.segments(case.randint(1, 4), rows)]
    prompt, wanted = case.random() < 0.5, case.random() < 0.5 and all(a < b for a, b in itertools.pairwise(cu))
    starts = [case.randint(0, rows) for _ in cu[1:]]
    lengths = [case.randint(0, rows - s) for s in starts]
    arguments = (
        case.rows(cu[-1], width), case.floats(table, dim // 2), case.floats(table, dim // 2),
        case.ints(case.choices(range(table), k=cu[-1])), case.ints(case.sample(range(rows), cu[-1])),
        *(case.ints(v, INT32) for v in (cu, starts, lengths)), *cache[0],
        case.ints(c - 1 for c in cu[1:]) if wanted else None,
    )  # fmt: skip

    def rebuilt(norm1, norm2, *biases):
        matrices = [(p, b) for (p, _), b in zip(blocks[0][2], biases, strict=True)]
        return run(*arguments, first=(norm1, norm2, matrices))

    def run(*a, first=blocks[0]):
        decoder = Decoder([first, *blocks[1:]], heads, kv, 1e-6)
        return decoder(*a[:8], [a[8:10], *cache[1:]], a[10], prompt)

    case.sound(run(*arguments))
    limits = {3: table, 4: rows, 6: rows + 1, 7: rows + 1} | ({10: cu[-1]} if wanted else {5: cu[-1] + 1})
    case.refused(run, arguments, limits)
    case.spoil(run, *arguments)
    case.spoil(rebuilt, *blocks[0][:2], *(b for _, b in blocks[0][2]))


@fuzzes("EncoderBlockI8.run", "free_scratch")
def fuzz_encoder(case):
    heads, dim, inner = case.randint(1, 3), case.size(40), case.size(150)
    patches, views = case.choice(((case.size(80), case.size(9, 0)), (case.size(600), 1)))
    d = heads * dim
    read, out, up, down = ((case.choice((8, 4)), case.choice((None, 32, 96))) for _ in range(4))
    shapes = [(d, d)] * 4 + [(inner, d), (d, inner)]
    forms = zip(shapes, [read] * 3 + [out, up, down], strict=True)
    matrices = [(panels(case, n, k, *form), case.maybe(n)) for (n, k), form in forms]
    arguments = case.floats(views * patches, d), *(case.floats(d) for _ in range(4)), *(b for _, b in matrices)

    def run(x, *rest):
        with_biases = [(p, b) for (p, _), b in zip(matrices, rest[4:], strict=True)]
        return EncoderBlock(rest[:4], with_biases, heads, 1e-6)(x, patches)

    case.sound(run(*arguments))
    if case.random() < 0.5:
        free_scratch()
    case.spoil(run, *arguments)


def heads_of(case):
    kv, dim = case.randint(1, 4), case.choice((case.size(160), 64, 72, 80, 128))
    return kv * case.randint(1, 4), kv, dim


@fuzzes("attention")
def fuzz_attention(case):
    (h, g, d), dtype, causal = heads_of(case), case.dtype(), case.random() < 0.5
    eight = dtype == torch.float32 and case.random() < 0.5
    queries, keys = case.choice(((200, 700), (6, 3000)))  # the longer fill more than one round of packed keys
    cu, rows = case.segments(case.randint(0, 4), queries), case.size(keys, 0)
    starts = [case.randint(0, rows) for _ in cu[1:]]
    lengths = [case.choice((rows - s, case.randint(0, rows - s))) for s in starts]
    pair = (case.rows(rows, g, d, dtype=dtype) for _ in "kv")
    arguments = (
        case.rows(cu[-1], h, d, dtype=dtype), *(case.same(cached8.pack(x)) if eight else x for x in pair),
        *(case.ints(v, INT32) for v in (cu, starts, lengths)),
    )  # fmt: skip

    def keeping(*arguments):  # the log-sum-exp too
        return torch.ops.minilava.attention(*arguments, causal, 0, 0.125, "native")[0]

    plain, narrow = (partial(attention, causal=causal, impl="native", narrow=n) for n in (False, True))
    run = case.choice((keeping, plain, narrow))
    case.sound(run(*arguments))
    case.refused(run, arguments, {3: cu[-1] + 1, 4: rows + 1, 5: rows + 1})
    case.spoil(run, *arguments)


@fuzzes("attention", "attention_backward")
def fuzz_attention_backward(case):
    (h, g, d), dtype, causal = heads_of(case), case.dtype(), case.random() < 0.5
    cu = case.ints(case.segments(case.randint(0, 4), 200), INT32)
    t = int(cu[-1])

    def run(q, k, v, cu):
        return attention(q, k, v, cu, cu[:-1], cu.diff(), causal, impl="native")

    arguments = *(case.rows(t, x, d, dtype=dtype) for x in (h, g, g)), cu
    case.learn(run, *arguments)
    case.refused(run, arguments, {3: t + 1})
    case.spoil(run, *arguments, learns=True)


@fuzzes("rms_norm", "rms_norm_backward")
def fuzz_rms_norm(case):
    m, d, dtype = case.size(300, 0), case.size(300), case.dtype()
    arguments = case.rows(m, d, dtype=dtype), case.floats(d, dtype=case.dtype()), case.maybe(m, d, dtype=dtype)

    def run(x, weight, residual):
        return rms_norm(x, weight, 1e-6, residual, impl="native")

    case.learn(run, *arguments)
    case.spoil(run, *arguments, learns=case.random() < 0.5)


@fuzzes("layer_norm")
def fuzz_layer_norm(case):
    m, d, dtype = case.size(300, 0), case.size(300), case.dtype()
    vectors = (case.floats(d, dtype=case.dtype()) for _ in range(2))
    arguments = case.rows(m, d, dtype=dtype), *vectors, case.maybe(m, d, dtype=dtype)

    def run(x, weight, bias, residual):
        return layer_norm(x, weight, bias, 1e-6, residual, impl="native")

    case.sound(run(*arguments))
    case.spoil(run, *arguments)


@fuzzes("rope")
def fuzz_rope(case):
    h, g, d, t, dtype = case.randint(1, 5), case.randint(1, 3), 2 * case.size(70), case.size(150, 0), case.dtype()
    tables = (case.floats(t, d // 2, dtype=case.dtype()) for _ in range(2))
    arguments = case.rows(t, h, d, dtype=dtype), case.rows(t, g, d, dtype=dtype), *tables
    case.learn(partial(rope, impl="native"), *arguments)
    case.spoil(partial(rope, impl="native"), *arguments, learns=case.random() < 0.5)


@fuzzes("rope_kv")
def fuzz_rope_kv(case):
    h, g, d, t, table = case.randint(1, 5), case.randint(1, 3), 2 * case.size(70), case.size(60, 0), case.size(50)
    rows, run, (dtype, of_cache) = t + case.size(40, 0), partial(rope_kv, impl="native"), case.choice(list(_KINDS))
    caches = (case.floats(rows, g, d) for _ in "kv")
    arguments = (
        *(case.rows(t, n * d, dtype=dtype) for n in (h, g, g)),
        *(case.floats(table, d // 2, dtype=dtype) for _ in range(2)),
        case.ints(case.choices(range(table), k=t)),
        *(case.same(cached8.pack(x)) if of_cache == torch.int8 else x.to(of_cache) for x in caches),
        case.ints(case.sample(range(rows), t)),
    )  # fmt: skip
    run(*arguments)
    case.sound(arguments)
    case.refused(run, arguments, {5: table, 8: rows})
    case.spoil(run, *arguments)


@fuzzes("swiglu", "swiglu_backward")
def fuzz_swiglu(case):
    m, width, dtype = case.size(60, 0), case.choice((case.size(300), case.size(3000))), case.dtype()
    arguments = case.rows(m, width, dtype=dtype), case.rows(m, width, dtype=dtype)
    case.learn(partial(swiglu, impl="native"), *arguments)
    case.spoil(partial(swiglu, impl="native"), *arguments, learns=case.random() < 0.5)
