"""Passes in any order keep their gradients, and scratch memory grows only where two of them overlap."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import spikec
from frontends.nn import LIF
from runtime.fused import arena
from runtime.fused.module import FusedModule
from tests.runtime.fused.networks import T
from tests.runtime.fused.test_training_steps import CLOSE, batch, gradients_agree, loss, network, pair

Passes = Callable[[nn.Module], None]


def two_forwards(net: nn.Module) -> None:
    first, second = loss(net, 1), loss(net, 2)
    first.backward()
    second.backward()


def two_forwards_turned(net: nn.Module) -> None:
    first, second = loss(net, 1), loss(net, 2)
    second.backward()
    first.backward()


def both_in_one_loss(net: nn.Module) -> None:
    (loss(net, 1) + 2 * loss(net, 2, samples=4)).backward()


def retained(net: nn.Module) -> None:
    value = loss(net, 1)
    value.backward(retain_graph=True)
    value.backward()


def evaluation_between(net: nn.Module) -> None:
    value = loss(net, 1)
    net.eval()
    with torch.no_grad():
        loss(net, 2)
    loss(net, 3).backward()
    net.train()
    value.backward()


def sizes_in_turn(net: nn.Module) -> None:
    for samples in (3, 7, 2, 7, 3):
        loss(net, samples, samples).backward()


def in_another_thread(net: nn.Module) -> None:
    value = loss(net, 1)
    worker = threading.Thread(target=value.backward)
    worker.start()
    worker.join()


def dropped_without_backward(net: nn.Module) -> None:
    loss(net, 2)
    loss(net, 1).backward()


ALL = (
    two_forwards,
    two_forwards_turned,
    both_in_one_loss,
    retained,
    evaluation_between,
    sizes_in_turn,
    in_another_thread,
    dropped_without_backward,
)


@pytest.mark.parametrize("passes", ALL)
def test_gradients_stay_right(passes: Passes) -> None:
    module, fused = pair()
    for net in (module, fused):
        passes(net)
    gradients_agree(module, fused)
    for name, value in module.named_buffers():
        torch.testing.assert_close(dict(fused.named_buffers())[name], value, **CLOSE)


def plain(net: nn.Module) -> None:
    loss(net, 1).backward()


@pytest.mark.parametrize("passes", [plain, *ALL])
def test_equal_steps_allocate_nothing_more(passes: Passes) -> None:
    """After the first step of a plain loop; overlapping passes may share their memory out better a few times."""
    _, fused = pair()
    for _ in range(1 if passes is plain else 4):
        passes(fused)
        fused.zero_grad()
    grown, size = fused._arena.growths, fused._arena.size_bytes
    with patch.object(arena, "_memory", side_effect=AssertionError("scratch memory was allocated")):
        for _ in range(3):
            passes(fused)
            fused.zero_grad()
    assert (fused._arena.growths, fused._arena.size_bytes) == (grown, size)


def test_gradients_of_parameters_lie_outside() -> None:
    """Whoever keeps them keeps no scratch memory."""
    _, fused = pair()
    loss(fused).backward()
    blocks = [block.memory for block in (fused._arena._planned, *fused._arena._spare)]
    assert max(block.nbytes for block in blocks) > 0
    for name, parameter in fused.named_parameters():
        assert parameter.grad is not None
        first = parameter.grad.untyped_storage().data_ptr()
        last = first + parameter.grad.untyped_storage().nbytes()
        for block in blocks:
            assert last <= block.ctypes.data or block.ctypes.data + block.nbytes <= first, name
    grown = fused._arena.growths
    for _ in range(3):
        loss(fused).backward()
    assert fused._arena.growths == grown


def test_only_overlapping_passes_grow() -> None:
    _, fused = pair()
    loss(fused).backward()
    fused.zero_grad()
    plain = fused._arena.size_bytes
    loss(fused, 5).backward()
    fused.zero_grad()
    with torch.no_grad():
        loss(fused)
    assert fused._arena.size_bytes == plain
    two_forwards(fused)
    fused.zero_grad()
    most = fused._arena.size_bytes
    assert most > plain
    two_forwards(fused)
    assert fused._arena.size_bytes == most


def test_results_outlive_the_module() -> None:
    """A graph whose module is gone still gives the gradients."""
    module = network()
    x = batch().requires_grad_()
    fused = spikec.fuse(copy.deepcopy(module), batch(), T)
    y = fused(x)
    del fused
    (got,) = torch.autograd.grad(y.square().sum(), x)
    (want,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(got, want, **CLOSE)


def spikes_out(*, flatten: bool) -> nn.Module:
    layers = [nn.Conv2d(2, 16, 3, padding=1), LIF(timesteps=T)]
    return nn.Sequential(*layers, nn.Flatten()) if flatten else nn.Sequential(*layers)


@pytest.mark.parametrize("flatten", [False, True])
def test_an_output_is_not_overwritten_by_later_steps(flatten: bool) -> None:
    """Spikes that leave the network lie in scratch memory until the caller lets them go."""
    fused = spikec.fuse(spikes_out(flatten=flatten), batch(), T)
    outputs: list[tuple[Tensor, Tensor]] = []
    for seed in range(4):
        y = fused(batch(seed))
        outputs.append((y.detach(), y.detach().clone()))
        y.sum().backward()
    assert all(torch.equal(kept, at_once) for kept, at_once in outputs)
    assert not torch.equal(outputs[0][0], outputs[1][0])


def test_a_gradient_of_the_caller_is_not_overwritten() -> None:
    """Kernels write a gradient in place of another: never in place of what autograd was handed."""
    fused = spikec.fuse(spikes_out(flatten=False), batch(), T)
    upstream = torch.randn(T * 3, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    kept = upstream.clone()
    fused(batch()).backward(upstream)
    assert torch.equal(upstream, kept)


def test_threads_share_a_module() -> None:
    """Evaluation in several threads at once."""
    _, fused = pair()
    fused.eval()
    want = [fused(batch(seed)) for seed in range(6)]
    got: dict[int, Tensor] = {}

    def evaluate(seed: int, net: FusedModule) -> None:
        for _ in range(5):
            got[seed] = net(batch(seed))

    threads = [threading.Thread(target=evaluate, args=(seed, fused)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[seed], value) for seed, value in enumerate(want))


def test_kept_outputs_do_not_hold_scratch_memory() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), LIF(), nn.Conv2d(64, 4, 3, padding=1), LIF())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            first = self.layers[1](self.layers[0](x.flatten(0, 1)).view(2, -1, 64, 8, 8))
            spikes: Tensor = self.layers[3](self.layers[2](first.flatten(0, 1)).view(2, -1, 4, 8, 8))
            return spikes

    fused = spikec.fuse(Network(), torch.rand(2, 3, 1, 8, 8), 2)
    with torch.no_grad():
        kept = [fused(torch.rand(2, 3, 1, 8, 8)) for _ in range(2)]
        size, growths = fused._arena.size_bytes, fused._arena.growths
        kept += [fused(torch.rand(2, 3, 1, 8, 8)) for _ in range(20)]
    assert (fused._arena.size_bytes, fused._arena.growths) == (size, growths)
    assert len({output.data_ptr() for output in kept}) == len(kept)
