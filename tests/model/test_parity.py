"""Greedy tokens and logits against transformers' LlavaForConditionalGeneration, from checkpoints that it saved."""

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason='needs pip install "minilava[reference]"')

from minilava.checkpoint import load_tensors, open_checkpoint  # noqa: E402
from minilava.config import IMAGE  # noqa: E402
from minilava.inputs.geometry import image_layout  # noqa: E402
from minilava.inputs.pack import pack  # noqa: E402
from minilava.inputs.pixels import patches  # noqa: E402
from minilava.inputs.sample import Recipe, Sample  # noqa: E402
from minilava.model.llava import LLaVA  # noqa: E402
from minilava.runtime.engine import Engine  # noqa: E402
from minilava.runtime.sampling import Sampling  # noqa: E402
from tests.numerics import assert_within  # noqa: E402

NEW_TOKENS = 12
VOCAB = 199


def random_shape(seed):
    """(vision config, text config, extra blocks that do not run) of one small random model."""
    rng = np.random.default_rng(seed)
    kv = int(rng.integers(1, 4))
    heads = kv * int(rng.integers(1, 4))  # odd counts and grouped heads among them
    head_dim = int(rng.choice([16, 24, 32]))
    vision_heads = int(rng.choice([1, 2, 3, 5]))
    patch = int(rng.choice([7, 14]))
    extra = int(rng.integers(0, 2))
    vision = dict(
        hidden_size=vision_heads * 24, intermediate_size=int(rng.integers(40, 90)), num_attention_heads=vision_heads,
        num_hidden_layers=int(rng.integers(1, 4)) + extra, image_size=patch * int(rng.integers(2, 5)) + 3,
        patch_size=patch, vision_use_head=False,
    )  # fmt: skip
    text = dict(
        hidden_size=int(rng.integers(2, 9)) * 8, intermediate_size=int(rng.integers(40, 120)),
        num_hidden_layers=int(rng.integers(1, 4)), num_attention_heads=heads, num_key_value_heads=kv,
        head_dim=head_dim, vocab_size=VOCAB, tie_word_embeddings=bool(seed % 2), max_position_embeddings=1024,
        rope_theta=float(rng.choice([1e4, 1e6])), rms_norm_eps=1e-6,
    )  # fmt: skip
    return vision, text, extra


def save_reference(path, seed):
    """Save a random reference model with transformers; every parameter is random, biases and norms too."""
    vision, text, extra = random_shape(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**vision),
        text_config=transformers.Qwen2Config(**text),
        image_token_index=VOCAB - 1,
        vision_feature_layer=-1 - extra,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.15 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    return model


def random_sample(config, seed):
    """A prompt with 0 to 5 random pictures between random words, as a Sample."""
    rng = np.random.default_rng(seed + 1000)
    count = seed % 6
    image = Recipe("hf").image_config(config)
    sample = Sample(list(rng.integers(0, VOCAB - 1, rng.integers(1, 9))), [])
    for _ in range(count):
        size = tuple(rng.integers(5, 90, 2))
        picture = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        sample.ids += [IMAGE, *rng.integers(0, VOCAB - 1, rng.integers(1, 5))]
        sample.layouts.append(image_layout(size, image))
        sample.patches.append(patches(picture, image, config.vision.patch_size))
    sample.ids = [int(i) for i in sample.ids]
    return sample


def reference_inputs(sample, config):
    """The same prompt in the reference's form: image ids repeated per token, pixels as (n, 3, S, S)."""
    p = config.vision.patches
    ids = [j for i in sample.ids for j in ([VOCAB - 1] * p if i == IMAGE else [i])]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if sample.patches:
        v, side, size = config.vision, config.vision.side, config.vision.patch_size
        pixels = torch.zeros(len(sample.patches), 3, v.image_size, v.image_size)
        grid = torch.cat(sample.patches).view(-1, side, side, 3, size, size).permute(0, 3, 1, 4, 2, 5)
        pixels[:, :, : side * size, : side * size] = grid.reshape(-1, 3, side * size, side * size)
        inputs["pixel_values"] = pixels
    return inputs


def load_ours(path):
    checkpoint = open_checkpoint(path)
    with torch.device("meta"):
        model = LLaVA(checkpoint.config)
    model.load_state_dict(load_tensors(checkpoint, torch.float32, torch.device("cpu")), assign=True)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("seed", range(24))
def test_tokens_and_logits(tmp_path, seed):
    reference = save_reference(tmp_path, seed)
    model = load_ours(tmp_path)
    sample = random_sample(model.config, seed)
    inputs = reference_inputs(sample, model.config)

    packed = pack([sample], model.config.vision.patches)
    with torch.inference_mode():
        ours = model(packed)
        theirs = reference(**inputs).logits[0]
        double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        exact = reference.double()(**double).logits[0]
    assert_within(ours, theirs, exact)

    reference.float()
    # The image id never comes out of minilava; keep the reference from it too.
    expected = reference.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, suppress_tokens=[VOCAB - 1])
    engine = Engine(model, VOCAB, (VOCAB - 1,))
    steps = engine.generate(packed, [Sampling()], [NEW_TOKENS], eos_ids=())
    assert [t for step in steps for _, t in step] == expected[0, inputs["input_ids"].shape[1] :].tolist()


def test_configurations_cover_what_matters():
    shapes = [random_shape(s) for s in range(24)]
    grouped = {t["num_attention_heads"] != t["num_key_value_heads"] for _, t, _ in shapes}
    assert grouped == {True, False} and {t["tie_word_embeddings"] for _, t, _ in shapes} == {True, False}
    assert any(t["num_attention_heads"] % 2 for _, t, _ in shapes) and {e for _, _, e in shapes} == {0, 1}
    assert {s % 6 for s in range(24)} == set(range(6))  # text only, and 1 to 5 images
