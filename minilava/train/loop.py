"""The training loop: packs of a step forward and backward, clip, step, log, save."""

from __future__ import annotations

import json
import resource
import signal
import time
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path

import torch

from minilava.config import ModelConfig
from minilava.data.mixture import Mixture, load_mixture, read_yaml
from minilava.data.preview import preview
from minilava.data.stream import Batch, Stream
from minilava.device import pick_dtype
from minilava.errors import UserError
from minilava.packed import Packed
from minilava.tokenizer import Tokenizer
from minilava.train import lora, optim, state
from minilava.train.config import TrainConfig
from minilava.train.features import Features
from minilava.train.log import Log
from minilava.train.objective import Preferences, Supervised
from minilava.train.ranks import Ranks, clip_gradients, spread, sync_gradients, with_view
from minilava.train.reference import prepare
from minilava.train.weights import load_for_training, replace_model

MODEL = "model"  # the finished run's checkpoint, OUT/model
ADAPTER = "adapter"  # with LoRA, its adapters alone in PEFT's form, OUT/adapter


class Run:
    """Everything that a step needs, as the last checkpoint left it; ``train`` drives it to the end."""

    def __init__(self, config: TrainConfig, ranks: Ranks):
        self.config, self.ranks, self.out = config, ranks, Path(config.out)
        torch.manual_seed(config.seed + ranks.rank)
        self.dtype = pick_dtype(config.dtype, ranks.device)
        self.model, self.tokenizer = load_for_training(config.init, ranks.device)
        self.model.dtype = None if self.dtype == torch.float32 else self.dtype
        self.model.text.recompute = config.recompute
        self.model.vision.recompute = config.recompute_vision or config.recompute
        optim.set_trainable(self.model, config.train)
        if config.lora:
            lora.attach(self.model, config.lora, config.lora_alpha, config.lora_dropout, config.seed)
        self.mixture = mixture = load_mixture(config.data, seed=config.seed)
        self.positions = list(range(config.micro_batches))
        self.features = Features(config.features, self.model.vision, self.dtype) if config.features else None
        if config.form == "pairs":
            self.objective = Preferences(self.model, config.beta, config.sft_weight)
            stream = self._stream(mixture)
            self.reference = prepare(self.out, config.init, self.model, stream, ranks, config.workers)
        else:
            self.objective = Supervised(self.model)
        self.engine = spread(self.objective, config, ranks, self.dtype)
        self.optimizers = optim.make_optimizers(self.engine, config)
        self.step, self.seen = 0, {"tokens": 0, "labelled": 0, "images": 0, "samples": 0, "refused": 0}
        self._resume()
        self.stream = self._stream(mixture)
        self.batches = self.stream.loader(config.workers)

    def _stream(self, mixture: Mixture) -> Stream:
        c = self.config
        return Stream(
            mixture, self.tokenizer, self.model.config, c.budget, c.form, c.micro_batches, c.seed,
            self.positions, self.ranks.rank, self.ranks.world, c.strict, self.features,
        )  # fmt: skip

    # --- resume ---------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        last = state.latest(self.out)
        if last is None:
            return
        run = _same_run(last, self._identity())
        state.restore(last, self.engine, self.optimizers, self.ranks)
        self.step, self.seen, self.positions = run["step"], run["seen"], run["positions"]
        rng = run["rng"][self.ranks.rank] if self.ranks.rank < len(run["rng"]) else None
        if rng:
            states = [torch.frombuffer(bytearray.fromhex(part), dtype=torch.uint8) for part in rng.split()]
            torch.set_rng_state(states[0])
            if self.ranks.device.type == "cuda" and len(states) > 1:
                torch.cuda.set_rng_state(states[1], self.ranks.device)

    def _identity(self) -> dict:
        """The settings that a resumed run must share with its beginning."""
        sources = [{f.name: getattr(s, f.name) for f in fields(s)} for s in self.mixture.sources]
        mixture = [s | {"records": len(s["records"])} for s in sources]
        return _settings(self.config) | {"mixture": mixture}

    def save(self) -> None:
        """Write the checkpoint of the steps done so far."""
        rng = " ".join(t.numpy().tobytes().hex() for t in _generators(self.ranks.device))
        own = dict(zip(self.stream.own, (self.positions[lane] for lane in self.stream.own), strict=True))
        gathered = self.ranks.gather((rng, own))
        positions = {lane: at for _, theirs in gathered for lane, at in theirs.items()}
        run = {
            "step": self.step,
            "positions": [positions[lane] for lane in range(self.config.micro_batches)],
            "seen": self.seen,
            "rng": [rng for rng, _ in gathered],
            "identity": self._identity(),
        }
        state.save(self.out, self.step, self.engine, self.optimizers, run, self.config.keep, self.ranks)

    # --- one step -------------------------------------------------------------------------------------------------

    def advance(self) -> dict:
        """Run one step and return its figures. UserError with the samples' names where the loss is not finite."""
        began, waited = time.perf_counter(), self.batches.waited
        batches = [next(self.batches) for _ in self.stream.own]
        own = [self.objective.units(b) for b in batches]
        units = self.ranks.sum(sum(own))[0]
        share = optim.scale(self.step, self.config)
        optim.set_rates(self.optimizers, share)
        loss, sums = 0.0, torch.zeros(len(self.objective.metrics))
        for i, batch in enumerate(batches):
            with sync_gradients(self.engine, last=i + 1 == len(batches)):
                value, extra = self._forward(batch)
                # Every process averages its gradients with the others': times their number makes it a sum again.
                (value * (self.ranks.world / units)).backward()
            if not torch.isfinite(value):
                raise UserError(f"step {self.step + 1}: the loss is {value.item()} for {', '.join(batch.names)}")
            loss += value.item()
            sums += extra.cpu()
        trained = [p for p in self.engine.parameters() if p.requires_grad]
        norm = clip_gradients(trained, self.config.clip)
        if not norm < float("inf"):
            names = ", ".join(name for b in batches for name in b.names)
            raise UserError(f"step {self.step + 1}: the gradient's norm is {norm} for {names}")
        for optimizer in self.optimizers:
            optimizer.step()
        self.engine.zero_grad(set_to_none=True)
        self.step += 1
        for batch in batches:
            self.positions[batch.lane] = batch.after
        return self._figures(
            batches, loss, sums, units, share, norm, time.perf_counter() - began, self.batches.waited - waited
        )

    def _forward(self, batch: Batch):
        packed: Packed = batch.packed.to(self.ranks.device) if self.ranks.device.type != "cpu" else batch.packed
        packed = with_view(packed, self.model.config.vision)
        if self.features is not None:
            packed = self.features.fill(packed, batch.views, self.model)
        if self.config.form == "pairs":
            return self.engine(packed, self.reference.of(batch).to(self.ranks.device))
        return self.engine(packed)

    def _figures(self, batches, loss, sums, units, share, norm, seconds, waited) -> dict:
        counts = {
            "tokens": sum(b.packed.tokens for b in batches),
            "labelled": sum(Supervised.units(b) for b in batches),
            "images": sum(b.packed.views for b in batches),
            "samples": sum(len(b.names) for b in batches),
            "refused": sum(len(b.refused) for b in batches),
        }
        totals = self.ranks.sum(loss, *sums.tolist(), *counts.values())
        refusals = [r for b in batches for r in b.refused]
        if totals[-1]:
            refusals = sum(self.ranks.gather(refusals), [])
        counts = dict(zip(counts, map(int, totals[1 + len(sums) :]), strict=True))
        for key, value in counts.items():
            self.seen[key] += value
        metrics = dict(zip(self.objective.metrics, (v / units for v in totals[1:]), strict=False))
        return {
            "step": self.step,
            "loss": totals[0] / units,
            **metrics,
            "lr": self.config.lr * share,
            "grad_norm": norm,
            **counts,
            "seconds": seconds,
            "waited_s": waited,
            "tokens_per_s": counts["tokens"] / seconds,
            "labelled_per_s": counts["labelled"] / seconds,
            "images_per_s": counts["images"] / seconds,
            "peak_memory_bytes": peak_memory(self.ranks.device),
            **({"refusals": refusals[:10]} if refusals else {}),
        }

    def export(self) -> None:
        """Write OUT/model, a checkpoint in the dialect of ``init`` and bfloat16; before it, OUT/adapter with LoRA."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        c, options = self.config, StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(self.engine, options=options)
        if self.ranks.first:
            tensors = {name.removeprefix("model."): t for name, t in tensors.items()}
            if c.lora:
                adapter = self.out / ADAPTER
                lora.write_adapter(tensors, c.init, adapter, c.lora, c.lora_alpha, c.lora_dropout, c.train)
                tensors = lora.merge(tensors, c.lora_alpha / c.lora)
            replace_model(tensors, c.init, self.out / MODEL, torch.bfloat16)
        self.ranks.barrier()


def train(config: TrainConfig) -> Path:
    """Run a stage from its last checkpoint, or from the beginning, to the end. Returns OUT/model.

    Ctrl-C (or SIGTERM) ends the run after the current step with a checkpoint; a second one ends it at once.
    """
    out = Path(config.out)
    if finished(out, config.steps):
        if last := state.latest(out):
            _same_run(last, _settings(config))
        return out / MODEL
    ranks = Ranks.start(config.device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot make {out}: {e.strerror or e}") from None
    run = Run(config, ranks)
    with closing(run.batches):
        log = Log(out, run.step, config.steps, config.tensorboard) if ranks.first else None
        stop = _Stop()
        try:
            while run.step < config.steps:
                row = run.advance()
                if log:
                    log.write(row)
                stopping = ranks.sum(stop.asked)[0] > 0
                if run.step % config.save_every == 0 or run.step == config.steps or stopping:
                    run.save()
                if stopping and run.step < config.steps:
                    raise KeyboardInterrupt
            run.export()
        finally:
            stop.restore()
            if log:
                log.close()
    ranks.stop()
    return out / MODEL


def finished(out: Path, steps: int) -> bool:
    """Whether OUT/model is there, and is the model of at least this many steps."""
    last = state.latest(out)
    return (out / MODEL / "config.json").exists() and (last is None or int(last.name[-8:]) >= steps)


def _settings(config: TrainConfig) -> dict:
    """What a run is told that changes its weights. Of data in a file the contents count, not the name."""
    free = ("init", "out", "steps", "workers", "save_every", "keep", "tensorboard", "device", "shard", "strict",
            "features")  # fmt: skip
    settings = {k: v for k, v in asdict(config).items() if k not in free}
    if isinstance(config.data, str):
        del settings["data"]
        if config.data.endswith((".yaml", ".yml")):
            settings["data"] = read_yaml(config.data)
    return settings


def _same_run(last: Path, identity: dict) -> dict:
    """What a checkpoint says of its run. UserError where that was another than this identity says."""
    run = state.read(last)
    for name, value in json.loads(json.dumps(identity)).items():
        was = run["identity"].get(name, value)  # absent: a setting younger than the checkpoint
        if was != value:
            raise UserError(f"{last.parent} holds a run with {name} {was!r}, not {value!r}: name another out")
    return run


def _generators(device: torch.device) -> list[torch.Tensor]:
    """States of the random generators in use, the CPU's and this device's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def show(config: TrainConfig) -> None:
    """Print the first samples of the first batch with their labels marked."""
    tokenizer, model = Tokenizer.load(config.init), ModelConfig.load(config.init)
    mixture = load_mixture(config.data, seed=config.seed)
    stream = Stream(mixture, tokenizer, model, config.budget, config.form, config.micro_batches, config.seed)
    preview(next(stream.loader(0)).packed, tokenizer)


class _Stop:
    """Turns the first Ctrl-C or SIGTERM into a flag; a second one interrupts as usual. One within a second of the
    first is the same: torchrun passes on to its processes the Ctrl-C that the terminal has sent them already."""

    def __init__(self):
        self.asked, self.since = False, 0.0
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number, frame) -> None:
        if self.asked and time.monotonic() - self.since > 1:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.since = True, time.monotonic()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's own count on CUDA, this process's largest resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
