"""SwiGLU: silu(gate) * up.

Reads two and writes one element for each of T x D: 12 bytes and about 20 FLOPs, so bound by memory. Native: one
pass and the result in gate's memory, where PyTorch makes two passes and a new tensor.
"""

import torch
import torch.nn.functional as F

try:
    from minilava import _C
except ImportError:
    _C = None


def swiglu_reference(gate, up):
    return F.silu(gate) * up


def swiglu(gate, up, impl=None):
    """gate and up (T, D), rows at any stride. Without gradients the result overwrites gate. impl forces one by name."""
    if impl is None:
        impl = implementation(gate, up)
    if impl == "native":
        if gate.shape != up.shape or gate.dim() != 2 or gate.stride(1) != 1 or up.stride(1) != 1:
            raise ValueError(f"swiglu: gate {tuple(gate.shape)} and up {tuple(up.shape)} must be (T, D)")
        if not gate.dtype == up.dtype == torch.float32:
            raise ValueError("swiglu: the native kernel takes float32 only")
        rows, width = gate.shape
        _C.swiglu(gate.data_ptr(), up.data_ptr(), rows, width, gate.stride(0), up.stride(0))
        return gate
    return swiglu_reference(gate, up)


def implementation(gate, up) -> str:
    """Which implementation swiglu() uses for these tensors."""
    if _C is None or gate.device.type != "cpu" or gate.dtype != torch.float32 or up.dtype != torch.float32:
        return "reference"
    return "reference" if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad) else "native"
