"""The linear layer and the token embedding of all parts, with float weights or with quantised ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minilava_kernels.linear import linear
from minilava_kernels.linear_i8 import Panels, linear_i8, shapes, unpack


class Linear(nn.Linear):
    """A linear of a block, which others may stand in for (adapters, quantised weights). Called seven times per layer
    and token: nn.Module's own call, with its search for hooks, is left out."""

    def __call__(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        """act(x W^T + bias) + residual."""
        return linear(x, self.weight, self.bias, activation, residual)


class Quantized(nn.Module):
    """A weight (n, k) of 8 or 4 bits in the kernel's own layout, which is also the file's."""

    def __init__(self, n: int, k: int, bits: int):
        super().__init__()
        (values, scales), self.form = shapes(n, k, bits), (n, k, bits)
        self.register_buffer("values", torch.empty(values, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(scales, dtype=torch.bfloat16))

    @property
    def panels(self) -> Panels:
        return Panels(self.values, self.scales, *self.form)


class QuantizedLinear(Quantized):
    def __init__(self, n: int, k: int, bits: int, bias: bool):
        super().__init__(n, k, bits)
        self.bias = nn.Parameter(torch.empty(n)) if bias else None

    def __call__(self, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
        return linear_i8(x, self.panels, self.bias, activation, residual)


def coarse(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer's errors hide those of bfloat16."""
    return isinstance(layer, QuantizedLinear) or x.dtype == torch.bfloat16


class QuantizedEmbedding(Quantized):
    """Rows for ids; where embedding and head are tied, the head's product as well."""

    def __call__(self, ids: Tensor) -> Tensor:
        """int64 (...) -> float32 (..., k)."""
        return unpack(self.panels, ids)


def quantized(model: nn.Module, bits: Mapping[str, int]) -> nn.Module:
    """Put quantised modules, empty, in the place of those that ``bits`` names, of so many bits each."""
    for name, b in bits.items():
        path, _, leaf = name.rpartition(".")
        old = model.get_submodule(name)
        n, k = old.weight.shape
        new = QuantizedEmbedding(n, k, b) if isinstance(old, nn.Embedding) else QuantizedLinear(
            n, k, b, old.bias is not None
        )  # fmt: skip
        setattr(model.get_submodule(path), leaf, new)
    return model
