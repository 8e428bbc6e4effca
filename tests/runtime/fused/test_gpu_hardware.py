"""Fused modules on a real GPU: the CPU's results, on torch's current stream, without a wait or a copy to the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import spikec
from compiler.fused.cuda.description import CudaLayer
from compiler.fused.population import Norm
from frontends.nn import LIF
from hwmodel.errors import CompileError
from runtime.fused.arena import Arena
from runtime.fused.cpu_kernels import LAUNCHES
from runtime.fused.gpu_neurons import GpuNeuronsRun
from runtime.fused.module import FusedModule
from runtime.fused.neurons import NeuronsRun
from runtime.fused.packing import pack, pack_by_torch
from tests.runtime.fused.gradients import Step, differing, step, upstream_like
from tests.runtime.fused.networks import T
from tests.runtime.fused.test_exact_gradients import CASES, on_grid
from tests.runtime.fused.test_gpu_neurons import NEAR, Pass, assert_near, both_passes, cases, normed, random_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

DEVICE = torch.device("cuda", 0)


def on_cpu(found: Step) -> Step:
    return Step(found.y.cpu(), {name: None if grad is None else grad.cpu() for name, grad in found.grads.items()})


@contextmanager
def exact_layers() -> Iterator[None]:
    """Layers as sums of products in f32: neither TF32 nor Winograd's fractions."""
    with torch.backends.cudnn.flags(enabled=False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        yield


@contextmanager
def no_waiting() -> Iterator[None]:
    """Refuses what waits for the device: copies to the host, values that Python reads."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize(("layer", "norm"), cases())
def test_populations(layer: CudaLayer, norm: Norm) -> None:
    inputs = random_inputs(layer, norm)
    want, got = both_passes(inputs, NeuronsRun), both_passes(inputs.to(DEVICE), GpuNeuronsRun)
    assert torch.equal(got.y.cpu(), want.y)
    check_pass(got, want, bf16=inputs.x.dtype == torch.bfloat16)


def check_pass(got: Pass, want: Pass, *, bf16: bool) -> None:
    assert torch.equal(got.y, got.again)
    assert torch.equal(got.y, got.y_backward)
    assert_near(got.grad_x.cpu(), want.grad_x, relative=2.0**-7 if bf16 else 0.0)
    if want.norm_gradients is not None and got.norm_gradients is not None:
        for found, wanted in zip(got.norm_gradients, want.norm_gradients, strict=True):
            assert_near(found.cpu(), wanted)


@pytest.mark.parametrize(("build", "shape"), CASES, ids=[build.__name__ for build, _ in CASES])
def test_the_original_module_bit_for_bit(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Every sum is exact on a dyadic grid."""
    module = on_grid(build()).eval()
    x = torch.randint(-1, 4, (T * 3, *shape), generator=torch.Generator().manual_seed(1)) / 2
    upstream = upstream_like(module, x, 2, dyadic=True).to(DEVICE)
    fused = spikec.fuse(copy.deepcopy(module), x, T).to(DEVICE)
    with exact_layers():
        want = step(module.to(DEVICE), x.to(DEVICE), upstream)
        got = step(fused, x.to(DEVICE), upstream)
    assert differing(on_cpu(want), on_cpu(got)) == []


def training() -> tuple[FusedModule, Tensor, Tensor]:
    """A module on the GPU, an input and a gradient, all of which have been used once."""
    torch.manual_seed(0)
    module = normed()
    x = torch.rand(T * 2, 2, 6, 6) * 2
    upstream = upstream_like(module, x)
    fused = spikec.fuse(module, x, T).to(DEVICE)
    x, upstream = x.to(DEVICE), upstream.to(DEVICE)
    step(fused, x, upstream)
    return fused, x, upstream


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_batch_statistics(mode: str) -> None:
    """Against the same module on the CPU."""
    fused, x, upstream = training()
    fused.train(mode == "training")
    twin = copy.deepcopy(fused).cpu()
    want = step(twin, x.cpu(), upstream.cpu())
    with exact_layers():
        got = on_cpu(step(fused, x, upstream))
    assert torch.allclose(got.y, want.y, rtol=0, atol=1e-5)  # sums of 45 products in another order
    for name, gradient in want.grads.items():
        found = got.grads[name]
        assert found is not None
        assert gradient is not None
        torch.testing.assert_close(
            found, gradient, rtol=0, atol=10 * NEAR * max(1.0, float(gradient.abs().max())), msg=name
        )
    for (name, wanted), buffer in zip(twin.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(buffer.cpu(), wanted, rtol=NEAR, atol=NEAR, msg=name)


def test_nothing_waits_and_nothing_leaves_the_device() -> None:
    fused, x, upstream = training()
    x.requires_grad_()
    LAUNCHES.clear()
    with no_waiting():
        y = fused(x)
        y.backward(upstream)
    assert not LAUNCHES, "kernels of the CPU ran"
    assert y.device == DEVICE
    assert {parameter.grad.device for parameter in fused.parameters() if parameter.grad is not None} == {DEVICE}
    assert all(parameter.grad is not None for parameter in fused.parameters())


def test_no_memory_is_asked_for_after_the_first_step() -> None:
    fused, x, upstream = training()
    before = torch.cuda.memory_stats(DEVICE)["num_device_alloc"]
    for _ in range(3):
        step(fused, x, upstream)
    assert torch.cuda.memory_stats(DEVICE)["num_device_alloc"] == before


def test_kernels_run_on_the_current_stream() -> None:
    """On another stream they would read the input before it is written there."""
    fused, x, upstream = training()
    fused.eval()
    want = step(fused, x, upstream)
    late, side = torch.zeros_like(x), torch.cuda.Stream(DEVICE)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        late.copy_(x)
        got = step(fused, late, upstream)
    side.synchronize()
    assert differing(on_cpu(want), on_cpu(got)) == []


def test_spikes_kept_as_bits() -> None:
    module = on_grid(nn.Sequential(nn.Conv2d(2, 3, 3), LIF(decay=0.5, threshold=1.0, timesteps=T))).eval()
    x = torch.randint(0, 2, (T * 3, 2, 5, 7), generator=torch.Generator().manual_seed(1)).float()
    upstream = upstream_like(module, x, 2, dyadic=True).to(DEVICE)
    fused = spikec.fuse(copy.deepcopy(module), x, T).to(DEVICE)
    with exact_layers():
        want = step(module.to(DEVICE), x.to(DEVICE), upstream, need_x=False)
        got = step(fused, x.to(DEVICE), upstream, need_x=False)
    assert differing(on_cpu(want), on_cpu(got)) == []


def test_values_that_are_no_spikes_are_refused() -> None:
    """As on the CPU, and the device can be used afterwards."""
    spikes = (torch.rand(64, 5, device=DEVICE) < 0.5).float()
    with pytest.raises(CompileError, match="stage: error: the input holds values beside 0 and 1"):
        pack(spikes / 2, Arena(), "stage")
    assert torch.equal(pack(spikes, Arena(), "stage").cpu(), pack(spikes.cpu(), Arena(), "stage"))


def test_bits_are_made_with_one_wait() -> None:
    """The check's alone."""
    spikes = (torch.rand(64, 5, device=DEVICE) < 0.5).float()
    with no_waiting():
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            pack(spikes, Arena(), "stage")
        assert pack_by_torch(spikes.view(-1)).device == DEVICE


def test_bits_are_made_in_a_graph() -> None:
    given = torch.zeros(64, 5, device=DEVICE)
    pack(given, Arena(), "stage")
    graph, spikes = torch.cuda.CUDAGraph(), (torch.rand(64, 5, device=DEVICE) < 0.5).float()
    with torch.cuda.graph(graph):
        bits = pack(given, Arena(), "stage")
    given.copy_(spikes)
    graph.replay()
    assert torch.equal(bits.cpu(), pack(spikes.cpu(), Arena(), "stage"))


def test_captured_in_a_graph() -> None:
    """A step that waits for nothing can be captured once and replayed."""
    fused, x, _ = training()
    fused.eval()
    with torch.no_grad():
        want = fused(x)
        graph, given = torch.cuda.CUDAGraph(), torch.zeros_like(x)
        with torch.cuda.graph(graph):
            got = fused(given)
        given.copy_(x)
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(got, want)
