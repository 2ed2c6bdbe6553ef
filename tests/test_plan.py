"""The bill: tokens and bytes against what the model really holds; activations against what autograd really keeps."""

import json

import pytest
import torch

from minilava.checkpoint import expected, open_checkpoint, write_random
from minilava.config import IGNORE, IMAGE, ModelConfig
from minilava.inputs.geometry import image_layout
from minilava.inputs.pack import pack
from minilava.inputs.sample import Recipe, Sample
from minilava.plan import EXAMPLES, main, plan
from minilava.runtime.cache import KVCache
from minilava.train import lora, optim
from minilava.train.config import TrainConfig
from minilava.train.loop import Run, train
from minilava.train.objective import Supervised
from minilava.train.ranks import Ranks
from minilava.train.weights import load_for_training

BUDGET = 400


def config(init, **changes):
    base = dict(init=str(init), out="none", data="none.yaml", steps=1, budget=BUDGET, dtype="float32")
    return TrainConfig(**base | changes)


def test_weights_and_cache_are_exact(tiny):
    p = plan(tiny, context=100, batch=3, dtype="float32")
    model, _ = load_for_training(tiny, torch.device("cpu"))
    assert sum(p.parameters.values()) == sum(x.numel() for x in model.parameters())
    assert p.weights == sum(x.nbytes for x in model.parameters())
    cache = KVCache(model.config.text, [100] * 3, torch.float32, torch.device("cpu"))
    assert p.cache == cache.nbytes == p.cache_per_token * 300
    assert plan(tiny, dtype="bfloat16").weights == p.weights / 2


def test_tokens_are_the_geometry_of_the_checkpoint(tiny, tiny_hf):
    assert plan(tiny).tokens["picture, one view"] == 17  # 16 patches and the newline
    assert plan(tiny_hf).tokens["picture, one view"] == 16
    config = open_checkpoint(tiny).config
    tiled = image_layout((640, 480), Recipe("authors", anyres=True).image_config(config)).tokens
    assert plan(tiny).tokens["picture of 640 x 480, tiled"] == tiled > 17
    assert plan(tiny, images=2, video_frames=3).request == 5 * 17
    assert plan(tiny, images=0, video_frames=3, pool="average").request == 3 * 2 * (2 + 1)


