"""Linear layer with weights quantised to 8 or 4 bits, for decode: y = x W^T + bias with W = scale * (values - zero).

A token reads every weight once, so its floor is the bytes of W over the memory's bandwidth: 1 byte a weight at 8 bits
and 1/2 at 4, plus 2 bytes of scale (and 1 of zero point) per group of 16-bit weights: 0.516 to 0.563 (0.523 to 0.594)
bytes at groups of 128 to 32, against 2 unquantised. A 7B model's 6.5e9 weights in its layers take 4 ms a token in
bfloat16 at 3.35 TB/s, 2 ms at 8 bits and 1 ms at 4. Up to GEMV_ROWS rows are products of a vector each, share the
reads through L2, and get the same bits alone and together; up to GEMM_ROWS rows use the tensor cores; more are
dequantised once and multiplied whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minilava_kernels.ops import register, registered

GROUPS = (32, 64, 128)
GEMV_ROWS, GEMM_ROWS = 4, 64


@dataclass(frozen=True)
class Quantized:
    """A weight (N, K).

    values: 8 bits: int8 (N, K); 4 bits: uint8 (N, K / 2), byte j of a group holds its value j in the low half and
    value j + group / 2 in the high one. scales: (N, K / group), in the weight's dtype, or (N, 1) where group is 0:
    a row's one scale. zeros: uint8 like scales, or None: 4 bits are stored plus 8 then, 8 bits as they are.
    """

    values: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    group: int


def quantize(weight, bits, group=0, zero_point=False) -> Quantized:
    """weight (N, K) to the nearest representable values; bits 8 (group 0, 32, 64 or 128) or 4 (a group, zero points).

    No value is further than half its scale from the weight's, up to the rounding of the scale to the weight's dtype.
    """
    n, k = weight.shape
    if bits not in (4, 8) or group not in (GROUPS if bits == 4 else (0, *GROUPS)) or (zero_point and bits == 8):
        raise ValueError(f"quantize: no format of {bits} bits, group {group} and zero point {zero_point}")
    if group and k % group:
        raise ValueError(f"quantize: rows of {k} values are no whole number of groups of {group}")
    w = weight.float().view(n, -1, group or max(k, 1))
    if zero_point:
        low, high = w.amin(2, keepdim=True).clamp(max=0), w.amax(2, keepdim=True).clamp(min=0)
        scale = _positive(((high - low) / 15).to(weight.dtype))
        zero = (-low / scale).round().clamp(0, 15)
        q = ((w / scale).round() + zero).clamp(0, 15)
    else:
        limit = 7 if bits == 4 else 127
        scale = _positive((w.abs().amax(2, keepdim=True) / limit).to(weight.dtype))
        q = (w / scale).round().clamp(-limit, limit) + (8 if bits == 4 else 0)
    if bits == 4:
        low, high = q.to(torch.uint8).chunk(2, 2)
        q = low | high << 4
    zeros = zero[:, :, 0].to(torch.uint8) if zero_point else None
    return Quantized(q.reshape(n, -1).to(torch.uint8 if bits == 4 else torch.int8), scale[:, :, 0], zeros, bits, group)


def dequantize(q: Quantized, dtype=torch.float32):
    """The weight (N, K) that q stands for; computed in float32 (float64 for float64)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = q.values
    if q.bits == 4:
        values = values.view(len(values), -1, q.group // 2)
        values = torch.cat((values & 15, values >> 4), 2)
    values = values.view(len(values), q.scales.shape[1], -1).to(wide)
    if q.bits == 4:
        values = values - (8 if q.zeros is None else q.zeros.to(wide)[:, :, None])
    return (values * q.scales.to(wide)[:, :, None]).flatten(1).to(dtype)


def linear_q_reference(x, q: Quantized, bias=None):
    return F.linear(x, dequantize(q, x.dtype), None if bias is None else bias.to(x.dtype))


def linear_q(x, q: Quantized, bias=None, impl=None):
    """x (..., K), q of a weight (N, K), bias (N) -> (..., N) in x's dtype; gradients for x and bias.

    impl forces "reference", "gemv", "gemm" or "triton" (gemv or gemm by the number of rows).
    """
    k = q.values.shape[1] * 8 // q.bits
    if x.shape[-1:] != (k,) or (bias is not None and bias.shape != q.values.shape[:1]):
        shapes = tuple(x.shape), (len(q.values), k), None if bias is None else tuple(bias.shape)
        raise ValueError(f"linear_q: x, weight and bias {shapes} do not fit")
    impl = impl or implementation(x)
    if impl == "reference":
        return linear_q_reference(x, q, bias)
    run = torch.ops.minilava.linear_q if registered(x, bias) else _run
    return run(x, q.values, q.scales, q.zeros, bias, q.bits, q.group, impl)


def implementation(x) -> str:
    """Which implementation linear_q() uses for this input."""
    few = x.numel() <= GEMM_ROWS * x.shape[-1] and x.dtype != torch.float64
    return "triton" if x.device.type == "cuda" and few else "reference"


def _run(x, values, scales, zeros, bias, bits, group, impl):
    from minilava_kernels.gpu import linear_q as triton

    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    if impl == "triton":
        impl = "gemv" if len(rows) <= GEMV_ROWS else "gemm"
    kernel = {"gemv": triton.gemv, "gemm": triton.gemm}[impl]
    return kernel(rows, values, scales, zeros, bias, bits, group).view(*x.shape[:-1], len(values))


def _positive(scale):
    """A group of zeros needs a scale to divide by. Scales divide in float32."""
    return torch.where(scale > 0, scale, 1)


def _keep(ctx, inputs, output):
    _, values, scales, zeros, bias, ctx.bits, ctx.group, _ = inputs
    ctx.save_for_backward(values, scales, zeros)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, dy):
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = dy @ dequantize(Quantized(*ctx.saved_tensors, ctx.bits, ctx.group), dy.dtype)
    if ctx.needs_input_grad[4]:
        dbias = dy.flatten(0, -2).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, None, None, None, dbias, None, None, None


register(
    "linear_q(Tensor x, Tensor values, Tensor scales, Tensor? zeros, Tensor? bias, int bits, int group, str impl)"
    " -> Tensor",
    _run,
    lambda x, values, scales, zeros, bias, bits, group, impl: x.new_empty(*x.shape[:-1], len(values)),
    _backward,
    _keep,
)  # fmt: skip
