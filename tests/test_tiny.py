"""The embedded model: what ships, that transformers reads it, and that it answers about its world."""

import json

import pytest

import minilava
from bench.world import replies
from minilava.data.world import TASKS
from minilava.eval.world import items, records
from minilava.runtime.vlm import TINY

PER_TASK = 10


@pytest.fixture(scope="module")
def vlm():
    return minilava.load(dtype="float32")


def test_what_ships():
    assert (TINY / "model.safetensors").stat().st_size <= 16_000_000
    log = [json.loads(line) for line in (TINY / "training" / "log.jsonl").read_text().splitlines()]
    assert log[0]["machine"]["torch"] and {row["stage"] for row in log[1:]} >= {"pretrain", "single", "interleave"}


def test_transformers_gives_the_same_tokens(vlm):
    """Through its own processor and the chat template that ships: pictures stay where they stand in the text."""
    transformers = pytest.importorskip("transformers")
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    patches = vlm.config.vision.patches
    for task in ("spot_difference", "multi_image_vqa", "single_image", "scene_vqa"):
        record = next(records(task, 1, seed=5))[1]
        if record["metadata"]["anyres"]:
            continue
        text = record["conversations"][0]["value"]
        parts = [{"type": "text", "text": t} for t in text.split("<image>")]
        content = [p for t in parts for p in ({"type": "image"}, t)][1:]
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(prompt.replace("<image>", "<image>" * patches), return_tensors="pt").input_ids
        pixels = torch.stack([_pixels(p) for p in record["image"]])
        out = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=12, do_sample=False)
        reply = vlm.generate(text, images=record["image"], max_new_tokens=12)
        assert out[0, ids.shape[1] :].tolist() == reply.token_ids, task


def _pixels(picture):
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def test_knows_its_world(vlm):
    """Far above chance on questions of a seed that no training used. bench/results/world.jsonl has the full figures."""
    correct = {task: 0 for task in TASKS}
    for task in TASKS:
        correct[task] = sum(line["score"] for line in replies(vlm, list(items(task, PER_TASK, seed=11))))
    assert sum(correct.values()) / (PER_TASK * len(TASKS)) >= FLOOR, correct


FLOOR = 0.72
