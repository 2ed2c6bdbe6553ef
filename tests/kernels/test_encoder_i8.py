"""encoder_i8: a block of the tower in one call against its operations one by one, to the bit."""

import pytest
import torch

from minilava.config import VisionConfig
from minilava.model.linear import quantized
from minilava.model.siglip import Block, SigLIP
from minilava_kernels.attention import attention
from minilava_kernels.encoder_i8 import EncoderBlock, free_scratch
from minilava_kernels.linear_i8 import pack
from minilava_kernels.norm import layer_norm
from tests.numerics import with_threads

# 49 patches: as many views go through together as 256 rows allow, five, and the last ones are fewer. 324: a view goes
# through the MLP in two parts.
SMALL = VisionConfig(80, 200, layers=2, heads=5, image_size=84, patch_size=12, channels=3, eps=1e-6)
LARGE = VisionConfig(80, 200, layers=2, heads=5, image_size=216, patch_size=12, channels=3, eps=1e-6)
LINEARS = ("q", "k", "v", "out", "fc1", "fc2")


def make(bits, config=SMALL):
    torch.manual_seed(bits)
    model = SigLIP(config).requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    names = [f"blocks.{i}.{n}" for i in range(config.layers) for n in LINEARS]
    floats = {n: model.get_submodule(n) for n in names}
    quantized(model, dict.fromkeys(names, bits))
    for name, old in floats.items():
        module, p = model.get_submodule(name), pack(old.weight, bits)
        module.values, module.scales, module.bias = p.values, p.scales, old.bias
    return model


def one_by_one(block, x, patches):
    """What the block's plain statement does, with the kernels that the native one is made of."""
    h, d = block.heads, block.head_dim
    cu = torch.arange(0, len(x) + 1, patches, dtype=torch.int32)

    def norm(x, of):
        return layer_norm(x, of.weight, of.bias, block.eps, impl="native")

    n = norm(x, block.norm1)
    q, k, v = (m(n).view(-1, h, d) for m in (block.q, block.k, block.v))
    a = attention(q, k, v, cu, cu[:-1], cu.diff(), False, narrow=True)
    x = block.out(a.reshape(x.shape), residual=x)
    return block.fc2(block.fc1(norm(x, block.norm2), activation="gelu_tanh"), residual=x)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("views, config", [(0, SMALL), (1, SMALL), (4, SMALL), (12, SMALL), (2, LARGE)])
def test_the_same_bits_as_one_by_one(simd, bits, views, config):
    model, x = make(bits, config), torch.randn(views * config.patches, config.width)
    for block in model.blocks:
        expected = one_by_one(block, x, config.patches)
        got = block(x.clone(), None, None, None, config.patches)
        assert block._whole is not None and torch.equal(got, expected)
        x = expected


def test_close_to_the_plain_statement(simd, monkeypatch):
    """The whole tower, whose other norms and products in float32 move what the roundings round."""
    model, x = make(8), torch.rand(3, SMALL.patches, 432)
    got = model(x)
    monkeypatch.setattr(Block, "_native", lambda self: None)
    plain = model(x)
    assert torch.nn.functional.cosine_similarity(got, plain, dim=-1).min() > 0.9995


def test_a_view_has_the_same_bits_among_others_and_on_any_threads(simd):
    model, x = make(8), torch.rand(12, SMALL.patches, 432)
    whole = with_threads(1, lambda: model(x))
    assert torch.equal(with_threads(3, lambda: model(x)), whole)
    assert torch.equal(model(x[7:8]), whole[7:8])


def test_scratch_memory_comes_back():
    """Also attention's, and of a thread that had none."""
    model, x = make(8), torch.randn(2 * SMALL.patches, SMALL.width)
    free_scratch()
    expected = model.blocks[0](x.clone(), None, None, None, SMALL.patches)
    for _ in range(2):
        free_scratch()
    assert torch.equal(model.blocks[0](x.clone(), None, None, None, SMALL.patches), expected)


def test_what_does_not_fit_is_refused():
    block = make(8).blocks[0]
    norms = [block.norm1.weight, block.norm1.bias, block.norm2.weight, block.norm2.bias]
    matrices = [(getattr(block, n).panels, getattr(block, n).bias) for n in LINEARS]
    for n, m, heads, message in (
        (norms, [(pack(torch.randn(80, 80), 4), None), *matrices[1:]], 5, "format"),
        ([norms[0].double(), *norms[1:]], matrices, 5, "float32"),
        ([torch.randn(80, 2)[:, 0], *norms[1:]], matrices, 5, "float32"),
        ([norms[0][1:], *norms[1:]], matrices, 5, "fit"),
        (norms, [(matrices[0][0], torch.zeros(3)), *matrices[1:]], 5, "fit"),
        (norms, [*matrices[:5], (pack(torch.randn(80, 96), 8), None)], 5, "fit"),
        (norms, matrices, 7, "fit"),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderBlock(n, m, heads, 1e-6)
    native, x = EncoderBlock(norms, matrices, 5, 1e-6), torch.randn(98, 80)
    assert native(x, 49).isfinite().all()
    across = torch.randn(80, 98).T
    learns = x.clone().requires_grad_()
    for wrong, patches in (
        (x.double(), 49), (x[:, :79], 49), (across, 49), (x[:97], 49), (x, 0), (x[None], 49), (learns, 49)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="EncoderBlock"):
            native(wrong, patches)
