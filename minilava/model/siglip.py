"""SigLIP vision tower: patches of any number of views -> patch features (spec 1.1).

V views of P patches of C values; D the tower's width, H heads of K.
The feature is the residual stream after the last block: the checkpoints' post_layernorm is never applied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minilava.config import VisionConfig
from minilava.model.linear import Linear, QuantizedLinear, coarse
from minilava.model.recompute import run_block
from minilava_kernels.attention import attention
from minilava_kernels.encoder_i8 import EncoderBlock
from minilava_kernels.linear import linear
from minilava_kernels.linear_i8 import implementation
from minilava_kernels.norm import layer_norm


class Block(nn.Module):
    """Pre-norm block: x + attention(norm1(x)), then x + fc2(gelu_tanh(fc1(norm2(x))))."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        d = config.width
        self.eps, self.heads, self.head_dim = config.eps, config.heads, config.head_dim
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.out = (Linear(d, d) for _ in range(4))
        self.fc1, self.fc2 = Linear(d, config.mlp_width), Linear(config.mlp_width, d)
        self._whole: EncoderBlock | None = None  # the quantised block in one call, made at the first
        self.register_load_state_dict_post_hook(_renew)

    def forward(self, x: Tensor, cu: Tensor, starts: Tensor, lengths: Tensor, patches: int) -> Tensor:
        """x: (V * P, D). cu, starts, lengths: int32 row ranges of the views, the same for every block. A quantised
        block writes its result over x."""
        if (native := self._native()) is not None:
            return native(x, patches)
        n = layer_norm(x, self.norm1.weight, self.norm1.bias, self.eps)
        q, k, v = (m(n).view(-1, self.heads, self.head_dim) for m in (self.q, self.k, self.v))
        a = attention(
            q, k, v, cu, starts, lengths, causal=False, max_q=patches, max_k=patches,
            narrow=coarse(self.q, x),
        )  # fmt: skip
        a = self.out(a.reshape(x.shape))
        n, x = layer_norm(a, self.norm2.weight, self.norm2.bias, self.eps, residual=x)
        return self.fc2(self.fc1(n, activation="gelu_tanh"), residual=x)

    def _native(self) -> EncoderBlock | None:
        """The block in one call, where it is quantised and this machine has the kernels."""
        if torch.compiler.is_compiling():
            return None
        if self._whole is None and implementation() == "native":
            linears = [self.q, self.k, self.v, self.out, self.fc1, self.fc2]
            if all(isinstance(m, QuantizedLinear) for m in linears):
                norms = [t for n in (self.norm1, self.norm2) for t in (n.weight, n.bias)]
                self._whole = EncoderBlock(norms, [(m.panels, m.bias) for m in linears], self.heads, self.eps)
        return self._whole

    def _apply(self, fn, recurse=True):
        _renew(self, None)  # .to() and its like move the weights
        return super()._apply(fn, recurse)


def _renew(block: Block, _keys: object) -> None:
    block._whole = None  # it holds the weights that were there before


class SigLIP(nn.Module):
    """The tower. Parameters are created empty (on the meta device by the loader) and filled from a checkpoint."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        d, p = config.width, config.patch_size
        self.patch = nn.Conv2d(config.channels, d, p, p)
        self.position = nn.Parameter(torch.empty(config.patches, d))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.recompute = "none"  # see model.recompute

    def forward(self, patches: Tensor) -> Tensor:
        """patches: (V, P, C) in the dtype to compute in, C in the patch convolution's (channel, row, column) order.
        Returns (V, P, D)."""
        views, count, _ = patches.shape
        weight = self.patch.weight
        x = linear(patches, weight.view(len(weight), -1), self.patch.bias)
        x = (x + self.position.to(x.dtype)).view(views * count, -1)
        cu = torch.arange(0, (views + 1) * count, count, dtype=torch.int32, device=x.device)
        starts, lengths = cu[:-1], torch.full((views,), count, dtype=torch.int32, device=x.device)
        for block in self.blocks:
            args = (x, cu, starts, lengths, count)
            x = run_block(block, self.recompute, *args)
        return x.view(views, count, -1)
