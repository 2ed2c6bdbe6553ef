"""SwiGLU: silu(gate) * up.

Reads two and writes one element for each of T x D: 12 bytes in float32 and about 20 FLOPs, so bound by memory. One
pass and the result in gate's memory, where PyTorch makes two passes and a new tensor. Backward is one pass too.
"""

import torch
import torch.nn.functional as F

from minilava_kernels.ops import register, registered

try:
    from minilava import _C
except ImportError:
    _C = None

_DTYPES = (torch.float32, torch.bfloat16)  # of the native kernel


def swiglu_reference(gate, up):
    return F.silu(gate) * up


def swiglu(gate, up, impl=None):
    """gate and up (T, D), rows at any stride. Without gradients the result overwrites gate.

    impl forces "reference", "native" or "triton".
    """
    impl = impl or implementation(gate, up)
    if impl == "reference":
        return swiglu_reference(gate, up)
    if gate.shape != up.shape or gate.dim() != 2 or gate.stride(1) != 1 or up.stride(1) != 1:
        raise ValueError(f"swiglu: gate {tuple(gate.shape)} and up {tuple(up.shape)} must be (T, D)")
    if gate.dtype != up.dtype or (impl == "native" and gate.dtype not in _DTYPES):
        raise ValueError(f"swiglu: the native kernel takes float32 or bfloat16, not {gate.dtype} and {up.dtype}")
    if registered(gate, up):
        return torch.ops.minilava.swiglu(gate, up, impl)
    return _into(gate, gate, up, impl)


def implementation(gate, up) -> str:
    """Which implementation swiglu() uses for these tensors."""
    if gate.device.type == "cuda" and gate.dtype == up.dtype != torch.float64:
        return "triton"
    native = _C is not None and gate.device.type == "cpu" and gate.dtype == up.dtype and gate.dtype in _DTYPES
    return "native" if native else "reference"


def _into(y, gate, up, impl):
    if impl == "triton":
        from minilava_kernels.gpu.swiglu import swiglu as run

        return run(gate, up, y)
    (rows, width), is_bf16 = gate.shape, gate.dtype is torch.bfloat16
    strides = gate.stride(0), up.stride(0), y.stride(0)
    _C.swiglu(gate.data_ptr(), up.data_ptr(), y.data_ptr(), rows, width, *strides, is_bf16)
    return y


def _run_backward(gate, up, grad, impl):
    grad = grad.contiguous()
    if impl == "triton":
        from minilava_kernels.gpu.swiglu import swiglu_backward

        return swiglu_backward(gate, up, grad)
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    addresses = (t.data_ptr() for t in (gate, up, grad, dgate, dup))
    _C.swiglu_backward(*addresses, *gate.shape, gate.stride(0), up.stride(0), gate.dtype is torch.bfloat16)
    return dgate, dup


def _keep(ctx, inputs, output):
    *tensors, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


register(
    "swiglu_backward(Tensor gate, Tensor up, Tensor grad, str impl) -> (Tensor, Tensor)",
    _run_backward,
    lambda gate, up, grad, impl: (gate.new_empty(gate.shape), up.new_empty(up.shape)),
)
register(
    "swiglu(Tensor gate, Tensor up, str impl) -> Tensor",
    lambda gate, up, impl: _into(gate.new_empty(gate.shape), gate, up, impl),
    lambda gate, up, impl: gate.new_empty(gate.shape),
    lambda ctx, grad: (*torch.ops.minilava.swiglu_backward(*ctx.saved_tensors, grad, ctx.impl), None),
    _keep,
)
