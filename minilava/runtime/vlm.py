"""The public face: load a checkpoint, ask about pictures and videos, get replies, whole or as a stream."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from minilava.checkpoint import load_tensors, open_checkpoint
from minilava.checkpoint.shard import trim
from minilava.config import ModelConfig
from minilava.device import check_simd, pick_device, pick_dtype
from minilava.errors import UserError
from minilava.inputs.chat import LAYOUTS, RECIPES, ROLES
from minilava.inputs.geometry import NEWLINE_POSITIONS, POOLS
from minilava.inputs.messages import load_media, load_message
from minilava.inputs.pack import check_length, pack
from minilava.inputs.sample import Recipe, Sample, add_patches, build_sample, place_media
from minilava.model.linear import quantized
from minilava.model.llava import LLaVA
from minilava.quantize import POLICIES, Quantization, load_quantized, quantize, read_quantization
from minilava.runtime.engine import Clock, Engine
from minilava.runtime.lean import let_go_of_pictures
from minilava.runtime.pictures import Pictures
from minilava.runtime.prompts import Prompts
from minilava.runtime.sampling import Sampling
from minilava.runtime.text import TextStream
from minilava.tokenizer import Tokenizer

CACHE_BYTES = 1 << 30
TINY = Path(__file__).parents[1] / "assets" / "tiny"  # the embedded checkpoint, made by recipes/tiny


@dataclass(frozen=True)
class Reply:
    """token_ids: generated ids, the end token included when it came. finish_reason: stop or length.
    timings: seconds per phase and rates; see design of ``--json``."""

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    image_tokens: int
    model: str
    recipe: str
    dtype: str
    quant: str
    timings: dict[str, float]

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass
class Request:
    """One conversation to answer: messages whose content is a list of text and media parts."""

    messages: list[dict]
    sampling: Sampling
    max_new_tokens: int
    recipe: Recipe
    draft: int = 0


@dataclass
class Stream:
    """Iterate for pieces of text; ``reply`` is complete once the iteration has ended."""

    pieces: Iterator[str]
    result: list[Reply] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        return self.pieces

    @property
    def reply(self) -> Reply:
        if not self.result:
            raise RuntimeError("the stream has not ended yet")
        return self.result[0]


def load(
    path: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quant: str | None = None,
    cache_bytes: int = CACHE_BYTES,
    cache_dir: str | Path | None = None,
    lean: bool = False,
) -> VLM:
    """Load a checkpoint directory of either dialect; without a path, the small model that ships with the package.

    device: auto, cpu or cuda. dtype: auto, float32, bfloat16 or float16 (CUDA only). quant: int8 or int4 quantises a
    float checkpoint while it is loaded; None: as it is. Quantised weights compute in float32, on a CPU. cache_bytes:
    memory for what the next question may have in common with this one, encoded pictures and prompts; 0 keeps nothing.
    cache_dir: a folder that keeps all encoded pictures as well. lean: of a quantised checkpoint's tower keep no more
    than a block resident, which makes the encoding of every later picture slower by a tenth.
    Raises UserError for anything wrong with the path, the files or the arguments.
    """
    began = time.perf_counter()
    check_simd()
    path = TINY if path is None else path
    stored, quant = read_quantization(path), None if quant == "none" else quant
    if quant not in (None, *POLICIES):
        raise UserError(f"--quant {quant!r} is not one of none, {', '.join(POLICIES)}")
    if stored and quant not in (None, stored.name):
        raise UserError(f"--quant {quant}: {path} holds {stored.name} weights already; leave --quant out")
    target = pick_device(device)
    if stored or quant:
        if device == "cuda" or dtype not in ("auto", "float32"):
            raise UserError("quantised weights run on a CPU and compute in float32: use --device cpu --dtype float32")
        model = _quantized(path, stored, quant, lean)
    else:
        checkpoint = open_checkpoint(path)
        with torch.device("meta"):
            model = LLaVA(checkpoint.config)
        model.load_state_dict(load_tensors(checkpoint, pick_dtype(dtype, target), target), assign=True)
    tokenizer = Tokenizer.load(path)
    model.eval().requires_grad_(False)
    vlm = VLM(model, tokenizer, str(path), stored.name if stored else quant or "none", cache_bytes, cache_dir)
    trim()  # reading Qwen's 11 MB of tokenizer leaves 80 MB behind
    vlm.load_s = time.perf_counter() - began
    return vlm


def _quantized(path: str | Path, stored: Quantization | None, quant: str | None, lean: bool) -> LLaVA:
    """The model with quantised modules: mapped from a quantised checkpoint, or packed from a float one."""
    mapped = stored is not None
    if mapped:
        config, tensors = load_quantized(path, stored)
    else:
        checkpoint = open_checkpoint(path)
        config, tensors = checkpoint.config, load_tensors(checkpoint)
        stored = Quantization(quant, POLICIES[quant], config.text.vocab_rows)
        tensors = quantize(tensors, stored.modules(config))
    with torch.device("meta"):
        model = quantized(LLaVA(config), stored.modules(config))
    model.load_state_dict(tensors, assign=True)
    if mapped and lean:
        let_go_of_pictures(model)
    return model


def _listed(media: Any, dims: int) -> Sequence[Any]:
    """Media as a list: a lone picture is a sequence, too, of rows or of characters. dims: of an array of several."""
    lone = isinstance(media, str | bytes | bytearray | PathLike | Image.Image) or getattr(media, "ndim", dims) < dims
    return [media] if lone else media


class VLM:
    """A loaded model with its tokenizer. Not made directly: see load()."""

    def __init__(
        self,
        model: LLaVA,
        tokenizer: Tokenizer,
        name: str,
        quant: str = "none",
        cache_bytes: int = CACHE_BYTES,
        cache_dir: str | Path | None = None,
    ):
        self.model, self.tokenizer, self.name, self.quant = model, tokenizer, name, quant
        self.config: ModelConfig = model.config
        self.load_s = 0.0
        self.progress: Callable[[Iterable, str], Iterable] = lambda items, _what: items
        # The image id of the hf dialect and everything from it up has no text: never emitted (spec 1.5, 10.15).
        banned = () if self.config.image_token_id is None else (self.config.image_token_id,)
        usable = min(tokenizer.size, self.config.text.vocab_rows)
        pictures = Pictures(model, cache_bytes // 4, cache_dir) if cache_bytes or cache_dir is not None else None
        prompts = Prompts(cache_bytes - cache_bytes // 4) if cache_bytes else None
        self.engine = Engine(model, usable, banned, pictures=pictures, prompts=prompts)

    # --- asking ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        views: Sequence[Any] = (),
        **options: Any,
    ) -> Reply:
        """Answer one prompt. <image> and <video> in it say where media go; others go in front.

        images: paths, bytes, PIL images or uint8 (H, W, 3). videos: paths, frame folders, (F, H, W, 3) arrays or lists
        of images. views: folders of pictures of one scene, in name order. A lone one need not be in a list.
        options: see request(). Raises UserError for bad input, never truncates.
        """
        stream = self.stream(prompt, images, videos, views, **options)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        prompt: str,
        images: Sequence[Any] = (),
        videos: Sequence[Any] = (),
        views: Sequence[Any] = (),
        **options: Any,
    ) -> Stream:
        """As generate(), but iterating over the result yields text as it is decided."""
        kinds = [("image", s) for s in _listed(images, 4)] + [("video", s) for s in _listed(videos, 5)]
        kinds += [("views", s) for s in _listed(views, 1)]
        return self.stream_media(prompt, kinds, **options)

    def stream_media(self, prompt: str, media: Sequence[tuple[str, Any]], **options: Any) -> Stream:
        """As stream(), with the media in one ordered list of (kind, source): kind is image, video or views."""
        began = time.perf_counter()
        frames, pool = self.take_frames(options)
        loaded = load_media(media, frames, pool)
        request = self.request([{"role": "user", "content": place_media(prompt, loaded)}], **options)
        return self.answer(request, time.perf_counter() - began)

    def chat(self, messages: Sequence[dict], **options: Any) -> Reply:
        """Answer a conversation: messages {"role", "content"}, content a text or a list of {"type": "text", "text"},
        {"type": "image", "image"}, {"type": "video", "video"} and {"type": "views", "views"}. Media of earlier turns
        are kept. In a content that is a plain text, <image> is only text."""
        began = time.perf_counter()
        frames, pool = self.take_frames(options)
        request = self.request([load_message(m, frames, pool) for m in messages], **options)
        stream = self.answer(request, time.perf_counter() - began)
        for _ in stream:
            pass
        return stream.reply

    def batch(self, requests: Sequence[Request], samples: Sequence[Sample] | None = None) -> list[Reply]:
        """Answer several requests in one packed batch; each gets the tokens it would get alone. samples: what sample()
        makes of the requests, where it is there already."""
        return list(self._run(requests, 0.0, samples)) if requests else []

    def request(
        self,
        messages: list[dict],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float | None = None,
        seed: int = 0,
        recipe: str | None = None,
        layout: str = "interleaved",
        anyres: bool | None = None,
        newline_position: str = "grid",
        draft: int = 0,
    ) -> Request:
        """Check and collect the options of one request. None takes the checkpoint's own: repetition_penalty from its
        generation_config.json (it applies to greedy decoding too, as upstream), recipe and anyres from its config.
        draft: tokens to guess ahead in every step, from what the text repeats; the reply is the same."""
        if max_new_tokens < 1:
            raise UserError("max-new-tokens must be at least 1")
        if draft < 0:
            raise UserError("draft must be 0 or more")
        recipe = recipe or self.config.recipe
        anyres = self.config.asking.anyres if anyres is None else anyres
        for value, allowed in ((recipe, RECIPES), (layout, LAYOUTS), (newline_position, NEWLINE_POSITIONS)):
            if value not in allowed:
                raise UserError(f"{value!r} is not one of {', '.join(allowed)}")
        penalty = self.config.repetition_penalty if repetition_penalty is None else repetition_penalty
        sampling = Sampling(temperature, top_p, top_k, penalty, seed)
        return Request(messages, sampling, max_new_tokens, Recipe(recipe, layout, anyres, newline_position), draft)

    def take_frames(self, options: dict) -> tuple[int, str]:
        """Take frames and pool out of the options. No more frames than overflow the context are ever decoded, so that
        a long video is refused for its tokens and not for its memory."""
        given = {k: options.pop(k, None) for k in ("frames", "pool")}
        frames, pool = (getattr(self.config.asking, k) if v is None else v for k, v in given.items())
        if frames < 1:
            raise UserError("frames must be at least 1")
        if pool not in POOLS:
            raise UserError(f"pooling {pool!r} is not one of {', '.join(POOLS)}")
        side = self.config.image.side
        tokens = side**2 if pool == "none" else max(side // 2, 1) ** 2
        return min(frames, self.config.max_length // tokens + 1), pool

    def forget(self) -> None:
        """Drop what is kept of earlier questions: for measurements, and after any change of the weights. While nothing
        is being answered."""
        for kept in (self.engine.pictures, self.engine.prompts):
            if kept is not None:
                kept.forget()
        if self.engine.graphs is not None:
            self.engine.graphs.held = None

    # --- running --------------------------------------------------------------------------------------------------

    def sample(self, request: Request) -> Sample:
        """Tokens and pixels of one request. Raises UserError where it exceeds the context or asks nothing."""
        if not request.messages or ROLES.get(request.messages[-1].get("role")) != "user":
            raise UserError("the last message must be the user's: there is nothing to answer")
        sample = build_sample(request.messages, self.tokenizer, self.config, request.recipe)
        check_length(sample, self.config.max_length, request.max_new_tokens)
        add_patches(sample, request.messages, self.config, request.recipe)
        return sample

    def answer(self, request: Request, media_s: float = 0.0) -> Stream:
        """Start answering a request; iterate over the result for its text."""
        result: list[Reply] = []
        text = TextStream(self.tokenizer)

        def pieces() -> Iterator[str]:
            for item in self._run([request], media_s, live=True):
                if isinstance(item, Reply):
                    result.append(item)
                elif item not in self.eos_ids and (piece := text.add(item)):
                    yield piece
            if rest := text.finish():
                yield rest

        return Stream(pieces(), result)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self.config.eos_ids or (self.tokenizer.im_end,)

    def _run(
        self, requests: Sequence[Request], media_s: float, samples: Sequence[Sample] | None = None, live: bool = False
    ) -> Iterator[Any]:
        """Yield the Reply of every request; with ``live`` (one request), first every token as it comes."""
        began = time.perf_counter()
        samples = [self.sample(r) for r in requests] if samples is None else samples
        packed = pack(samples, self.config.vision.patches)
        preprocess_s = time.perf_counter() - began
        clock = Clock()
        tokens: list[list[int]] = [[] for _ in requests]
        limits = [r.max_new_tokens for r in requests]
        steps = self.engine.generate(
            packed, [r.sampling for r in requests], limits, self.eos_ids, clock=clock, progress=self.progress,
            draft=[r.draft for r in requests],
        )  # fmt: skip
        for step in steps:
            for s, token in step:
                tokens[s].append(token)
                if live:
                    yield token
        timings = self._timings(packed.tokens, media_s, preprocess_s, clock)
        for request, sample, ids in zip(requests, samples, tokens, strict=True):
            yield Reply(
                text=self.tokenizer.decode([i for i in ids if i not in self.eos_ids]),
                token_ids=ids,
                finish_reason="stop" if ids[-1] in self.eos_ids else "length",
                prompt_tokens=sample.tokens,
                image_tokens=sample.image_tokens,
                model=self.name,
                recipe=request.recipe.name,
                dtype=str(self.engine.dtype).removeprefix("torch."),
                quant=self.quant,
                timings=timings,
            )

    def _timings(self, prompt_tokens: int, media_s: float, preprocess_s: float, clock: Clock) -> dict[str, float]:
        if self.engine.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.engine.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "load_s": self.load_s,
            "media_s": media_s,
            "preprocess_s": preprocess_s,
            "encode_s": clock.encode_s,
            "prefill_s": clock.prefill_s,
            "decode_s": clock.decode_s,
            "ttft_s": media_s + preprocess_s + clock.ttft_s,
            "prefill_tokens_per_s": (prompt_tokens - clock.cached_tokens) / clock.prefill_s if clock.prefill_s else 0.0,
            "decode_tokens_per_s": clock.decode_tokens / clock.decode_s if clock.decode_s else 0.0,
            "peak_memory_bytes": peak,
            "cached_views": clock.cached_views,
            "cached_prompt_tokens": clock.cached_tokens,
            "draft_tokens": clock.draft_tokens,
            "draft_accepted": clock.draft_accepted,
        }
