"""One or many processes: what torchrun says, and how the model is spread over them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minilava.config import VisionConfig
from minilava.errors import UserError
from minilava.packed import Packed
from minilava.train.config import TrainConfig

REPLICATE_BELOW = 1 << 30  # parameters' bytes up to which every process may hold a whole copy (shard: auto)


@dataclass(frozen=True)
class Ranks:
    """rank of world; device: where this process computes."""

    rank: int
    world: int
    device: torch.device

    @staticmethod
    def start(device: str) -> Ranks:
        """Join the processes that torchrun started; without it, be the only one."""
        cuda = device != "cpu" and torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise UserError("device cuda: no CUDA device is available here; use cpu")
        if "RANK" not in os.environ:
            return Ranks(0, 1, torch.device("cuda" if cuda else "cpu"))
        local = int(os.environ.get("LOCAL_RANK", 0))
        if cuda:
            torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        return Ranks(
            dist.get_rank(), dist.get_world_size(), torch.device("cuda", local) if cuda else torch.device("cpu")
        )

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: object) -> list:
        """The value of every process, in their order."""
        if self.world == 1:
            return [value]
        gathered: list = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def stop(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def spread(objective: nn.Module, config: TrainConfig, ranks: Ranks, dtype: torch.dtype) -> nn.Module:
    """The objective, sharded (FSDP2) or replicated (DDP) over the processes."""
    if ranks.world == 1:
        return objective
    size = sum(p.numel() * p.element_size() for p in objective.parameters())
    model = objective.model
    if config.shard == "ddp" or config.shard == "auto" and size <= REPLICATE_BELOW:
        ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(objective, device_ids=ids)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy(dtype, torch.float32) if dtype != torch.float32 else MixedPrecisionPolicy()
    # The objective's own inputs stay as they are: in bfloat16 a reference of -300 would be up to a nat off.
    outer = replace(policy, cast_forward_inputs=False)
    # With a store of features a process meets new pictures, and runs the tower, on its own: each holds all of it.
    whole = set(model.vision.parameters()) if config.features else set()
    for block in [*([] if whole else model.vision.blocks), *model.text.blocks]:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(objective, mesh=mesh, mp_policy=outer, ignored_params=whole)


def with_view(packed: Packed, vision: VisionConfig) -> Packed:
    """A pack without pictures gets a blank view that no row takes, as upstream's text samples do (spec 5.7).

    So every parameter has a gradient in every step, be it zero, and every process joins the tower's collectives:
    what AdamW does to a weight depends neither on the number of processes nor on which of them has the pictures.
    """
    if packed.views:
        return packed
    patches = torch.zeros(1, vision.patches, vision.channels * vision.patch_size**2, device=packed.ids.device)
    none = packed.ids.new_empty(0)
    return replace(packed, patches=patches, splice_rows=none, splice_source=none)


def sync_gradients(objective: nn.Module, last: bool) -> object:
    """A context for one micro-batch: gradients are exchanged on the last one of a step only."""
    from contextlib import nullcontext

    if isinstance(objective, nn.parallel.DistributedDataParallel):
        return nullcontext() if last else objective.no_sync()
    if hasattr(objective, "set_requires_gradient_sync"):
        objective.set_requires_gradient_sync(last)
    return nullcontext()


def clip_gradients(parameters: list[Tensor], limit: float) -> float:
    """Scale gradients to a norm of at most ``limit``; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
