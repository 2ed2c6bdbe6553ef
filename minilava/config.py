"""What a checkpoint is: frozen dataclasses read from its own JSON files, in both dialects, by content.

``original`` is the dialect of the authors' repositories (spec 2.2), ``hf`` the Hugging Face port's (spec 2.4).
Nothing here looks at directory names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from minilava.errors import UserError

IMAGE = -200  # the virtual id of an image placeholder in encoded prompts (spec 1.5); never embedded
IGNORE = -100  # label of a token that carries no loss (spec 1.5)
RELEASED_GRID = ((384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152))
# Inside a nested block the port's files leave out every field that equals its class default (the 7B port has no
# hidden_size, for instance), so these are part of the format (spec 2.4).
QWEN2_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
}
SIGLIP_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower (spec 1.1). ``layers`` counts the blocks that run; the feature is the residual stream after them."""

    width: int = 1152
    mlp_width: int = 4304
    layers: int = 26
    heads: int = 16
    image_size: int = 384
    patch_size: int = 14
    channels: int = 3
    eps: float = 1e-6

    @property
    def side(self) -> int:
        """Patches per side of the grid (27); pixels past side * patch_size never enter the network."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.side**2

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class TextConfig:
    """Qwen1.5 / Qwen2 decoder (spec 1.3). ``vocab_rows`` is what is on disk, which may exceed the usable ids."""

    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_rows: int
    tied: bool
    rope_theta: float = 1e6
    eps: float = 1e-6
    max_positions: int = 32768


@dataclass(frozen=True)
class ImageConfig:
    """How a picture becomes views and tokens (spec 3). The first three fields carry the checkpoint's own names."""

    image_aspect_ratio: str = "anyres"
    image_grid_pinpoints: Any = RELEASED_GRID
    mm_patch_merge_type: str = "spatial_unpad"
    view: int = 384  # pixels per side of one view
    side: int = 27  # feature rows and columns of one view


