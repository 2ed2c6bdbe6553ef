"""RMS norm (Qwen) and layer norm (SigLIP), each with the residual add before it where there is one.

Both read T x D elements and write as many (twice that with a residual), with about 4 FLOPs each: bound by memory, or
by the cost of the call when T is small. Each kernel is one pass over rows that stay on chip. Backward reads the norm's
input and the gradient and writes one gradient: the scale of a row costs less to compute again than to keep.
"""

import torch
import torch.nn.functional as F

from minilava_kernels.ops import register, registered

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)  # of the native kernel


def rms_norm_reference(x, weight, eps):
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normed.to(x.dtype)


def layer_norm_reference(x, weight, bias, eps):
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)


def rms_norm(x, weight, eps, residual=None, impl=None):
    """x (..., D) over its root mean square, times weight (D). With a residual: (the norm of x + residual, that sum).

    impl forces "reference", "native" or "triton".
    """
    return _norm(x, weight, None, eps, residual, impl)


def layer_norm(x, weight, bias, eps, residual=None, impl=None):
    """x (..., D) less its mean, over its deviation, times weight (D), plus bias (D). With a residual: (the norm of
    x + residual, that sum). impl forces "reference" (PyTorch's own, one fused pass), "native" (without gradients) or
    "triton"."""
    return _norm(x, weight, bias, eps, residual, impl)


def implementation(x, weight, bias=None, residual=None) -> str:
    """Which implementation the norms use for these tensors."""
    if x.device.type == "cuda" and x.dtype != torch.float64:
        return "triton"
    plain = _C is None or x.device.type != "cpu" or (bias is not None and registered(x, weight, bias, residual))
    return "reference" if plain or x.dtype not in _DTYPES or weight.dtype not in _DTYPES else "native"


def _norm(x, weight, bias, eps, residual, impl):
    impl = impl or implementation(x, weight, bias, residual)
    dim = weight.shape[0]
    if x.shape[-1:] != (dim,) or (residual is not None and residual.shape != x.shape):
        raise ValueError(f"rms_norm or layer_norm: x {tuple(x.shape)}, weight ({dim},) and the residual do not fit")
    if impl == "native" and bias is not None and registered(x, weight, bias, residual):
        raise ValueError("layer_norm: native has no gradients, and is not traced")
    if impl == "reference":
        total = x if residual is None else x + residual
        y = rms_norm_reference(total, weight, eps) if bias is None else layer_norm_reference(total, weight, bias, eps)
    else:
        run = torch.ops.minilava.norm if registered(x, weight, bias, residual) else _run
        y, total = run(x, residual, weight, bias, eps, impl)
    return y if residual is None else (y, total)


def _run(x, residual, weight, bias, eps, impl):
    """(normed, x + residual), the second one empty without a residual."""
    shape, dim, name = x.shape, weight.shape[0], "rms_norm" if bias is None else "layer_norm"
    if impl == "triton":
        from minilava_kernels.gpu.norm import norm

        x, residual = (t if t is None else _rows(t, dim) for t in (x, residual))
        y, total = norm(x, residual, weight.contiguous(), None if bias is None else bias.contiguous(), eps)
        return y.view(shape), x.new_empty(0) if total is None else total.view(shape)
    if x.dtype not in _DTYPES or weight.dtype not in _DTYPES:
        raise ValueError(f"{name}: {impl} takes float32 or bfloat16, not {x.dtype} and {weight.dtype}")
    if weight.shape != shape[-1:] or (bias is not None and bias.shape != weight.shape):
        raise ValueError(f"{name}: weight {tuple(weight.shape)} does not fit x {tuple(shape)}")
    if residual is not None and (residual.dtype != x.dtype or residual.shape != shape):  # or the sum has another
        raise ValueError(f"{name}: residual {residual.dtype} {tuple(residual.shape)} does not fit x {tuple(shape)}")
    x, residual = (t if t is None else t.contiguous() for t in (x, residual))
    y, wide = torch.empty_like(x), weight.float().contiguous()
    form = x.numel() // dim, dim, eps, x.dtype is torch.bfloat16
    if bias is None:
        total = x if residual is None else x + residual
        _C.rms_norm(total.data_ptr(), wide.data_ptr(), y.data_ptr(), *form)
    else:
        total, bias = x if residual is None else torch.empty_like(x), bias.float().contiguous()
        added = 0 if residual is None else residual.data_ptr()
        addresses = (t.data_ptr() for t in (wide, bias, total, y))
        _C.layer_norm(x.data_ptr(), added, *addresses, *form)
    return y, x.new_empty(0) if residual is None else total


def _run_backward(total, weight, center, dy, dtotal, eps, impl):
    """Gradients of x (and of the residual), of the weight and of the bias; the last one empty without one."""
    dim, total, dy = weight.shape[0], total.contiguous(), dy.contiguous()
    if impl == "triton":
        from minilava_kernels.gpu.norm import norm_backward

        rows = (t if t is None else _rows(t.contiguous(), dim) for t in (total, dy, dtotal))
        flat, dy, dtotal = rows
        dx, dw, db = norm_backward(flat, weight.contiguous(), center, dy, dtotal, eps)
        return dx.view(total.shape), dw.to(weight.dtype), db.to(weight.dtype) if center else dw.new_empty(0)
    if center:
        raise ValueError("layer_norm: native has no gradients")
    wide, dx = weight.float().contiguous(), torch.empty_like(total)
    dw, count = torch.empty_like(wide), total.numel() // dim
    addresses = (t.data_ptr() for t in (total, wide, dy, dx, dw))
    _C.rms_norm_backward(*addresses, count, dim, eps, total.dtype is torch.bfloat16)
    return dx if dtotal is None else dx.add_(dtotal), dw.to(weight.dtype), dw.new_empty(0)


def _rows(x, dim):
    """x as (T, D) with contiguous rows."""
    x = x.reshape(-1, dim)
    return x if x.stride(1) == 1 else x.contiguous()


def _keep(ctx, inputs, output):
    x, residual, weight, bias, ctx.eps, ctx.impl = inputs
    ctx.save_for_backward(x if residual is None else output[1], weight)
    ctx.added, ctx.center = residual is not None, bias is not None
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dtotal):
    total, weight = ctx.saved_tensors
    dy = torch.zeros_like(total) if dy is None else dy
    dtotal = dtotal if ctx.added else None
    run = torch.ops.minilava.norm_backward
    dx, dw, db = run(total, weight, ctx.center, dy, dtotal, ctx.eps, ctx.impl)
    return dx, dx if ctx.added else None, dw, db if ctx.center else None, None, None


register(
    "norm_backward(Tensor total, Tensor weight, bool center, Tensor dy, Tensor? dtotal, float eps, str impl)"
    " -> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda total, weight, center, dy, dtotal, eps, impl: (
        total.new_empty(total.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape if center else 0)
    ),
)  # fmt: skip
register(
    "norm(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps, str impl) -> (Tensor, Tensor)",
    _run,
    lambda x, residual, weight, bias, eps, impl: (
        x.new_empty(x.shape), x.new_empty(0 if residual is None else x.shape)
    ),
    _backward,
    _keep,
)  # fmt: skip
