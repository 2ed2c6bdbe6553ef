"""A real language model through the same decoder."""

import pytest

from bench import smollm2
from minilava.inputs.pack import pack
from minilava.inputs.sample import Sample
from minilava.runtime.engine import Engine
from minilava.runtime.sampling import Sampling

if not smollm2.installed():
    pytest.skip(smollm2.INSTALL, allow_module_level=True)


def test_capital_of_france():
    reader = smollm2.reader()
    tok = smollm2.tokenizer(reader)
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    engine = Engine(smollm2.load(reader), tok.get_vocab_size())
    packed = pack([Sample(tok.encode(prompt).ids, [])], 1)
    ids = [t for step in engine.generate(packed, [Sampling()], [24], (smollm2.EOS,)) for _, t in step]
    assert "Paris" in tok.decode(ids)
    assert ids[-1] == smollm2.EOS
