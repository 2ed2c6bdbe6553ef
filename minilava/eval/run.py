"""Answers a suite's items in packed batches, one JSON line per answer on disk; run again, it goes on where it stopped.

OUT/run.json        the settings that answers depend on; a folder never mixes two of them
OUT/samples.jsonl   all lines in the suite's order, once the run is complete
OUT/part-R.jsonl    what process R has answered so far
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from minilava.errors import UserError
from minilava.eval.item import Item
from minilava.eval.metrics import known, score, yes_or_no
from minilava.inputs.chat import SYSTEM
from minilava.inputs.messages import load_media
from minilava.inputs.pack import check_length
from minilava.inputs.sample import MARKERS, Medium, Sample, build_sample, place_media
from minilava.runtime.vlm import VLM, Reply, Request

SAMPLES, SETTINGS = "samples.jsonl", "run.json"
# Of a batch: prompts with their pictures, and room for the answers. 32k are 16 GB of cache at 7B; more than a CPU's
# caches hold makes it slower.
BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Options:
    """What an answer depends on beside the model and the item. asking: options of VLM.request, and frames and pool."""

    scorer: str = "authors"
    blind: bool = False
    batch_tokens: int | None = None
    skip_bad: bool = False
    asking: dict = field(default_factory=dict)


def metric_of(item: Item, options: Options) -> str:
    return (item.own_metric if options.scorer == "lmms-eval" else None) or item.metric


@dataclass
class Talk:
    """An item on its way: its messages so far, the media not yet placed, and a line per answer."""

    item: Item
    media: list[Medium]
    messages: list[dict] = field(default_factory=list)
    lines: list[dict] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # of the talk so far, prompts and replies

    def ask(self, vlm: VLM, options: Options) -> Turn:
        """The next turn. UserError where it cannot be asked.

        In the authors' recipe a later turn is the ids so far, those generated, and a whole new prompt with a system
        block of its own, as in their script (spec 7.2, 10.25). The k-th marker of the talk takes the k-th medium;
        without any marker all media stand before the first question.
        """
        question, reference = self.item.turns[len(self.lines)]
        count = len(MARKERS.findall(question))
        if not self.messages and not any(MARKERS.search(q) for q, _ in self.item.turns):
            count = len(self.media)
        placed, self.media = self.media[:count], self.media[count:]
        goes_on = self.messages and (options.asking.get("recipe") or vlm.config.recipe) == "authors"
        before = len(self.messages)
        if goes_on:
            self.messages.append({"role": "system", "content": [{"type": "text", "text": SYSTEM}]})
        self.messages.append({"role": "user", "content": place_media(question, placed)})
        if len(self.lines) + 1 == len(self.item.turns) and self.media:
            raise UserError(f"{len(self.media)} more pictures or videos than placeholders")
        asking = {k: v for k, v in options.asking.items() if k not in ("frames", "pool")}
        if asking.get("anyres") is None:
            asking["anyres"] = self.item.anyres
        request = vlm.request(self.messages, **asking)
        sample = vlm.sample(request)
        if goes_on:
            new = build_sample(self.messages[before:], vlm.tokenizer, vlm.config, request.recipe)
            sample.ids = self.ids + new.ids
            check_length(sample, vlm.config.max_length, request.max_new_tokens)
        metric = metric_of(self.item, options)
        line = {
            "id": self.item.id, "turn": len(self.lines), "task": self.item.task, "metric": metric,
            "question": question, "reference": reference, **self.item.extra,
            "prompt_sha": hashlib.sha256(np.array(sample.ids, np.int64).tobytes()).hexdigest()[:16],
            "prompt_tokens": sample.tokens, "image_tokens": sample.image_tokens,
        }  # fmt: skip
        return Turn(self, request, sample, line)

    def take(self, turn: Turn, reply: Reply, scorer: str) -> None:
        line, self.ids = turn.line, turn.sample.ids + reply.token_ids
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": reply.text}]})
        answer = reply.text.strip()
        metric = line["metric"]
        said = {"said": yes_or_no(answer)} if metric == "pope" else {}
        value = score(metric, answer, line["reference"], scorer)
        self.lines.append(line | {"answer": answer, "finish_reason": reply.finish_reason, "score": value} | said)


@dataclass(frozen=True)
class Turn:
    """A question of a talk, ready to be answered, and the line that its answer completes."""

    talk: Talk
    request: Request
    sample: Sample
    line: dict


def start(item: Item, vlm: VLM, options: Options) -> Talk:
    frames, pool = vlm.take_frames(dict(options.asking))
    media = load_media(item.media(), frames, pool)
    if options.blind:
        media = [Medium(m.kind, [Image.new("RGB", f.size, GREY) for f in m.frames], m.pool) for m in media]
    return Talk(item, media)


def answer(vlm: VLM, items: Iterable[Item], options: Options) -> Iterator[list[dict]]:
    """The lines of every item, an item's together, batch after batch. An item that cannot be asked raises
    UserError, or, with skip_bad, gives one line with ``error`` and no score."""
    most = options.batch_tokens or BATCH_TOKENS[vlm.engine.device.type]
    batch: list[Turn] = []
    tokens = 0
    for item in items:
        try:
            turn = start(item, vlm, options).ask(vlm, options)
        except UserError as e:
            yield [_refuse(item, e, options)]
            continue
        rows = turn.sample.tokens + turn.request.max_new_tokens
        if batch and tokens + rows > most:
            yield from _converse(vlm, batch, options)
            batch, tokens = [], 0
        batch.append(turn)
        tokens += rows
    yield from _converse(vlm, batch, options)


def _refuse(item: Item, error: UserError, options: Options) -> dict:
    if not options.skip_bad:
        raise UserError(f"{item.id}: {error} (--skip-bad leaves such samples out and counts them)") from None
    return {"id": item.id, "turn": 0, "task": item.task, "score": None, "error": str(error)}


def _converse(vlm: VLM, batch: Sequence[Turn], options: Options) -> Iterator[list[dict]]:
    """Answer the first turns together, then the second turns of those that have one, and so on."""
    asked = batch
    while asked:
        replies = vlm.batch([turn.request for turn in asked], [turn.sample for turn in asked])
        for turn, reply in zip(asked, replies, strict=True):
            turn.talk.take(turn, reply, options.scorer)
            turn.sample.patches.clear()  # of a talk that goes on, the largest part
        again = [turn.talk for turn in asked if len(turn.talk.lines) < len(turn.talk.item.turns)]
        asked = []
        for talk in again:
            try:
                asked.append(talk.ask(vlm, options))
            except UserError as e:
                talk.lines.append(_refuse(talk.item, e, options) | {"turn": len(talk.lines)})
    yield from (turn.talk.lines for turn in batch)


# --- the folder of a run ----------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict]:
    """The lines of a file so far. A last one that a crash cut in half is left out, as are later ones."""
    lines = []
    for text in path.read_text("utf-8").split("\n")[:-1] if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def read_run(out: Path) -> tuple[dict, list[dict]]:
    """(Settings, lines in order) of a finished run. UserError for a folder that holds none."""
    if not (out / SAMPLES).exists() or not (out / SETTINGS).exists():
        raise UserError(f"{out} holds no finished run ({SETTINGS}, {SAMPLES}); run the suite with --out {out} first")
    return json.loads((out / SETTINGS).read_text("utf-8")), read_lines(out / SAMPLES)


def write(path: Path, text: str | bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from None


def write_lines(path: Path, lines: Iterable[dict]) -> None:
    write(path, "".join(json.dumps(line) + "\n" for line in lines))


def same_settings(out: Path, settings: dict) -> None:
    """UserError where the folder holds answers that were made with others."""
    path = out / SETTINGS
    old = json.loads(path.read_text("utf-8")) if path.exists() else settings
    for key in settings.keys() | old.keys():
        if settings.get(key) != old.get(key):
            raise UserError(
                f"{out} holds a run with {key} {old.get(key)!r}, not {settings.get(key)!r}; give another --out"
            )


def run(vlm: VLM, items: Iterator[Item], out: Path, settings: dict, options: Options, ranks: Any) -> list[dict]:
    """All lines in order, the same for any number of processes. ``ranks``: a train.ranks.Ranks. UserError where the
    folder holds answers to other items: the run's end would drop them."""
    order = list(items)
    for metric in dict.fromkeys(metric_of(item, options) for item in order):
        known(metric, options.scorer)  # now, not an hour in
    same_settings(out, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"cannot write {out}: {e.strerror or e}") from None
    if ranks.first:
        write(out / SETTINGS, json.dumps(settings, indent=1))
    held = _lines(out)
    others = {line["id"] for line in held} - {item.id for item in order}
    if others:
        raise UserError(f"{out} holds answers to {len(others)} more questions (a greater --limit?): give another --out")
    done = _finished(held, order, refused=False)
    mine = order[ranks.rank :: ranks.world]
    todo = [item for item in mine if item.id not in done]
    ranks.barrier()  # nobody writes before everybody has read
    scores = [line["score"] for item in mine for line in done.get(item.id, ())]
    scores = [s for s in scores if s is not None]
    part = out / f"part-{ranks.rank}.jsonl"
    kept = read_lines(part)
    write_lines(part, kept)  # without a line cut in half
    bar = tqdm(total=len(mine), initial=len(mine) - len(todo), desc="answering", file=sys.stderr,
               disable=None if ranks.first else True, unit=" samples")  # fmt: skip
    with open(part, "a", encoding="utf-8") as f, bar:
        for lines in answer(vlm, todo, options):
            f.write("".join(json.dumps(line) + "\n" for line in lines))
            f.flush()
            scores += [line["score"] for line in lines if line["score"] is not None]
            bar.set_postfix_str(f"score {100 * sum(scores) / len(scores):.1f}" if scores else "", refresh=False)
            bar.update()
    ranks.barrier()
    done = _finished(_lines(out), order)
    lines = [line for item in order for line in done[item.id]]
    ranks.barrier()
    if ranks.first:
        write_lines(out / SAMPLES, lines)
        for path in out.glob("part-*.jsonl"):
            path.unlink()
    return lines


def _lines(out: Path) -> list[dict]:
    """All that the folder holds, in no order."""
    return [line for path in (out / SAMPLES, *sorted(out.glob("part-*.jsonl"))) for line in read_lines(path)]


def _finished(held: Iterable[dict], items: Sequence[Item], refused: bool = True) -> dict[str, list[dict]]:
    """Item -> its lines, of those whose every turn is held. refused: and of those that could not be asked."""
    done: dict[str, dict[int, dict]] = {}
    for line in held:
        turns, turn = done.setdefault(line["id"], {}), line["turn"]
        if turn not in turns or "error" in turns[turn]:  # what was refused once may have been answered since
            turns[turn] = line
    finished = {}
    for item in items:
        lines = [line for _, line in sorted(done.get(item.id, {}).items())]
        if not lines or not refused and "error" in lines[-1]:
            continue
        if len(lines) == len(item.turns) or "error" in lines[-1]:
            finished[item.id] = lines
    return finished
