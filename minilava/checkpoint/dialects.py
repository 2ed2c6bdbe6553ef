"""config.json from one dialect to the other (spec 2.5), losing nothing.

Each side has fields that the other has no word for. The whole source config travels along in a ``minilava`` block, and
on the way back it supplies what cannot be derived; what can be derived always wins, so a stale block does no harm.
"""

from __future__ import annotations

from minilava.config import ModelConfig, TextConfig, VisionConfig

TOWER = "google/siglip-so400m-patch14-384"
# Fields of the language model that nothing here reads but that both dialects carry.
KEPT = (
    "attention_dropout bos_token_id eos_token_id pad_token_id initializer_range max_window_layers "
    "sliding_window use_sliding_window use_cache"
).split()
# What an original config says where the hf side knows nothing: one squashed view per image, no newline.
ORIGINAL_DEFAULTS = {
    "mm_vision_tower": TOWER,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "flat",
    "image_aspect_ratio": "square",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "use_mm_proj": True,
    "tokenizer_padding_side": "right",
}


def to_hf(raw: dict, config: ModelConfig, image_id: int) -> dict:
    """The hf config.json for an original one; ``config`` has the sizes, ``image_id`` the id of ``<image>``."""
    known = raw.get("minilava", {}).get("hf", {})
    # rope_parameters is transformers 5's home of rope_theta, which is written the old way for every release to read.
    text = {k: v for k, v in known.get("text_config", {}).items() if k != "rope_parameters"}
    text |= {k: raw[k] for k in KEPT if k in raw}
    return _with_dtype(known, raw) | {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "ignore_index": -100,
        "image_seq_length": config.vision.patches,
        "image_token_index": image_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": config.text.tied,
        "text_config": text | {"model_type": "qwen2"} | _text(config.text),
        "vision_config": known.get("vision_config", {}) | _vision(config.vision),
        "minilava": {"original": _without_block(raw)} | _asking(raw),
    }


def to_original(raw: dict, config: ModelConfig, newline: bool) -> dict:
    """The original config.json for an hf one. Without a ``newline`` vector no merge type that needs it is kept."""
    known = raw.get("minilava", {}).get("original", {})
    out = _with_dtype(ORIGINAL_DEFAULTS | known, raw)
    if not newline and "unpad" in str(out["mm_patch_merge_type"]):
        out["mm_patch_merge_type"] = "flat"
    out |= {k: v for k, v in raw["text_config"].items() if k in KEPT}
    out |= {"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen"} | _text(config.text)
    out |= {"mm_hidden_size": config.vision.width, "minilava": {"hf": _without_block(raw)} | _asking(raw)}
    if config.vision != VisionConfig():
        out["vision_config"] = _vision(config.vision)
    return out


def _with_dtype(target: dict, source: dict) -> dict:
    """The dtype field under its old name, which every release reads."""
    dtype = source.get("torch_dtype") or source.get("dtype")
    return {k: v for k, v in target.items() if k != "dtype"} | ({"torch_dtype": dtype} if dtype else {})


def _without_block(raw: dict) -> dict:
    return {k: v for k, v in raw.items() if k != "minilava"}


def _asking(raw: dict) -> dict:
    return {k: v for k, v in raw.get("minilava", {}).items() if k == "asking"}


def _text(t: TextConfig) -> dict:
    fields = {
        "hidden_size": t.width,
        "intermediate_size": t.mlp_width,
        "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "vocab_size": t.vocab_rows,
        "tie_word_embeddings": t.tied,
        "rope_theta": t.rope_theta,
        "rms_norm_eps": t.eps,
        "max_position_embeddings": t.max_positions,
        "hidden_act": "silu",
    }
    return fields if t.head_dim * t.heads == t.width else fields | {"head_dim": t.head_dim}


def _vision(v: VisionConfig) -> dict:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": v.width,
        "intermediate_size": v.mlp_width,
        "num_hidden_layers": v.layers,
        "num_attention_heads": v.heads,
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        "num_channels": v.channels,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": v.eps,
        "vision_use_head": False,
    }
