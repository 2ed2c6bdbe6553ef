"""SwiGLU: silu(gate) * up.

Reads two and writes one element for each of T x D: 12 bytes and about 20 FLOPs, so bound by memory. Native: one
pass and the result in gate's memory, where PyTorch makes two passes and a new tensor. Backward is one pass too.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)


def swiglu_reference(gate, up):
    return F.silu(gate) * up


def swiglu(gate, up, impl=None):
    """gate and up (T, D), rows at any stride. Without gradients the result overwrites gate. impl forces one by name."""
    if impl is None:
        impl = implementation(gate, up)
    if impl == "reference":
        return swiglu_reference(gate, up)
    if gate.shape != up.shape or gate.dim() != 2 or gate.stride(1) != 1 or up.stride(1) != 1:
        raise ValueError(f"swiglu: gate {tuple(gate.shape)} and up {tuple(up.shape)} must be (T, D)")
    if gate.dtype != up.dtype or gate.dtype not in _DTYPES:
        raise ValueError(f"swiglu: the native kernel takes float32 or bfloat16, not {gate.dtype} and {up.dtype}")
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _SwiGLU.apply(gate, up)
    return _forward(gate, up, gate)


def implementation(gate, up) -> str:
    """Which implementation swiglu() uses for these tensors."""
    native = _C is not None and gate.device.type == "cpu" and gate.dtype == up.dtype and gate.dtype in _DTYPES
    return "native" if native else "reference"


def _forward(gate, up, y):
    (rows, width), is_bf16 = gate.shape, gate.dtype is torch.bfloat16
    strides = gate.stride(0), up.stride(0), y.stride(0)
    _C.swiglu(gate.data_ptr(), up.data_ptr(), y.data_ptr(), rows, width, *strides, is_bf16)
    return y


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return _forward(gate, up, gate.new_empty(gate.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad, dgate, dup = grad.contiguous(), gate.new_empty(gate.shape), up.new_empty(up.shape)
        addresses = (t.data_ptr() for t in (gate, up, grad, dgate, dup))
        _C.swiglu_backward(*addresses, *gate.shape, gate.stride(0), up.stride(0), gate.dtype is torch.bfloat16)
        return dgate, dup
