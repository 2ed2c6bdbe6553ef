"""What this machine has, and which implementation every operation will run here, and why."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from minilava.device import pick_dtype
from minilava.errors import Parser, command
from minilava_kernels import (
    attention,
    cross_entropy,
    linear,
    linear_q,
    norm,
    pool,
    projector,
    rope_kv,
    sample,
    splice,
    swiglu,
)  # fmt: skip

PACKAGES = ("torch", "triton", "flash-attn", "numpy", "pillow", "safetensors", "tokenizers", "av", "pyyaml")
WHY = {
    "native": "C++ with {simd} instructions (minilava._C)",
    "onednn": "oneDNN through PyTorch: faster than our own from a few rows on",
    "train": "oneDNN through PyTorch, with gradients of our own",
    "chunked": "oneDNN or cuBLAS, a chunk of the vocabulary at a time",
    "inplace": "cuBLAS, which adds to the residual as it writes",
    "triton": "Triton {triton}",
    "flash": "flash-attn {flash-attn}",
    "decode": "Triton {triton}, split over the keys",
    "torch": "PyTorch's variable-length flash attention",
}
# Where plain PyTorch is what runs, and that is meant.
PLAIN = {
    ("cpu", "layer norm, training"): "PyTorch's own is one fused pass",
    ("cpu", "pool"): "a few per cent of the time of a picture",
    ("cpu", "splice"): "a few per cent of the time of a picture",
    ("cpu", "projector"): "two products, as linear",
    ("cpu", "linear_q"): "weights are dequantised; quantised models take linear_i8 on a CPU",
    ("cpu", "sample"): "a row at a time",
    ("cuda", "linear, one row"): "cuBLAS",
    ("cuda", "linear_i8"): "for CPUs",
    ("cuda", "decoder_i8"): "for CPUs",
    ("cuda", "encoder_i8"): "for CPUs",
    ("cuda", "linear, many rows"): "cuBLAS",
    ("cuda", "linear, training"): "cuBLAS",
}


def operations(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Operation -> the name of its implementation for tensors of this device and dtype."""

    def t(*shape: int, learns: bool = False) -> Tensor:
        return torch.empty(*shape, device=device, dtype=dtype).requires_grad_(learns)

    def linears(rows: int, learns: bool = False, **options: Tensor) -> str:
        return linear.implementation(t(rows, 64, learns=learns), t(64, 64), **options)

    # Quantised models run on a CPU, in float32, whatever dtype float ones have.
    quantised = "native" if device.type == "cpu" and _native() else "reference"
    with torch.enable_grad():
        return {
            "preprocess": "native" if _native() else "reference",  # on the CPU, whatever device the model is on
            "projector": projector.implementation(t(64, 64)),
            "pool": pool.implementation(t(1, 1)),
            "splice": splice.implementation(t(1, 1)),
            "attention": attention.implementation(device, dtype),
            "decode_attention": attention.implementation(device, dtype, packed=False, one_query=True),
            "rope_kv": rope_kv.implementation(t(1, 64), t(1, 1, 64)),
            "rms norm": norm.implementation(t(1, 64), t(64)),
            "layer norm": norm.implementation(t(1, 64), t(64), t(64)),
            "layer norm, training": norm.implementation(t(1, 64), t(64, learns=True), t(64, learns=True)),
            "swiglu": swiglu.implementation(t(1, 64), t(1, 64)),
            "linear, one row": linears(1),
            "linear, many rows": linears(512),
            "linear, + residual": linears(1, residual=t(1, 64)),
            "linear, training": linears(512, learns=True),
            "linear_q": linear_q.implementation(t(1, 64)),
            "linear_i8": quantised,
            "decoder_i8": quantised,
            "encoder_i8": quantised,
            "cross_entropy": cross_entropy.implementation(t(1, 64)),
            "sample": sample.implementation(device),
        }


def report() -> dict:
    """{"machine": facts, "operations": {"cpu float32": [{"operation", "runs", "why"}], ...}}."""
    facts = machine()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = {}
    for name in devices:
        device = torch.device(name)
        auto = pick_dtype("auto", device)
        for dtype in dict.fromkeys((auto, torch.float32)):
            rows = [
                {"operation": o, "runs": runs, "why": why(name, o, runs, facts)}
                for o, runs in operations(device, dtype).items()
            ]
            kind = str(dtype).removeprefix("torch.")
            found[f"{name} {kind}" + " (auto)" * (dtype == auto)] = rows
    return {"machine": facts, "operations": found}


def why(device: str, operation: str, runs: str, facts: dict) -> str:
    if runs != "reference":
        return WHY[runs].format(**facts)
    if device == "cpu" and facts["simd"] == "none":
        return "PyTorch: minilava._C is not built; reinstall with a C++ compiler"
    return "PyTorch: " + PLAIN.get((device, operation), "no kernel for this dtype")


def machine() -> dict[str, str]:
    versions = {name: _version(name) for name in PACKAGES}
    native = _native()
    facts = {
        "python": platform.python_version(),
        **versions,
        "threads": str(torch.get_num_threads()),
        "simd": native.simd_level() if native else "none",
        "minilava._C": "built" if native else "not built: no C++ compiler was found at installation",
        "minilava._cuda": _cuda_state(),
    }
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(i)
        facts[f"cuda:{i}"] = f"{p.name}, {p.total_memory >> 30} GiB, compute capability {p.major}.{p.minor}"
    return facts | ({} if torch.cuda.is_available() else {"cuda": "no device, or PyTorch is built without it"})


def advice(facts: dict[str, str]) -> list[str]:
    """What to install to have every implementation that this machine can run."""
    wants: list[tuple[Callable[[], bool], str]] = [
        (lambda: facts["minilava._C"] != "built", "no C++ extension: reinstall with g++ on PATH (pip install -e .)"),
        (lambda: facts["av"] == "-", 'videos need PyAV: pip install "minilava[video]"'),
    ]
    if torch.cuda.is_available():
        wants += [
            (lambda: facts["triton"] == "-", 'the GPU needs Triton: pip install "minilava[gpu]"'),
            (lambda: facts["flash-attn"] == "-", 'flash-attn is optional here: pip install "minilava[flash]"'),
        ]
    return [text for missing, text in wants if missing()]


def _native():
    try:
        from minilava import _C
    except ImportError:
        return None
    return _C


def _cuda_state() -> str:
    try:
        from minilava import _cuda  # noqa: F401
    except ImportError as e:
        return f"not built ({e})"
    return "built"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def main() -> None:
    parser = Parser(prog="python -m minilava.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    found = report()
    if args.json:
        return print(json.dumps(found))
    for name, value in found["machine"].items():
        print(f"{name:15} {value}")
    for kind, rows in found["operations"].items():
        print(f"\n{kind}")
        for row in rows:
            print(f"  {row['operation']:19} {row['runs']:10} {row['why']}")
    for line in advice(found["machine"]):
        print(f"\n{line}")


if __name__ == "__main__":
    sys.exit(command(main))