def test_published_sizes(tmp_path):
    """Numbers of the specification, from a config.json alone."""
    write_random(tmp_path / "tiny", dtype="float32", tokenizer="byte")
    raw = json.loads((tmp_path / "tiny" / "config.json").read_text())
    sizes = dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, num_attention_heads=16,
                 num_key_value_heads=16, vocab_size=151936, mm_hidden_size=1152)  # fmt: skip
    del raw["vision_config"]
    raw |= sizes | {"image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    p = plan(tmp_path, dtype="bfloat16", images=16)
    assert sum(p.parameters.values()) == 863_966_752 - 2 * 1152  # without the norm that is stored and never applied
    assert p.tokens["picture of 1000 x 1000, tiled"] == 3699
    assert p.request == 11_680
    assert p.cache_per_token == 24 * 2 * 1024 * 2


def full_pack(shape):
    """A pack of BUDGET rows with as many views as fit, as two samples."""
    one, tiled = (Recipe("authors", anyres=anyres).image_config(shape) for anyres in (False, True))
    layouts = [image_layout((56, 56), one), *(image_layout(size, tiled) for size in EXAMPLES)]
    layout = min(layouts, key=lambda x: x.tokens / x.views)
    samples, values = [], shape.vision.channels * shape.vision.patch_size**2
    for rows in (BUDGET // 2 - 30, BUDGET // 2 + 30):
        pictures = rows // layout.tokens
        text = rows - pictures * layout.tokens
        ids = [IMAGE] * pictures + [65] * text
        patches = [torch.randn(layout.views, shape.vision.patches, values) for _ in range(pictures)]
        samples.append(Sample(ids, [layout] * pictures, patches, [IGNORE] * pictures + [65] * text))
    return pack(samples, shape.vision.patches)


def kept_by_autograd(c):
    """Bytes of all tensors that a forward pass keeps, without the parameters themselves."""
    model, _ = load_for_training(c.init, torch.device("cpu"))
    model.dtype = None if c.dtype == "float32" else torch.bfloat16
    model.vision.recompute = model.text.recompute = c.recompute
    optim.set_trainable(model, c.train)
    if c.lora:
        lora.attach(model, c.lora, 16.0, c.lora_dropout)
    packed = full_pack(model.config)
    assert packed.tokens == BUDGET
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = Supervised(model)(packed)[0]
    loss.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    parameters = sum(p.nbytes for p in model.parameters())
    return sum(size for size, _ in kept.values()), gradients, parameters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"train": ("projector", "text")},
        {"train": ("projector",)},
        {"lora": 4, "train": ("text",)},
        {"lora": 4, "train": ("text",), "dtype": "bfloat16"},
        {"lora": 4, "train": ("projector", "text"), "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_activations_are_right_within_15_percent(tiny, changes):
    c = config(tiny, **changes)
    measured, gradients, parameters = kept_by_autograd(c)
    t = plan(tiny, c, device="cpu").training
    assert t.parameters == parameters
    assert t.gradients == gradients and t.optimizer == 2 * gradients
    assert measured / 1.15 < t.activations + t.copies < measured * 1.15


@pytest.mark.parametrize("changes", [{}, {"train": ("projector",)}, {"lora": 4, "train": ("text",)}], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_states_are_what_the_optimizers_keep(tiny, tmp_path, optimizer, changes):
    sources = {"sources": [{"world": "single_image", "samples": 9, "size": 56}]}
    c = config(tiny, **changes | {"optimizer": optimizer, "out": str(tmp_path), "data": sources, "workers": 0})
    run = Run(c, Ranks.start("cpu"))
    run.advance()
    kept = [v for o in run.optimizers for state in o.state.values() for v in state.values() if v.dim()]
    assert plan(tiny, c, device="cpu").training.optimizer == sum(v.nbytes for v in kept)


def test_recompute_keeps_the_blocks_inputs(tiny):
    c = config(tiny, recompute="all")
    measured, _, _ = kept_by_autograd(c)
    t = plan(tiny, c, device="cpu").training
    one_block = t.recomputed - measured  # what the block that is computed again adds, which no forward pass keeps
    assert measured < t.recomputed < t.activations
    assert 0 < one_block < t.activations / 2


def test_checkpoints_take_the_disk_they_are_said_to(tiny, tmp_path):
    data = {"sources": [{"world": "multi_image_vqa", "samples": 8, "size": 56}]}
    c = config(tiny, out=str(tmp_path / "run"), data=data, workers=0, steps=3, save_every=1, keep=1, lora=4)
    train(c)
    t = plan(tiny, c).training
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    size = sum(file.stat().st_size for file in checkpoint.rglob("*"))
    wrapping = 2500 * (len(expected(ModelConfig.load(tiny))) + 3 * 56)  # torch.save's, of each weight, A, B and state
    assert t.checkpoint < size < t.checkpoint + wrapping
    assert sum(file.stat().st_size for file in (tmp_path / "run").rglob("*")) < t.disk + wrapping


def test_verdicts_follow_the_memory(tiny, monkeypatch):
    c = config(tiny)
    t = plan(tiny, c).training
    assert t.total(True) < t.total(False)
    for memory, verdict in ((t.total(False), (True, True)), (t.total(True), (False, True)), (1, (False, False))):
        monkeypatch.setattr("minilava.plan.machine_memory", lambda device, memory=memory: memory)
        fits = plan(tiny, c).fits
        assert (fits["train"], fits["train_with_recompute"]) == verdict
    assert not plan(tiny, c).fits["generate"]


def test_command(tiny, tmp_path, capsys):
    (tmp_path / "stage.yaml").write_text(f"init: {tiny}\nout: x\ndata: x.yaml\nsteps: 5\nbudget: 300\n")
    assert main(["--config", str(tmp_path / "stage.yaml"), "--set", "train=projector", "--images", "3"]) == 0
    text = capsys.readouterr().out
    assert "packs of 300 rows" in text and "51 tokens of a context" in text and "projector:" in text
    assert main(["--model", str(tiny), "--json", "--context", "64"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert raw["context"] == 64 and raw["fits"]["train"] and raw["training"]["total"] > raw["training"]["gradients"]


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "--model or --config"),
        (["--model", "nowhere"], "config.json"),
        (["--model", ".", "--set", "a=1"], "--config"),
        (["--images", "x"], "--images"),
        (["--model", "{tiny}", "--images", "-1"], "not below 0"),
        (["--model", "{tiny}", "--context", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line(argv, words, tiny, capsys):
    assert main([a.format(tiny=tiny) for a in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minilava: error:") and words in error and error.count("\n") == 1
