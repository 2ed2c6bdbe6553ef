"""WebDataset shards: records and their pictures in a tar, by random access.

The webdataset package only streams its shards, in their own order. An index of the byte ranges of the samples needs
nothing but tarfile, and gives the random access that a seeded shuffle and a resumed run want.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable

from minilava.data.index import BadRecord, check_stamp, index_shard, load_index, split_member
from minilava.data.record import Folder, Records, media_of, parse
from minilava.errors import UserError

MAX_SAMPLE = 2**30  # bytes of one sample, which is read at once
PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif"}


def is_picture(member: str) -> bool:
    return member.rpartition(".")[2].lower() in PICTURES


class Shard(Records):
    """A sample is a run of members with one key, and <key>.json its record.

    A name in the record is that of a member, with the key ("0001.left.jpg", also without its folder) or without it
    ("left.jpg"); where both are alone, the one name is the one picture. ``video`` names frames: every picture whose
    name begins with it ("clip" for <key>.clip.000.jpg). All else is looked for in ``images``, where that was given.
    """

    def __init__(self, path: str, images: str | os.PathLike | None):
        self.path, self.folder = path, None if images is None else Folder(path, images)
        self.stamp, self.rows = load_index(path, index_shard)
        self._last: tuple = (None, "", {})  # record and places of a sample are asked for one after the other

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> tuple[str, int]:
        return self.path, int(self.rows[i, 2])

    def read(self, i: int) -> dict:
        _, members = self._sample(i)
        if "json" not in members:
            raise BadRecord(*self.where(i), f"the sample has no .json member, only {', '.join(members)}")
        record = parse(members["json"], *self.where(i))
        pictures = [name for name in members if is_picture(name)]
        if pictures and not record.get("image") and not record.get("video"):
            if len(pictures) > 1:  # their order in the tar is no order: writers put 10.jpg before 2.jpg
                raise BadRecord(*self.where(i), f"the record does not name its pictures: {', '.join(pictures)}")
            record["image"] = pictures[0]
        return record

    def _sample(self, i: int) -> tuple[str, dict[str, bytes]]:
        """The key and the sample's files by name without the key."""
        last, key, members = self._last
        if last != i:
            key, members = self._read(i)
            self._last = i, key, members
        return key, members

    def _read(self, i: int) -> tuple[str, dict[str, bytes]]:
        start, end, _ = self.rows[i].tolist()
        if end - start > MAX_SAMPLE:
            raise BadRecord(*self.where(i), f"a sample of {end - start:,} bytes, more than {MAX_SAMPLE:,}")
        check_stamp(self.path, self.stamp)
        with open(self.path, "rb") as file:
            file.seek(start)
            part = io.BytesIO(file.read(end - start))
        members, key = {}, ""
        try:
            with tarfile.open(fileobj=part, mode="r:") as tar:
                for member in tar:
                    split = split_member(member.name)
                    if split and member.isfile():
                        key, members[split[1]] = split[0], tar.extractfile(member).read()
        except tarfile.TarError as e:
            raise BadRecord(*self.where(i), f"damaged tar member ({e})") from None
        return key, members

    def places(self, i: int, record: dict) -> Callable[[str], object]:
        key, members = self._sample(i)
        pictures = [name for name in members if is_picture(name)]
        alone = len(pictures) == len(media_of(record)[0]) == 1

        def place(name: str) -> object:
            short = name.removeprefix(key + ".").removeprefix(os.path.basename(key) + ".")
            if short in members:
                if not is_picture(short):
                    raise UserError(f"{name!r} is no picture; store a video in a shard as frames (clip.000.jpg, ...)")
                return members[short]
            frames = sorted(p for p in pictures if p.startswith(short + "."))
            if frames:
                return [members[p] for p in frames]
            if self.folder is not None:
                return self.folder(name)
            if alone:
                return members[pictures[0]]
            raise UserError(f"the sample holds no {name!r}, only {', '.join(members)}")

        return place
