"""What a step minimises and which parameters it moves, against plain statements of the specification."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minilava.config import IGNORE
from minilava.data.convert import to_samples
from minilava.data.mixture import Source
from minilava.data.world import World
from minilava.errors import UserError
from minilava.inputs.pack import pack
from minilava.model.recompute import RECOMPUTE
from minilava.packed import Packed
from minilava.train import optim
from minilava.train.config import PARTS
from minilava.train.log import read_log
from minilava.train.loop import Run, train
from minilava.train.objective import Preferences, Supervised
from minilava.train.ranks import Ranks
from minilava.train.weights import load_for_training
from tests.numerics import assert_within
from tests.train.small import config, picture, record, talk, tools

CPU = torch.device("cpu")


def samples_of(path, kind):
    """Samples of one kind: text, images (alone, tiled, several), pooled videos, or all mixed."""
    tokenizer, model = tools(path)
    records = {
        "text": [(record(0, answer="yes"), {}), (record(1, question="longer words"), {})],
        "images": [
            ({"image": [picture(0, (100, 48))], "conversations": talk("<image>what", "a view")}, {}),  # tiled
            ({"image": [picture(1), picture(2)], "conversations": talk("<image>and<image>?", "b")}, {}),
            ({"image": [picture(3)] * 3, "conversations": talk("<image>" * 3, "c", "d")}, {"layout": "front"}),
        ],
        "pooled": [(World("video_qa", size=48)[i], {"pool": pool, "frames": 4})
                   for i, pool in enumerate(("average", "max", "bilinear"))],
    }  # fmt: skip
    records["mixed"] = [r for kind in ("images", "text", "pooled") for r in records[kind]]
    return [
        to_samples(r, Source("s", [r], **settings), "chat", tokenizer, model, 0.0)[0] for r, settings in records[kind]
    ]


def of_parts(model) -> dict[str, torch.Tensor]:
    """Gradients, each part of the model as one vector."""
    found = {part: [] for part in PARTS}
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        found["text" if part == "newline" else part].append(torch.zeros_like(p) if p.grad is None else p.grad)
    return {part: torch.cat([g.flatten() for g in grads]) for part, grads in found.items()}


def run_packs(model, packs, exact=False):
    """(losses of all labelled tokens, gradients) summed over packs."""
    model.zero_grad(set_to_none=True)
    losses = []
    for packed in packs:
        if exact:
            patches = None if packed.patches is None else packed.patches.double()
            weights = None if packed.mix_weights is None else packed.mix_weights.double()
            packed = replace(packed, patches=patches, mix_weights=weights)
            rows = torch.nonzero((packed.labels != IGNORE) & (packed.positions > 0))[:, 0]
            logits = F.linear(model.hidden(packed)[rows - 1], model.text.output_weight)
            nll = F.cross_entropy(logits, packed.labels[rows], reduction="none")
        else:
            nll = model.losses(packed)[0]
        nll.sum().backward()
        losses.append(nll.detach())
    return torch.cat(losses), of_parts(model)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("kind", ["text", "images", "pooled", "mixed"])
def test_a_pack_is_the_sum_of_its_samples(tiny, kind, recompute):
    """Held to the numerics rule: at most 2x (gradients 3x) as far from float64 as the samples one by one."""
    model, _ = load_for_training(tiny, CPU)
    model.vision.recompute = model.text.recompute = recompute
    samples, patches = samples_of(tiny, kind), model.config.vision.patches
    packed, alone = run_packs(model, [pack(samples, patches)]), run_packs(model, [pack([s], patches) for s in samples])
    exact = run_packs(model.double(), [pack([s], patches) for s in samples], exact=True)
    assert_within(packed[0], alone[0], exact[0])
    for part in PARTS:
        assert_within(packed[1][part], alone[1][part], exact[1][part], factor=3)
        assert exact[1][part].any() or kind == "text" and part != "text"


@pytest.mark.parametrize("kind", ["text", "images", "tiled", "pooled"])
def test_turns_that_share_their_beginning_are_the_sum_of_the_turns(tiny, kind):
    """Split turns against conversations of one turn each: losses and gradients, by the same rule."""
    tokenizer, config = tools(tiny)
    turns = [("what is it?", "a car"), ("where?", "at the top right"), ("what else is there?", "a house")]
    begin, media, settings = {
        "text": ("", {}, {}),
        "images": ("First <image> then <image>\n", {"image": [picture(1), picture(2)]}, {}),
        "tiled": ("First <image>\n", {"image": [picture(0, (100, 48))]}, {}),
        "pooled": ("<video>\n", {"video": [picture(i) for i in range(4)]}, {"frames": 4, "pool": "average"}),
    }[kind]

    def record(*some):
        texts = [begin + some[0][0], *(q for q, _ in some[1:])]
        said = [x for text, (_, answer) in zip(texts, some, strict=True) for x in (("human", text), ("gpt", answer))]
        return media | {"conversations": [{"from": who, "value": text} for who, text in said]}

    def samples(some, **options):
        r = record(*some)
        return to_samples(r, Source("s", [r], **settings, **options), "chat", tokenizer, config, 0.0)

    model, _ = load_for_training(tiny, CPU)
    patches = model.config.vision.patches
    split, single = samples(turns, split_turns=True), [s for t in turns for s in samples([t])]
    assert [s.ids for s in split] == [s.ids for s in single] and [s.labels for s in split] == [s.labels for s in single]
    both = pack(split + samples_of(tiny, "text") + split, patches)
    rest = [pack([s], patches) for s in [*single, *samples_of(tiny, "text"), *single]]
    assert both.tokens < sum(p.tokens for p in rest) and sum(both.spans) == sum(p.tokens for p in rest)
    with torch.no_grad():
        torch.testing.assert_close(model(both, last_only=True), torch.cat([model(p, last_only=True) for p in rest]))
    shared, alone = run_packs(model, [both]), run_packs(model, rest)
    exact = run_packs(model.double(), rest, exact=True)
    assert_within(shared[0], alone[0], exact[0])
    for part in PARTS:
        assert_within(shared[1][part], alone[1][part], exact[1][part], factor=3)


@pytest.mark.parametrize("how", ["cheap", "all"])
def test_recomputing_gives_the_same_bits(tiny, how):
    model, _ = load_for_training(tiny, CPU)
    packed = pack(samples_of(tiny, "mixed"), model.config.vision.patches)
    kept = run_packs(model, [packed])
    model.vision.recompute = model.text.recompute = how
    again = run_packs(model, [packed])
    assert torch.equal(kept[0], again[0]) and all(torch.equal(kept[1][p], again[1][p]) for p in PARTS)


# --- DPO (spec 6.7) ---------------------------------------------------------------------------------------------------


def pairs(path) -> list:
    tokenizer, model = tools(path)
    world = World("spot_difference", size=48, what="preferences")
    return [to_samples(world[i], Source("s", world), "pairs", tokenizer, model, 0.0) for i in range(3)]


def answer_log_probability(model, sample) -> tuple[torch.Tensor, int]:
    """float64 sum over shifted labels, from full logits of the sample alone."""
    packed: Packed = pack([sample], model.config.vision.patches)
    logits = model(replace(packed, patches=packed.patches.double()))[:-1]
    targets = packed.labels[1:]
    taken = torch.log_softmax(logits, -1)[targets != IGNORE].gather(1, targets[targets != IGNORE][:, None])
    return taken.sum(), len(taken)


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
def test_dpo_against_its_plain_statement(tiny, sft_weight):
    beta, made = 0.3, pairs(tiny)
    model, _ = load_for_training(tiny, CPU)
    frozen, _ = load_for_training(tiny, CPU)
    with torch.no_grad():
        for p in frozen.parameters():
            p += 0.02 * torch.randn_like(p)
    frozen.double().requires_grad_(False)
    reference = torch.stack([torch.stack([answer_log_probability(frozen, s)[0] for s in both]) for both in made])

    packed = pack([s for both in made for s in both], model.config.vision.patches)
    total, sums = Preferences(model, beta, sft_weight)(packed, reference.float())
    total.backward()
    ours = of_parts(model)

    model.double().zero_grad()
    expected, losses, margins = 0.0, [], []
    for both, ref in zip(made, reference, strict=True):
        (chosen, length), (rejected, _) = (answer_log_probability(model, s) for s in both)
        z = (chosen - rejected) - (ref[0] - ref[1])
        losses.append(-torch.log(1 / (1 + torch.exp(-beta * z))))
        margins.append(beta * z.item())
        expected = expected + losses[-1] + sft_weight * -chosen / length
    expected.backward()
    exact = of_parts(model)
    # z is a difference of sums of about 100 nats: float32 leaves some 1e-5 of it.
    assert abs(total.item() - expected.item()) < 1e-4 * max(1, abs(expected.item()))
    wanted = [sum(x.item() for x in losses), sum(m > 0 for m in margins), sum(margins)]
    torch.testing.assert_close(sums.double(), torch.tensor(wanted).double(), rtol=1e-4, atol=1e-4)
    for part in PARTS:
        assert exact[part].any()
        assert (ours[part] - exact[part]).norm() < 1e-4 * exact[part].norm()


def test_dpo_at_the_reference_is_log_2_and_prefers_the_chosen_answer(tiny):
    model, _ = load_for_training(tiny, CPU)
    made = pairs(tiny)
    packed = pack([s for both in made for s in both], model.config.vision.patches)
    from minilava.train.objective import log_probabilities

    with torch.no_grad():
        reference, counts = (t.view(-1, 2) for t in log_probabilities(model, packed))
    assert counts.tolist() == [[sum(x != IGNORE for x in s.labels) for s in both] for both in made]
    objective = Preferences(model, 0.1, 0.0)
    total, _ = objective(packed, reference)
    assert total.item() == pytest.approx(3 * math.log(2), rel=1e-6)
    total.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad
        after = log_probabilities(model, packed)[0].view(-1, 2)
    gained = (after - reference)[:, 0] - (after - reference)[:, 1]
    assert (gained > 0).all()


# --- what moves, and how fast (spec 6.1 to 6.3) -----------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("vision",), ("projector",), ("text",), ("projector", "text"), PARTS])
def test_freeze_sets(tiny, parts):
    model, _ = load_for_training(tiny, CPU)
    optim.set_trainable(model, parts)
    prefixes = {"vision": ("vision.",), "projector": ("projector.",), "text": ("text.", "newline")}
    wanted = tuple(p for part in parts for p in prefixes[part])
    for name, p in model.named_parameters():
        assert p.requires_grad == name.startswith(wanted), name
    assert model.newline is not None


def test_parameter_groups(tiny, tmp_path):
    """Decay for all but layer norms' and biases; the tower and the projector at rates of their own."""
    c = config(tiny, tmp_path, lr=1e-3, lr_vision=2e-4, lr_projector=0.0, weight_decay=0.1)
    model, _ = load_for_training(tiny, CPU)
    model.vision.blocks[0].fc1.weight.requires_grad_(False)
    made = optim.make_optimizers(Supervised(model), c)
    of = {id(p): g for o in made for g in o.param_groups for p in g["params"]}
    assert id(model.vision.blocks[0].fc1.weight) not in of
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        rate = {"vision": 2e-4, "projector": 0.0}.get(name.split(".")[0], 1e-3)
        layer_norm = name.startswith("vision.blocks") and ".norm" in name  # the decoder's are RMS norms
        decay = 0.0 if layer_norm or name.endswith("bias") else 0.1
        group = of.pop(id(p))
        assert (group["lr"], group["weight_decay"]) == (rate, decay), name
    assert not of
    optim.set_rates(made, 0.5)
    assert {g["lr"] for o in made for g in o.param_groups} == {5e-4, 1e-4, 0.0}


