"""Decoding in fixed memory, so that a CUDA graph can hold the whole step: no launch, copy or wait from the host in it.

A step embeds the last tokens, runs the decoder, draws the next tokens and advances every sequence, all in buffers of
its own. On a GPU it is captured once for every number of rows and longest context (both rounded up) and replayed;
where the capture fails the same step runs launch by launch, and a line on stderr says so. The host reads the tokens of
one step while the next one runs. The same code runs on a CPU, uncaptured, which is how the tests see it. The vision
tower is captured for small numbers of views, where launches are what its time goes to.

B rows of a step (idle ones included), V usable vocabulary rows.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minilava.model.llava import LLaVA
from minilava.model.qwen import Segments
from minilava.runtime.cache import KVCache
from minilava.runtime.sampling import Sampling, checked, columns, draw

FEW_VIEWS = 8
PAGE = 4096  # rows: the cache grows, and contexts are told apart, in steps of this


class Graphs:
    """What is captured of one model, and the cache memory that its steps share, kept from one batch to the next."""

    def __init__(self, model: LLaVA, logits: Callable[[Tensor], Tensor]):
        self.model, self.logits = model, logits
        weight = model.text.norm.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.layers: list[tuple[Tensor, Tensor]] = []
        # What the memory begins with: the embedded prompt (T, D) of a single sequence and the tokens generated after
        # it, the last of them not yet cached.
        self.held: tuple[Tensor, list[int]] | None = None
        self.steps: dict[tuple[int, int, bool], Step] = {}
        self.towers: dict[int, tuple] = {}  # number of views -> graph, its input and its output
        self.free = threading.Lock()  # taken by the batch that is using the memory
        self.encoding = threading.Lock()  # a tower's input and output are one batch's at a time

    def first(self, logits: Tensor, sampling: Sequence[Sampling]) -> list[int]:
        """The first tokens, from the prompts' last logits (S, V)."""
        settings = columns(sampling, self.device)
        seeds = settings["seed"]
        return checked(draw(logits, settings, seeds, torch.zeros_like(seeds)).tolist())

    def cache(self, capacities: list[int]) -> KVCache:
        """A cache in the shared memory, with one row to spare after the sequences for idle rows of a step. The one
        before it is overwritten."""
        needed = sum(capacities) + 1
        if not self.layers or len(self.layers[0][0]) < needed:
            self.steps.clear()  # they hold the addresses of the old memory
            self.layers, self.held = [], None
            config, rows = self.model.config.text, -(-needed // PAGE) * PAGE
            shape = rows, config.kv_heads, config.head_dim
            pairs = [
                [torch.empty(shape, dtype=self.dtype, device=self.device) for _ in "kv"] for _ in range(config.layers)
            ]
            self.layers = [(k, v) for k, v in pairs]
        return KVCache(self.model.config.text, capacities, self.dtype, self.device, self.layers)

    def encode(self, patches: Tensor, progress: Callable) -> Tensor:
        """LLaVA.encode, captured where there are few views."""
        if self.device.type != "cuda" or len(patches) > FEW_VIEWS:
            return self.model.encode(patches, progress)
        with self.encoding:
            if len(patches) not in self.towers:
                given, made = patches.to(self.dtype), []
                graph = _capture(lambda: made.append(self.model.encode(given)), "encoding pictures")
                self.towers[len(patches)] = graph, given, made[-1] if made else None
            graph, given, made = self.towers[len(patches)]
            if graph is None:
                return self.model.encode(patches, progress)
            given.copy_(patches)
            graph.replay()
            return made.clone()  # the next replay writes over it

    def step(self, sequences: int, longest: int, penalized: bool) -> Step:
        """The step for at least so many sequences, none ever longer than ``longest`` rows. penalized: whether any of
        them has a repetition penalty."""
        rows = 1 << (sequences - 1).bit_length()
        key = rows, -(-longest // PAGE) * PAGE, penalized
        if key not in self.steps:
            self.steps[key] = Step(self, *key)
        return self.steps[key]


class Step:
    def __init__(self, graphs: Graphs, rows: int, longest: int, penalized: bool):
        self.model, self.logits, self.layers = graphs.model, graphs.logits, graphs.layers
        self.rows, self.longest, self.spare = rows, longest, len(graphs.layers[0][0]) - 1
        device = graphs.device
        whole = {"dtype": torch.int64, "device": device}
        self.cu = torch.arange(rows + 1, dtype=torch.int32, device=device)
        # Per row: last token, next position, first cache row, last allowed position, number of the draw, seed.
        self.state = {n: torch.zeros(rows, **whole) for n in ("ids", "positions", "starts", "ends", "draws", "seeds")}
        self.settings = {n: torch.zeros(rows, device=device) for n in ("temperature", "top_p")}
        self.settings["top_k"] = torch.zeros(rows, **whole)
        self.drawn = torch.zeros(rows, **whole)
        if penalized:
            self.settings["repetition_penalty"] = torch.ones(rows, device=device)
            vocabulary = graphs.model.config.text.vocab_rows
            # Per row: the tokens generated before the last.
            self.state["seen"] = torch.zeros((rows, vocabulary), dtype=torch.bool, device=device)
        self.idle()
        self.graph = _capture(self.run, "decoding") if device.type == "cuda" else None

    def idle(self) -> None:
        """All rows write to the spare row of the cache and read it alone."""
        for name, value in self.state.items():
            value.fill_(self.spare if name == "starts" else 0)
        for name, value in self.settings.items():
            value.fill_(0 if name in ("temperature", "top_k") else 1)

    def load(
        self, tokens: Sequence[int], sequences: Sequence[int], cache: KVCache, sampling: Sequence[Sampling]
    ) -> None:
        """Put sequences of a cache, with their last tokens, into the first rows; the others are idle."""
        self.idle()
        columns = {
            "ids": tokens,
            "positions": [cache.lengths[s] for s in sequences],
            "starts": [cache.starts[s] for s in sequences],
            "ends": [cache.capacities[s] - 1 for s in sequences],
            "draws": [1] * len(tokens),  # the first token, draw 0, came from the prompt
            "seeds": [sampling[s].seed for s in sequences],
        }
        for name, values in columns.items():
            self.state[name][: len(tokens)] = torch.tensor(values)
        for name, values in self.settings.items():
            values[: len(tokens)] = torch.tensor([getattr(sampling[s], name) for s in sequences], dtype=values.dtype)

    def take(self, other: Step, rows: Sequence[int]) -> None:
        """Go on with these rows of another step."""
        self.idle()
        at = torch.tensor(rows, device=self.cu.device)
        for mine, theirs in ((self.state, other.state), (self.settings, other.settings)):
            for name in mine:
                mine[name][: len(rows)] = theirs[name][at]

    def run(self) -> None:
        """One token more for every row. A row past its end writes over its own last cache row."""
        s = self.state
        at = torch.minimum(s["positions"], s["ends"])
        segments = Segments(self.cu, s["starts"].int(), (at + 1).int(), 1, self.longest, s["starts"] + at, prompt=False)
        x = self.model.text.embed(s["ids"])
        logits = self.logits(self.model.text(x, at, segments, self.layers))
        if "seen" in s:
            s["seen"].scatter_(1, s["ids"][:, None], True)
            penalty = self.settings["repetition_penalty"][:, None]
            lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = torch.where(s["seen"][:, : logits.shape[1]], lowered, logits)
        self.drawn.copy_(draw(logits, self.settings, s["seeds"], s["draws"]))
        s["ids"].copy_(self.drawn.clamp_min(0))
        s["positions"] += 1
        s["draws"] += 1

    def __call__(self) -> Callable[[], list[int]]:
        """Start one step. Returns what waits for its tokens and gives them."""
        if self.graph is None:
            self.run()
        else:
            self.graph.replay()
        if self.drawn.device.type == "cpu":
            tokens = self.drawn.tolist()
            return lambda: checked(tokens)
        host = torch.empty(self.rows, dtype=torch.int64, pin_memory=True)
        host.copy_(self.drawn, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> list[int]:
            copied.synchronize()
            return checked(host.tolist())

        return wait


def _capture(run: Callable[[], None], what: str):
    """A CUDA graph of run(), or None, announced, where it cannot be captured."""
    before = torch.cuda.current_stream()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(before)
        with torch.cuda.stream(side):
            for _ in range(3):  # compiles kernels and warms the libraries up, which a capture must not see
                run()
        before.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            run()
        return graph
    except RuntimeError as e:
        torch.cuda.set_stream(before)  # a capture that fails as it ends leaves its own stream current
        print(f"minilava: {what} without CUDA graphs: {str(e).splitlines()[0]}", file=sys.stderr)
        return None
