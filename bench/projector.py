"""The projector on the features of 1 to 64 views. python -m bench.projector"""

import torch
import torch.nn.functional as F

from bench import micro
from minilava_kernels.projector import projector

VIEW, TOWER = 729, 1152


def plain(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def cases(device: str, dtype: torch.dtype):
    on_gpu = device == "cuda"
    for views, width in ((1, 1024), (16, 1024), (64, 1024), (64, 4096), (64, 5120)) if on_gpu else ((1, 1024),):
        make = lambda *s: (torch.randn(*s, device=device) / s[-1] ** 0.5).to(dtype)  # noqa: E731
        inputs = (
            make(views * VIEW, TOWER) * TOWER**0.5,
            make(width, TOWER),
            make(width),
            make(width, width),
            make(width),
        )
        flops = 2 * views * VIEW * width * (TOWER + width)
        name = f"{views} views, H = {width}"
        yield micro.Case(name, projector, plain, inputs, sum(x.nbytes for x in inputs), flops)


if __name__ == "__main__":
    micro.main("projector", cases)
