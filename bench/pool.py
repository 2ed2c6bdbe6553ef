"""2x2 pooling of the 27 x 27 features of 1 to 64 views. python -m bench.pool"""

import torch

from bench import micro
from minilava.config import ImageConfig
from minilava.inputs.geometry import video_layout
from minilava_kernels.pool import mix_rows, mix_rows_reference

SIDE, WIDTH = 27, 1024


def cases(device: str, dtype: torch.dtype):
    for views in (1, 16, 64) if device == "cuda" else (1, 4):
        for op in ("average", "max", "bilinear"):
            layout = video_layout(views, ImageConfig(side=SIDE), op, "no_token")
            taps = torch.from_numpy(layout.taps).to(device)
            weights = None if layout.weights is None else torch.from_numpy(layout.weights).float().to(device)
            rows = torch.randn(views * SIDE * SIDE, WIDTH, device=device).to(dtype)
            moved = (len(rows) + len(taps)) * rows.element_size() * WIDTH
            yield micro.Case(f"{op}, {views} views", mix_rows, mix_rows_reference, (rows, taps, weights), moved)


if __name__ == "__main__":
    micro.main("pool", cases)
