"""The small files beside the weights: tokenizer, generation settings and, for the hf dialect, its processor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tokenizers

from minilava.checkpoint.writer import write_json
from minilava.config import VisionConfig, read_json
from minilava.tokenizer import IMAGE_TOKEN, Tokenizer, add_specials

COPIED = (
    "generation_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Spec 5.10: no system block, all images of a message first, a newline before every text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}"
    "{{ '\\n' + message['content'] }}"
    "{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ '\\n' + item['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Spec 5.1: the system block, images where they stand among the text, nothing added.
INTERLEAVED_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{{ '<image>' if item['type'] == 'image' else item['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_companions(
    dst: Path,
    dialect: str,
    tok: tokenizers.Tokenizer,
    vision: VisionConfig,
    src: Path | None = None,
    recipe: str | None = None,
) -> None:
    """Copy what ``src`` has, write the tokenizer, and for ``hf`` add what transformers' processor needs (spec 2.4).
    Recipe ``train`` has a chat template of its own."""
    for name in COPIED:
        if src and (src / name).exists():
            shutil.copyfile(src / name, dst / name)
    tok.save(str(dst / "tokenizer.json"))
    known = read_json(src / "tokenizer_config.json") if src and (src / "tokenizer_config.json").exists() else {}
    write_json(dst / "tokenizer_config.json", _tokenizer_config(known, dialect, Tokenizer(tok)))
    if dialect == "hf":
        files = {"preprocessor_config.json": _preprocessor(vision), "processor_config.json": _processor(vision)}
        for name, value in files.items():
            if not (dst / name).exists():
                write_json(dst / name, value)
        if recipe == "train":
            (dst / "chat_template.jinja").write_text(INTERLEAVED_TEMPLATE, "utf-8")
        elif not (dst / "chat_template.jinja").exists() and not (dst / "chat_template.json").exists():
            (dst / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")


def with_image_token(tok: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with ``<image>`` as a special token, as the hf dialect has it (151646 after Qwen's own)."""
    add_specials(tok, [IMAGE_TOKEN])
    return tok


def without_image_token(tok: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer without ``<image>`` and the port's ``<pad>`` behind it, as the original dialect has it.
    It stays where other tokens follow, whose ids must not move."""
    data = json.loads(tok.to_str())
    ids = {entry["content"]: entry["id"] for entry in data["added_tokens"]}
    behind = {content for content, i in ids.items() if i >= ids.get(IMAGE_TOKEN, i + 1)}
    if not behind or behind - {IMAGE_TOKEN, "<pad>"}:
        return tok
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] not in behind]
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _tokenizer_config(known: dict, dialect: str, tok: Tokenizer) -> dict:
    out = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "model_max_length": 32768,
    } | known
    decoder = dict(out.get("added_tokens_decoder", {}))
    if dialect == "hf":
        out |= {"image_token": IMAGE_TOKEN, "extra_special_tokens": {"image_token": IMAGE_TOKEN}}
        decoder |= {str(tok.image): {"content": IMAGE_TOKEN, "special": True, "normalized": False}}
    else:
        out.pop("image_token", None)
        out.pop("extra_special_tokens", None)
        decoder = {i: entry for i, entry in decoder.items() if tok.raw.token_to_id(entry["content"]) == int(i)}
    return out | {"added_tokens_decoder": decoder} if "added_tokens_decoder" in out else out


def _preprocessor(vision: VisionConfig) -> dict:
    return {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _processor(vision: VisionConfig) -> dict:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TOKEN,
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": 0,
    }
