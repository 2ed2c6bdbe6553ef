"""Mixes data sets: which sources, how much of each, and the order of an epoch; all from a YAML file and a seed.

    sources:
      - {name: nlvr2, path: nlvr2.jsonl, images: images/, strategy: "random:10%", weight: 2.5, scenario: multi-image}
      - {world: spot_difference, split: train, samples: 20000, layout: mixed, front_ratio: 0.5, turns: 4}

Paths are relative to the YAML file. ``datasets: [{json_path, sampling_strategy}]``, the published form, does as well.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from minilava.data.records import open_records
from minilava.errors import UserError
from minilava.inputs.chat import LABELS
from minilava.inputs.geometry import POOLS

SCENARIOS = (None, "multi-image", "video", "multi-view", "single-image")
LAYOUTS = ("interleaved", "front", "mixed")
# What a world: entry hands to data.world.World.
WORLD = ("split", "samples", "turns", "size", "seed", "what", "clip_frames", "practice")
PUBLISHED = {"json_path": "path", "sampling_strategy": "strategy"}


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    weight: how often it is repeated in an epoch; 2.5 is twice all of it and a random half, anew each epoch.
    scenario: how its media are treated; None: as each record says. layout mixed: in front with chance front_ratio.
    pool, frames: of videos. anyres: None tiles lone pictures, as published. labels: the label rule of inputs.chat.
    split_turns: every answer is learned from its own question alone, without the turns before it.
    """

    name: str
    records: Sequence[dict]
    weight: float = 1.0
    scenario: str | None = None
    layout: str = "interleaved"
    front_ratio: float = 0.5
    pool: str = "none"
    anyres: bool | None = None
    frames: int = 10
    labels: str = "clean"
    split_turns: bool = False

    def __post_init__(self):
        for field, allowed in (
            ("scenario", SCENARIOS), ("layout", LAYOUTS), ("pool", POOLS), ("labels", LABELS),
            ("anyres", (None, True, False)), ("split_turns", (True, False)),
        ):  # fmt: skip
            if getattr(self, field) not in allowed:
                raise self._bad(field, f"one of {', '.join(str(a) for a in allowed)}")
        if not _is_number(self.weight) or not 0 < self.weight < math.inf:
            raise self._bad("weight", "a number above 0")
        if not _is_number(self.front_ratio) or not 0 <= self.front_ratio <= 1:
            raise self._bad("front_ratio", "from 0 to 1")
        if not isinstance(self.frames, int) or isinstance(self.frames, bool) or self.frames < 1:
            raise self._bad("frames", "a whole number from 1")

    def _bad(self, field: str, wanted: str) -> UserError:
        return UserError(f"source {self.name!r}: {field} must be {wanted}, not {getattr(self, field)!r}")

    @property
    def picks(self) -> int:
        """Records of this source in one epoch."""
        whole = int(self.weight)
        return whole * len(self.records) + math.floor((self.weight - whole) * len(self.records) + 0.5)


class Subset(Sequence):
    """Some records of a sequence."""

    def __init__(self, records: Sequence[dict], indices: np.ndarray):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict:
        return self.records[int(self.indices[i])]


