"""Drawing the next tokens of 1 to 32 sequences from Qwen's vocabulary. python -m bench.sample"""

import torch

from bench import micro
from minilava_kernels.sample import sample

VOCABULARY = 151_936


def cases(device: str, dtype: torch.dtype):
    for rows in (1, 8, 32) if device == "cuda" else (1,):
        logits = torch.randn(rows, VOCABULARY, device=device) * 3
        each = lambda value, kind=torch.float32: torch.full((rows,), value, dtype=kind, device=device)  # noqa: E731, B023
        whole = torch.int64
        settings = {
            "greedy": (each(0.0), each(0, whole), each(1.0), each(0.0)),
            "top-k 20, top-p 0.8": (each(0.7), each(20, whole), each(0.8), each(0.0)),
            "min-p 0.05": (each(1.0), each(0, whole), each(1.0), each(0.05)),
        }
        for name, given in settings.items():
            inputs = logits, *given, torch.arange(rows, device=device), each(3, whole)
            yield micro.Case(f"{rows} rows, {name}", sample, lambda *x: sample(*x, impl="reference"), inputs,
                             logits.nbytes, compiled=False)  # fmt: skip


if __name__ == "__main__":
    micro.main("sample", cases)
