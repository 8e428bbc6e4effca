"""One of two gloo processes that train a fused module together; run as a script by test_distributed.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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


class Residual(nn.Module):
    """Images at each step through batch norms of each kind that no neurons follow: the first one's values repeat."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.neurons = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), LIF(timesteps=T)
        self.branch, self.branch_norm, self.after = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), LIF(timesteps=T)
        self.head, self.head_norm = nn.Linear(64, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(self.stem(x.unsqueeze(0).repeat(T, 1, 1, 1, 1).flatten(0, 1)))
        spikes = self.after(self.branch_norm(self.branch(self.neurons(first))) + first)
        return self.head_norm(self.head(spikes.flatten(1))).unflatten(0, (T, -1))


def lone_value() -> nn.Module:
    """One step on features, so that a process with one sample has a single value for each batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(72, 4),
        nn.BatchNorm1d(4),
        LIF(timesteps=1),
        nn.Linear(4, 3),
        nn.BatchNorm1d(3),
        nn.Unflatten(0, (1, -1)),
    )


Given = Callable[[Tensor], Tensor]  # what a network takes, from images (T, N, C, H, W)


def merged(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def first_step(x: Tensor) -> Tensor:
    return x[0]


def images(step: int) -> Tensor:
    """The whole batch (T, SAMPLES, C, H, W)."""
    return 2 * torch.rand(T, SAMPLES, 2, 6, 6, generator=torch.Generator().manual_seed(step))


def train(
    module: nn.Module, rank: int, world: int, *, given: Given = merged, steps: int = 3, samples: int = SAMPLES
) -> dict[str, Tensor]:
    """The state after some steps on this process' samples."""
    descent = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    own = slice(rank * samples // world, (rank + 1) * samples // world)
    for step in range(steps):
        descent.zero_grad()
        x, target = images(step)[:, own], (torch.arange(samples) % 3)[own]
        nn.functional.cross_entropy(module(given(x)).mean(0), target).backward()
        descent.step()
    return {name.removeprefix("module."): value.clone() for name, value in module.state_dict().items()}


# each trained by the statistics of all processes; options of `train`
SYNCHRONISED: Mapping[str, Mapping[str, object]] = {
    "synchronised": {},
    "residual": {"given": first_step},
    "lone_value": {"given": first_step, "steps": 1, "samples": WORLD},
}


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    # programs of other numbers than in the process that pickled the module
    spikec.fuse(nn.Sequential(nn.Linear(2, 3), LIF(timesteps=T)), torch.rand(T, 2), T)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    found = {}
    for name in ("local", *SYNCHRONISED):
        fused = torch.load(folder / f"{name}.pt", weights_only=False)
        assert isinstance(fused, FusedModule)
        if name in SYNCHRONISED:
            assert dist.group.WORLD is not None
            fused.process_group = dist.group.WORLD.group_name
        found[name] = train(DistributedDataParallel(fused), rank, WORLD, **SYNCHRONISED.get(name, {}))  # type: ignore[arg-type]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
