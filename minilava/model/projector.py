"""The projector: Linear -> exact (erf) GELU -> Linear, per patch feature (spec 1.2)."""

from __future__ import annotations

from torch import Tensor, nn

from minilava.model.linear import Linear, Quantized
from minilava_kernels.projector import projector


class Projector(nn.Module):
    def __init__(self, vision_width: int, text_width: int):
        super().__init__()
        self.fc1 = Linear(vision_width, text_width)
        self.fc2 = Linear(text_width, text_width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., vision width) -> (..., text width)."""
        if isinstance(self.fc1, Quantized):
            return self.fc2(self.fc1(x, activation="gelu"))
        return projector(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
