"""Process groups of torch by their names: how batch statistics are shared."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from runtime.fused.neurons import AllReduce


def all_reduce_over(group: str) -> AllReduce:
    """Adds tensors up over the group's processes."""
    found = _resolve(group)

    def reduce(tensor: Tensor) -> None:
        dist.all_reduce(tensor, group=found)

    return reduce


def process_count(group: str) -> int:
    """Processes of the group; "" is this one alone."""
    return dist.get_world_size(_resolve(group)) if group else 1


def _resolve(group: str) -> dist.ProcessGroup:
    found: dist.ProcessGroup = dist.distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined,arg-type]
    return found
