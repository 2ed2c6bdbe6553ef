"""Where and in which precision to compute: the meaning of ``auto``, in every command."""

from __future__ import annotations

import torch

from minilava.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto is bfloat16 where the matrix units take it (CUDA, AMX, AVX512-BF16), else float32."""
    if name == "auto":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private in torch, hence the default
        fast = device.type == "cuda" or any(getattr(torch.cpu, p, lambda: False)() for p in probes)
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise UserError(f"--dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise UserError("--dtype float16 is not run on a CPU (it is hundreds of times slower there); use float32")
    return DTYPES[name]
