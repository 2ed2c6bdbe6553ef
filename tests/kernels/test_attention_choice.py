"""Which implementation attention takes where, and that the libraries of a GPU are called as they ask, by doubles."""

import inspect
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch.nn.attention import varlen

import minilava_kernels.attention as module
from minilava_kernels.attention import attention, attention_reference, implementation
from tests.kernels.test_attention import check, gradients, make, on_device, packed


def library_call(q, k, v, cu_q, cu_k, max_q, max_k, causal, scale):
    """What both flash attention libraries ask of their arguments, and what they compute."""
    for x in (q, k, v):
        assert x.dtype in (torch.float16, torch.bfloat16) and x.dtype == q.dtype and x.device == q.device
        assert x.stride(-1) == 1 and x.shape[-1] == q.shape[-1] and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
    assert k.shape == v.shape and q.shape[1] % k.shape[1] == 0
    for cu, rows, longest in ((cu_q, q, max_q), (cu_k, k, max_k)):
        assert cu.dtype == torch.int32 and cu.is_contiguous() and cu.device == q.device
        assert cu[0] == 0 and cu[-1] == len(rows) and cu.diff().min() >= 0 and cu.diff().max() == longest
    return attention_reference(q, k, v, cu_q, cu_k[:-1], cu_k.diff(), causal, scale)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    """The signature of flash_attn 2.8."""
    assert (dropout_p, window_size, softcap, alibi_slopes) == (0.0, (-1, -1), 0.0, None)
    assert not return_attn_probs and block_table is None
    return library_call(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale)


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert return_aux is seqused_k is block_table is num_splits is None
    assert enable_gqa or query.shape[1] == key.shape[1]
    causal = {(-1, -1): False, (-1, 0): True}[window_size]
    return library_call(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal, scale)


@pytest.fixture
def libraries(monkeypatch):
    """Doubles of what runs on a GPU only."""
    real, double = (inspect.signature(f).parameters.values() for f in (varlen.varlen_attn, varlen_attn))
    assert [(p.name, p.kind, p.default) for p in double] == [(p.name, p.kind, p.default) for p in real]
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    flash = ModuleType("flash_attn")
    flash.__spec__, flash.flash_attn_varlen_func = ModuleSpec("flash_attn", None), flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    module._installed.cache_clear()
    yield
    module._installed.cache_clear()


@pytest.mark.parametrize("impl", ["flash", "torch"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
def test_libraries_are_called_as_they_ask(libraries, impl, causal, heads):
    tensors, offsets = packed([5, 1, 0, 9], *heads, 72, torch.bfloat16)
    expected = attention_reference(*tensors[:3], *offsets, causal, 0.1)
    assert torch.equal(attention(*tensors[:3], *offsets, causal, scale=0.1, impl=impl), expected)
    assert torch.equal(attention(*tensors[:3], *offsets, causal, 9, 9, 0.1, impl), expected)
    grads = [
        gradients(tensors, offsets, causal, f, **o) for f, o in ((attention, {"impl": impl}), (attention_reference, {}))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("impl", ["flash", "torch"])
def test_libraries_get_no_cache(libraries, impl):
    q, k, v, *spans = make([2, 3], [4, 5], 2, 1, 64, torch.float16)
    with pytest.raises(ValueError, match="packed"):
        attention(q, k, v, *spans, True, impl=impl)


def test_which_implementation(libraries, monkeypatch):
    half, single = torch.float16, torch.float32
    assert implementation("cpu", half) == implementation("cpu", torch.float64) == "reference"
    assert implementation("cpu", single, packed=False, learning=True) == "reference"
    assert implementation("cuda", half) == implementation("cuda", half, learning=True) == "flash"
    assert implementation("cuda", half, 256) == "flash"
    assert implementation("cuda", half, 68) == implementation("cuda", single) == "triton"
    assert implementation("cuda", half, packed=False) == "triton"
    assert implementation("cuda", half, packed=False, learning=True) == "reference"
    assert implementation("cuda", half, packed=False, one_query=True) == "decode"
    assert implementation("cuda", single, one_query=True) == "decode"
    assert implementation("cuda", half, learning=True, one_query=True) == "flash"
    assert implementation("cuda", torch.float64) == implementation("cuda", single, 256) == "reference"
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    module._installed.cache_clear()
    assert implementation("cuda", half) == "torch"


def test_as_on_a_gpu(libraries, monkeypatch):
    """A prompt in chunks and decoding take the kernels that a GPU would, and agree with the reference."""
    used = []

    def choose(device, *rest):
        used.append(implementation("cuda", *rest))
        return used[-1]

    monkeypatch.setattr(module, "implementation", choose)
    for queries, keys in (([5, 3], [9, 3]), ([1, 1], [9, 300])):
        check(on_device(make(queries, keys, 2, 1, 16, torch.float16)), True, None, max_q=max(queries), max_k=max(keys))
    tensors, offsets = packed([5, 3], 2, 1, 16, torch.float16)
    gradients(tensors, offsets, True, max_q=5, max_k=5)
    assert used == ["triton", "decode", "flash"]


def test_traces_whole():
    """torch.compile sees one operation, whose address-less offsets it takes for packed ones."""
    pytest.importorskip("minilava._C")
    (q, k, v, grad), (cu, start, length) = packed([4, 3], 2, 1, 16)
    traced = torch.compile(attention, fullgraph=True, backend="aot_eager")
    want = gradients((q, k, v, grad), (cu, start, length), True)
    assert all(
        torch.equal(*p) for p in zip(gradients((q, k, v, grad), (cu, start, length), True, traced), want, strict=True)
    )
