"""Prompts that were read before, with their keys and values: the next turn of a conversation, or another question after
the same pictures, only reads what is new.

Prompts are compared by their rows as the decoder gets them, embedded tokens and picture features alike: cached keys and
values depend on these bits and on nothing else. The rows that are new are multiplied in other company than in a whole
reading, so tokens are those of a whole reading up to ties within rounding, as with prefill in chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor

from minilava.runtime.cache import KVCache

SPARE = 512  # cache rows are taken in multiples of this, so that a few more turns fit without a copy


class Prompts:
    """KV caches of one sequence each, with the embedded rows that they hold, in pieces (n, D): up to ``limit`` bytes,
    those used last. Any number of threads may use it at once; a cache is lent to one of them at a time."""

    def __init__(self, limit: int):
        self.limit = limit
        self.kept: list[tuple[list[Tensor], KVCache]] = []  # the one used last at the end
        self.lock = threading.Lock()

    def take(self, rows: Tensor, capacity: int, make: Callable[[int], KVCache]) -> KVCache:
        """A cache with room for ``capacity`` rows that already holds as many of the rows (T, D) as are known, but
        never the last: its output is wanted. make(n): a new cache of n rows."""
        with self.lock:
            counts = [common(known, rows) for known, _ in self.kept]
            best = max(range(len(counts)), key=lambda i: (counts[i], i), default=None)
            count = 0 if best is None else min(counts[best], len(rows) - 1)
            if not count:
                cache = make(_rounded(capacity))
                self._shrink(self.limit - cache.nbytes)
                return cache
            known, old = self.kept[best]
            if 2 * count >= sum(map(len, known)):  # a continuation takes the cache over
                del self.kept[best]
                if old.capacities[0] >= capacity:
                    old.lengths[0] = count
                    return old
            cache = make(_rounded(capacity))  # the start alone, such as the same system block, is copied
            self._shrink(self.limit - cache.nbytes)
            cache.begin_like(old, count)
            return cache

    def keep(self, rows: list[Tensor], cache: KVCache) -> None:
        """Take a cache (back), filled with the keys and values of these rows."""
        with self.lock:
            if (size := _nbytes(rows, cache)) <= self.limit:
                self._shrink(self.limit - size)
                self.kept.append((rows, cache))

    def forget(self) -> None:
        """After a change of the weights."""
        with self.lock:
            self.kept.clear()

    def _shrink(self, limit: int) -> None:
        while self.kept and sum(_nbytes(rows, cache) for rows, cache in self.kept) > limit:
            del self.kept[0]


def _nbytes(rows: list[Tensor], cache: KVCache) -> int:
    return cache.nbytes + sum(piece.nbytes for piece in rows)


def common(known: list[Tensor], rows: Tensor) -> int:
    """How many first rows (T, D) are the same as those of pieces (n, D)."""
    count = 0
    for piece in known:
        n = min(len(piece), len(rows) - count)
        same = int((piece[:n] == rows[count : count + n]).all(1).long().cumprod(0).sum())
        count += same
        if same < len(piece):
            break
    return count


def _rounded(capacity: int) -> int:
    return -(-capacity // SPARE) * SPARE
