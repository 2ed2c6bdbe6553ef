"""The projector: Linear -> exact (erf) GELU -> Linear, per feature row.

T rows of width K through H to N: 2 T H (K + N) FLOPs over H (K + N) weights, T FLOPs per byte in 16 bits: from a few
hundred rows on the time is that of two matrix products, and the GELU fused into the first saves a read and a write of
the T x H intermediate. Backward costs 4 T H (K + N) FLOPs, 2 T H K fewer where x needs no gradient; it keeps the
values before the GELU and computes those after it again on the way.
"""

from __future__ import annotations

import torch

from minilava_kernels.linear import linear
from minilava_kernels.ops import register, registered


def projector(x, w1, b1, w2, b2, impl=None):
    """x (..., K), w1 (H, K), b1 (H), w2 (N, H), b2 (N) -> (..., N) in x's dtype.

    Weights may be wider than x; gradients come back in each tensor's own dtype. impl forces "reference" (two calls of
    linear) or "triton" (the default for float16 and bfloat16 on CUDA).
    """
    impl = impl or implementation(x)
    if x.shape[-1:] != w1.shape[1:] or w2.shape[1:] != w1.shape[:1] or b1.shape + b2.shape != (len(w1), len(w2)):
        shapes = tuple(tuple(t.shape) for t in (x, w1, b1, w2, b2))
        raise ValueError(f"projector: x, w1, b1, w2 and b2 {shapes} do not fit")
    if impl == "reference":
        return linear(linear(x, w1, b1, activation="gelu"), w2, b2)
    w1, b1, w2, b2 = (t.to(x.dtype) for t in (w1, b1, w2, b2))
    if registered(x, w1, b1, w2, b2):
        return torch.ops.minilava.projector(x, w1, b1, w2, b2, impl)[0]
    return _run(x, w1, b1, w2, b2, impl, keep=False)[0]


def implementation(x) -> str:
    """Which implementation projector() uses for this input."""
    return "triton" if x.device.type == "cuda" and x.dtype in (torch.float16, torch.bfloat16) else "reference"


def _run(x, w1, b1, w2, b2, impl, keep=True):
    """(y (..., N), the values before the GELU (T, H), empty unless kept)."""
    from minilava_kernels.gpu import projector as triton

    y, pre = triton.projector(_rows(x), *(t.contiguous() for t in (w1, b1, w2, b2)), keep)
    return y.view(*x.shape[:-1], len(w2)), x.new_empty(0) if pre is None else pre


def _run_backward(x, pre, w1, w2, dy, need_dx, impl):
    """Gradients of x (empty unless needed), w1, b1, w2, b2."""
    from minilava_kernels.gpu import projector as triton

    dx, dw1, db1, dw2, db2 = triton.projector_backward(
        _rows(x), pre, w1, w2.contiguous(), _rows(dy).contiguous(), need_dx
    )
    dx = x.new_empty(0) if dx is None else dx.view(x.shape)
    return dx, dw1, db1.to(x.dtype), dw2, db2.to(x.dtype)


def _rows(x):
    """x as (T, K) with contiguous rows."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _keep(ctx, inputs, output):
    x, w1, _, w2, _, ctx.impl = inputs
    ctx.save_for_backward(x, output[1], w1, w2)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dy, _):
    x, pre, w1, w2 = ctx.saved_tensors
    need_dx = ctx.needs_input_grad[0]
    dx, *gradients = torch.ops.minilava.projector_backward(x, pre, w1, w2, dy, need_dx, ctx.impl)
    return dx if need_dx else None, *gradients, None


register(
    "projector_backward(Tensor x, Tensor pre, Tensor w1, Tensor w2, Tensor dy, bool need_dx, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    lambda x, pre, w1, w2, dy, need_dx, impl: (
        x.new_empty(x.shape if need_dx else 0), x.new_empty(w1.shape), x.new_empty(len(w1)), x.new_empty(w2.shape),
        x.new_empty(len(w2)),
    ),
)  # fmt: skip
register(
    "projector(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, str impl) -> (Tensor, Tensor)",
    _run,
    lambda x, w1, b1, w2, b2, impl: (
        x.new_empty(*x.shape[:-1], len(w2)), x.new_empty(x.shape[:-1].numel(), len(w1))
    ),
    _backward,
    _keep,
)  # fmt: skip