def test_muon_takes_the_blocks_and_the_projectors_matrices(tiny, tmp_path):
    model, _ = load_for_training(tiny, CPU)
    muon, adamw = optim.make_optimizers(Supervised(model), config(tiny, tmp_path, optimizer="muon", weight_decay=0.1))
    matrices = {id(p) for g in muon.param_groups for p in g["params"]}
    rest = {id(p) for g in adamw.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        wanted = p.dim() == 2 and (".blocks." in name or name.startswith("projector"))
        assert (id(p) in matrices, id(p) in rest) == (wanted, not wanted), name
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)


def test_muon_learns_and_resumes_to_the_same_bits(tiny, tmp_path):
    def losses(name, steps):
        train(config(tiny, tmp_path / name, optimizer="muon", lr=1e-2, steps=steps, save_every=3))
        return [row["loss"] for row in read_log(tmp_path / name)]

    whole = losses("whole", 6)
    run = Run(config(tiny, tmp_path / "cut", optimizer="muon", lr=1e-2, steps=6, save_every=3), Ranks.start("cpu"))
    for _ in range(3):
        run.advance()
    run.save()
    again = Run(config(tiny, tmp_path / "cut", optimizer="muon", lr=1e-2, steps=6, save_every=3), Ranks.start("cpu"))
    assert [again.advance()["loss"] for _ in range(3)] == whole[3:]
    assert whole[-1] < whole[0]


