"""Packed prompts -> tokens: encode the pictures, prefill in chunks, then decode every unfinished sequence together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minilava.model.llava import LLaVA
from minilava.packed import Packed
from minilava.runtime.cache import KVCache
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
    banned_ids: further ids that are never emitted (the image placeholder of the hf dialect)."""

    def __init__(self, model: LLaVA, usable_ids: int, banned_ids: tuple[int, ...] = ()):
        self.model = model
        self.usable_ids = usable_ids
        self.banned_ids = [i for i in banned_ids if i < usable_ids]
        weight = model.text.embed.weight
        self.device, self.dtype = weight.device, weight.dtype

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
        packed = replace(packed, features=self.model.encode(packed.patches, progress))
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

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.text.logits(hidden)[:, : self.usable_ids].float()
        if self.banned_ids:
            logits[:, self.banned_ids] = -torch.inf
        return logits

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