class Mixture:
    """Sources, and for every epoch the order of all their records. len() is the number of records in one epoch."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)
        if not len(self):
            raise UserError("the mixture holds no record: give at least one source that is not empty")

    def __len__(self) -> int:
        return sum(source.picks for source in self.sources)

    def epoch(self, epoch: int, seed: int = 0) -> np.ndarray:
        """int64 (len, 2) of (source, index into its records): the same for the same arguments, on every machine."""
        rows = []
        for s, source in enumerate(self.sources):
            n = len(source.records)
            part = shuffled(n, seed, epoch, s + 1)[: source.picks - int(source.weight) * n]
            index = np.concatenate([np.tile(np.arange(n), int(source.weight)), part])
            rows.append(np.stack([np.full(len(index), s), index], 1))
        table = np.concatenate(rows)
        return table[shuffled(len(table), seed, epoch, 0)]


def shuffled(n: int, *key: int) -> np.ndarray:
    """A permutation of range(n) drawn from ``key``.

    Sorting raw random bits: numpy promises that its bit generators never change, but not so its permutations, and a
    run that is resumed under a newer numpy has to see the same order.
    """
    bits = np.random.Philox(np.random.SeedSequence([k % 2**64 for k in key])).random_raw(n)
    return np.argsort(np.asarray(bits, np.uint64), kind="stable")


def load_mixture(
    source: str | os.PathLike | Mapping, images: str | os.PathLike | None = None, seed: int = 0
) -> Mixture:
    """From a YAML file, its contents as a dict, or a data file alone. Raises UserError.

    images: the folder of the media, for sources that name none. seed: draws what a strategy ``random:N`` keeps, the
    same records in every epoch.
    """
    folder = ""
    if not isinstance(source, Mapping):
        path = os.fspath(source)
        if not path.endswith((".yaml", ".yml")):
            return Mixture([Source(_stem(path), open_records(path, images))])
        source, folder = read_yaml(path), os.path.dirname(path)
    entries = source.get("sources", source.get("datasets"))
    extra = set(source) - {"sources", "datasets", "images"}
    if extra or not isinstance(entries, list) or not entries:
        what = f"unknown key {sorted(map(str, extra))[0]!r}" if extra else "no list of sources"
        raise UserError(f"the mixture has {what}; expected sources: [{{path: ...}}, ...] and perhaps images: a folder")
    if "images" in source:
        images = os.path.join(folder, str(source["images"]))
    made: list[Source] = []
    for entry in entries:
        made.append(_source(entry, folder, images, seed, {s.name for s in made}))
    return Mixture(made)


def import_yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise UserError('YAML files need PyYAML; run: pip install "minilava[data]"') from None
    return yaml


def read_yaml(path: str | os.PathLike) -> dict:
    """The mapping in a YAML file; every failure is a UserError that names the file."""
    yaml = import_yaml()
    try:
        loaded = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); check the path") from None
    except (yaml.YAMLError, ValueError) as e:
        raise UserError(f"{path} is not YAML: {' '.join(str(e).split())}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} does not hold a mapping of settings")
    return loaded


def _source(entry: Any, folder: str, images: str | os.PathLike | None, seed: int, taken: set[str]) -> Source:
    if not isinstance(entry, Mapping):
        raise UserError(f"a source must be a mapping with path or world, not {entry!r:.60}")
    entry = {PUBLISHED.get(key, key): value for key, value in entry.items()}
    own = {f.name for f in fields(Source)} - {"records"}
    known = own | {"strategy"} | ({"world", *WORLD} if "world" in entry else {"path", "images"})
    unknown = [key for key in entry if key not in known]
    if unknown or not ("world" in entry or isinstance(entry.get("path"), str)):
        what = (
            f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}" if unknown else "no path and no world"
        )
        raise UserError(f"source {entry.get('name', entry.get('path', entry.get('world')))!r}: {what}")
    if "world" in entry:
        records: Sequence[dict] = _world(entry)
        default = f"world:{entry['world']}"
    else:
        if "images" in entry:
            images = os.path.join(folder, str(entry["images"]))
        records, default = open_records(os.path.join(folder, entry["path"]), images), _stem(entry["path"])
    name = unique = str(entry.get("name", default))
    while unique in taken:
        unique = f"{name}-{int(unique[len(name) + 1 :] or 1) + 1}"
    records = choose(records, str(entry.get("strategy", "all")), unique, seed)
    return Source(unique, records, **{k: v for k, v in entry.items() if k in own - {"name"}})


def _world(entry: Mapping) -> Sequence[dict]:
    from minilava.data.world import World

    given = {key: entry[key] for key in WORLD if key in entry}
    for key in ("samples", "turns", "size", "seed", "clip_frames"):
        if not isinstance(given.get(key, 1), int) or key != "seed" and given.get(key, 1) < 1:
            raise UserError(f"source world {entry['world']!r}: {key} must be a whole number from 1, not {given[key]!r}")
    if not isinstance(given.get("practice", False), bool):
        raise UserError(f"source world {entry['world']!r}: practice must be true or false, not {given['practice']!r}")
    return World(str(entry["world"]), **given)


def _stem(path: str) -> str:
    return Path(path).name.partition(".")[0]


def choose(records: Sequence[dict], strategy: str, name: str, seed: int = 0) -> Sequence[dict]:
    """What a strategy keeps of a source: all, first:N, end:N or random:N; N is a count, or a share such as 10%,
    rounded up. A random choice depends on the seed and the source's name alone, not on the other sources."""
    if strategy == "all":
        return records
    match = re.fullmatch(r"(first|end|random):(?:([1-9]\d*)|(\d+(?:\.\d+)?)%)", strategy)
    if not match or match[3] and not 0 < Fraction(match[3]) <= 100:
        raise UserError(f"source {name!r}: strategy {strategy!r} is not all, first:N, end:N or random:N (N or N%)")
    n = len(records)
    count = min(n, int(match[2]) if match[2] else math.ceil(Fraction(match[3]) * n / 100))
    if match[1] == "random":
        indices = np.sort(shuffled(n, seed, zlib.crc32(name.encode()))[:count])
    else:
        indices = np.arange(count) + (n - count) * (match[1] == "end")
    return Subset(records, indices)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