@pytest.mark.parametrize("steps,warmup", [(10, 0.0), (10, 0.25), (37, 0.03), (7, 1.0), (1, 0.5)])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_are_transformers_own(tiny, tmp_path, schedule, steps, warmup):
    transformers = pytest.importorskip("transformers", reason='needs pip install "minilava[reference]"')
    c = config(tiny, tmp_path, steps=steps, warmup=warmup, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    reference = transformers.get_scheduler(name, optimizer, math.ceil(steps * warmup), steps)
    for step in range(steps):
        assert optim.scale(step, c) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()
    if warmup:
        assert optim.scale(0, c) == 0
    if schedule != "constant" and warmup < 0.5:
        assert optim.scale(steps, c) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("steps,warmup,decay", [(10, 0.2, 0.3), (100, 0.03, 0.2), (7, 0.0, 1.0), (5, 0.2, 0.0)])
def test_warmup_stable_decay_is_transformers_own(tiny, tmp_path, steps, warmup, decay):
    transformers = pytest.importorskip("transformers", reason='needs pip install "minilava[reference]"')
    c = config(tiny, tmp_path, steps=steps, warmup=warmup, decay=decay, schedule="warmup_stable_decay")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm, falling = math.ceil(steps * warmup), math.ceil(steps * decay)
    reference = transformers.get_wsd_schedule(optimizer, warm, falling, steps, decay_type="linear")
    for step in range(steps):
        assert optim.scale(step, c) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("parts", [PARTS, ("projector",)])
@pytest.mark.parametrize("data", [None, {"sources": [{"world": "spot_difference", "samples": 9, "size": 48}]}])
def test_every_trained_parameter_gets_a_gradient(tiny, tmp_path, parts, data):
    """After the first step each has a gradient that is not zero; newline only where a tiled picture uses it."""
    run = Run(config(tiny, tmp_path, train=parts, **({"data": data} if data else {})), Ranks.start("cpu"))
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    run.advance()
    for name, p in run.model.named_parameters():
        trained = ("text" if name == "newline" else name.split(".")[0]) in parts
        assert (p in run.optimizers[0].state) == trained, name
        if trained:
            assert run.optimizers[0].state[p]["exp_avg"].any() or name == "newline" and data, name
    run.advance()  # the first step's rate is 0
    for name, p in run.model.named_parameters():
        assert not torch.equal(p, before[name]) if p in run.optimizers[0].state else torch.equal(p, before[name]), name


def test_steps_without_pictures_still_step_the_tower(tiny, tmp_path):
    """As upstream's blank image does: whether a pack has pictures must not change what AdamW does to a weight."""
    (tmp_path / "text.json").write_text('[{"id": 1, "conversations": [{"from": "human", "value": "q"}, '
                                        '{"from": "gpt", "value": "a"}]}]')  # fmt: skip
    run = Run(config(tiny, tmp_path / "out", data=str(tmp_path / "text.json")), Ranks.start("cpu"))
    row = run.advance()
    assert row["images"] == 0
    for name, p in run.model.named_parameters():
        state = run.optimizers[0].state[p]
        assert state["step"] == 1 and state["exp_avg"].any() == name.startswith("text."), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_the_samples(tiny, tmp_path, value):
    run = Run(config(tiny, tmp_path, warmup=0.0), Ranks.start("cpu"))
    run.advance()
    with torch.no_grad():
        run.model.text.norm.weight[3] = value
    before = run.model.projector.fc1.weight.clone()
    with pytest.raises(UserError, match=r"step 2: the loss is (nan|inf) for world/train/") as e:
        run.advance()
    assert "\n" not in str(e.value)
    assert torch.equal(run.model.projector.fc1.weight, before) and run.step == 1


def test_a_gradient_that_is_not_finite_stops(tiny, tmp_path):
    run = Run(config(tiny, tmp_path), Ranks.start("cpu"))
    run.model.projector.fc1.weight.register_hook(lambda g: g * math.inf)
    with pytest.raises(UserError, match="step 1: the gradient's norm is (nan|inf) for world/train/"):
        run.advance()
    assert run.step == 0
