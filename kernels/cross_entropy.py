"""Linear + cross-entropy over labelled rows, without the logits ever existing whole.

N labelled rows of width D against V x D weights: 2 N V D FLOPs forward and 6 N V D backward, which computes the
logits again (2) for the two gradients (2 each). The logits would be 4 N V bytes (600 MB for 1,000 rows of Qwen's
151,936); here a chunk of CHUNK vocabulary rows exists at a time. Softmax and sums are float32 whatever the dtype.
"""

import torch
import torch.nn.functional as F

from minilava_kernels.linear import linear

CHUNK = 8192  # vocabulary rows at a time: large enough for the matrix units, 32 KB of logits per row


def cross_entropy_reference(hidden, weight, targets):
    logits = F.linear(hidden, weight.to(hidden.dtype)).float()
    return F.cross_entropy(logits, targets, reduction="none")


def cross_entropy(hidden, weight, targets, impl=None):
    """hidden (N, D), weight (V, D), targets int64 (N,) in [0, V) -> negative log-likelihoods, float32 (N,).

    Differentiable in hidden and weight. impl forces "reference" or "chunked".
    """
    if hidden.dim() != 2 or weight.shape[1:] != hidden.shape[1:] or targets.shape != hidden.shape[:1]:
        shapes = tuple(hidden.shape), tuple(weight.shape), tuple(targets.shape)
        raise ValueError(f"cross_entropy: hidden, weight and targets {shapes} do not fit")
    if impl == "reference":
        return cross_entropy_reference(hidden, weight, targets)
    return _Chunked.apply(hidden, weight, targets)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets):
        total = hidden.new_full((len(hidden),), float("-inf"), dtype=torch.float32)
        hit = torch.zeros_like(total)
        for start in range(0, len(weight), CHUNK):
            logits = _logits(hidden, weight, start)
            total = torch.logaddexp(total, logits.logsumexp(1))
            inside, at = _inside(targets, start, logits.shape[1])
            hit += torch.where(inside, logits.gather(1, at)[:, 0], 0)
        ctx.save_for_backward(hidden, weight, targets, total)
        return total - hit

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, targets, total = ctx.saved_tensors
        dh = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        dw = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(weight), CHUNK):
            p = _logits(hidden, weight, start).sub_(total[:, None]).exp_()
            inside, at = _inside(targets, start, p.shape[1])
            p.scatter_add_(1, at, -inside[:, None].float())
            p = p.mul_(grad[:, None]).to(hidden.dtype)
            if dh is not None:
                dh += p @ weight[start : start + CHUNK].to(hidden.dtype)
            if dw is not None:
                dw[start : start + CHUNK] = p.t() @ hidden
        return None if dh is None else dh.to(hidden.dtype), dw, None


def _logits(hidden, weight, start):
    return linear(hidden, weight[start : start + CHUNK].to(hidden.dtype)).float()


def _inside(targets, start, size):
    """(which targets lie in this chunk, their column there, (N, 1))."""
    at = targets - start
    inside = (at >= 0) & (at < size)
    return inside, at.clamp(0, size - 1)[:, None]
