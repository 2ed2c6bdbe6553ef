"""Compile every Triton kernel in every form it can be launched in, without a GPU, and report what the code needs.

    python -m bench.aot [--arch 90] [--only norm] [--keep]
    python -m bench.aot --float64 --only norm      # instead one form of each kernel as gradient checks launch it

Per kernel: registers, bytes of stack (spilled registers end there), shared memory, and the counts of the instructions
that matter: tensor core products (HMMA, HGMMA), asynchronous and bulk copies, loads and stores of local memory.
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from bench import harness
from minilava.errors import command

if TYPE_CHECKING:
    from minilava_kernels.gpu import Variant

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may use
MIX = ("HMMA", "HGMMA", "LDGSTS", "UTMALDG", "LDL", "STL")


def modules(only: str | None = None) -> dict:
    """Operation -> its module of Triton kernels."""
    import minilava_kernels.gpu as package

    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return {n: import_module(f"minilava_kernels.gpu.{n}") for n in names if only in (None, n)}


def build(variant, arch: int, folder: Path) -> dict:
    """Compile one variant for sm_``arch`` and read its report off the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    given = {**variant.types, **variant.constants}
    missing = [n for n in names if n not in given]
    if missing or set(given) - set(names):
        raise ValueError(f"{variant.name}: missing {missing}, unknown {sorted(set(given) - set(names))}")
    # A launch specialises on pointers and integers that are multiples of 16, as nearly all are.
    aligned = [n for n, t in variant.types.items() if t != "fp32" and n not in variant.unaligned]
    source = ASTSource(
        fn=variant.kernel,
        signature={n: variant.types.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): v for n, v in variant.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    usage = _output(tools / "cuobjdump", "--dump-resource-usage", cubin)
    code = _output(tools / "cuobjdump", "-sass", cubin)
    found = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK")}
    counts = {m: len(re.findall(rf"\b{m}\b", code)) for m in MIX}
    return {
        "variant": variant.name,
        "warps": variant.num_warps,
        "stages": variant.num_stages,
        "registers": found["REG"],
        "stack": found["STACK"],
        "shared": compiled.metadata.shared,
        "dots": variant.dots,
        **counts,
    }


def problems(row: dict, arch: int) -> list[str]:
    """What is wrong with a compiled variant."""
    found = []
    if row["stack"] or row["LDL"] or row["STL"]:
        found.append(f"spills: {row['stack']} bytes of stack, {row['LDL']} loads and {row['STL']} stores")
    if row["shared"] > SHARED_LIMIT[arch]:
        found.append(f"{row['shared']} bytes of shared memory, above {SHARED_LIMIT[arch]}")
    if row["dots"] and not row["HMMA"] + row["HGMMA"]:
        found.append("no tensor core instruction")
    return found


def in_float64(variants: Iterable[Variant]) -> list[Variant]:
    """A form of every kernel, the first for float32 where there is one, with float64 for its tensors."""
    ordered = sorted(variants, key=lambda v: "*bf16" in v.types.values())
    first = {v.kernel: v for v in reversed(ordered)}
    wide = {"*bf16": "*fp64", "*fp16": "*fp64", "*fp32": "*fp64"}
    return [
        replace(v, name=f"{v.name} in float64", types={n: wide.get(t, t) for n, t in v.types.items()}, dots=False)
        for v in first.values()
    ]


def build_all(arch: int, only: str | None = None, float64: bool = False) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for name, module in modules(only).items():
            variants = in_float64(module.variants()) if float64 else module.variants()
            rows += [{"operation": name} | build(v, arch, Path(folder)) for v in variants]
    return rows


def _output(*words) -> str:
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, choices=sorted(SHARED_LIMIT))
    parser.add_argument("--only", metavar="OPERATION")
    parser.add_argument("--float64", action="store_true", help="one form of each kernel, in float64")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--keep", action="store_true", help="write bench/results/aot_sm<arch>.json")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    rows = build_all(args.arch, args.only, args.float64)
    judged = [] if args.float64 else rows  # that it compiles is all that is asked there
    wrong = [f"{r['operation']}, {r['variant']}: {p}" for r in judged for p in problems(r, args.arch)]
    report = {"arch": args.arch, "triton": triton.__version__, "commit": harness.machine()["commit"], "rows": rows}
    if args.json:
        print(json.dumps(report))
    else:
        print(harness.table(rows, list(rows[0])))
    if args.keep:
        lines = ",\n".join(json.dumps(r) for r in rows)
        head = json.dumps(report | {"rows": []})
        (harness.RESULTS / f"aot_sm{args.arch}.json").write_text(head.replace("[]", f"[\n{lines}\n]") + "\n", "utf-8")
    fine = "they compile" if args.float64 else "no spills, shared memory within the limit"
    print("\n".join(wrong) or f"{len(rows)} variants: {fine}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(command(main))
