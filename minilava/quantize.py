"""python -m minilava.quantize SRC DST --quant int8|int4 [--calibrate RECORDS]: checkpoints that load by memory map.

Such a directory is a checkpoint of its dialect whose config.json has a block ``minilava.quantization``:
{"name", "layout", "bits": {prefix of canonical module names: 8 or 4, 0 for float}, "vocab_rows"}. Instead of
``<module>.weight`` it stores ``<module>.values`` and ``<module>.scales`` (minilava_kernels.linear_i8.Panels) under
canonical names; all else is float32 under its usual name. Nothing is converted when it is loaded.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minilava.checkpoint.companions import write_companions
from minilava.checkpoint.names import expected, stored
from minilava.checkpoint.reader import find_files, find_non_finite, load_tensors, open_checkpoint
from minilava.checkpoint.shard import map_entries, read_header
from minilava.checkpoint.writer import Source, refuse_existing, write_checkpoint
from minilava.config import ModelConfig, read_json
from minilava.errors import Parser, UserError, command
from minilava.tokenizer import Tokenizer
from minilava_kernels.linear_i8 import GROUPS, LAYOUT, pack, shapes

# The longest prefix decides. The tower and the projector stay at 8 bits: their outputs are the decoder's inputs.
POLICIES = {"int8": {"": 8}, "int4": {"": 8, "text": 4}}


def _quietly(items: Iterable, _what: str) -> Iterable:
    return items


@dataclass(frozen=True)
class Quantization:
    name: str
    bits: Mapping[str, int]
    vocab_rows: int
    layout: str = LAYOUT

    def modules(self, config: ModelConfig) -> dict[str, int]:
        """Canonical name of every quantised module -> bits, in file order."""
        found = {}
        for name, shape in expected(config).items():
            module = name.removesuffix(".weight")
            if len(shape) == 2 and module != name:
                prefixes = [p for p in self.bits if not p or f"{module}.".startswith(f"{p}.")]
                if bits := self.bits[max(prefixes, key=len)] if prefixes else 0:
                    found[module] = bits
        return found


def read_quantization(path: str | Path) -> Quantization | None:
    """What config.json says, or None for a float checkpoint. UserError for a block that this version cannot run."""
    file = Path(path) / "config.json"
    block = read_json(file).get("minilava", {}).get("quantization") if file.exists() else None
    if block is None:
        return None
    try:
        q = Quantization(**block)
        good = all(b in (0, *GROUPS) for b in q.bits.values()) and isinstance(q.vocab_rows, int)
    except (TypeError, AttributeError):
        good = False
    if not good:
        raise UserError(f"{file}: the block minilava.quantization is damaged: quantise the model again")
    if q.layout != LAYOUT:
        raise UserError(f"{path} has weights in layout {q.layout!r}, this version reads {LAYOUT}: quantise it again")
    return q


def quantize(
    tensors: Mapping[str, Tensor],
    bits: Mapping[str, int],
    progress: Callable = _quietly,
    importance: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Canonical name -> tensor, with values and scales in the place of the weights of the modules in ``bits``.
    importance: of a module's inputs, by its name (minilava.calibrate); it matters at 4 bits."""
    out: dict[str, Tensor] = {}
    for name in progress(list(tensors), "quantising"):
        module = name.removesuffix(".weight")
        if module != name and module in bits:
            panels = pack(tensors[name], bits[module], importance=(importance or {}).get(module))
            out |= {f"{module}.values": panels.values, f"{module}.scales": panels.scales}
        else:
            out[name] = tensors[name].float()
    return out


def write_quantized(
    src: str | Path,
    dst: str | Path,
    name: str,
    progress: Callable = _quietly,
    importance: Mapping[str, Tensor] | None = None,
) -> Path:
    """Quantise the checkpoint ``src`` by the policy ``name`` into the new directory ``dst``; returns its weights.

    importance: see quantize(). UserError where src is no whole float checkpoint, holds NaN or infinity, or dst holds a
    checkpoint already."""
    dst = Path(dst)
    if read_quantization(src):
        raise UserError(f"{src} is quantised already: quantise the float checkpoint it was made from")
    ck = open_checkpoint(src)
    refuse_existing(dst)
    if bad := find_non_finite(ck.pieces()):
        raise UserError(f"{src} holds NaN or infinity in {', '.join(bad[:3])}: fetch it again")
    dst.mkdir(parents=True, exist_ok=True)  # may be refused: better now than after minutes
    q = Quantization(name, POLICIES[name], ck.config.text.vocab_rows)
    tensors = quantize(load_tensors(ck), q.modules(ck.config), progress, importance)
    need = expected(ck.config)
    raw = read_json(ck.path / "config.json")
    raw["torch_dtype"] = "float32"
    raw["minilava"] = raw.get("minilava", {}) | {"quantization": dataclasses.asdict(q)}
    write_companions(dst, ck.config.dialect, Tokenizer.load(src).raw, ck.config.vision, ck.path)
    sources = [Source.of(stored(n, ck.config.dialect) if n in need else n, t) for n, t in tensors.items()]
    return write_checkpoint(dst, raw, sources, shard_bytes=1 << 62)[0]


def load_quantized(path: str | Path, q: Quantization) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the mapped tensors, by canonical name. UserError unless they are exactly those needed."""
    config = ModelConfig.load(path)
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_rows=q.vocab_rows))
    modules = q.modules(config)
    need: dict[str, tuple[str, tuple, torch.dtype]] = {}  # canonical name -> key, shape, dtype
    for name, shape in expected(config).items():
        module = name.removesuffix(".weight")
        if module != name and module in modules:
            values, scales = shapes(*shape, modules[module])
            need[f"{module}.values"] = f"{module}.values", values, torch.uint8
            need[f"{module}.scales"] = f"{module}.scales", scales, torch.bfloat16
        else:
            need[name] = stored(name, config.dialect), shape, torch.float32
    file, *others = find_files(Path(path))
    if others:
        raise UserError(f"{path} should hold one file of weights, not {len(others) + 1}: quantise the model again")
    entries = read_header(file)
    wrong = [
        key for key, shape, dtype in need.values()
        if key not in entries or (entries[key].shape, entries[key].dtype) != (shape, dtype)
    ]  # fmt: skip
    wrong += sorted(entries.keys() - {key for key, _, _ in need.values()})
    if wrong:
        raise UserError(f"{path} does not match its config.json ({', '.join(wrong[:3])}): quantise the model again")
    return config, map_entries(file, {name: entries[key] for name, (key, _, _) in need.items()})


def parser() -> Parser:
    p = Parser(
        prog="python -m minilava.quantize",
        description="Write a checkpoint with weights of 8 or 4 bits, which runs on a CPU and loads by memory map.",
    )
    p.add_argument("src", help="a float checkpoint of either dialect")
    p.add_argument("dst", help="new directory")
    p.add_argument("--quant", choices=POLICIES, required=True)
    p.add_argument("--calibrate", metavar="RECORDS", help="training records, or a mixture of them (see minilava.data),"
                   " whose inputs tell which 4-bit weights matter; 128 are read")  # fmt: skip
    return p


def main(argv: list[str] | None = None) -> int:
    def body() -> None:
        args = parser().parse_args(argv)
        importance = None
        if args.calibrate:
            from minilava.calibrate import calibrate  # which loads models, and those load this module

            importance = calibrate(args.src, args.calibrate)
        file = write_quantized(args.src, args.dst, args.quant, lambda items, what: tqdm(items, what), importance)
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")

    return command(body)


if __name__ == "__main__":
    sys.exit(main())