@dataclass(frozen=True)
class Asking:
    """How a checkpoint wants to be asked where the caller does not say: ``asking`` in the minilava block of its
    config.json. The published checkpoints have none."""

    recipe: str | None = None
    anyres: bool | None = None
    pool: str = "none"  # of video frames
    frames: int = 16

    def __post_init__(self):
        kinds = {"recipe": (str, type(None)), "anyres": (bool, type(None)), "pool": str, "frames": int}
        if wrong := [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]:
            raise UserError(f"config.json: minilava.asking has a {', '.join(wrong)} of the wrong type")


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint. ``image_token_id`` is None in the original dialect, where the placeholder is virtual."""

    dialect: str  # "original" | "hf"
    vision: VisionConfig
    text: TextConfig
    image: ImageConfig
    newline: bool  # an image_newline vector is stored
    image_token_id: int | None = None
    max_length: int = 32768
    eos_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    generation: dict = field(default_factory=dict)  # the rest of generation_config.json, for information
    asking: Asking = Asking()

    @property
    def recipe(self) -> str:
        """The input recipe that the model was trained with or, where its files do not say, that this dialect's
        reference uses: ``authors`` or ``hf``."""
        return self.asking.recipe or ("authors" if self.dialect == "original" else "hf")

    @staticmethod
    def load(path: str | Path) -> ModelConfig:
        """Read ``config.json`` and, if present, ``generation_config.json`` of a checkpoint directory."""
        path = Path(path)
        raw = read_json(path / "config.json")
        generation_file = path / "generation_config.json"
        generation = read_json(generation_file) if generation_file.exists() else {}
        return ModelConfig.parse(raw, generation)

    @staticmethod
    def parse(raw: dict, generation: dict | None = None) -> ModelConfig:
        """Build from the parsed JSON files. Raises UserError where a required field is absent or unsupported."""
        generation = dict(generation or {})
        try:
            sections = _parse_hf(raw) if "text_config" in raw else _parse_original(raw)
            eos = generation.get("eos_token_id", raw.get("eos_token_id"))
            if eos is None:
                eos = raw.get("text_config", {}).get("eos_token_id")
            config = ModelConfig(
                **sections,
                eos_ids=() if eos is None else tuple(map(int, eos if isinstance(eos, list) else [eos])),
                repetition_penalty=float(generation.get("repetition_penalty") or 1.0),
                generation=generation,
                asking=Asking(**raw.get("minilava", {}).get("asking", {})),
            )
            _check(config)
        except KeyError as e:
            raise UserError(f"config.json has no field {e.args[0]!r}: not a LLaVA-NeXT-Interleave checkpoint") from None
        except (TypeError, AttributeError, ArithmeticError) as e:
            raise UserError(f"a field of config.json has the wrong type or value: {e}") from None
        except ValueError as e:  # UserError is one of them and already says what to do
            raise e if isinstance(e, UserError) else UserError(f"a field of config.json is not a number: {e}") from None
        return config


def read_json(path: Path) -> dict:
    """Parse a small JSON object from disk; every failure is a UserError that names the file."""
    try:
        if path.stat().st_size > 64 << 20:
            raise UserError(f"{path} is larger than 64 MB: not a configuration file")
        value = json.loads(path.read_text("utf-8"))
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def _text(raw: dict) -> TextConfig:
    heads, width = raw["num_attention_heads"], raw["hidden_size"]
    rope = raw.get("rope_parameters") or {}  # transformers 5 moved rope_theta in here
    if raw.get("use_sliding_window"):
        raise UserError("sliding-window attention is not part of LLaVA-NeXT-Interleave and is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act {raw['hidden_act']!r} is not supported, only silu")
    return TextConfig(
        width=width,
        mlp_width=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or width // heads,
        vocab_rows=raw["vocab_size"],
        tied=bool(raw.get("tie_word_embeddings", False)),
        rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_positions=raw.get("max_position_embeddings", 32768),
    )


def _vision(raw: dict, layers: int) -> VisionConfig:
    return VisionConfig(
        width=raw.get("hidden_size", 1152),
        mlp_width=raw.get("intermediate_size", 4304),
        layers=layers,
        heads=raw.get("num_attention_heads", 16),
        image_size=raw.get("image_size", 384),
        patch_size=raw.get("patch_size", 14),
        channels=raw.get("num_channels", 3),
        eps=float(raw.get("layer_norm_eps", 1e-6)),
    )


def _parse_original(raw: dict) -> dict:
    if raw.get("mm_projector_type") != "mlp2x_gelu":
        raise UserError(f"mm_projector_type {raw.get('mm_projector_type')!r} is not supported, only mlp2x_gelu")
    tower = str(raw["mm_vision_tower"])
    # The tower is named, not described. A vision_config block (ours writes one for other shapes) overrides the name.
    if "vision_config" not in raw and "siglip-so400m-patch14-384" not in tower:
        raise UserError(f"vision tower {tower!r} is not supported, only google/siglip-so400m-patch14-384")
    vision = _vision(raw.get("vision_config", {}), raw.get("vision_config", {}).get("num_hidden_layers", 26))
    merge = raw.get("mm_patch_merge_type") or "flat"
    grid = raw.get("image_grid_pinpoints") or RELEASED_GRID
    text = _text(raw)
    return dict(
        dialect="original",
        vision=vision,
        text=text,
        image=ImageConfig(
            raw.get("image_aspect_ratio") or "square", _freeze(grid), merge, vision.image_size, vision.side
        ),
        newline="unpad" in merge,
        # The reference cuts what is longer than the one off (spec 5.6); past the other it knows no position.
        max_length=min(raw.get("tokenizer_model_max_length") or text.max_positions, text.max_positions),
    )


def _parse_hf(raw: dict) -> dict:
    if raw.get("model_type") != "llava":
        raise UserError(f"model_type {raw.get('model_type')!r} is not supported, only llava (and llava_qwen)")
    if raw.get("projector_hidden_act", "gelu") != "gelu":
        raise UserError(f"projector_hidden_act {raw['projector_hidden_act']!r} is not supported, only gelu")
    if raw.get("vision_feature_select_strategy", "default") != "full":
        raise UserError("vision_feature_select_strategy must be 'full': SigLIP has no class token to drop")
    vision_raw = SIGLIP_DEFAULTS | raw["vision_config"]
    if vision_raw.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise UserError(f"vision tower {vision_raw['model_type']!r} is not supported, only siglip_vision_model")
    if vision_raw.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise UserError(f"vision hidden_act {vision_raw['hidden_act']!r} is not supported, only gelu_pytorch_tanh")
    depth, layer = vision_raw["num_hidden_layers"], raw.get("vision_feature_layer", -2)  # -2: LlavaConfig's default
    # hidden_states[layer], where entry 0 is the embedding output: keep the blocks before it (spec 1.1).
    layers = depth + 1 + layer if layer < 0 else layer
    if not 1 <= layers <= depth:
        raise UserError(f"vision_feature_layer {layer} does not name the output of one of the {depth} vision blocks")
    text = QWEN2_DEFAULTS | raw["text_config"]
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"rope scaling {rope} is not supported, only plain rotary positions")
    text.setdefault("tie_word_embeddings", raw.get("tie_word_embeddings", False))
    vision = _vision(vision_raw, layers)
    token = raw.get("image_token_index", raw.get("image_token_id"))
    if token is None:
        raise KeyError("image_token_index")
    text_config = _text(text)
    return dict(
        dialect="hf",
        vision=vision,
        text=text_config,
        image=ImageConfig("square", _scaled_grid(vision.image_size), "flat", vision.image_size, vision.side),
        newline=False,
        image_token_id=token,
        max_length=text_config.max_positions,
    )


def _check(config: ModelConfig) -> None:
    """Refuse sizes that no network can have, before anything is allocated from them."""
    for part in (config.vision, config.text):
        for size in fields(part):
            value = getattr(part, size.name)
            if size.type == "int" and (type(value) is not int or value < 1):
                raise UserError(f"config.json gives {size.name} = {value!r}, which must be a positive whole number")
    if config.text.heads % config.text.kv_heads:
        raise UserError(f"{config.text.heads} attention heads cannot share {config.text.kv_heads} key-value heads")
    if config.vision.width % config.vision.heads or config.vision.patch_size > config.vision.image_size:
        raise UserError("the vision tower's sizes in config.json do not fit together (width/heads, image/patch)")


def _scaled_grid(view: int) -> tuple[tuple[int, int], ...]:
    """The released canvases for views of another size; this dialect's files do not store any."""
    return tuple((w // 384 * view, h // 384 * view) for w, h in RELEASED_GRID)


def _freeze(grid: Any) -> Any:
    return tuple(tuple(cell) for cell in grid) if isinstance(grid, list) else grid
