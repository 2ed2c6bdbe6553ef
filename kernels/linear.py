"""Linear layer: y = act(x W^T + bias) + residual.

For M rows of x and a weight of N x K the work is 2 M N K FLOPs over N K weights that are read once. Up to a few
dozen FLOPs per byte (M of about 16) the time is the time to read W, and the native kernel reads it at the speed of
memory, where MKL's matrix-vector product reaches less than half of it. It adds in one fixed order per (row,
output): a row's result is the same bits alone and among others. Above that the time is FLOPs, and oneDNN is used:
MKL takes a slow path on AMD. Training adds two products of the same cost, for x's gradient and for W's.
"""

import torch
import torch.nn.functional as F

try:
    from minilava import _C
except ImportError:
    _C = None

# Most rows the native kernel takes: beyond, oneDNN's blocked product measures faster although it repacks W.
NATIVE_ROWS = {torch.float32: 16, torch.bfloat16: 8}
_ATTR = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}
_DTYPES = (torch.float32, torch.bfloat16)
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear_reference(x, weight, bias=None, activation=None, residual=None):
    """Parameters wider than x (mixed precision: float32 masters) are rounded to x's dtype."""
    bias = None if bias is None else bias.to(x.dtype)
    y = activate(F.linear(x, weight.to(x.dtype), bias), activation)
    return y if residual is None else y + residual


def activate(x, activation):
    if activation is None:
        return x
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def linear(x, weight, bias=None, activation=None, residual=None, impl=None):
    """x (..., K), weight (N, K), bias (N) -> (..., N). activation: None, "gelu" or "gelu_tanh".

    weight and bias may be wider than x; gradients come back in each tensor's own dtype. On a GPU without gradients the
    sum with a residual is made in the residual's memory: the product adds to it as it writes.
    impl forces "reference", "native", "onednn", "train" or "inplace".
    """
    if impl is None:
        impl = implementation(x, weight, bias, residual, activation)
    if impl == "train":
        y = activate(_Product.apply(x, weight, bias), activation)
        return y if residual is None else y + residual
    if impl == "native":
        return _native(x, weight, bias, activation, residual)
    if impl == "inplace":
        residual.view(-1, residual.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())
        return residual
    if impl == "onednn":
        return _onednn(x, weight, bias, activation, residual)
    return linear_reference(x, weight, bias, activation, residual)


def implementation(x, weight, bias=None, residual=None, activation=None) -> str:
    """Which implementation linear() uses for these tensors."""
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual))
    if x.device.type == "cuda" and not learns and residual is not None and bias is None and activation is None:
        return "inplace" if x.dtype == weight.dtype == residual.dtype and residual.is_contiguous() else "reference"
    if x.device.type != "cpu" or x.dtype not in _DTYPES:
        return "reference"
    if learns:
        return "reference" if _ONEDNN is None else "train"
    if weight.dtype != x.dtype:
        return "reference"
    if _C is not None and x.numel() <= NATIVE_ROWS[x.dtype] * x.shape[-1]:
        return "native"
    return "reference" if _ONEDNN is None else "onednn"


def _native(x, weight, bias, activation, residual):
    n, k = weight.shape
    shape = (*x.shape[:-1], n)
    if x.shape[-1] != k or weight.dtype != x.dtype or x.dtype not in _DTYPES or not weight.is_contiguous():
        raise ValueError(f"linear: x {x.dtype} {tuple(x.shape)} and weight {weight.dtype} {tuple(weight.shape)} misfit")
    if (bias is not None and bias.shape != (n,)) or (residual is not None and residual.shape != shape):
        raise ValueError(f"linear: bias must be ({n},) and residual {shape}")
    x = x.contiguous()
    y = x.new_empty(shape)
    # The kernel has no activation: it adds a residual itself only where none comes between.
    add, late = (None, residual) if activation else (residual, None)
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    add = None if add is None else add.to(x.dtype).contiguous()
    _C.linear_rows(
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if add is None else add.data_ptr(),
        y.data_ptr(),
        x.numel() // k,
        n,
        k,
        x.dtype is torch.bfloat16,
    )
    y = activate(y, activation)
    return y if late is None else y.add_(late)


def _onednn(x, weight, bias, activation, residual):
    if residual is not None and activation is None:
        return _ONEDNN.binary(x, residual, weight, bias, "add")
    attr, algorithm = _ATTR[activation]
    y = _ONEDNN(x, weight, bias, attr, [], algorithm)
    return y if residual is None else y.add_(residual)


class _Product(torch.autograd.Function):
    """x W^T + bias with gradients, through oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        narrow = weight.to(x.dtype)
        ctx.save_for_backward(x, narrow)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return _multiply(x, narrow, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows, flat = grad.view(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _multiply(grad, weight.t().contiguous()) if x.dtype == torch.float32 else grad @ weight
        if ctx.needs_input_grad[1]:
            dw = (rows.t() @ flat).to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            db = rows.sum(0, dtype=torch.float32).to(ctx.dtypes[1])
        return dx, dw, db


def _multiply(x, weight, bias=None):
    """In bfloat16 PyTorch's own product is oneDNN's already, and takes transposed operands without a copy."""
    if x.dtype == torch.float32:
        return _ONEDNN(x.contiguous(), weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
