"""GGUF files for llama.cpp, read back by the gguf package."""

import pytest
import torch

from bench import llamacpp, smollm2
from minilava.checkpoint import load_tensors, open_checkpoint
from minilava.runtime.vlm import TINY

pytest.importorskip("gguf")


@pytest.mark.parametrize(("kind", "bits", "worst"), [("Q8_0", 8.5, 1 / 127), ("Q4_0", 4.5, 1 / 7)])
def test_the_decoder_of_a_checkpoint(tmp_path, kind, bits, worst):
    from gguf import GGUFReader

    file = llamacpp.write_gguf(TINY, tmp_path / "a.gguf", kind)
    found_bits, found = llamacpp.weights(file)
    reader, config = GGUFReader(file), open_checkpoint(TINY).config.text
    assert bits <= found_bits < bits + 0.4  # the embedding has 8 bits in both
    assert smollm2.field(reader, "general.architecture") == "qwen2"
    assert smollm2.field(reader, "qwen2.attention.head_count") == config.heads
    tokens, merges = (smollm2.field(reader, f"tokenizer.ggml.{k}") for k in ("tokens", "merges"))
    assert len(tokens) == config.vocab_rows and all(" " in m for m in merges)
    stored = {n.removeprefix("text."): t for n, t in load_tensors(open_checkpoint(TINY)).items() if n[:5] == "text."}
    assert len(found) == len(stored)
    for name, exact in stored.items():
        got = found[llamacpp._gguf_name(name)]
        assert got.shape == exact.shape
        assert (got - exact).abs().max() <= worst * exact.abs().max()
    assert torch.equal(found["output_norm.weight"], stored["norm.weight"])


def test_a_file_rewritten_keeps_its_fields(tmp_path):
    from gguf import GGUFReader

    first = llamacpp.write_gguf(TINY, tmp_path / "a.gguf", "Q8_0")
    reader = GGUFReader(first)
    _, values = llamacpp.weights(first)
    second = llamacpp.rewrite(reader, values, tmp_path / "b.gguf", "Q8_0")
    _, again = llamacpp.weights(second)
    assert all(torch.allclose(again[n], v, rtol=1e-3, atol=1e-7) for n, v in values.items())
    fields = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    assert fields == {n: f.contents() for n, f in GGUFReader(second).fields.items() if not n.startswith("GGUF.")}
