"""Loss and both gradients of the labelled rows against a whole vocabulary. python -m bench.cross_entropy"""

import torch

from bench import micro
from minilava_kernels.cross_entropy import cross_entropy, cross_entropy_reference


def learning(function):
    """(losses, gradient of hidden, gradient of weight) for a mean loss, as a training step has it."""

    def call(hidden, weight, targets):
        with torch.enable_grad():
            leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            losses = function(*leaves, targets)
            return losses.detach(), *torch.autograd.grad(losses.mean(), leaves)

    return call


def cases(device: str, dtype: torch.dtype):
    shapes = ((512, 1024, 151_936), (8192, 1024, 151_936), (2048, 3584, 152_064))
    for rows, width, vocabulary in shapes if device == "cuda" else ((256, 256, 16_384),):
        hidden = torch.randn(rows, width, device=device).to(dtype)
        weight = (torch.randn(vocabulary, width, device=device) / width**0.5).to(dtype)
        targets = torch.randint(vocabulary, (rows,), device=device)
        moved = 2 * (hidden.nbytes + weight.nbytes)
        yield micro.Case(f"{rows} rows of {width}, V = {vocabulary}", learning(cross_entropy),
                         learning(cross_entropy_reference), (hidden, weight, targets), moved,
                         6 * rows * width * vocabulary)  # fmt: skip


if __name__ == "__main__":
    micro.main("cross_entropy", cases)
