"""What the microbenchmarks of single operations share: cases, checks before timing, roofs, a row per case.

    python -m bench.norm        (and the other operations' names; --keep appends to bench/results)

On a GPU: cold L2, device time between events, medians of many in turns; beside plain PyTorch, torch.compile of it and
a specialised library where there is one. On a CPU: wall-clock time. The limit of a case is the larger of its bytes
over the measured copy rate and its FLOPs over the measured matrix-product rate.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch

from bench import harness
from minilava.errors import UserError

FLUSH = 1 << 29  # bytes: several times the last-level cache
SLEEP = 2_000_000  # clock cycles


@dataclass
class Case:
    """ours(*inputs) and plain(*inputs) compute the same. bytes: what must move; flops: of matrix products.

    peer: a specialised library's, same inputs. Each may give a tensor or several.
    """

    name: str
    ours: Callable
    plain: Callable
    inputs: tuple
    bytes: float
    flops: float = 0
    peer: Callable | None = None
    compiled: bool = True


@cache
def limits(device: str) -> dict[str, float]:
    """Measured here and now, bytes/s and FLOP/s: a copy larger than the caches; a large bfloat16 product (GPU)."""
    if device == "cpu":
        found = harness.cpu_limits()
        return {"bytes": found["read_gbps"] * 1e9, "flops": found["gflops"] * 1e9}
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
    times = gpu_times({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, 30)
    return {"bytes": 2 * source.numel() / min(times["copy"]), "flops": 2 * 8192**3 / min(times["product"])}


def gpu_times(calls: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds on the device, in turns. The flush empties L2; it and the sleep, about a millisecond, keep the device
    busy until the call is queued. What waits for the device inside the call is timed with its wait."""
    scratch = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    for call in calls.values():
        for _ in range(3):
            call()
    events: dict[str, list] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            scratch.zero_()
            torch.cuda._sleep(SLEEP)
            began.record()
            call()
            ended.record()
            events[name].append((began, ended))
    torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) / 1e3 for a, b in pairs] for name, pairs in events.items()}


def check(case: Case) -> None:
    """ours is at most twice as far from float64 as plain is, in the root mean square (a maximum over a row or two is a
    matter of luck); AssertionError otherwise."""
    wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in case.inputs]
    outputs = (_tuple(case.ours(*_copies(case.inputs))), _tuple(case.plain(*_copies(case.inputs))), case.plain(*wide))
    for ours, plain, exact in zip(*outputs[:2], _tuple(outputs[2]), strict=True):
        _close(case.name, ours, plain, exact)
    if case.peer is not None:  # on the inputs themselves, of which some share memory
        _close(f"{case.name}, peer", case.peer(*case.inputs), outputs[1][0], _tuple(outputs[2])[0])


def _close(name: str, ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    if not ours.is_floating_point():
        assert torch.equal(ours, plain), f"{name}: other values than plain PyTorch"
        return
    error, allowed = ((x.double() - exact).square().mean().sqrt().item() for x in (ours, plain))
    floor = torch.finfo(ours.dtype).eps * exact.abs().max().item() / 2
    assert error <= max(2 * allowed, floor), f"{name}: error {error:.3g}, plain PyTorch's {allowed:.3g}"


def rows(cases: Iterable[Case], device: str, repeats: int = 50) -> Iterator[dict]:
    roof = limits(device)
    for case in cases:
        check(case)
        calls = {"ours": case.ours, "plain": case.plain}
        if device == "cuda" and case.compiled:
            torch._dynamo.reset()  # else it gives up compiling after some cases of one function
            calls["compile"] = torch.compile(case.plain, dynamic=False)
        if case.peer is not None:
            calls["peer"] = case.peer
        bound = {name: partial(f, *case.inputs) for name, f in calls.items()}
        if device == "cuda":
            times = gpu_times(bound, repeats)
        else:
            times = harness.in_turns(bound, min(repeats, 9))
        seconds = {name: statistics.median(t) for name, t in times.items()}
        ours = seconds.pop("ours")
        memory = {}
        if device == "cuda":
            peaks = [_peak(bound[n]) for n in ("ours", "plain")]
            memory = {"peak MiB": peaks[0] / 2**20, "peak / plain": peaks[0] / max(peaks[1], 1)}
        yield {
            "case": case.name,
            "us": ours * 1e6,
            "GB/s": case.bytes / ours / 1e9,
            "TFLOP/s": case.flops / ours / 1e12,
            "% of limit": 100 * max(case.bytes / roof["bytes"], case.flops / roof["flops"]) / ours,
            **{f"x {name}": t / ours for name, t in seconds.items()},
            **memory,
        }


def main(stem: str, cases: Callable[[str, torch.dtype], Iterable[Case]]) -> None:
    """The command of one operation's benchmark."""
    parser = argparse.ArgumentParser(description=f"Microbenchmark of {stem}.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", action="store_true", help=f"append the rows to bench/results/{stem}.jsonl")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here: --device cpu")
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    with torch.no_grad():
        found = list(rows(cases(args.device, dtype), args.device))
    columns = list(dict.fromkeys(c for row in found for c in row))
    settings = {"device": args.device, "dtype": str(dtype), "limits": limits(args.device)}
    harness.report(stem, found, columns, args.keep, **settings)


def _peak(call: Callable) -> int:
    """Bytes that a call has allocated at most at one time, its result included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _tuple(x) -> tuple:
    return x if isinstance(x, tuple) else (x,)


def _copies(inputs: tuple) -> list:
    """Inputs of their own: some operations write into theirs."""
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
