"""What a step minimises: supervised next-token loss, or DPO (spec 5.8, 6.7). Both are sums, so packs simply add up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilava.config import IGNORE
from minilava.data.stream import Batch
from minilava.model.llava import LLaVA
from minilava.packed import Packed


class Supervised(nn.Module):
    """Sum of the labelled tokens' negative log-likelihoods; a step's loss is that over their number."""

    def __init__(self, model: LLaVA):
        super().__init__()
        self.model = model

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """(summed loss, further sums to report, none here)."""
        return self.model.losses(packed)[0].sum(), torch.zeros(0)

    metrics: tuple[str, ...] = ()

    @staticmethod
    def units(batch: Batch) -> int:
        """What the mean is over: labelled tokens that have a predecessor."""
        packed = batch.packed
        return int(((packed.labels != IGNORE) & (packed.positions > 0)).sum())


class Preferences(nn.Module):
    """DPO over packs of [chosen, rejected] pairs: -log sigmoid(beta z) with z the policy's log-ratio minus the
    reference's, plus ``sft_weight`` times the chosen answers' mean cross-entropy."""

    metrics = ("dpo", "accuracy", "margin")

    def __init__(self, model: LLaVA, beta: float, sft_weight: float):
        super().__init__()
        self.model, self.beta, self.sft_weight = model, beta, sft_weight

    def forward(self, packed: Packed, reference: Tensor) -> tuple[Tensor, Tensor]:
        """reference: float32 (pairs, 2), the frozen model's log-probabilities of both answers."""
        logp, counts = (t.view(-1, 2) for t in log_probabilities(self.model, packed))
        loss, z = dpo_loss(logp, reference, self.beta)
        total = loss.sum()
        if self.sft_weight:
            total = total + self.sft_weight * (-logp[:, 0] / counts[:, 0]).sum()
        sums = torch.stack([loss.sum(), (z > 0).float().sum(), self.beta * z.sum()])
        return total, sums.detach()

    @staticmethod
    def units(batch: Batch) -> int:
        return len(batch.names) // 2


def log_probabilities(model: LLaVA, packed: Packed) -> tuple[Tensor, Tensor]:
    """Summed log-probability of every sample's labelled tokens and their number, float32 (S,) each."""
    nll, rows = model.losses(packed)
    sample = torch.bucketize(rows, packed.cu_seqlens[1:].long(), right=True)
    zeros = nll.new_zeros(len(packed.lengths), dtype=torch.float64)  # thousands of terms, of which a difference is left
    sums = zeros.index_add(0, sample, -nll.double())
    counts = zeros.index_add(0, sample, torch.ones_like(nll, dtype=torch.float64))
    return sums.float(), counts.float()


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """policy, reference: log-probabilities (pairs, [chosen, rejected]). Returns (loss, z), each (pairs,)."""
    z = (policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1])
    return -F.logsigmoid(beta * z), z
