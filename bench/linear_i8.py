"""Products in integers at the shapes of the model and its tower, beside float32 and what PyTorch brings along.
python -m bench.linear_i8 [--keep]

A row of x is bound by reading W, many rows by integer arithmetic: the limits are the read rate and the rate of
PyTorch's integer product of two 2048 x 2048 matrices, both measured in the same run. oneDNN int8 is torch._int_mm of
values that are rounded already: the product alone, without the scales that make a float of it. oneDNN bfloat16 is
torch.nn.functional.linear.
"""

import argparse

import torch
import torch.nn.functional as F

from bench.harness import cpu_limits, in_turns, median, report
from bench.linear import HEAD, LAYER, TOWER
from minilava_kernels.linear import linear
from minilava_kernels.linear_i8 import linear_i8, linear_i8_reference, pack

# shapes, rows of x, distinct weights of each shape: for few rows too many for the caches
CASES = [(LAYER, 1, 32), (LAYER, 8, 32), (HEAD, 1, 1), (LAYER, 512, 1), (LAYER, 2048, 1), (TOWER, 1458, 1)]


@torch.no_grad()
def rows():
    read, whole = cpu_limits()["read_gbps"], integer_limit()
    for shapes, m, copies in CASES:
        for bits in (8, 4):
            weights = [torch.randn(n, k) / k**0.5 for n, k in shapes for _ in range(copies)]
            packed = [pack(w, bits) for w in weights]
            inputs = {k: torch.randn(m, k) for _, k in shapes}
            halves = [w.bfloat16() for w in weights]
            whole_x = {k: x.bfloat16() for k, x in inputs.items()}
            bytes_w = [(w * 40).clamp(-127, 127).to(torch.int8).t() for w in weights]
            bytes_x = {k: (x * 40).clamp(-127, 127).to(torch.int8) for k, x in inputs.items()}
            for p in packed[::copies]:
                x = inputs[p.k]
                torch.testing.assert_close(linear_i8(x, p), linear_i8_reference(x, p), rtol=1e-4, atol=1e-4)
            times = in_turns(
                {
                    "ours": lambda packed=packed, xs=inputs: [linear_i8(xs[p.k], p) for p in packed],
                    "float32": lambda weights=weights, xs=inputs: [linear(xs[w.shape[1]], w) for w in weights],
                    "bfloat16": lambda weights=halves, xs=whole_x: [F.linear(xs[w.shape[1]], w) for w in weights],
                    "int8": lambda weights=bytes_w, xs=bytes_x: [torch._int_mm(xs[len(w)], w) for w in weights],
                },
                9,
            )
            ours, plain, half, integer = (median(times[k]) for k in ("ours", "float32", "bfloat16", "int8"))
            streams = m <= 16
            size = sum(p.values.nbytes + p.scales.nbytes for p in packed)
            rate = size / ours / 1e9 if streams else 2 * m * sum(w.numel() for w in weights) / ours / 1e9
            yield {
                "weights": "head" if shapes is HEAD else "layer" if shapes is LAYER else "tower",
                "bits": bits,
                "rows": m,
                "ms": ours * 1e3,
                "float32 ms": plain * 1e3,
                "oneDNN bfloat16 ms": half * 1e3,
                "oneDNN int8 ms": integer * 1e3,
                "ratio": plain / ours,
                "to the faster oneDNN": min(half, integer) / ours,
                "rate": rate,
                "unit": "GB/s" if streams else "GOP/s",
                "% of limit": 100 * rate / (read if streams else whole),
            }


def integer_limit() -> float:
    """GOP/s."""
    a, b = (torch.randint(-127, 128, (2048, 2048), dtype=torch.int8) for _ in range(2))
    times = in_turns({"product": lambda: torch._int_mm(a, b)}, 9)["product"]
    return 2 * 2048**3 / min(times) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="append the rows to bench/results/linear_i8.jsonl")
    keep = parser.parse_args().keep
    results = list(rows())
    report("linear_i8", results, list(results[0]), keep)


if __name__ == "__main__":
    main()
