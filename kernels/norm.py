"""RMS norm (Qwen) and layer norm (SigLIP).

Both read T x D elements and write as many, with about 4 FLOPs each: bound by memory, or by the cost of the call
when T is small. The native RMS norm is one pass over rows that stay in the first-level cache; its backward reads x
and the gradient and writes x's: the scale of a row costs less to compute again than to keep.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm_reference(x, weight, eps):
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normed.to(x.dtype)


def rms_norm(x, weight, eps, impl=None):
    """x (..., D) over its root mean square, times weight (D). impl forces "reference" or "native"."""
    if impl is None:
        impl = implementation(x, weight)
    if impl == "reference":
        return rms_norm_reference(x, weight, eps)
    dim = weight.shape[0]
    if x.shape[-1:] != (dim,) or x.dtype not in _DTYPES or weight.dtype not in _DTYPES:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype} does not fit weight ({dim},) {weight.dtype}")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps)
    return _forward(x.contiguous(), weight.float().contiguous(), eps)


def implementation(x, weight) -> str:
    """Which implementation rms_norm() uses for these tensors."""
    native = _C is not None and x.device.type == "cpu" and x.dtype in _DTYPES and weight.dtype in _DTYPES
    return "native" if native else "reference"


def _forward(x, weight, eps):
    y, dim = torch.empty_like(x), len(weight)
    is_bf16 = x.dtype is torch.bfloat16
    _C.rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // dim, dim, eps, is_bf16)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        x, wide = x.contiguous(), weight.float().contiguous()
        ctx.save_for_backward(x, wide)
        ctx.eps, ctx.dtype = eps, weight.dtype
        return _forward(x, wide, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad, dx, dw, dim = grad.contiguous(), torch.empty_like(x), torch.empty_like(weight), len(weight)
        addresses = (t.data_ptr() for t in (x, weight, grad, dx, dw))
        _C.rms_norm_backward(*addresses, x.numel() // dim, dim, ctx.eps, x.dtype is torch.bfloat16)
        return dx, dw.to(ctx.dtype), None


def layer_norm(x, weight, bias, eps):
    """PyTorch's own: already one fused, vectorised pass."""
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
