"""A record and its source's settings -> the Sample that the model trains on (paper, section 3; spec 5).

The four scenarios become one form: several images are several placeholders; a video is up to ``frames`` images, or
one pooled medium; 3D views are images; a lone picture may be tiled. Technique 2 is the choice of layout per sample.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from minilava.config import IGNORE, IMAGE, ModelConfig
from minilava.data.mixture import Source
from minilava.errors import UserError
from minilava.inputs.media import load_image
from minilava.inputs.sample import MARKERS, Medium, Recipe, Sample, add_patches, build_sample, place_media
from minilava.inputs.video import load_video

RECIPE = "train"
FORMS = ("chat", "plain", "pairs")
# All that stands up to the last medium, and the line's end if no word is between.
MEDIA = re.compile(rf"(?:.*(?:{MARKERS.pattern})(?:[^\w\n]*\n)?)?", re.DOTALL)


def to_samples(record: dict, source: Source, form: str, tokenizer: Any, config: ModelConfig, draw: float) -> list:
    """The samples of one record: one, or one per turn if the source splits them, or for ``pairs`` the chosen and the
    rejected answer (spec 6.7). Several follow the first: what they have in common is computed once.

    form: ``chat`` (labels as the source says), ``plain`` (stage 1: images and caption alone, spec 5.9) or ``pairs``.
    draw: a number in [0, 1) that decides the layout of a mixed source. Raises UserError for a record that cannot be
    trained on: no labels, too long, media and placeholders that do not match, unreadable media.
    """
    media = _media(record, source)
    recipe = Recipe(RECIPE, _layout(source, draw), _anyres(record, source, media))
    if form == "plain":
        samples = [_plain(record, media, recipe, tokenizer, config)]
    else:
        talk = record.get("conversations")
        talks = _both_answers(record) if form == "pairs" else _turns(talk) if source.split_turns else [talk]
        samples = _chats(talks, media, recipe, source.labels, tokenizer, config)
    for sample in samples:
        if sample.tokens > config.max_length:
            raise UserError(f"{sample.tokens} tokens exceed the context of {config.max_length}")
        if all(label == IGNORE for label in sample.labels[1:]):
            raise UserError("no token carries a loss: the record has no answer")
    return samples


def _layout(source: Source, draw: float) -> str:
    if source.layout != "mixed":
        return source.layout
    return "front" if draw < source.front_ratio else "interleaved"


def _anyres(record: dict, source: Source, media: list[Medium]) -> bool | None:
    metadata = record.get("metadata")
    own = metadata.get("anyres") if isinstance(metadata, dict) else None
    return own if isinstance(own, bool) and len(media) == 1 else source.anyres


def _media(record: dict, source: Source) -> list[Medium]:
    """The record's media. Its scenario, or the source's, says what a list of pictures is: images, the frames of a
    video (squashed, and pooled together if the source pools), or views of a scene (never tiled)."""
    if record.get("video") is not None:
        return [Medium("video", load_video(record["video"], source.frames), source.pool)]
    images = record.get("image")
    images = [] if images is None else images if isinstance(images, list | tuple) else [images]
    metadata = record.get("metadata")
    scenario = source.scenario or (metadata.get("scenario") if isinstance(metadata, dict) else None)
    kind = {"video": "video", "multi-view": "views"}.get(scenario if isinstance(scenario, str) else None, "image")
    if kind == "video" and source.pool != "none" and images:
        return [Medium("video", load_video([load_image(image) for image in images], source.frames), source.pool)]
    return [Medium(kind, [load_image(image)]) for image in images]


def _chats(
    talks: Sequence[Any], media: list[Medium], recipe: Recipe, labels: str, tokenizer: Any, config: ModelConfig
) -> list[Sample]:
    """A sample per conversation. All are about the same media, and follow the first."""
    conversations = [_conversation(talk, media) for talk in talks]
    samples = [build_sample(c, tokenizer, config, recipe, labels) for c in conversations]
    add_patches(samples[0], conversations[0], config, recipe)
    for other in samples[1:]:
        other.follow(samples[0])
    return samples


def _turns(talk: Any) -> list[list[dict]]:
    """A conversation for each answer: the media of the first question, with what stands before and between them, and
    that answer's own question."""
    texts = _texts(talk)
    first = _first_question(talk)
    cut = MEDIA.match(texts[first]).end()
    if any(MARKERS.search(t) for i, t in enumerate(texts) if i != first):
        raise UserError("split_turns needs all media in the first question")
    begin, texts[first] = texts[first][:cut], texts[first][cut:]
    out = []
    for question, answer in zip(range(first, len(talk), 2), range(first + 1, len(talk), 2), strict=False):
        if _role(talk[question]) not in ("human", "user") or _role(talk[answer]) not in ("gpt", "assistant"):
            raise UserError("split_turns needs questions and answers in turns")
        asked = {"from": "human", "value": begin + texts[question]}
        out.append([*talk[:first], asked, {"from": "gpt", "value": texts[answer]}])
    return out or [talk]


def _conversation(talk: Sequence[dict], media: list[Medium]) -> list[dict]:
    """Messages with the media at their markers: the k-th marker of the whole conversation takes the k-th medium
    (spec 5.2). Where no text has a marker, all media stand in front of the first question."""
    texts = _texts(talk)
    counts = [len(MARKERS.findall(t)) for t in texts]
    if sum(counts) not in (0, len(media)):
        raise UserError(f"the conversation has {sum(counts)} placeholders but {len(media)} media")
    if not sum(counts):
        counts[_first_question(talk)] = len(media)
    out, at = [], 0
    for message, text, count in zip(talk, texts, counts, strict=True):
        role = _role(message)
        out.append({"role": role, "content": place_media(text, media[at : at + count])})
        at += count
    return out


def _texts(talk: Any) -> list[str]:
    """The text of every message; a UserError where that is not what a conversation holds."""
    if not talk or not isinstance(talk, list | tuple):
        raise UserError("the record has no conversation")
    if not all(isinstance(m, dict) and isinstance(_role(m), str) for m in talk):
        raise UserError("a message is not from anyone: expected 'from' or 'role'")
    texts = [m.get("value", m.get("content")) for m in talk]
    try:
        "".join(texts).encode()
    except (TypeError, UnicodeEncodeError):  # half of a surrogate pair is no text either
        raise UserError("a message has no text") from None
    return texts


def _first_question(talk: Sequence[dict]) -> int:
    return next((i for i, m in enumerate(talk) if _role(m) in ("human", "user")), 0)


def _role(message: dict) -> Any:
    return message.get("from", message.get("role"))


def _both_answers(record: dict) -> list[list[dict]]:
    try:
        prompt, answers = record["prompt"], (record["chosen"], record["rejected"])
    except KeyError as e:
        raise UserError(f"a preference record has no {e.args[0]!r}") from None
    return [[{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}] for answer in answers]


def _plain(record: dict, media: list[Medium], recipe: Recipe, tokenizer: Any, config: ModelConfig) -> Sample:
    talk = record.get("conversations")
    answers = _texts(talk)[1:2] if talk else []
    if not answers or not media:
        raise UserError("the plain form needs a picture and a caption")
    conversation = [{"role": "user", "content": [{"type": "media", "media": m} for m in media]}]
    sample = build_sample(conversation, tokenizer, config, recipe)
    text = tokenizer.encode(answers[0] + "\n")
    marks = [IMAGE] * len(sample.layouts)  # the chat's tokens make way for the caption; its layouts stay
    sample.ids, sample.labels = marks + text, [IGNORE] * len(marks) + text
    add_patches(sample, conversation, config, recipe)
    return sample
