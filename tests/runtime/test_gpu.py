"""On a GPU the same tokens as on the CPU."""

import numpy as np
import pytest
import torch

import minilava


@pytest.mark.gpu
def test_tokens_like_the_cpu(tiny):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    replies = []
    for device in ("cpu", "cuda"):
        vlm = minilava.load(tiny, device=device, dtype="float32")
        for p in vlm.model.parameters():
            p.data = p.data * 8 if p.ndim > 1 else p.data.clone()
        replies.append(vlm.generate("What is <image>?", [image], max_new_tokens=12).token_ids)
    assert replies[0] == replies[1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(tiny, dtype):
    """Through packed variable-length attention, prompt and cache."""
    vlm = minilava.load(tiny, device="cuda", dtype=dtype)
    assert vlm.engine.dtype == getattr(torch, dtype)
    assert len(vlm.generate("Hello", max_new_tokens=8).token_ids) == 8
