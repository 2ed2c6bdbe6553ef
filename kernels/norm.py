"""RMS norm (Qwen) and layer norm (SigLIP).

Both read T x D elements and write as many, with about 4 FLOPs each: bound by memory, or by the cost of the call
when T is small. The native RMS norm is one pass over rows that stay in the first-level cache.
"""

import torch
import torch.nn.functional as F

try:
    from minilava import _C
except ImportError:
    _C = None


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
    if x.shape[-1] != dim or not x.dtype == weight.dtype == torch.float32:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype} does not fit weight ({dim},) {weight.dtype}")
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    _C.rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // dim, dim, eps)
    return y


def implementation(x, weight) -> str:
    """Which implementation rms_norm() uses for these tensors."""
    if _C is None or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return "reference"
    return "reference" if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) else "native"


def layer_norm(x, weight, bias, eps):
    """PyTorch's own: already one fused, vectorised pass."""
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
