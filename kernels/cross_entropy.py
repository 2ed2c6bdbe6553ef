"""Linear + cross-entropy over labelled rows, without the logits ever existing whole.

N labelled rows of width D against V x D weights: 2 N V D FLOPs forward and 6 N V D backward, which computes the
logits again (2) for the two gradients (2 each). The logits would be 4 N V bytes (600 MB for 1,000 rows of Qwen's
151,936); here a chunk of CHUNK vocabulary rows exists at a time. Softmax and sums are float32 whatever the dtype.

The floor in bytes, 2 a value: forward reads the weights (2 V D) and writes and reads every logit once (4 N V);
backward reads the weights, writes their gradient, and writes, reads, writes and twice reads every logit (10 N V). With
D in the hundreds the products' FLOPs take longer than either, and a chunk of up to 3,000 rows stays in an H100's L2.
"""

import torch
import torch.nn.functional as F

from minilava_kernels.linear import linear
from minilava_kernels.ops import register, registered

CHUNK = 8192  # vocabulary rows at a time: large enough for the matrix units, 32 KB of logits per row


def cross_entropy_reference(hidden, weight, targets):
    logits = F.linear(hidden, weight.to(hidden.dtype))
    return F.cross_entropy(logits.to(_wide(hidden)), targets, reduction="none")


def cross_entropy(hidden, weight, targets, impl=None):
    """hidden (N, D), weight (V, D), targets int64 (N,) in [0, V) -> negative log-likelihoods, float32 (N,).

    Differentiable in hidden and weight. impl forces "reference", "chunked" (the CPU's default) or "triton" (CUDA's).
    """
    if hidden.dim() != 2 or weight.shape[1:] != hidden.shape[1:] or targets.shape != hidden.shape[:1]:
        shapes = tuple(hidden.shape), tuple(weight.shape), tuple(targets.shape)
        raise ValueError(f"cross_entropy: hidden, weight and targets {shapes} do not fit")
    impl = impl or implementation(hidden)
    if impl == "reference":
        return cross_entropy_reference(hidden, weight, targets)
    run = torch.ops.minilava.cross_entropy if registered(hidden, weight) else _run
    return run(hidden, weight, targets, impl)[0]


def implementation(hidden) -> str:
    """Which implementation cross_entropy() uses for this input."""
    return "triton" if hidden.device.type == "cuda" and hidden.dtype != torch.float64 else "chunked"


def _run(hidden, weight, targets, impl):
    """(negative log-likelihoods, log-sum-exps), (N,) each."""
    if impl == "triton":
        from minilava_kernels.gpu import cross_entropy as triton

        return triton.cross_entropy(hidden, weight, targets.contiguous(), CHUNK)
    total = hidden.new_full((len(hidden),), float("-inf"), dtype=_wide(hidden))
    hit = torch.zeros_like(total)
    for start in range(0, len(weight), CHUNK):
        logits = _logits(hidden, weight, start)
        total = torch.logaddexp(total, logits.logsumexp(1))
        inside, at = _inside(targets, start, logits.shape[1])
        hit += torch.where(inside, logits.gather(1, at)[:, 0], 0)
    return total - hit, total


def _run_backward(hidden, weight, targets, total, grad, need_dh, need_dw, impl):
    """Gradients of hidden and weight, each empty unless needed."""
    if impl == "triton":
        from minilava_kernels.gpu import cross_entropy as triton

        needs = need_dh, need_dw
        targets, grad = targets.contiguous(), grad.contiguous()
        dh, dw = triton.cross_entropy_backward(hidden, weight, targets, total, grad, *needs, CHUNK)
    else:
        dh = torch.zeros_like(hidden, dtype=total.dtype) if need_dh else None
        dw = torch.empty_like(weight) if need_dw else None
        for start in range(0, len(weight), CHUNK):
            p = _logits(hidden, weight, start).sub_(total[:, None]).exp_()
            inside, at = _inside(targets, start, p.shape[1])
            p.scatter_add_(1, at, -inside[:, None].to(p.dtype))
            p = p.mul_(grad[:, None]).to(hidden.dtype)
            if need_dh:
                dh += p @ weight[start : start + CHUNK].to(hidden.dtype)
            if need_dw:
                dw[start : start + CHUNK] = p.t() @ hidden
    return dh.to(hidden.dtype) if need_dh else hidden.new_empty(0), dw if need_dw else weight.new_empty(0)


def _wide(hidden):
    """The dtype of softmax and sums."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _logits(hidden, weight, start):
    return linear(hidden, weight[start : start + CHUNK].to(hidden.dtype)).to(_wide(hidden))


def _inside(targets, start, size):
    """(which targets lie in this chunk, their column there, (N, 1))."""
    at = targets - start
    inside = (at >= 0) & (at < size)
    return inside, at.clamp(0, size - 1)[:, None]


def _keep(ctx, inputs, output):
    hidden, weight, targets, ctx.impl = inputs
    ctx.save_for_backward(hidden, weight, targets, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    need_dh, need_dw = ctx.needs_input_grad[:2]
    dh, dw = torch.ops.minilava.cross_entropy_backward(*ctx.saved_tensors, grad, need_dh, need_dw, ctx.impl)
    return dh if need_dh else None, dw if need_dw else None, None, None


register(
    "cross_entropy_backward(Tensor hidden, Tensor weight, Tensor targets, Tensor total, Tensor grad, bool need_dh,"
    " bool need_dw, str impl) -> (Tensor, Tensor)",
    _run_backward,
    lambda hidden, weight, targets, total, grad, need_dh, need_dw, impl: (
        hidden.new_empty(hidden.shape if need_dh else 0), weight.new_empty(weight.shape if need_dw else 0)
    ),
)  # fmt: skip
register(
    "cross_entropy(Tensor hidden, Tensor weight, Tensor targets, str impl) -> (Tensor, Tensor)",
    _run,
    lambda hidden, weight, targets, impl: (
        hidden.new_empty(len(hidden), dtype=_wide(hidden)), hidden.new_empty(len(hidden), dtype=_wide(hidden))
    ),
    _backward,
    _keep,
)  # fmt: skip
