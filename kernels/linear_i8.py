"""Linear layer in integers for a CPU: weights of 8 or 4 bits in groups, activations rounded to 8 bits as they come in.

For M rows and a weight of N x K: 2 M N K integer operations (four times the float32 rate with AVX-512 VNNI) over
N K bits / 8 bytes, read once for up to a few dozen rows. A group of k shares one scale, in a row of the weight and in a
row of x: an outlier costs its own group its precision and no other. Sums over a group are exact (int32) and are added
up in the order of the groups: a row's result is the same bits alone, among others and with any number of threads.

N outputs, K inputs, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minilava_kernels.linear import activate
from minilava_kernels.ops import register

try:
    from minilava import _C
except ImportError:
    _C = None

LAYOUT = "panels16-v1"  # of the bytes below, written into checkpoints; csrc/cpu/linear_i8.h says it in full
PANEL = 16
GROUPS = {8: 64, 4: 32}  # values per scale: at 8 bits 3 % of the bytes are scales, at 4 bits 11 %


@dataclass(frozen=True)
class Panels:
    """A weight (N, K), in the order in which the kernel reads it.

    values: uint8 (N / 16, K' / 4, 16, 4) at 8 bits, (N / 16, K' / 8, 16, 4) at 4: a quad of a row's values, then the
    next row's; at 4 bits an even quad in the low halves and the next in the high ones. K' and N / 16 are rounded up.
    scales: bfloat16 (N / 16, G, 16). A value stands for scale * (stored - 128), or - 8.
    """

    values: torch.Tensor
    scales: torch.Tensor
    n: int
    k: int
    bits: int

    def __post_init__(self):
        """ValueError where values and scales are not such a weight: the kernels take their addresses."""
        v, s = self.values, self.scales
        if self.bits in GROUPS and v.ndim == 4 and s.ndim == 3 and s.shape[1]:
            panels, groups, group = -(-self.n // PANEL), s.shape[1], self.group
            whole = group > 0 and group % 32 == 0 and (groups - 1) * group < self.k <= groups * group
            good = v.shape == (panels, groups * group * self.bits // 32, PANEL, 4) and s.shape == (
                panels,
                groups,
                PANEL,
            )
            types = v.dtype == torch.uint8 and s.dtype == torch.bfloat16
            if whole and good and types and v.is_contiguous() and s.is_contiguous():
                return
        shapes = f"{v.dtype} {tuple(v.shape)} and {s.dtype} {tuple(s.shape)}"
        raise ValueError(f"Panels: {shapes} are no weight of ({self.n}, {self.k}) with {self.bits} bits")

    @property
    def group(self) -> int:
        return self.values.shape[1] * (32 // self.bits) // self.scales.shape[1]


Matrix = tuple[Panels, torch.Tensor | None]  # and its bias (N,)


def address(p: Panels, bias: torch.Tensor | None) -> tuple[int, ...]:
    """A matrix as the kernels of whole blocks take it."""
    at = 0 if bias is None else bias.data_ptr()
    return p.values.data_ptr(), p.scales.data_ptr(), at, p.n, p.k, p.scales.shape[1] * p.group, p.group, p.bits


def shapes(n: int, k: int, bits: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the values and the scales of a weight (n, k)."""
    panels, groups = -(-n // PANEL), -(-k // GROUPS[bits])
    return (panels, groups * GROUPS[bits] * bits // 32, PANEL, 4), (panels, groups, PANEL)


def pack(weight: torch.Tensor, bits: int, group: int | None = None, importance: torch.Tensor | None = None) -> Panels:
    """weight (N, K) -> 8 or 4 bits with a scale per group. group: a multiple of 32. ValueError otherwise.

    importance: (K,) mean squares of the inputs that the weight will meet (minilava.calibrate). With it the scales at
    4 bits are those of the least squared error of the outputs, as far as a diagonal tells, among some dozens.
    """
    group = group or GROUPS.get(bits, 0)
    if bits not in GROUPS or group < 32 or group % 32:
        raise ValueError(f"pack: no format of {bits} bits in groups of {group}")
    n, k = weight.shape
    w = F.pad(weight.float(), (0, -k % group, 0, -n % PANEL)).view(-1, (k + group - 1) // group, group)
    if bits == 8:
        scales = rounded_up(w.abs().amax(2) / 127)
    elif importance is None:
        scales = _sixteen_levels(w)
    else:
        h = F.pad(importance.float(), (0, -k % group)).view(-1, group)
        scales = torch.cat([_searched(rows, h) for rows in w.split(4096)])  # a whole embedding would take gigabytes
    levels = _levels(w, scales, 127 if bits == 8 else 7)
    q = (levels + 2 ** (bits - 1)).to(torch.uint8).view(len(w) // PANEL, PANEL, -1, 4).transpose(1, 2)
    if bits == 4:
        q = q[:, ::2] | q[:, 1::2] << 4
    scales = scales.view(-1, PANEL, scales.shape[1]).transpose(1, 2)
    return Panels(q.contiguous(), scales.contiguous(), n, k, bits)


def rounded_up(exact: torch.Tensor) -> torch.Tensor:
    """To bfloat16, upwards, so that no value is cut off. The next larger bfloat16 has the next larger bits."""
    scales = exact.bfloat16()
    return torch.where(scales.float() < exact, (scales.view(torch.int16) + 1).view(torch.bfloat16), scales)


def _sixteen_levels(w: torch.Tensor) -> torch.Tensor:
    """w (N, G, group) -> scales (N, G) that put the value farthest from 0 at level -8; +7 is the other end. A scale may
    be negative."""
    farthest = w.gather(2, w.abs().argmax(2, keepdim=True))[:, :, 0]
    return (farthest / -8).bfloat16()


def _searched(w: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Like _sixteen_levels, and of the least error weighted by h (G, group): from several starts, each time the best
    scale for the levels and the best levels for the scale."""
    start = _sixteen_levels(w).float()
    best, least = start.bfloat16(), torch.full(start.shape, torch.inf)
    for factor in (1.0, 0.95, 0.9, 0.85, 0.8, 1.05, 1.1, -1.1, -1.0, -0.9):
        scales = (start * factor).bfloat16()
        for _ in range(3):
            q = _levels(w, scales, 7)
            error = ((q * scales.float()[:, :, None] - w).square() * h).sum(2)
            best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
            scales = ((w * q * h).sum(2) / (q * q * h).sum(2).clamp_min(1e-30)).bfloat16()
    return best


def _levels(w: torch.Tensor, scales: torch.Tensor, highest: int) -> torch.Tensor:
    """The nearest whole multiples of the scales; at 4 bits there is one more level below 0 than above."""
    scales = torch.where(scales == 0, 1, scales).float()[:, :, None]
    return (w / scales).round().clamp(-127 if highest == 127 else -8, highest)


def unpack(p: Panels, rows: torch.Tensor | None = None) -> torch.Tensor:
    """The weight that p stands for, float32 (N, K), or rows of it, (..., K) for int64 (...)."""
    if rows is not None:
        if rows.dtype != torch.int64:
            raise ValueError(f"unpack: rows are int64, not {rows.dtype}")
        out = torch.empty(*rows.shape, p.k, dtype=torch.float32, device=p.values.device)
        if _C is None:
            return out.copy_(unpack(p)[rows])
        if rows.numel() and not (0 <= int(rows.min()) and int(rows.max()) < p.n):
            raise IndexError(f"unpack: a row is not below {p.n}")
        rows = rows.contiguous()
        _C.dequantize_rows(
            p.values.data_ptr(), p.scales.data_ptr(), rows.data_ptr(), out.data_ptr(), rows.numel(), p.k,
            p.scales.shape[1] * p.group, p.group, p.bits,
        )  # fmt: skip
        return out
    q = p.values
    if p.bits == 4:
        q = torch.stack((q & 15, q >> 4), 2).flatten(1, 2)
    q = q.transpose(1, 2).flatten(2).view(len(q) * PANEL, -1, p.group).float() - (128 if p.bits == 8 else 8)
    return (q * p.scales.transpose(1, 2).flatten(0, 1).float()[:, :, None]).flatten(1)[: p.n, : p.k].contiguous()


def round_rows(x: torch.Tensor, group: int) -> torch.Tensor:
    """x (M, K) float32 rounded as the kernel rounds it: 255 levels in every group of a row."""
    padded = F.pad(x, (0, -x.shape[1] % group)).view(len(x), -1, group)
    top = padded.abs().amax(2, keepdim=True)
    # Not 127 / top, for which PyTorch multiplies by a rounded reciprocal.
    inverse = torch.where(top > 1e-35, torch.full_like(top, 127).div(top), 0)
    q = (padded * inverse).round()
    return (q * (top / 127)).flatten(1)[:, : x.shape[1]]


def linear_i8_reference(x, p: Panels, bias=None, activation=None, residual=None):
    y = activate(F.linear(round_rows(x.flatten(0, -2), p.group), unpack(p), bias), activation)
    y = y.view(*x.shape[:-1], p.n)
    return y if residual is None else y + residual


def linear_i8(x, p: Panels, bias=None, activation=None, residual=None, impl=None):
    """x float32 (..., K), bias (N), residual (..., N) -> act(x W^T + bias) + residual, float32 (..., N).

    activation: None or "gelu_tanh", and "gelu" outside the kernel. impl forces "reference" or "native".
    ValueError where shapes or dtypes do not fit.
    """
    shape = *x.shape[:-1], p.n
    if x.shape[-1:] != (p.k,) or (bias is not None and bias.shape != (p.n,)):
        raise ValueError(f"linear_i8: x {tuple(x.shape)} and bias do not fit a weight of ({p.n}, {p.k})")
    if residual is not None and residual.shape != shape:
        raise ValueError(f"linear_i8: residual {tuple(residual.shape)} is not {tuple(shape)}")
    if any(t is not None and t.dtype != torch.float32 for t in (x, bias, residual)):
        raise ValueError("linear_i8: x, bias and residual must be float32")
    if (impl or implementation()) == "reference":
        return linear_i8_reference(x, p, bias, activation, residual)
    if torch.compiler.is_compiling():
        run = torch.ops.minilava.linear_i8
        return run(x, p.values, p.scales, bias, residual, p.n, p.bits, activation)
    return _run(x, p.values, p.scales, bias, residual, p.n, p.bits, activation)


def implementation() -> str:
    return "reference" if _C is None else "native"


def _run(x, values, scales, bias, residual, n, bits, activation):
    k, groups = x.shape[-1], scales.shape[1]
    padded = values.shape[1] * (32 // bits)
    late = residual if activation == "gelu" else None
    add = residual if late is None else None
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], n)
    bias, add = (None if t is None else t.contiguous() for t in (bias, add))
    _C.linear_i8(
        x.data_ptr(), values.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if add is None else add.data_ptr(), y.data_ptr(), x.numel() // k, n, k, padded, padded // groups, bits,
        activation == "gelu_tanh",
    )  # fmt: skip
    y = F.gelu(y) if activation == "gelu" else y
    return y if late is None else y.add_(late)


register(
    "linear_i8(Tensor x, Tensor values, Tensor scales, Tensor? bias, Tensor? residual, int n, int bits,"
    " str? activation) -> Tensor",
    _run,
    lambda x, values, scales, bias, residual, n, bits, activation: x.new_empty(*x.shape[:-1], n),
)
