"""DPO's frozen reference: every pair's log-probabilities under the starting weights, computed once, kept on disk.

    OUT/reference/part-00000.safetensors    one file per process that computed some; together they hold all pairs

The pairs of a mixture are numbered source by source. A run that was killed goes on with the pairs that are missing;
a store of other weights, and a pair whose text has changed since, are refused (spec 6.7).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minilava.checkpoint import open_checkpoint
from minilava.checkpoint.shard import opened
from minilava.data.stream import Batch, Stream
from minilava.errors import UserError
from minilava.model.llava import LLaVA
from minilava.packed import Packed
from minilava.train.objective import log_probabilities
from minilava.train.ranks import Ranks

FOLDER = "reference"
SAVE_EVERY = 64  # packs between two writes of a part
LEFT, REFUSED = -1, -2  # marks of pairs without values: still to be computed; not usable


@dataclass(frozen=True)
class Reference:
    """values: float32 (N, 2), log-probabilities of chosen and rejected. marks: int64 (N,), LEFT, REFUSED, or the
    checksum of the pair's tokens. rows: a pair's name in Batch.names -> its number."""

    values: Tensor
    marks: Tensor
    rows: dict[str, int]

    def of(self, batch: Batch) -> Tensor:
        """float32 (pairs, 2) for the pairs of a pack. UserError where a pair's tokens are not those of the store."""
        rows = [self.rows[name] for name in batch.names[::2]]
        for name, row, mark in zip(batch.names[::2], rows, checksums(batch.packed), strict=True):
            if self.marks[row] != mark:
                raise UserError(f"{name} has changed since its reference was computed: remove OUT/{FOLDER}")
        return self.values[rows]


def prepare(out: Path, init: str | Path, model: LLaVA, stream: Stream, ranks: Ranks, workers: int = 0) -> Reference:
    """The reference of every pair of the stream's mixture, from the store or computed now with ``model``.

    model: holds the weights of ``init``, unsharded. All processes share the work, and all return the whole.
    """
    weights, folder = weights_digest(init), out / FOLDER
    reference = _open(folder, weights, stream)
    rows = torch.nonzero(reference.marks == LEFT)[:, 0].tolist()[ranks.rank :: ranks.world]
    ranks.barrier()  # every process has read what there is before one of them writes
    if rows:
        _compute(folder / f"part-{ranks.rank:05d}.safetensors", weights, reference, rows, model, stream, workers, ranks)
    ranks.barrier()
    return _open(folder, weights, stream)


def weights_digest(init: str | Path) -> str:
    """A hash of a checkpoint's files of tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for file in open_checkpoint(init).files:
        with open(file, "rb") as f:
            digest.update(hashlib.file_digest(f, "blake2b").digest())
    return digest.hexdigest()


def checksums(packed: Packed) -> list[int]:
    """One number per pair of a pack, of both samples' ids, lengths and labels."""
    ends = packed.cu_seqlens[::2].tolist()
    ids, labels = packed.ids.cpu().numpy(), packed.labels.cpu().numpy()
    spans = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    return [zlib.crc32(labels[span].tobytes(), zlib.crc32(ids[span].tobytes())) for span in spans]


def _open(folder: Path, weights: str, stream: Stream) -> Reference:
    """What the parts hold together. Raises UserError for a store of other weights or of another mixture."""
    names = [f"{source.name}[{i}]" for source in stream.mixture.sources for i in range(len(source.records))]
    values, marks = torch.zeros(len(names), 2), torch.full((len(names),), LEFT)
    for path in sorted(folder.glob("part-*.safetensors")):
        with opened(path) as f:
            part, metadata = {key: f.get_tensor(key) for key in ("values", "marks")}, f.metadata()
        if metadata.get("weights") != weights or len(part["marks"]) != len(names):
            what = "starting weights" if metadata.get("weights") != weights else "data"
            raise UserError(f"{folder} is the reference of other {what}: name another out, or remove it")
        done = part["marks"] != LEFT
        values[done], marks[done] = part["values"][done], part["marks"][done]
    return Reference(values, marks, {name: row for row, name in enumerate(names)})


def _write(path: Path, weights: str, reference: Reference) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"values": reference.values, "marks": reference.marks}, temporary, {"weights": weights})
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from None


def _compute(
    path: Path, weights: str, reference: Reference, rows: list[int], model: LLaVA, stream: Stream, workers: int,
    ranks: Ranks,
) -> None:  # fmt: skip
    """Fill in ``rows``, and write the part every SAVE_EVERY packs and at the end."""
    with tqdm(total=len(rows), desc="reference", unit="pair", disable=None if ranks.first else True) as bar:
        for number, (done, samples) in enumerate(_packs(_Pairs(stream, rows), stream, reference, workers), 1):
            if done:
                packed = stream.pack(samples)
                with torch.no_grad():
                    values = log_probabilities(model, packed.to(ranks.device))[0].view(-1, 2).cpu()
                if not values.isfinite().all():
                    names = ", ".join(name for name, row in reference.rows.items() if row in done)
                    raise UserError(f"the starting weights give no finite log-probability for {names}")
                reference.values[done], reference.marks[done] = values, torch.tensor(checksums(packed))
            bar.update(len(done))
            if number % SAVE_EVERY == 0:
                _write(path, weights, reference)
    _write(path, weights, reference)


def _packs(pairs: _Pairs, stream: Stream, reference: Reference, workers: int) -> Iterator[tuple[list[int], list]]:
    """(numbers, samples) of pairs up to the stream's budget; those that cannot be used are marked on the way."""
    options = {"prefetch_factor": 16, "multiprocessing_context": "fork"} if workers else {}
    # A generator of its own: the run's random numbers do not depend on whether the store was already there.
    loader = DataLoader(pairs, batch_size=None, num_workers=workers, generator=torch.Generator(), **options)
    numbers, held, tokens = [], [], 0
    for row, made in loader:
        size = 0 if isinstance(made, str) else sum(s.own_tokens for s in made)
        if isinstance(made, str) or size > stream.budget:
            reference.marks[row] = REFUSED  # the stream refuses it as well, and says why
            continue
        if held and tokens + size > stream.budget:
            yield numbers, held
            numbers, held, tokens = [], [], 0
        numbers, held, tokens = [*numbers, row], held + made, tokens + size
    yield numbers, held


class _Pairs(Dataset):
    """Some pairs of a mixture: (number, two samples or the reason why there are none)."""

    def __init__(self, stream: Stream, rows: list[int]):
        self.stream, self.rows = stream, rows
        counts = torch.tensor([len(source.records) for source in stream.mixture.sources])
        self.ends = counts.cumsum(0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, list | str]:
        row = self.rows[i]
        number = int(torch.searchsorted(self.ends, row, right=True))
        index = row - (int(self.ends[number - 1]) if number else 0)
        return row, self.stream.read(number, index)[1]
