"""decoder_i8: all blocks in one call against the same blocks called one by one, to the bit."""

import pytest
import torch

from minilava.config import TextConfig
from minilava.model.linear import quantized
from minilava.model.qwen import Qwen
from minilava.runtime.cache import KVCache
from minilava_kernels.decoder_i8 import Decoder
from minilava_kernels.linear_i8 import pack
from tests.numerics import with_threads

CONFIG = TextConfig(80, 200, layers=3, heads=6, kv_heads=2, head_dim=16, vocab_rows=50, tied=True, max_positions=700)
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def make(bits):
    torch.manual_seed(bits)
    model = Qwen(CONFIG).requires_grad_(False)
    names = [f"blocks.{i}.{n}" for i in range(CONFIG.layers) for n in LINEARS]
    floats = {n: model.get_submodule(n).weight for n in names}
    quantized(model, dict.fromkeys(names, bits))
    for name, weight in floats.items():
        module, p = model.get_submodule(name), pack(weight, bits)
        module.values, module.scales = p.values, p.scales
        if module.bias is not None:
            torch.nn.init.normal_(module.bias)
    return model


def steps(model, one_by_one=False, dtype=torch.float32):
    """Hidden rows of prompts in two chunks, of single steps, alone and together, and of last rows; then the cache."""
    cache, g = KVCache(CONFIG, [40, 30], dtype, torch.device("cpu")), torch.Generator().manual_seed(5)
    found, whole = [], model._native
    model._native = (lambda _: None) if one_by_one else whole
    for sequences, counts in (([0], [20]), ([0, 1], [7, 13]), ([0, 1], [1, 1]), ([1], [1]), ([0, 1], [3, 4])):
        positions, segments = cache.extend(sequences, counts)
        x = torch.randn(sum(counts), CONFIG.width, generator=g)
        last = segments.cu[1:].long() - 1 if counts[0] == 3 else None
        with torch.inference_mode():
            found.append(model(x, positions, segments, cache.layers, last))
    model._native = whole
    return [*found, *(t[: cache.lengths[0]] for pair in cache.layers for t in pair)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_the_same_bits_as_block_by_block(simd, bits, dtype):
    model = make(bits)
    at_once, single = steps(model, dtype=dtype), steps(model, one_by_one=True, dtype=dtype)
    assert model._decoder is not None and at_once[4].shape == (2, CONFIG.width)
    assert all(torch.equal(a, b) for a, b in zip(at_once, single, strict=True))


def test_a_long_prompt_has_the_same_bits(simd):
    """Its rows are taken in three runs of 256 and less."""
    model, x, found = make(8), torch.randn(600, CONFIG.width), []
    for native in (model._native, lambda _: None):
        model._native = native
        cache = KVCache(CONFIG, [350, 250], torch.int8, torch.device("cpu"))
        positions, segments = cache.extend([0, 1], [350, 250])
        with torch.inference_mode():
            found.append([model(x, positions, segments, cache.layers), *(t for pair in cache.layers for t in pair)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("pieces", [[59], [58, 1], [3, 1, 40, 15], [30, 29]])
def test_a_prompt_in_pieces_has_the_bits_of_the_whole(simd, pieces):
    """So that a prompt whose beginning is known already is answered as it was before."""
    model, x = make(8), torch.randn(59, CONFIG.width)

    def read(pieces):
        cache = KVCache(CONFIG, [59], torch.int8, torch.device("cpu"))
        for some in x.split(pieces):
            positions, segments = cache.extend([0], [len(some)])
            last = model(some, positions, segments, cache.layers, segments.cu[1:].long() - 1)
        return last

    with torch.inference_mode():
        hidden, expected = read(pieces), read([59])
    if simd == "avx512_bf16":
        assert torch.equal(hidden, expected)
    else:  # a few rows are read from the cache as a step's are, and added up in another order
        torch.testing.assert_close(hidden, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [3, 40])
def test_biases_of_the_mlp_are_added(simd, rows):
    """Biases of 0 change nothing, others every row."""
    block = make(8).blocks[0]
    matrices = [(getattr(block, n).panels, getattr(block, n).bias) for n in LINEARS]

    def run(gate, up):
        biased = [*matrices[:4], (matrices[4][0], gate), (matrices[5][0], up), matrices[6]]
        decoder = Decoder([(block.norm1.weight, block.norm2.weight, biased)], 6, 2, 1e-6)
        cos, sin = Qwen(CONFIG).rotary_tables(x, rows)
        ends = torch.tensor([0, rows], dtype=torch.int32)
        cache = [(torch.zeros(rows, 2, 16), torch.zeros(rows, 2, 16))]
        return decoder(x, cos, sin, torch.arange(rows), torch.arange(rows), ends, ends[:1], ends[1:], cache)

    x, zeros = torch.randn(rows, 80), torch.zeros(200)
    plain = run(None, None)
    assert all(torch.equal(run(*biases), plain) for biases in ((zeros, None), (None, zeros), (zeros, zeros)))
    for biases in ((zeros + 1, None), (None, zeros + 1)):
        assert (run(*biases) - plain).abs().amax(1).min() > 0.01


def test_the_same_bits_on_any_threads(simd):
    model = make(8)
    once = steps(model)
    assert all(torch.equal(a, b) for a, b in zip(once, with_threads(3, lambda: steps(model)), strict=True))


def test_what_does_not_fit_is_refused():
    model = make(8)
    block = model.blocks[0]
    norms, matrices = (block.norm1.weight, block.norm2.weight), [(getattr(block, n).panels, None) for n in LINEARS]
    with pytest.raises(ValueError, match="format"):
        Decoder([(*norms, [matrices[0], (pack(torch.randn(32, 80), 4), None), *matrices[2:]])], 6, 2, 1e-6)
    with pytest.raises(ValueError, match="float32"):
        Decoder([(norms[0].double(), norms[1], matrices)], 6, 2, 1e-6)
    for wrong in (
        (norms[0][1:], norms[1], matrices), (norms[0], norms[1][None], matrices),
        (*norms, [(matrices[0][0], torch.zeros(3)), *matrices[1:]]),
        (*norms, [*matrices[:6], (pack(torch.randn(80, 96), 8), None)]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="fit"):
            Decoder([wrong], 6, 2, 1e-6)
    decoder, cache = Decoder([(*norms, matrices)], 6, 2, 1e-6), [(torch.zeros(9, 2, 16), torch.zeros(9, 2, 16))]
    cos, sin = (t[:9] for t in model.rotary_tables(norms[0], 9))
    at, cu, starts, lengths = torch.arange(4), *(torch.tensor(v, dtype=torch.int32) for v in ([0, 4], [0], [4]))
    good = torch.randn(4, 80), cos, sin, at, at, cu, starts, lengths, cache
    assert decoder(*good).isfinite().all()
    for i, wrong in (
        (0, good[0].double()), (0, good[0][:, :79]), (3, at[:3]), (3, at.int()), (5, cu[:1]), (6, starts.long()),
        (8, [(cache[0][0][:, :1],) * 2]), (8, []), (1, cos[:, :-1]), (1, cos[:-1]), (2, sin.double()),
        (7, lengths[:, None][:, :0]),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            decoder(*good[:i], wrong, *good[i + 1 :])
    with pytest.raises(IndexError):
        decoder(*good[:4], at + 6, *good[5:])
    for last in (torch.tensor([1, 3]), torch.tensor([4]), torch.tensor([3], dtype=torch.int32), torch.tensor([[3]])):
        with pytest.raises(ValueError, match="last"):
            decoder(*good, last)
