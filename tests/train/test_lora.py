"""LoRA: only adapters learn, merged == unmerged == PEFT, exact resume."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minilava.checkpoint import load_tensors, open_checkpoint, write_random
from minilava.data.mixture import load_mixture
from minilava.data.stream import Stream
from minilava.errors import UserError
from minilava.train import lora
from minilava.train.config import TrainConfig
from minilava.train.loop import Run, train
from minilava.train.ranks import Ranks
from minilava.train.weights import load_for_training

CPU = Ranks(0, 1, torch.device("cpu"))
DATA = {"sources": [{"world": "multi_image_vqa", "samples": 20, "size": 56}]}


def config(init, out, **changes):
    base = dict(init=str(init), out=str(out), data=DATA, steps=3, budget=600, workers=0, lr=1e-2, warmup=0.0, lora=4,
                lora_alpha=8.0, dtype="float32", train=("text",))  # fmt: skip
    return TrainConfig(**base | changes)


def batch(init):
    model, tokenizer = load_for_training(init, CPU.device)
    stream = Stream(load_mixture(DATA), tokenizer, model.config, 600)
    return next(stream.loader(0)).packed


def logits(model, packed):
    with torch.no_grad():
        return model.eval()(packed)


def trained(init, tmp_path, **changes):
    run = Run(config(init, tmp_path / "run", **changes), CPU)
    for _ in range(3):
        run.advance()
    return run


def test_starts_as_the_model_it_was(tiny):
    model, _ = load_for_training(tiny, CPU.device)
    packed = batch(tiny)
    before = logits(model, packed)
    lora.attach(model, 4, 8.0)
    assert torch.equal(before, logits(model, packed))


@pytest.mark.parametrize("parts", [("text",), ("text", "projector")])
def test_only_adapters_and_listed_parts_learn(tiny, tmp_path, parts):
    before = load_tensors(open_checkpoint(tiny), torch.float32)
    run = trained(tiny, tmp_path, train=parts)
    after = dict(run.model.named_parameters())
    adapters = {n for n in after if n.endswith(lora.LEAVES)}
    assert len(adapters) == 2 * 7 * 2  # two layers, seven linears, A and B
    learned = {n for n, p in after.items() if p.requires_grad}
    assert learned == adapters | {n for n in after if n.startswith("projector") and "projector" in parts}
    optimised = {id(p) for o in run.optimizers for group in o.param_groups for p in group["params"]}
    assert optimised == {id(after[n]) for n in learned}
    for name in before:
        assert torch.equal(before[name], after[name]) != (name in learned), name
    assert all(after[n].abs().max() > 0 for n in adapters)


def test_merged_gives_the_same_logits(tiny, tmp_path):
    run = trained(tiny, tmp_path)
    packed = batch(tiny)
    plain, _ = load_for_training(tiny, CPU.device)
    base = logits(plain, packed)
    plain.load_state_dict(lora.merge(run.model.state_dict(), 8.0 / 4))
    adapted = logits(run.model, packed)
    assert (adapted - base).abs().max() > 0.1  # it has learned something to merge
    torch.testing.assert_close(logits(plain, packed), adapted, rtol=1e-4, atol=1e-4)


def test_dropout_is_of_training_alone(tiny):
    model, _ = load_for_training(tiny, CPU.device)
    lora.attach(model, 4, 8.0, dropout=0.5)
    for block in model.text.blocks:
        torch.nn.init.normal_(block.q.b.weight)
    packed = batch(tiny)
    first, second = (model.train()(packed).detach() for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(logits(model, packed), logits(model, packed))


def test_preferences_are_learned_without_dropout(tiny, tmp_path):
    with pytest.raises(UserError, match="without lora_dropout"):
        config(tiny, tmp_path, form="pairs", lora_dropout=0.1)


def test_frozen_weights_are_kept_in_the_dtype_to_compute_in(tiny, tmp_path):
    run = trained(tiny, tmp_path, dtype="bfloat16")
    block = run.model.text.blocks[0]
    assert block.q.weight.dtype == torch.bfloat16 and block.q.a.weight.dtype == torch.float32
    assert run.model.text.embed.weight.dtype == torch.float32


@pytest.mark.parametrize("parts", [("text",), ("text", "projector"), ("text", "projector", "vision")])
def test_peft_reads_the_adapter(tiny_hf, tmp_path, parts):
    """The library on transformers' model gives our adapted and our merged model's logits."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    transformers = pytest.importorskip("transformers", reason='needs pip install "minilava[reference]"')
    out = tmp_path / "run"
    train(config(tiny_hf, out, train=parts))
    text = torch.randint(0, 200, (1, 20))
    ids = torch.cat([torch.full((1, 16), open_checkpoint(tiny_hf).config.image_token_id), text], 1)
    pixels = torch.randn(1, 3, 56, 56)
    base = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_hf, dtype=torch.float32).eval()
    with torch.no_grad():
        before = base(input_ids=ids, pixel_values=pixels).logits
        adapted = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
        theirs = adapted(input_ids=ids, pixel_values=pixels).logits
        theirs_merged = adapted.merge_and_unload()(input_ids=ids, pixel_values=pixels).logits
    assert (before - theirs).abs().max() > 0.1
    lora.merge_adapter(tiny_hf, out / "adapter", tmp_path / "merged", torch.float32)
    ours = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        merged = ours(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(merged, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(merged, theirs_merged, rtol=1e-3, atol=1e-3)


def test_reads_what_peft_wrote(tiny_hf, tmp_path):
    peft = pytest.importorskip("peft", reason="pip install peft")
    transformers = pytest.importorskip("transformers", reason='needs pip install "minilava[reference]"')
    base = transformers.LlavaForConditionalGeneration.from_pretrained(tiny_hf, dtype=torch.float32)
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=r".*language_model.*\.(q_proj|down_proj)",
                               init_lora_weights=False)  # fmt: skip
    theirs = peft.get_peft_model(base, settings)
    theirs.save_pretrained(tmp_path / "adapter")
    model, _ = load_for_training(tiny_hf, CPU.device)
    assert lora.load_adapter(model, tmp_path / "adapter") == pytest.approx(5 / 3)
    with torch.no_grad():
        merged = theirs.merge_and_unload().model.language_model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(lora.merge(model.state_dict(), 5 / 3)["text.blocks.1.down.weight"], merged)


def test_loading_back_gives_the_same_logits(tiny, tmp_path):
    """The original dialect as well."""
    out = tmp_path / "run"
    train(config(tiny, out, train=("text", "projector")))
    model, _ = load_for_training(tiny, CPU.device)
    lora.load_adapter(model, out / "adapter")
    merged, _ = load_for_training(out / "model", CPU.device)  # rounded to bfloat16
    packed = batch(tiny)
    base = logits(load_for_training(tiny, CPU.device)[0], packed)
    change = (logits(model, packed) - base).abs().max()
    assert (logits(model, packed) - logits(merged, packed)).abs().max() < change / 10


def test_resume_is_exact(tiny, tmp_path):
    """With dropout, whose random numbers go on where they stopped."""
    straight = train(config(tiny, tmp_path / "a", steps=4, lora_dropout=0.3))
    first = Run(config(tiny, tmp_path / "b", steps=4, lora_dropout=0.3), CPU)
    for _ in range(2):
        first.advance()
    first.save()
    train(config(tiny, tmp_path / "b", steps=4, lora_dropout=0.3))
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (straight.parent / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_other_adapters_are_refused(tiny, tmp_path):
    train(config(tiny, tmp_path / "run", steps=1))
    adapter = tmp_path / "run" / "adapter"

    def load(like=tiny):
        lora.load_adapter(load_for_training(like, CPU.device)[0], adapter)

    load()
    wide = write_random(tmp_path / "wide", dtype="float32", tokenizer="byte", config_overrides={"hidden_size": 32})
    with pytest.raises(UserError, match="does not fit"):
        load(wide)
    tensors = load_file(adapter / lora.TENSORS)
    save_file(tensors | {"base_model.model.model.nothing.lora_A.weight": torch.zeros(2)}, adapter / lora.TENSORS)
    with pytest.raises(UserError, match="does not fit"):
        load()
    text = (adapter / lora.CONFIG).read_text()
    (adapter / lora.CONFIG).write_text(text.replace('"bias": "none"', '"bias": "none", "use_dora": true'))
    with pytest.raises(UserError, match="use_dora"):
        load()
    shutil.rmtree(adapter)
    with pytest.raises(UserError, match="adapter_config.json"):
        load()
