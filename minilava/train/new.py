"""A new model to train: a vocabulary learned from the mixture's own text, a shape, and fresh weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
from tokenizers import trainers
from torch import Tensor, nn
from tqdm import tqdm

from minilava.checkpoint import Source, stored, write_checkpoint
from minilava.checkpoint.companions import with_image_token, write_companions
from minilava.checkpoint.writer import refuse_existing, write_json
from minilava.config import ModelConfig
from minilava.data.mixture import Mixture
from minilava.model.llava import LLaVA
from minilava.tokenizer import SPECIALS, Tokenizer, add_specials, byte_level
from minilava.train.weights import with_unused

TEXT_SAMPLES = 20_000  # records whose text the vocabulary is learned from


def write_new(dst: str | Path, raw: dict, mixture: Mixture, vocabulary: int, seed: int = 0) -> Path:
    """Write an untrained checkpoint of the hf dialect, float32.

    raw: config.json of that dialect, in which the token ids and vocab_size are filled in here.
    vocabulary: byte-level BPE tokens (at least 256), without the special ones.
    """
    dst = Path(dst)
    refuse_existing(dst)
    tok = with_image_token(learn_vocabulary(texts(mixture), vocabulary))
    ids = Tokenizer(tok)
    eos = {"bos_token_id": ids.end_of_text, "eos_token_id": ids.im_end}
    rows = -(-ids.size // 64) * 64
    raw = raw | {"image_token_index": ids.image, "text_config": raw["text_config"] | eos | {"vocab_size": rows}}
    config = ModelConfig.parse(raw, eos)
    torch.manual_seed(seed)
    model = initialise(LLaVA(config))
    tensors = with_unused(model.state_dict(), config)
    dst.mkdir(parents=True, exist_ok=True)
    write_companions(dst, "hf", tok, config.vision, recipe=config.recipe)
    write_json(dst / "generation_config.json", eos)
    write_checkpoint(dst, raw, [Source.of(stored(name, "hf"), t) for name, t in tensors.items()])
    return dst


def learn_vocabulary(lines: Iterator[str], size: int) -> tokenizers.Tokenizer:
    """Qwen's tokenizer with other merges: byte-level BPE of ``size`` tokens, then the special ones."""
    tok = byte_level({}, [])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet)))
    add_specials(tok, SPECIALS)
    return tok


def texts(mixture: Mixture) -> Iterator[str]:
    """Messages of the first records of an epoch, without placeholders."""
    for number, index in tqdm(mixture.epoch(0)[:TEXT_SAMPLES], desc="reading text", disable=None):
        for message in mixture.sources[number].records[int(index)]["conversations"]:
            yield message["value"].replace("<image>", "").replace("<video>", "")
    yield "system user assistant You are a helpful assistant."


def initialise(model: LLaVA) -> LLaVA:
    """Fresh weights: linears from N(0, 1 / fan-in), the last of each residual branch scaled by 1 / sqrt(2 layers)
    so that the stream's variance stays of order one, embeddings N(0, 0.02), norms 1, biases 0."""

    @torch.no_grad()
    def fill(name: str, p: Tensor) -> None:
        if name.endswith("bias"):
            p.zero_()
        elif "norm" in name:
            p.fill_(1)
        elif p.dim() == 1 or name in ("vision.position", "text.embed.weight"):
            nn.init.normal_(p, std=0.02)
        else:
            layers = len(model.vision.blocks if name.startswith("vision") else model.text.blocks)
            branch_end = (
                name.endswith((".out.weight", ".o.weight", ".down.weight")) or ".blocks." in name and ".fc2." in name
            )
            nn.init.normal_(p, std=p[0].numel() ** -0.5 * (1 / math.sqrt(2 * layers) if branch_end else 1))

    for name, parameter in model.named_parameters():
        fill(name, parameter)
    return model
