"""What a checkpoint is, in a dozen lines for people."""

from __future__ import annotations

import math

from minilava.checkpoint.reader import Checkpoint, find_non_finite


def parameters(checkpoint: Checkpoint) -> dict[str, int]:
    """Stored values per part (vision, projector, newline, text) and in total (spec 1.3)."""
    parts: dict[str, int] = {}
    for name, entry in checkpoint.entries.items():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + math.prod(entry.shape)
    return parts | {"total": sum(parts.values())}


def describe(checkpoint: Checkpoint, check: bool = False) -> tuple[str, bool]:
    """The report, and whether it found no fault. ``check`` reads every value to look for NaN and infinity."""
    config, entries = checkpoint.config, checkpoint.entries
    size = sum(file.stat().st_size for file in checkpoint.files)
    patches = config.vision.patches
    tokens = f"{patches + config.newline} (recipe authors, one view), {patches} (recipe hf)"
    lines = {
        "dialect": config.dialect,
        "files": f"{len(checkpoint.files)} safetensors, {size:,} bytes",
        "dtype": ", ".join(sorted({str(e.dtype).removeprefix("torch.") for e in entries.values()})),
        "tensors": f"{len(entries)}",
        "parameters": ", ".join(f"{part} {count:,}" for part, count in parameters(checkpoint).items()),
        "vocabulary": f"{config.text.vocab_rows} rows{', tied' if config.text.tied else ''}",
        "recipe": f"{config.recipe} ({config.image.image_aspect_ratio}, {config.image.mm_patch_merge_type})",
        "image tokens": tokens,
        "context": f"{config.max_length}",
        "eos ids": " ".join(map(str, config.eos_ids)) or "none",
        "repetition penalty": f"{config.repetition_penalty}",
    }
    bad = find_non_finite(checkpoint.pieces()) if check else []
    if check:
        found = f"NaN or infinity in {len(bad)} of them: {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}"
        lines["values"] = found if bad else "all finite"
    return "\n".join(f"{key:20}{value}" for key, value in lines.items()), not bad
