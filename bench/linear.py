"""Linear layer: the native few-row kernel and oneDNN against F.linear, at the shapes of the model and its tower."""

import torch

from bench.harness import cpu_limits, in_turns, median, report
from minilava_kernels.linear import implementation, linear, linear_reference

LAYER = ((1024, 1024), (2816, 1024), (1024, 2816))
HEAD = ((151936, 1024),)
TOWER = ((1152, 1152), (4304, 1152), (1152, 4304))

# shapes, rows of x, distinct weights of each shape: for few rows too many for the caches
CASES = [(LAYER, m, 16) for m in (1, 4, 8, 16, 64)] + [(HEAD, 1, 1), (HEAD, 8, 1), (TOWER, 729, 1), (LAYER, 2048, 1)]


@torch.no_grad()
def rows():
    limits = cpu_limits()
    for shapes, m, copies in CASES:
        weights = [torch.randn(n, k) / k**0.5 for n, k in shapes for _ in range(copies)]
        inputs = {k: torch.randn(m, k) for _, k in shapes}
        pairs = [(inputs[w.shape[1]], w) for w in weights]
        for x, w in pairs[::copies]:
            torch.testing.assert_close(linear(x, w), linear_reference(x, w), rtol=1e-4, atol=1e-4)
        times = in_turns({"ours": lambda p=pairs: run(linear, p), "plain": lambda p=pairs: run(linear_reference, p)}, 9)
        ours, plain = median(times["ours"]), median(times["plain"])
        size = sum(w.numel() for w in weights)
        streams = m <= 16  # bound by reading W, else by arithmetic
        rate = 4 * size / ours / 1e9 if streams else 2 * m * size / ours / 1e9
        yield {
            "weights": "x".join(map(str, shapes[0])) if len(shapes) == 1 else "layer" if shapes is LAYER else "tower",
            "rows": m,
            "implementation": implementation(*pairs[0]),
            "ms": ours * 1e3,
            "F.linear ms": plain * 1e3,
            "ratio": plain / ours,
            "rate": rate,
            "unit": "GB/s" if streams else "GFLOP/s",
            "% of limit": 100 * rate / limits["read_gbps" if streams else "gflops"],
        }


def run(f, pairs):
    for x, w in pairs:
        f(x, w)


def main():
    results = list(rows())
    report("linear", results, list(results[0]))


if __name__ == "__main__":
    main()
