"""Random checkpoints of every size, for tests and benchmarks: real layout and tokenizer, untrained values.

A value depends on (seed, canonical name) alone, so both dialects of one seed hold the same model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from minilava.checkpoint.companions import with_image_token, write_companions
from minilava.checkpoint.dialects import ORIGINAL_DEFAULTS, to_hf
from minilava.checkpoint.names import expected, stored
from minilava.checkpoint.writer import Source, refuse_existing, write_checkpoint, write_json
from minilava.config import RELEASED_GRID, ModelConfig
from minilava.errors import UserError
from minilava.tokenizer import Tokenizer, build_qwen_tokenizer, byte_tokenizer, find_qwen_ranks

# shape -> (hidden_size, intermediate_size, num_hidden_layers, heads, key-value heads, vocabulary rows, tied), spec 1.3
SHAPES = {
    "0.5b": (1024, 2816, 24, 16, 16, 151936, True),
    "7b": (4096, 11008, 32, 32, 32, 151936, False),
    "14b": (5120, 13696, 40, 40, 40, 152064, False),
    "tiny": (64, 128, 2, 4, 2, 320, True),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DIALECTS = ("original", "hf")
TINY_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
TINY_GRID = ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))  # the released grid, in tiny views
CHUNK = 4 << 20  # values drawn at once; part of the definition, because a generator's stream depends on it


def write_random(
    dst: str | Path,
    shape: str = "tiny",
    dialect: str = "original",
    seed: int = 0,
    dtype: str = "bfloat16",
    tokenizer: str | Path = "auto",
    config_overrides: dict | None = None,
    shard_bytes: int = 5 * 10**9,
    progress: bool = False,
) -> Path:
    """Write a random checkpoint into the new directory ``dst`` and return it.

    shape: a key of SHAPES; dtype: one of DTYPES. tokenizer: "byte"; "auto" (byte for tiny, else Qwen's if a package
    that ships its ranks is installed, else byte); or a file or directory that holds one. config_overrides: fields of
    an original config.json (spec 2.2), in either dialect; ``vision_config`` is merged field by field.
    Raises UserError.
    """
    dst = Path(dst)
    if shape not in SHAPES or dtype not in DTYPES or dialect not in DIALECTS:
        raise UserError(f"shape is one of {', '.join(SHAPES)}; dtype of {', '.join(DTYPES)}; dialect original or hf")
    refuse_existing(dst)
    tok = load_tokenizer(tokenizer, shape)
    raw = original_config(shape, Tokenizer(tok), dtype, config_overrides or {})
    generation = _generation(shape, Tokenizer(tok), dialect)
    if dialect == "hf":
        tok = with_image_token(tok)
        raw = to_hf(raw, ModelConfig.parse(raw), Tokenizer(tok).image)
        del raw["minilava"]
    config = ModelConfig.parse(raw, generation)
    if Tokenizer(tok).size > config.text.vocab_rows:
        raise UserError(f"the tokenizer has {Tokenizer(tok).size} ids and the vocabulary {config.text.vocab_rows} rows")
    sources = [
        Source(stored(name, dialect), dims, DTYPES[dtype], partial(_values, seed, name, dims, DTYPES[dtype]))
        for name, dims in expected(config, unused=True).items()
    ]
    dst.mkdir(parents=True, exist_ok=True)
    write_companions(dst, dialect, tok, config.vision)
    write_json(dst / "generation_config.json", generation)
    write_checkpoint(dst, raw, sources, shard_bytes, progress)
    return dst


def original_config(shape: str, tok: Tokenizer, dtype: str, overrides: dict) -> dict:
    """config.json in the original dialect (spec 2.2) for one of SHAPES."""
    width, mlp, layers, heads, kv_heads, rows, tied = SHAPES[shape]
    tiny = shape == "tiny"
    raw = ORIGINAL_DEFAULTS | {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": max(rows, (tok.size // 64 + 1) * 64) if tiny else rows,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "bos_token_id": tok.end_of_text,
        "eos_token_id": tok.im_end,
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [list(cell) for cell in (TINY_GRID if tiny else RELEASED_GRID)],
        "tokenizer_model_max_length": 32768,
        "torch_dtype": dtype,
    }
    vision = (TINY_VISION if tiny else {}) | overrides.get("vision_config", {})
    raw |= {"mm_hidden_size": vision.get("hidden_size", 1152)} | overrides
    return raw | {"vision_config": vision} if vision else raw


def load_tokenizer(choice: str | Path, shape: str) -> tokenizers.Tokenizer:
    """See write_random."""
    ranks = find_qwen_ranks()
    if choice == "byte" or choice == "auto" and (shape == "tiny" or ranks is None):
        return byte_tokenizer()
    if choice == "auto":
        return build_qwen_tokenizer(ranks)
    path = Path(choice)
    if path.suffix == ".tiktoken":
        return build_qwen_tokenizer(path)
    return Tokenizer.load(path if path.is_dir() else path.parent).raw


def _generation(shape: str, tok: Tokenizer, dialect: str) -> dict:
    """generation_config.json as published (spec 2.3): the ports carry the ids alone."""
    ids = {"bos_token_id": tok.end_of_text, "eos_token_id": tok.im_end}
    if dialect == "hf":
        return ids
    penalty = 1.1 if shape == "0.5b" else 1.05
    return ids | {
        "pad_token_id": tok.end_of_text,
        "eos_token_id": [tok.im_end, tok.end_of_text],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": penalty,
    }


def _values(seed: int, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """Draws like a fresh model's, but nothing is exactly 0 or 1: an ignored bias or norm weight must show."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    mean = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
    std = shape[0] ** -0.5 if name == "newline" else 0.02
    buffer, count = torch.empty(min(CHUNK, math.prod(shape))), math.prod(shape)
    for start in range(0, count, CHUNK):
        piece = buffer[: min(CHUNK, count - start)]
        yield piece.normal_(mean, std, generator=generator).to(dtype)
