"""Packed prompts -> tokens: encode the pictures, prefill in chunks, then decode every unfinished sequence together.

On a GPU decoding runs in fixed memory, from CUDA graphs (runtime/graphs.py); elsewhere, with drafts, or while another
batch of the same engine is under way, step by step from the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from minilava.model.llava import LLaVA
from minilava.packed import Packed
from minilava.runtime.cache import KVCache
from minilava.runtime.draft import Draft
from minilava.runtime.graphs import Graphs
from minilava.runtime.pictures import Pictures
from minilava.runtime.prompts import Prompts, common
from minilava.runtime.sampling import Sampler, Sampling
from minilava_kernels.linear import NATIVE_ROWS

PREFILL_CHUNK = 4096  # rows; bounds the activations of a long prompt (the widest is chunk x MLP width)


@dataclass
class Clock:
    """Seconds per phase of one batch. ttft_s: from the start of the batch to the first token. decode_tokens: all but
    each sample's first. cached_views, cached_tokens: encoded, and read by the decoder, before this batch.
    draft_tokens: guessed; draft_accepted: guessed right."""

    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    decode_tokens: int = 0
    cached_views: int = 0
    cached_tokens: int = 0
    draft_tokens: int = 0
    draft_accepted: int = 0
    started: float = field(default_factory=time.perf_counter)


class Engine:
    """Runs one model. usable_ids: ids at or past this are padding rows of the vocabulary and are never emitted;
    banned_ids: further ids that are never emitted (the image placeholder of the hf dialect). static: decode in fixed
    memory; None: on a GPU. pictures, prompts: what is kept from one batch to the next, if anything; of prompts only
    those of batches of one sample, in fixed memory only the last one."""

    def __init__(
        self,
        model: LLaVA,
        usable_ids: int,
        banned_ids: tuple[int, ...] = (),
        static: bool | None = None,
        pictures: Pictures | None = None,
        prompts: Prompts | None = None,
    ):
        self.model = model
        self.usable_ids = usable_ids
        weight = model.text.norm.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.banned_ids = torch.tensor([i for i in banned_ids if i < usable_ids], device=self.device, dtype=torch.int64)
        static = self.device.type == "cuda" if static is None else static
        self.graphs = Graphs(model, self._logits) if static else None
        self.pictures, self.prompts = pictures, prompts

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
        draft: list[int] | None = None,
    ) -> Iterator[list[tuple[int, int]]]:
        """Yields, step by step, (sample, token) of every sample that is still running; sample s stops after an eos id
        (which is yielded) or max_new_tokens[s] tokens. chunk: rows prefilled at a time. progress wraps the loops over
        views and prompt chunks, as tqdm does. draft: how many tokens to guess ahead in every step, per sample, which
        may then yield several at once. The tokens are the same: on a CPU to the bit, because a step never has more rows
        than those whose bits do not depend on each other (kernels/linear.py); on a GPU up to ties within rounding."""
        clock = clock or Clock()
        capacities = [n + extra for n, extra in zip(packed.lengths, max_new_tokens, strict=True)]
        if self.graphs is not None and not any(draft or ()) and self.graphs.free.acquire(blocking=False):
            try:
                cache = self.graphs.cache(capacities)
                rows = self._rows(packed, clock, progress)
                if self._keeps(packed.lengths):
                    cache.lengths[0] = clock.cached_tokens = self._known(rows)
                self.graphs.held = None  # from here on the memory holds something else
                logits = self._prefill(rows, packed.lengths, cache, chunk, clock, progress)
                tokens: list[int] = []
                if self._keeps(packed.lengths):
                    self.graphs.held = rows, tokens
                for found in self._static(logits, cache, sampling, max_new_tokens, eos_ids, clock):
                    tokens.append(found[0][1])
                    yield found
            finally:
                self.graphs.free.release()
            return
        rows = self._rows(packed, clock, progress)
        began = time.perf_counter()
        if self._keeps(packed.lengths):
            cache = self.prompts.take(rows, capacities[0], lambda n: self._cache([n]))
            clock.cached_tokens = cache.lengths[0]
        else:
            cache = self._cache(capacities)
        clock.prefill_s += time.perf_counter() - began
        samplers = [Sampler(s) for s in sampling]
        drafts = _drafts(packed, draft) if any(draft or ()) else [None] * len(samplers)
        logits = self._prefill(rows, packed.lengths, cache, chunk, clock, progress)
        try:
            yield from self._steps(logits, cache, samplers, max_new_tokens, eos_ids, clock, drafts)
        except GeneratorExit:  # whoever reads has had enough; after any other exception a row may be half written
            self._keep(rows, cache, samplers)
            raise
        self._keep(rows, cache, samplers)

    def _rows(self, packed: Packed, clock: Clock, progress: Callable) -> Tensor:
        """What the decoder reads: the embedded rows (T, D), with the pictures encoded."""
        if packed.patches is not None and packed.features is None:
            began = time.perf_counter()
            encode = self.model.encode if self.graphs is None else self.graphs.encode

            def run(patches: Tensor) -> Tensor:
                return encode(patches.to(self.device), progress)

            if self.pictures is None:
                features = run(packed.patches)
            else:
                features, clock.cached_views = self.pictures.features(packed.patches, run)
            packed = replace(packed, features=features, patches=None)
            self._wait()
            clock.encode_s += time.perf_counter() - began
        began = time.perf_counter()
        rows = self.model.embed(packed.to(self.device))
        clock.prefill_s += time.perf_counter() - began
        return rows

    def _cache(self, capacities: list[int]) -> KVCache:
        return KVCache(self.model.config.text, capacities, self.model.text.cache_dtype, self.device)

    def _keeps(self, samples: Sequence) -> bool:
        """Whether what is read of this batch is kept for the next."""
        return self.prompts is not None and len(samples) == 1

    def _keep(self, rows: Tensor, cache: KVCache, samplers: list[Sampler]) -> None:
        """Leave the cache of a batch of one sample to the next: it holds the prompt and all tokens but the last."""
        if self._keeps(samplers):
            tokens = samplers[0].generated[: cache.lengths[0] - len(rows)]
            self.prompts.keep([rows, self._embed(tokens)], cache)

    def _known(self, rows: Tensor) -> int:
        """Of how many of a prompt's rows, all but the last at most, the fixed memory holds the keys and values."""
        if self.graphs.held is None:
            return 0
        prompt, tokens = self.graphs.held
        return min(common([prompt, self._embed(tokens[:-1])], rows), len(rows) - 1)

    def _embed(self, tokens: list[int]) -> Tensor:
        return self.model.text.embed(torch.tensor(tokens, dtype=torch.int64, device=self.device))

    def _prefill(
        self, rows: Tensor, lengths: Sequence[int], cache: KVCache, chunk: int, clock: Clock, progress: Callable
    ) -> Tensor:
        """Run what the cache does not hold yet of the prompts' rows through the decoder, ``chunk`` at a time; logits of
        each sample's last row, (S, V). Only a batch of one sample may begin with a cache that holds something."""
        began = time.perf_counter()
        rows = rows[sum(cache.lengths) :]
        lengths = [n - known for n, known in zip(lengths, cache.lengths, strict=True)]
        ends = list(accumulate(lengths))
        hidden = []
        for first in progress(range(0, len(rows), chunk), "reading the prompt"):
            stop = min(first + chunk, len(rows))
            parts = [  # (sample, rows of it in this chunk, whether its last row is among them)
                (s, min(end, stop) - max(end - n, first), end <= stop)
                for s, (n, end) in enumerate(zip(lengths, ends, strict=True))
                if end > first and end - n < stop
            ]
            positions, segments = cache.extend([s for s, _, _ in parts], [n for _, n, _ in parts])
            at = segments.cu[1:].long() - 1
            part = rows[first:stop]
            if self._keeps(cache.lengths):
                part = part.clone()  # on a GPU the blocks add to it in place, and prompts are known by these rows
            last = self.model.text(part, positions, segments, cache.layers, last=at)
            done = [i for i, (_, _, ended) in enumerate(parts) if ended]
            hidden.append(last[done])
        logits = self._logits(torch.cat(hidden))
        self._wait()
        clock.prefill_s += time.perf_counter() - began
        return logits

    def _steps(
        self,
        logits: Tensor,
        cache: KVCache,
        samplers: list[Sampler],
        max_new_tokens: list[int],
        eos_ids: tuple[int, ...],
        clock: Clock,
        drafts: list[Draft | None],
    ) -> Iterator[list[tuple[int, int]]]:
        """Tokens from the prompts' last logits on. A step's logits have one row per running sample and, after it, one
        per guessed token."""
        began = 0.0
        running: list[tuple[int, list[int]]] = [(s, []) for s in range(len(samplers))]  # sample, its guesses
        while True:
            found, going, first = [], [], 0
            for s, guesses in running:
                rows = logits[first : first + len(guesses) + 1]
                first += len(rows)
                tokens = _draw(samplers[s], rows, guesses, eos_ids)
                cache.lengths[s] -= len(rows) - len(tokens)  # rows of wrong guesses
                clock.draft_accepted += len(tokens) - 1
                found += [(s, token) for token in tokens]
                if tokens[-1] not in eos_ids and len(samplers[s].generated) < max_new_tokens[s]:
                    going.append(s)
                if drafts[s] is not None:
                    drafts[s].extend(tokens)
            if clock.ttft_s:
                clock.decode_tokens += len(found)
                clock.decode_s += time.perf_counter() - began
            else:
                clock.ttft_s = time.perf_counter() - clock.started
            yield found
            if not going:
                return
            began = time.perf_counter()
            running = []
            for s in going:
                left = max_new_tokens[s] - len(samplers[s].generated)
                most = min(left, NATIVE_ROWS.get(self.dtype, 16) // len(going)) - 1
                running.append((s, drafts[s].guess(most) if drafts[s] is not None else []))
            logits = self._decode(running, samplers, cache, clock)

    def _decode(
        self, running: list[tuple[int, list[int]]], samplers: list[Sampler], cache: KVCache, clock: Clock
    ) -> Tensor:
        """One step: append each running sample's last token and the guesses after it; the logits of all, (n, V)."""
        tokens = [[samplers[s].generated[-1], *guesses] for s, guesses in running]
        positions, segments = cache.extend([s for s, _ in running], [len(t) for t in tokens], apart=True)
        logits = self._logits(self.model.text(self._embed(sum(tokens, [])), positions, segments, cache.layers))
        clock.draft_tokens += sum(len(t) - 1 for t in tokens)
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
        penalized = any(s.repetition_penalty != 1.0 for s in sampling)
        step = self.graphs.step(len(going), max(cache.capacities), penalized)
        step.load([tokens[s] for s in going], going, cache, sampling)
        rows, pending = going, None  # rows: which sequence each row of the step decodes
        while going:
            began = time.perf_counter()
            if any(produced[s] + (pending is not None) < max_new_tokens[s] for s in going):
                smaller = self.graphs.step(len(going), max(cache.capacities), penalized)
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


def _draw(sampler: Sampler, logits: Tensor, guesses: list[int], eos_ids: tuple[int, ...]) -> list[int]:
    """Tokens from logits (1 + len(guesses), V): row i holds if the guesses before it are the tokens drawn so far."""
    tokens = []
    for row, guess in zip(logits, [*guesses, None], strict=True):
        tokens.append(sampler(row))
        if tokens[-1] != guess or guess in eos_ids:
            break
    return tokens


def _drafts(packed: Packed, most: list[int]) -> list[Draft | None]:
    """One per sample that wants any, knowing its prompt's text: -1 where a picture's row stands."""
    ids = packed.ids if packed.splice_rows is None else packed.ids.index_fill(0, packed.splice_rows, -1)
    texts = ids.split(list(packed.lengths))
    return [Draft(text.tolist(), n) if n else None for text, n in zip(texts, most, strict=True)]
