"""Embeddings and features of one to 32 prompts into packed rows. python -m bench.splice"""

import torch

from bench import micro
from minilava_kernels.splice import splice, splice_reference

VOCABULARY, WIDTH, VIEW = 151_936, 1024, 729


def cases(device: str, dtype: torch.dtype):
    for prompts, views in ((1, 1), (1, 16), (8, 8), (32, 2)) if device == "cuda" else ((1, 1), (1, 4)):
        text, images = prompts * 200, prompts * views * VIEW
        table = torch.randn(VOCABULARY if device == "cuda" else 8192, WIDTH, device=device).to(dtype)
        features = torch.randn(images, WIDTH, device=device).to(dtype)
        rows = torch.randperm(text + images, device=device)[:images].sort().values
        ids = torch.randint(len(table), (text + images,), device=device).index_fill_(0, rows, 0)
        inputs = table, ids, rows, torch.arange(images, device=device), features, *[None] * 4
        moved = 2 * (text + images) * WIDTH * features.element_size()
        yield micro.Case(f"{prompts} prompts of {views} pictures", splice, splice_reference, inputs, moved)


if __name__ == "__main__":
    micro.main("splice", cases)
