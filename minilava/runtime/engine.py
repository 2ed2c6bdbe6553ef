"""Packed prompts -> tokens: encode the pictures, prefill in chunks, then decode every unfinished sequence together.

On a GPU decoding runs in fixed memory, from CUDA graphs (runtime/graphs.py); elsewhere, with a repetition penalty, or
while another batch of the same engine is under way, step by step from the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minilava.model.llava import LLaVA
from minilava.packed import Packed
from minilava.runtime.cache import KVCache
from minilava.runtime.graphs import Graphs
from minilava.runtime.sampling import Sampler, Sampling

PREFILL_CHUNK = 4096  # rows; bounds the activations of a long prompt (the widest is chunk x MLP width)


@dataclass
class Clock:
    """Seconds per phase of one batch. ttft_s: from the start of the batch to the first token."""

    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    decode_tokens: int = 0
    started: float = field(default_factory=time.perf_counter)


class Engine:
    """Runs one model. usable_ids: ids at or past this are padding rows of the vocabulary and are never emitted;
    banned_ids: further ids that are never emitted (the image placeholder of the hf dialect). static: decode in fixed
    memory; None: on a GPU."""

    def __init__(self, model: LLaVA, usable_ids: int, banned_ids: tuple[int, ...] = (), static: bool | None = None):
        self.model = model
        self.usable_ids = usable_ids
        weight = model.text.embed.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.banned_ids = torch.tensor([i for i in banned_ids if i < usable_ids], device=self.device, dtype=torch.int64)
        static = self.device.type == "cuda" if static is None else static
        self.graphs = Graphs(model, self._logits) if static else None

    @torch.inference_mode()
    def generate(
        self,
        packed: Packed,
        sampling: list[Sampling],
        max_new_tokens: list[int],
        eos_ids: tuple[int, ...],
        chunk: int = PREFILL_CHUNK,
        clock: Clock | None = None,
        progress: Callable[[Iterable, str], Iterable] = lambda items, _what: items,
    ) -> Iterator[list[tuple[int, int]]]:
        """Yields, step by step, (sample, token) of every sample that is still running; sample s stops after an eos id
        (which is yielded) or max_new_tokens[s] tokens. chunk: rows prefilled at a time. progress wraps the loops over
        views and prompt chunks, as tqdm does."""
        clock = clock or Clock()
        packed = packed.to(self.device)
        capacities = [n + extra for n, extra in zip(packed.lengths, max_new_tokens, strict=True)]
        plain = all(s.repetition_penalty == 1.0 for s in sampling)
        if self.graphs is not None and plain and self.graphs.free.acquire(blocking=False):
            try:
                cache = self.graphs.cache(capacities)
                packed = self._encode(packed, clock, progress)
                logits = self._prefill(packed, cache, chunk, clock, progress)
                yield from self._static(logits, cache, sampling, max_new_tokens, eos_ids, clock)
            finally:
                self.graphs.free.release()
            return
        cache = KVCache(self.model.config.text, capacities, self.dtype, self.device)
        packed = self._encode(packed, clock, progress)
        logits = self._prefill(packed, cache, chunk, clock, progress)
        samplers = [Sampler(s) for s in sampling]
        running = list(range(len(samplers)))
        for step in range(max(max_new_tokens)):
            tokens = [samplers[s](row) for s, row in zip(running, logits, strict=True)]
            if step == 0:
                clock.ttft_s = time.perf_counter() - clock.started
            yield list(zip(running, tokens, strict=True))
            went_on = zip(running, tokens, strict=True)
            alive = [(s, t) for s, t in went_on if t not in eos_ids and step + 1 < max_new_tokens[s]]
            if not alive:
                return
            running = [s for s, _ in alive]
            logits = self._decode([t for _, t in alive], running, cache, clock)

    def _encode(self, packed: Packed, clock: Clock, progress: Callable) -> Packed:
        if packed.patches is None or packed.features is not None:
            return packed
        began = time.perf_counter()
        encode = self.model.encode if self.graphs is None else self.graphs.encode
        packed = replace(packed, features=encode(packed.patches, progress))
        self._wait()
        clock.encode_s += time.perf_counter() - began
        return packed

    def _prefill(self, packed: Packed, cache: KVCache, chunk: int, clock: Clock, progress: Callable) -> Tensor:
        """Run the prompts through the decoder, ``chunk`` rows at a time; logits of each sample's last row, (S, V)."""
        began = time.perf_counter()
        embedded = self.model.embed(packed)
        ends = torch.tensor(packed.lengths).cumsum(0).tolist()
        hidden = []
        for first in progress(range(0, packed.tokens, chunk), "reading the prompt"):
            stop = min(first + chunk, packed.tokens)
            parts = [  # (sample, rows of it in this chunk, whether its last row is among them)
                (s, min(end, stop) - max(end - n, first), end <= stop)
                for s, (n, end) in enumerate(zip(packed.lengths, ends, strict=True))
                if end > first and end - n < stop
            ]
            positions, segments = cache.extend([s for s, _, _ in parts], [n for _, n, _ in parts])
            rows = segments.cu[1:].long() - 1
            last = self.model.text(embedded[first:stop], positions, segments, cache.layers, last=rows)
            done = [i for i, (_, _, ended) in enumerate(parts) if ended]
            hidden.append(last[done])
        logits = self._logits(torch.cat(hidden))
        self._wait()
        clock.prefill_s += time.perf_counter() - began
        return logits

    def _decode(self, tokens: list[int], running: list[int], cache: KVCache, clock: Clock) -> Tensor:
        """One step: append each running sample's token, return the next logits, (len(running), V)."""
        began = time.perf_counter()
        ids = torch.tensor(tokens, device=self.device)
        positions, segments = cache.extend(running, [1] * len(running))
        x = torch.nn.functional.embedding(ids, self.model.text.embed.weight)
        logits = self._logits(self.model.text(x, positions, segments, cache.layers))
        self._wait()
        clock.decode_s += time.perf_counter() - began
        clock.decode_tokens += len(running)
        return logits

    def _static(
        self,
        logits: Tensor,
        cache: KVCache,
        sampling: list[Sampling],
        max_new_tokens: list[int],
        eos_ids: tuple[int, ...],
        clock: Clock,
    ) -> Iterator[list[tuple[int, int]]]:
        """Tokens from the prompts' last logits on, in fixed memory. A step is started before the tokens of the one
        before it are read, so the last step of a batch may be for nothing."""
        tokens = self.graphs.first(logits, sampling)
        clock.ttft_s = time.perf_counter() - clock.started
        produced, going = [1] * len(tokens), list(range(len(tokens)))
        yield list(zip(going, tokens, strict=True))

        def goes_on(s: int, token: int) -> bool:
            return token not in eos_ids and produced[s] < max_new_tokens[s]

        going = [s for s, t in zip(going, tokens, strict=True) if goes_on(s, t)]
        if not going:
            return
        step = self.graphs.step(len(going), max(cache.capacities))
        step.load([tokens[s] for s in going], going, cache, sampling)
        rows, pending = going, None  # rows: which sequence each row of the step decodes
        while going:
            began = time.perf_counter()
            if any(produced[s] + (pending is not None) < max_new_tokens[s] for s in going):
                smaller = self.graphs.step(len(going), max(cache.capacities))
                if smaller is not step:
                    smaller.take(step, [rows.index(s) for s in going])
                    step, rows = smaller, going
                started = rows, step()
            else:
                started = None
            if pending is not None:
                was, wait = pending
                found = [(s, t) for s, t in zip(was, wait(), strict=False) if s in going]
                for s, _ in found:
                    produced[s] += 1
                going = [s for s, t in found if goes_on(s, t)]
                clock.decode_s += time.perf_counter() - began
                clock.decode_tokens += len(found)
                yield found
            pending = started

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.text.logits(hidden)[:, : self.usable_ids].float()
        return logits.index_fill_(1, self.banned_ids, -torch.inf) if len(self.banned_ids) else logits

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
