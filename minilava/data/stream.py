"""Mixture -> an endless stream of packed batches: deterministic, shardable, resumable at any batch.

The shuffled records form one endless line of positions, epoch after epoch. ``lanes`` readers share it: lane l takes
positions l, l + lanes, l + 2 lanes, ... and fills one pack after another up to the token budget. A training step is one
pack of every lane, and rank r of W owns lanes r, r + W, ...: the step holds the same samples for every number of ranks
and workers, and the state of a run is one position per lane.
"""

from __future__ import annotations

import math
import signal
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from minilava.config import ModelConfig
from minilava.data.convert import to_samples
from minilava.data.mixture import Mixture
from minilava.errors import UserError
from minilava.inputs.pack import pack
from minilava.packed import Packed

MAX_REFUSED_IN_A_ROW = 1000  # a source of which nothing can be used must not spin for ever


@dataclass
class Batch:
    """One pack of a lane. names: record of every sample; in pairs "source[index]", twice. after: the lane's next
    position. refused: what was left out on the way, as "name: reason". views: with a store of features, the keys of
    the views that are not all in it."""

    packed: Packed
    names: list[str]
    lane: int
    after: int
    refused: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)


class Stream(IterableDataset):
    """The batches of some lanes, in turns.

    budget: most token rows of a pack. form: see data.convert. positions: where every lane stands (all of them).
    strict: a record that cannot be used stops the run instead of being counted and left out. features: a store of
    tower outputs, whose ``load`` may put them in place of a pack's pixels (train.features).
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Any,
        config: ModelConfig,
        budget: int,
        form: str = "chat",
        lanes: int = 1,
        seed: int = 0,
        positions: Sequence[int] | None = None,
        rank: int = 0,
        world: int = 1,
        strict: bool = False,
        features: Any = None,
    ):
        super().__init__()
        if lanes % world:
            raise UserError(f"{lanes} micro-batches per step cannot be shared by {world} processes equally")
        if not len(mixture):
            raise UserError("the mixture has no records")
        self.mixture, self.tokenizer, self.config = mixture, tokenizer, config
        self.budget, self.form, self.lanes, self.seed, self.strict = budget, form, lanes, seed, strict
        self.features = features
        self.positions = list(positions or range(lanes))
        self.own = list(range(rank, lanes, world))
        self._orders: dict[int, Any] = {}  # epoch -> its order; lanes may be epochs apart

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        own = self.own if worker is None else self.own[worker.id :: worker.num_workers]
        readers = [self._lane(lane) for lane in own]
        try:
            while True:
                for reader in readers:
                    yield next(reader)
        except UserError as e:  # an exception of a worker would arrive as a page of traceback
            yield e

    def loader(self, workers: int) -> Loader:
        """Batches made by worker processes ahead of time; 0 makes them in this process."""
        workers = workers and math.gcd(workers, len(self.own))  # it goes round its workers: the order stays the lanes'
        options = {"prefetch_factor": 4, "multiprocessing_context": "fork", "worker_init_fn": _outlive_signals}
        # A generator of its own: a resumed run must find the global one as it was saved.
        loader = DataLoader(
            self, batch_size=None, num_workers=workers, generator=torch.Generator(), **(options if workers else {})
        )
        return Loader(iter(loader))

    def _lane(self, lane: int) -> Iterator[Batch]:
        at, held, refused, barren = self.positions[lane], None, [], 0
        samples: list = []
        names: list[str] = []
        filled = 0  # rows of the samples
        while True:
            name, made = held or self._samples(at, refused)
            held = None
            tokens = sum(s.own_tokens for s in made)
            if tokens > self.budget:
                self._refuse(refused, f"{name}: {tokens} tokens exceed the budget of {self.budget}")
                made, tokens = [], 0
            barren = 0 if made else barren + 1
            if barren > MAX_REFUSED_IN_A_ROW:
                raise UserError(f"no usable record among {barren}; the last: {refused[-1]}")
            if samples and filled + tokens > self.budget:
                packed, views = self.pack(samples), []
                if self.features is not None:
                    packed, views = self.features.load(packed)
                yield Batch(packed, names, lane, at, refused, views)
                samples, names, refused, held, filled = [], [], [], (name, made), 0
                continue
            samples += made
            filled += tokens
            names += [name] * len(made)
            at += self.lanes

    def _samples(self, position: int, refused: list[str]) -> tuple[str, list]:
        epoch, offset = divmod(position, len(self.mixture))
        if epoch not in self._orders:
            if len(self._orders) > len(self.own):  # room for an epoch per lane, which only go forward
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = self.mixture.epoch(epoch, self.seed)
        number, index = map(int, self._orders[epoch][offset])
        name, made = self.read(number, index, position)
        if isinstance(made, str):
            self._refuse(refused, f"{name}: {made}")
            made = []
        return name, made

    def read(self, number: int, index: int, position: int = 0) -> tuple[str, list | str]:
        """A record of source ``number``: its name, and its samples or the reason why it cannot be used.

        position: draws the layout of a mixed source. A pair keeps one layout for ever, that of its reference, and is
        named by its place: ids of strangers need not be unique.
        """
        source = self.mixture.sources[number]
        name, pairs = f"{source.name}[{index}]", self.form == "pairs"
        seed = self.seed * 1_000_003 + (zlib.crc32(name.encode()) if pairs else position)
        try:
            record = source.records[index]
            name = name if pairs else str(record.get("id", record.get("sample_id", name)))
            draw = torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
            return name, to_samples(record, source, self.form, self.tokenizer, self.config, draw)
        except UserError as e:
            return name, str(e)

    def pack(self, samples: list) -> Packed:
        return pack(samples, self.config.vision.patches)

    def _refuse(self, refused: list[str], line: str) -> None:
        if self.strict:
            raise UserError(line)
        refused.append(line)


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the workers as well, while the run still needs them for its last step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Loader:
    """next() gives a Batch or raises UserError; ``waited`` counts the seconds that took."""

    def __init__(self, items: Iterator[Batch | UserError]):
        self.items, self.waited = items, 0.0

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        item = next(self.items)
        self.waited += time.perf_counter() - began
        if isinstance(item, UserError):
            raise item
        return item

    def close(self) -> None:
        """End the worker processes. Python would ask them by SIGTERM when it exits, which they do not hear, and then
        wait for ever."""
        if shut := getattr(self.items, "_shutdown_workers", None):
            shut()
            for worker in self.items._workers:  # one that hangs in a read
                worker.kill()
