"""Two processes under DistributedDataParallel: averaged gradients, batch statistics of one or of both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import spikec
from tests.runtime.fused import distributed_worker
from tests.runtime.fused.distributed_worker import (
    SAMPLES,
    SYNCHRONISED,
    WORLD,
    Residual,
    T,
    images,
    lone_value,
    network,
    train,
)

State = dict[str, Tensor]
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "local": network,
    "synchronised": network,
    "residual": Residual,
    "lone_value": lone_value,
}


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, State]]:
    """By process, the state after training with statistics of its own and of both."""
    folder = tmp_path_factory.mktemp("processes")
    for name, build in NETWORKS.items():
        given = images(0).flatten(0, 1) if build is network else images(0)[0]
        torch.save(spikec.fuse(build(), given, 1 if build is lone_value else T), folder / f"{name}.pt")
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, distributed_worker.__file__, folder, str(rank)], env=environment, cwd=root)
        for rank in range(WORLD)
    ]
    try:
        assert [worker.wait(timeout=240) for worker in workers] == [0] * WORLD
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def close(got: State, want: State, names: list[str]) -> None:
    for name in names:
        # three steps with momentum 0.9 and rate 0.1 on values below 2, from sums in another order
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("kind", NETWORKS)
def test_processes_hold_the_same_parameters(states: list[dict[str, State]], kind: str) -> None:
    first, second = (state[kind] for state in states)
    names = [name for name, _ in network().named_parameters()] if kind == "local" else list(first)
    assert all(torch.equal(first[name], second[name]) for name in names)


@pytest.mark.parametrize("kind", SYNCHRONISED)
def test_synchronised_statistics_are_those_of_the_whole_batch(states: list[dict[str, State]], kind: str) -> None:
    """Those of the given network in one process."""
    before = NETWORKS[kind]()
    want = train(NETWORKS[kind](), 0, 1, **SYNCHRONISED[kind])  # type: ignore[arg-type]
    assert not any(torch.equal(value, want[name]) for name, value in before.named_buffers())
    for state in states:
        close(state[kind], want, list(want))


def test_local_statistics_are_averaged_gradients_of_halves(states: list[dict[str, State]]) -> None:
    """Against the given network: one copy per half of the batch, their gradients averaged by hand."""
    halves = [network() for _ in range(WORLD)]
    descents = [torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9) for half in halves]
    for step in range(3):
        for rank, half in enumerate(halves):
            own = slice(rank * SAMPLES // WORLD, (rank + 1) * SAMPLES // WORLD)
            half.zero_grad()
            target = (torch.arange(SAMPLES) % 3)[own]
            scores = half(images(step)[:, own].flatten(0, 1)).mean(0)
            nn.functional.cross_entropy(scores, target).backward()
        for together in zip(*(half.parameters() for half in halves), strict=True):
            mean = torch.stack([parameter.grad for parameter in together]).mean(0)
            for parameter in together:
                parameter.grad = mean.clone()
        for descent in descents:
            descent.step()
    names = [name for name, _ in halves[0].named_parameters()]
    close(states[0]["local"], halves[0].state_dict(), names)
    # buffers of the first process are broadcast before each pass
    close(states[0]["local"], halves[0].state_dict(), ["1.running_mean", "4.running_var"])
    assert not torch.allclose(states[0]["local"]["1.running_var"], states[0]["synchronised"]["1.running_var"])
