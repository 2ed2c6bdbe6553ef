"""Messages with media -> one Sample: token ids, patches, and where each medium's tokens come from.

A recipe also fixes the pixels: authors and hf squash every picture; train tiles a lone picture and pads several
(spec 3.6). ``anyres`` overrides that either way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image
from torch import Tensor

from minilava.config import IGNORE, IMAGE, ImageConfig, ModelConfig
from minilava.errors import UserError
from minilava.inputs import geometry, pixels
from minilava.inputs.chat import encode
from minilava.inputs.geometry import Layout

MAX_CHARACTERS_PER_TOKEN = 128  # the longest entry of the Qwen vocabulary, a run of spaces
MARKERS = re.compile(r"<image>|<video>")


@dataclass(frozen=True)
class Medium:
    """One thing a marker stands for. kind: image, video or views; frames: its RGB pictures in order.
    pool: none (every frame is an image of its own) or one of geometry.POOLS, for a video."""

    kind: str
    frames: Sequence[Image.Image]
    pool: str = "none"

    @property
    def placeholders(self) -> int:
        return 1 if self.pool != "none" else len(self.frames)


@dataclass
class Sample:
    """ids: every image placeholder is IMAGE. layouts: one per placeholder. patches: float32 (n, P, C), in order, or
    empty while only the counts are wanted. labels: as ids, or None. leader: a sample with the same pictures, whose
    first ``shared`` ids are this one's as well: in a pack right behind it, the two have one copy of both."""

    ids: list[int]
    layouts: list[Layout]
    patches: list[Tensor] = field(default_factory=list)
    labels: list[int] | None = None
    leader: Sample | None = None
    shared: int = 0

    @property
    def image_tokens(self) -> int:
        return sum(layout.tokens for layout in self.layouts)

    @property
    def tokens(self) -> int:
        return len(self.ids) - len(self.layouts) + self.image_tokens

    @property
    def shared_layouts(self) -> list[Layout]:
        return self.layouts[: self.ids[: self.shared].count(IMAGE)]

    @property
    def shared_tokens(self) -> int:
        layouts = self.shared_layouts
        return self.shared - len(layouts) + sum(layout.tokens for layout in layouts)

    @property
    def own_tokens(self) -> int:
        """Rows that the sample adds to a pack, right behind its leader."""
        return self.tokens - self.shared_tokens

    def follow(self, leader: Sample) -> None:
        """Take pictures and the beginning from another sample about the same media.

        The beginning ends a token before either's first label, so that what predicts a label is the sample's own.
        """
        self.leader, self.patches = leader, leader.patches
        most = min(_first_label(self), _first_label(leader)) - 1
        pairs = zip(self.ids[: max(0, most)], leader.ids, strict=False)
        self.shared = next((i for i, (a, b) in enumerate(pairs) if a != b), max(0, most))


def _first_label(sample: Sample) -> int:
    return next((i for i, label in enumerate(sample.labels or ()) if label != IGNORE), len(sample.ids))


@dataclass(frozen=True)
class Recipe:
    """How prompts and pictures are written down; see inputs.chat for the names."""

    name: str = "authors"
    layout: str = "interleaved"
    anyres: bool | None = None  # None: as the recipe does it
    newline_position: str = "grid"  # of pooled videos

    def image_config(self, config: ModelConfig, kind: str = "image", lone: bool = False) -> ImageConfig:
        """The pixel and token geometry of a medium of this kind. lone: it is the conversation's only medium.

        Only images are ever tiled: a video's frames are squashed (spec 3.6), and 3D views are several images.
        """
        base = config.image
        if self.name == "hf":
            base = replace(base, mm_patch_merge_type="flat")
        tiled = self.name == "train" and lone if self.anyres is None else self.anyres
        if tiled and kind == "image":
            return base if geometry.is_anyres(base) else replace(base, image_aspect_ratio="anyres")
        padded = self.name == "train" and kind != "video"
        return replace(base, image_aspect_ratio="pad" if padded else "square")


def place_media(text: str, media: Sequence[Medium]) -> list[dict]:
    """Message parts of a text in which <image> and <video> stand for media; media without a marker go in front.

    <video> takes the next video or folder of views, <image> the next image, or the next of the others once no image
    is left. Raises UserError where markers outnumber media.
    """
    markers = MARKERS.findall(text)
    if len(markers) > len(media):
        raise UserError(f"the prompt has {len(markers)} placeholders but {len(media)} media were given")
    left = list(media)

    def take(marker: str) -> Medium:
        wanted = [m for m in left if (m.kind == "image") == (marker == "<image>")]
        if not wanted and marker == "<video>":
            raise UserError("the prompt has a <video> for which no video or folder of views was given")
        medium = (wanted or left)[0]
        left.remove(medium)
        return medium

    parts: list[dict] = []
    placed = [take(m) for m in markers]
    for i, piece in enumerate(MARKERS.split(text)):
        if i:
            parts.append({"type": "media", "media": placed[i - 1]})
        if piece:
            parts.append({"type": "text", "text": piece})
    if left:
        front = [{"type": "media", "media": m} for m in left]
        if parts and parts[0]["type"] == "text":
            parts[0]["text"] = "\n" + parts[0]["text"]
        parts = front + parts
    return parts


def build_sample(
    conversation: Sequence[dict],
    tokenizer: Any,
    config: ModelConfig,
    recipe: Recipe,
    labels: str | None = None,
) -> Sample:
    """Token ids and layouts, without pixels yet: the counts can be checked before any picture is resized.

    conversation: {"role", "content": list of {"type": "text"} and {"type": "media", "media": Medium}} messages.
    """
    text = sum(len(p["text"]) for m in conversation for p in m["content"] if p["type"] == "text")
    if text > config.max_length * MAX_CHARACTERS_PER_TOKEN:  # before the tokenizer spends minutes on it
        raise UserError(f"the prompt is too long: {text} characters for a context of {config.max_length} tokens")
    flat = [{"role": m["role"], "content": [q for p in m["content"] for q in _expand(p)]} for m in conversation]
    encoded = encode(flat, tokenizer, recipe.name, labels, recipe.layout)
    ids, marks = encoded if labels else (encoded, None)
    sample = Sample(ids, [], [], marks)
    for medium, image in _media(conversation, config, recipe):
        if medium.pool != "none":
            layout = geometry.video_layout(len(medium.frames), image, medium.pool, recipe.newline_position)
            sample.layouts.append(layout)
        else:
            sample.layouts += [geometry.image_layout(frame.size, image) for frame in medium.frames]
    count = ids.count(IMAGE)
    if count != len(sample.layouts):
        raise UserError(f"the prompt has {count} image placeholders but {len(sample.layouts)} images were given")
    return sample


def _expand(part: dict) -> list[dict]:
    return [{"type": "image"}] * part["media"].placeholders if part["type"] == "media" else [part]


def add_patches(sample: Sample, conversation: Sequence[dict], config: ModelConfig, recipe: Recipe) -> None:
    """Resize and normalise the pictures of the conversation that ``sample`` was built from."""
    for medium, image in _media(conversation, config, recipe):
        sample.patches += [pixels.patches(frame, image, config.vision.patch_size) for frame in medium.frames]


def _media(conversation: Sequence[dict], config: ModelConfig, recipe: Recipe) -> list[tuple[Medium, ImageConfig]]:
    media = [p["media"] for m in conversation for p in m["content"] if p["type"] == "media"]
    return [(m, recipe.image_config(config, m.kind, lone=len(media) == 1)) for m in media]
