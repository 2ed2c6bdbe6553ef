"""The peer llama.cpp: GGUF files of the weights under test, and the few calls to compare with.

It runs through llama-cpp-python, whose installation compiles llama.cpp for the machine it is on; prebuilt wheels are
made for AVX2 and would be slower where there is more.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from minilava.checkpoint.reader import load_tensors, open_checkpoint

KINDS = ("Q8_0", "Q4_0")
INSTALL = "pip install llama-cpp-python"
WHOLE = {"embed.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
NAMES = {  # ours -> GGUF's
    "norm1": "attn_norm", "norm2": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def installed() -> bool:
    return bool(find_spec("llama_cpp"))


def version() -> str | None:
    return version_of("llama-cpp-python") if installed() else None


def write_gguf(checkpoint: Path, file: Path, kind: str) -> Path:
    """The decoder of a float checkpoint as a GGUF of llama.cpp's architecture qwen2; the file is kept if it exists."""
    if file.exists():
        return file
    from gguf import GGUFWriter

    ck = open_checkpoint(checkpoint)
    t, raw = ck.config.text, json.loads((checkpoint / "tokenizer.json").read_text())
    w = GGUFWriter(None, "qwen2")
    w.add_context_length(t.max_positions)
    w.add_embedding_length(t.width)
    w.add_block_count(t.layers)
    w.add_feed_forward_length(t.mlp_width)
    w.add_head_count(t.heads)
    w.add_head_count_kv(t.kv_heads)
    w.add_rope_freq_base(t.rope_theta)
    w.add_layer_norm_rms_eps(t.eps)
    tokens = {i: s for s, i in raw["model"]["vocab"].items()} | {a["id"]: a["content"] for a in raw["added_tokens"]}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list([tokens.get(i, f"<unused {i}>") for i in range(t.vocab_rows)])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]])
    for name, value in load_tensors(ck).items():
        if name.startswith("text."):
            _add(w, _gguf_name(name.removeprefix("text.")), value, kind)
    return _finish(w, file)


def rewrite(reader, tensors: dict[str, torch.Tensor], file: Path, kind: str) -> Path:
    """A GGUF with the fields of another one, and these tensors, quantised anew."""
    from gguf import GGUFValueType, GGUFWriter

    w = GGUFWriter(None, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "general.file_type")):
            inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
            w.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for name, value in tensors.items():
        _add(w, name, value, kind)
    return _finish(w, file)


def weights(file: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """(Bits per weight of the matrices, GGUF name -> float32 values)."""
    from gguf import GGUFReader

    from bench.smollm2 import dequantized

    reader = GGUFReader(file)
    matrices = [t for t in reader.tensors if len(t.shape) == 2]
    bits = 8 * sum(t.n_bytes for t in matrices) / sum(t.n_elements for t in matrices)
    return float(bits), dequantized(reader)


def _gguf_name(name: str) -> str:
    if name.startswith("blocks."):
        _, layer, part, kind = name.split(".")
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return WHOLE[name]


def _add(writer, name: str, value: torch.Tensor, kind: str) -> None:
    """Matrices in ``kind``; embedding and head with 8 bits, as in minilava's int8; vectors in float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    value = value.float().numpy()
    if value.ndim == 1:
        writer.add_tensor(name, value)
    else:
        form = GGMLQuantizationType["Q8_0" if name.startswith(("token_embd", "output")) else kind]
        writer.add_tensor(name, quantize(value, form), raw_dtype=form)


def _finish(writer, file: Path) -> Path:
    part = file.with_suffix(".part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.rename(file)


class LlamaCpp:
    """One sequence, as many threads as PyTorch has. context: tokens that fit."""

    def __init__(self, file: Path, context: int):
        import llama_cpp

        self.c, threads = llama_cpp, torch.get_num_threads()
        self.llama = llama_cpp.Llama(
            str(file), n_ctx=context, n_batch=context, n_threads=threads, n_threads_batch=threads, logits_all=True,
            verbose=False,
        )  # fmt: skip
        self.context = self.llama._ctx.ctx
        self.vocabulary = self.llama.n_vocab()

    def prefill(self, prompt: list[int]) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        self._run(prompt)

    def decode(self, prompt: list[int], steps: int) -> tuple[list[int], float]:
        """Greedy tokens after a prompt, and the seconds per step after the first token."""
        self.prefill(prompt)
        tokens = [int(self._last().argmax())]
        began = time.perf_counter()
        for _ in range(steps):
            self._run(tokens[-1:])
            tokens.append(int(self._last().argmax()))
        return tokens, (time.perf_counter() - began) / steps

    def logits(self, ids: list[int]) -> torch.Tensor:
        self.llama.reset()
        self.llama.eval(ids)
        return torch.from_numpy(self.llama.scores[: len(ids)].copy())

    def _run(self, ids: list[int]) -> None:
        """Append ids; the last one's logits are computed."""
        array = (self.c.llama_token * len(ids))(*ids)
        status = self.c.llama_decode(self.context, self.c.llama_batch_get_one(array, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def _last(self) -> np.ndarray:
        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, -1), (self.vocabulary,))
