"""One table of tensor names: the canonical names of the model, and both dialects' names for the same tensors (spec 2).

A stored key is a prefix, which tells the part and the dialect, and a suffix, which is the same in every dialect.
"""

from __future__ import annotations

import re

from minilava.config import ModelConfig

# part -> prefixes: the original dialect's; the one of the hf files on the hub; then those that are only read, which
# are the module names of transformers >= 4.52 and of 5.x, where the inner "vision_model" is gone.
PREFIXES = {
    "vision.": (
        "model.vision_tower.vision_tower.vision_model.",
        "vision_tower.vision_model.",
        "model.vision_tower.vision_model.",
        "model.vision_tower.",
        "vision_tower.",
    ),
    "projector.fc1.": (
        "model.mm_projector.0.",
        "multi_modal_projector.linear_1.",
        "model.multi_modal_projector.linear_1.",
    ),
    "projector.fc2.": (
        "model.mm_projector.2.",
        "multi_modal_projector.linear_2.",
        "model.multi_modal_projector.linear_2.",
    ),
    "newline": ("model.image_newline", "image_newline"),
    "text.head.": ("lm_head.", "language_model.lm_head."),
    "text.": ("model.", "language_model.model.", "model.language_model."),
}


def _both(**names: str) -> dict[str, str]:
    """Keyword a__b=suffix stands for the weight and the bias of a.#.b, # being the number of the block."""
    return {f"{a.replace('__', '.#.')}.{x}": f"{b}.{x}" for a, b in names.items() for x in ("weight", "bias")}


_LEAVES = {"weight": "weight", "bias": "bias"}
SUFFIXES = {
    "vision.": _both(
        patch="embeddings.patch_embedding",
        blocks__norm1="encoder.layers.#.layer_norm1",
        blocks__norm2="encoder.layers.#.layer_norm2",
        **{f"blocks__{x}": f"encoder.layers.#.self_attn.{x}_proj" for x in ("q", "k", "v", "out")},
        blocks__fc1="encoder.layers.#.mlp.fc1",
        blocks__fc2="encoder.layers.#.mlp.fc2",
        post_norm="post_layernorm",
    )
    | {"position": "embeddings.position_embedding.weight", "position_ids": "embeddings.position_ids"}
    # SigLIP's pooling head, which some towers carry and LLaVA never runs
    | _both(**{f"head.{x}": f"head.{x}" for x in ("layernorm", "mlp.fc1", "mlp.fc2", "attention.out_proj")})
    | {f"head.{x}": f"head.{x}" for x in ("probe", "attention.in_proj_weight", "attention.in_proj_bias")},
    "projector.fc1.": _LEAVES,
    "projector.fc2.": _LEAVES,
    "newline": {"": ""},
    "text.head.": _LEAVES,
    "text.": _both(
        embed="embed_tokens",
        blocks__norm1="layers.#.input_layernorm",
        blocks__norm2="layers.#.post_attention_layernorm",
        **{f"blocks__{x}": f"layers.#.self_attn.{x}_proj" for x in ("q", "k", "v", "o")},
        **{f"blocks__{x}": f"layers.#.mlp.{x}_proj" for x in ("gate", "up", "down")},
        norm="norm",
    ),
}
_BLOCK = re.compile(r"(?<=blocks\.)\d+(?=\.)|(?<=layers\.)\d+(?=\.)")
_CANONICAL = {part: {suffix: name for name, suffix in table.items()} for part, table in SUFFIXES.items()}
# The longest prefix decides: "model." alone is the original text model, "model.vision_tower." is not.
_READ = sorted(((p, part) for part, prefixes in PREFIXES.items() for p in prefixes), key=lambda x: -len(x[0]))


def canonical(key: str) -> str | None:
    """The canonical name of a tensor stored under ``key`` in any dialect, or None if it is none of this model's."""
    for prefix, part in _READ:
        if key.startswith(prefix):
            name = _translate(key[len(prefix) :], _CANONICAL[part])
            return None if name is None else part + name
    return None


def stored(name: str, dialect: str) -> str:
    """The key of a canonical name in files of ``dialect``; ``hf`` writes the generation of the files on the hub."""
    for part, prefixes in PREFIXES.items():
        suffix = _translate(name[len(part) :], SUFFIXES[part]) if name.startswith(part) else None
        if suffix is not None:
            return prefixes[dialect == "hf"] + suffix
    raise KeyError(name)


def _translate(text: str, table: dict[str, str]) -> str | None:
    number = _BLOCK.search(text)
    found = table.get(_BLOCK.sub("#", text, count=1))
    return found.replace("#", number[0]) if found and number else found


def expected(config: ModelConfig, unused: bool = False) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that the model of ``config`` needs (spec 2.1), in file order.

    ``unused`` adds the tower's post_layernorm: published files hold it, nothing applies it (spec 1.1).
    """
    t, v = config.text, config.vision
    shapes: dict[str, tuple[int, ...]] = {"text.embed.weight": (t.vocab_rows, t.width)}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, width: int, bias: bool) -> None:
        shapes.update({f"{name}.{x}": (width,) for x in ("weight", "bias")[: 1 + bias]})

    for i in range(t.layers):
        block = f"text.blocks.{i}"
        norm(f"{block}.norm1", t.width, bias=False)
        linear(f"{block}.q", t.heads * t.head_dim, t.width)
        linear(f"{block}.k", t.kv_heads * t.head_dim, t.width)
        linear(f"{block}.v", t.kv_heads * t.head_dim, t.width)
        linear(f"{block}.o", t.width, t.heads * t.head_dim, bias=False)
        norm(f"{block}.norm2", t.width, bias=False)
        linear(f"{block}.gate", t.mlp_width, t.width, bias=False)
        linear(f"{block}.up", t.mlp_width, t.width, bias=False)
        linear(f"{block}.down", t.width, t.mlp_width, bias=False)
    norm("text.norm", t.width, bias=False)
    if not t.tied:
        linear("text.head", t.vocab_rows, t.width, bias=False)
    if config.newline:
        shapes["newline"] = (t.width,)
    linear("projector.fc1", t.width, v.width)
    linear("projector.fc2", t.width, t.width)
    shapes["vision.patch.weight"] = (v.width, v.channels, v.patch_size, v.patch_size)
    shapes["vision.patch.bias"] = (v.width,)
    shapes["vision.position"] = (v.patches, v.width)
    for j in range(v.layers):
        block = f"vision.blocks.{j}"
        norm(f"{block}.norm1", v.width, bias=True)
        for x in ("q", "k", "v", "out"):
            linear(f"{block}.{x}", v.width, v.width)
        norm(f"{block}.norm2", v.width, bias=True)
        linear(f"{block}.fc1", v.mlp_width, v.width)
        linear(f"{block}.fc2", v.width, v.mlp_width)
    if unused:
        norm("vision.post_norm", v.width, bias=True)
    return shapes


def ignorable(name: str, config: ModelConfig) -> bool:
    """Whether a tensor may lie in the file without being part of the running model: post_norm, the pooling head,
    position buffers, vision blocks behind the feature layer, a tied head, a newline that the merge type never uses."""
    if name.startswith("vision.blocks."):
        return int(name.split(".")[2]) >= config.vision.layers
    if name == "text.head.weight":
        return config.text.tied
    if name == "newline":
        return not config.newline
    return name.startswith(("vision.post_norm.", "vision.head.", "vision.position_ids"))
