"""On a GPU the same tokens as on the CPU."""

import numpy as np
import pytest
import torch

import minilava

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.mark.gpu
def test_tokens_like_the_cpu(tiny):
    """From CUDA graphs of the tower and of the decoding step, with and without a repetition penalty, and from the
    host, which a draft needs."""
    replies = []
    for device in ("cpu", "cuda"):
        vlm = minilava.load(tiny, device=device, dtype="float32")
        for p in vlm.model.parameters():
            p.data = p.data * 8 if p.ndim > 1 else p.data.clone()
        replies.append(
            [
                vlm.generate("What is <image>?", [IMAGE], max_new_tokens=12, **options).token_ids
                for options in (
                    {"repetition_penalty": 1.0},
                    {"repetition_penalty": 1.05},
                    {"repetition_penalty": 1.0, "temperature": 0.8, "seed": 3},
                    {"draft": 3},
                    {"draft": 3, "temperature": 0.8, "seed": 3},
                )
            ]
        )
    assert replies[0] == replies[1]
    graphs = vlm.engine.graphs
    assert len(graphs.steps) == 2 and all(step.graph is not None for step in graphs.steps.values())
    assert graphs.towers and all(graph is not None for graph, _, _ in graphs.towers.values())


@pytest.mark.gpu
@pytest.mark.parametrize("draft", [0, 3])
def test_a_second_question_reads_the_pictures_once(tiny, draft):
    """From what the fixed memory still holds, and from a cache that was kept."""
    vlm = minilava.load(tiny, device="cuda", dtype="bfloat16")
    for question in ("What is it?", "Why?"):
        reply = vlm.generate(f"<image> {question}", [IMAGE], max_new_tokens=4, draft=draft)
    assert reply.timings["cached_prompt_tokens"] > reply.image_tokens


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs(tiny, dtype):
    """Through packed variable-length attention, prompt and cache."""
    vlm = minilava.load(tiny, device="cuda", dtype=dtype)
    assert vlm.engine.dtype == getattr(torch, dtype)
    assert len(vlm.generate("Hello", max_new_tokens=8).token_ids) == 8
