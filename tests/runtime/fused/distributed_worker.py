"""One of two gloo processes that train a fused module together; run as a script by test_distributed.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import spikec
from frontends.nn import LIF
from runtime.fused.module import FusedModule

T, SAMPLES, WORLD = 3, 4, 2  # of both processes together


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        LIF(timesteps=T),
        nn.Conv2d(5, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        LIF(timesteps=T),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.Unflatten(0, (T, -1)),
    )


def images(step: int) -> Tensor:
    """The whole batch (T, SAMPLES, C, H, W)."""
    return 2 * torch.rand(T, SAMPLES, 2, 6, 6, generator=torch.Generator().manual_seed(step))


def train(module: nn.Module, rank: int, world: int, steps: int = 3) -> dict[str, Tensor]:
    """The state after some steps on this process' samples."""
    descent = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    own = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    for step in range(steps):
        descent.zero_grad()
        x, target = images(step)[:, own], (torch.arange(SAMPLES) % 3)[own]
        nn.functional.cross_entropy(module(x.flatten(0, 1)).mean(0), target).backward()
        descent.step()
    return {name.removeprefix("module."): value.clone() for name, value in module.state_dict().items()}


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    # programs of other numbers than in the process that pickled the module
    spikec.fuse(nn.Sequential(nn.Linear(2, 3), LIF(timesteps=T)), torch.rand(T, 2), T)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    found = {}
    for name in ("local", "synchronised"):
        fused = torch.load(folder / "fused.pt", weights_only=False)
        assert isinstance(fused, FusedModule)
        if name == "synchronised":
            assert dist.group.WORLD is not None
            fused.process_group = dist.group.WORLD.group_name
        found[name] = train(DistributedDataParallel(fused), rank, WORLD)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
