"""What every benchmark shares: timing in turns, measured limits, a table, one JSON line, a result file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

RESULTS = Path(os.environ.get("MINILAVA_RESULTS") or Path(__file__).parent / "results")


def in_turns(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, A B A B ..., so that a drift of the machine's speed meets all of them alike. One uncounted
    call each comes first. A candidate may return its own seconds, where only a part of the call is meant."""
    for call in candidates.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            began = time.perf_counter()
            own = call()
            times[name].append(own if isinstance(own, float) else time.perf_counter() - began)
    return times


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def best_of(call: Callable[[], object], repeats: int = 10) -> float:
    """The fastest of some calls: for limits, where every disturbance only adds."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def cpu_limits() -> dict[str, float]:
    """Measured here and now: read_gbps, reads of a 1 GiB array; gflops, the better of the two float32 matrix products
    that torch ships, at 2048 x 2048 x 2048."""
    big = torch.ones(1 << 28)
    read = big.nbytes / best_of(big.sum) / 1e9
    del big
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    products = [lambda: torch.nn.functional.linear(a, b)]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return {"read_gbps": read, "gflops": max(2 * 2048**3 / best_of(p) / 1e9 for p in products)}


def machine() -> dict:
    """Where and with what a figure was measured."""
    name = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    flags = _read("/proc/cpuinfo")
    isa = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f" {f} " in flags]
    info = {
        "cpu": name,
        "isa": isa,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": os.environ.get("MINILAVA_COMMIT")  # for a copy of the tree without its history
        or _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "date": time.strftime("%Y-%m-%d"),
    }
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def table(rows: Sequence[dict], columns: Sequence[str]) -> str:
    """A Markdown table of some keys of the rows."""
    cells = [[_show(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    lines = [columns, ["-" * w for w in widths], *cells]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def report(name: str, rows: Sequence[dict], columns: Sequence[str], keep: bool = True, **extra: object) -> None:
    """Print the table; to keep it, append the rows to results/NAME.jsonl and print the same JSON as the last line."""
    print(table(rows, columns))
    if not keep:
        return
    line = json.dumps({"benchmark": name, **extra, **machine(), "rows": rows})
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{name}.jsonl", "a") as f:
        f.write(line + "\n")
    print(line)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:  # no git here
        return ""
    return done.stdout.strip()
