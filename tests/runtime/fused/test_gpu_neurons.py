"""A population on the GPU schedule, launched on this CPU, against the CPU's own kernels; then whole modules."""

from __future__ import annotations

import copy
import functools
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import runtime.fused.stage
import spikec
from compiler.fused.cuda.description import CudaLayer
from compiler.fused.gpu_launch import GpuKernel
from compiler.fused.population import PER_CHANNEL, Activation, Norm, Population
from frontends.nn import LIF
from hwmodel.errors import CompileError
from runtime.fused.arena import Arena
from runtime.fused.cpu_kernels import LAUNCHES
from runtime.fused.gpu_neurons import GpuNeuronsRun
from runtime.fused.neurons import AllReduce, MakeRun, NeuronsRun, Norming, Run
from runtime.fused.packing import expand_by_torch, pack, pack_by_torch
from tests.compiler.fused.cuda.cases import LAYERS, extents, population
from tests.runtime.fused.gpu_on_cpu import CpuLaunch
from tests.runtime.fused.gradients import step, upstream_like
from tests.runtime.fused.networks import T

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++, which compiles the kernels for this CPU")

NAMES = (
    "hard",
    "features",
    "repeated",
    "by channel",
    "by channel without norm",
    "scaled",
    "bf16",
    "maximum, kept edge",
)
EPS = 1e-5
NEAR = 1e-6  # of the largest: f32 values whose multiplications are fused differently, summed in f64
BF16_STEP = 2.0**-7  # one step, where f32 values a rounding apart fall on both sides of a tie
F64 = 1e-12  # of numbers in f64, added up in another order


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> CpuLaunch:
    return CpuLaunch(tmp_path_factory.mktemp("kernels"))


@dataclass(slots=True)
class Inputs:
    """What both runs of a population are given."""

    population: Population
    x: Tensor
    grad: Tensor
    numbers: dict[str, Tensor]
    norm: tuple[Tensor, ...]
    all_reduce: AllReduce | None = None

    def run(self, make: MakeRun) -> Run:
        norming = None
        if self.population.norm is not Norm.NONE:
            weight, bias, mean, var = self.norm
            norming = Norming(
                weight=weight, bias=bias, running_mean=mean, running_var=var, eps=EPS, all_reduce=self.all_reduce
            )
        return make(self.population, self.x, self.numbers, norming, functools.partial(take, self.x.device))

    def to(self, device: torch.device) -> Inputs:
        return replace(
            self,
            x=self.x.to(device),
            grad=self.grad.to(device),
            numbers={name: value.to(device) for name, value in self.numbers.items()},
            norm=tuple(value.to(device) for value in self.norm),
        )

    def samples(self, part: slice) -> Inputs:
        return replace(self, x=self.x[:, part].contiguous(), grad=self.grad[:, part].contiguous())


def take(device: torch.device, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory full of NaN, so that an element left out shows."""
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


def random_inputs(layer: CudaLayer, norm: Norm, seed: int = 0) -> Inputs:
    random, e = torch.Generator().manual_seed(seed), layer.extents
    neurons = replace(layer.population, norm=norm)
    dtype = torch.bfloat16 if neurons.activation is Activation.BF16 else torch.float32
    steps = 1 if neurons.repeated else neurons.timesteps
    x = torch.randn(steps, e.n, e.height, e.width, e.channels, generator=random) * 1.5 + 0.5
    grad = torch.randn(neurons.timesteps, e.n, e.out_height, e.out_width, e.channels, generator=random)
    names = ("decay", "threshold", "reset_value", "initial", "input_scale", "leak_bias")
    numbers = {
        name: torch.rand(e.channels, generator=random) * 0.5 + 0.2 for name in names if getattr(neurons, name) is None
    }
    weight, bias, mean, var = (torch.rand(e.channels, generator=random) for _ in range(4))
    return Inputs(neurons, x.to(dtype), grad.to(dtype), numbers, (weight + 0.5, bias - 0.5, mean, var + 1.5))


@dataclass(frozen=True, slots=True)
class Pass:
    """All results of a forward and a backward pass."""

    y: Tensor
    moments: Tensor | None
    again: Tensor  # the result, from moments that are known
    grad_x: Tensor
    y_backward: Tensor
    norm_gradients: tuple[Tensor, Tensor] | None


def both_passes(inputs: Inputs, make: MakeRun) -> Pass:
    """Three executions, as a stage makes them: they share nothing but the moments."""
    y, moments = inputs.run(make).first()
    again = inputs.run(make).forward(moments)
    result = torch.full_like(y, torch.nan)
    grad_x, of_norm = inputs.run(make).backward(moments, inputs.grad.clone(), result)
    return Pass(y, moments, again, grad_x, result, of_norm)


def assert_near(found: Tensor, wanted: Tensor, *, relative: float = 0.0) -> None:
    wanted = wanted.double()
    bound = NEAR * wanted.abs().max() + relative * wanted.abs()
    assert bool(((found.double() - wanted).abs() <= bound).all())


def cases() -> list[object]:
    """Each layer in training, and those with a batch norm in evaluation if it is quick to compile."""
    by_name = {layer.name: layer for layer in LAYERS}
    found = []
    for name in NAMES:
        layer = by_name[name]
        norms = {Norm.BATCH, Norm.RUNNING} if layer.population.window is None else {layer.population.norm}
        if layer.population.norm is Norm.NONE:
            norms = {Norm.NONE}
        found += [pytest.param(layer, norm, id=f"{name}, {norm}") for norm in sorted(norms)]
    return found


@pytest.mark.parametrize(("layer", "norm"), cases())
def test_same_as_on_the_cpu(launch: CpuLaunch, layer: CudaLayer, norm: Norm) -> None:
    inputs = random_inputs(layer, norm)
    gpu, cpu = both_passes(inputs, functools.partial(GpuNeuronsRun, launch=launch)), both_passes(inputs, NeuronsRun)
    assert 0 < gpu.y.float().mean() < 1
    for spikes in (gpu.again, gpu.y_backward, cpu.y):
        assert torch.equal(gpu.y, spikes)
    assert (gpu.moments is None) == (cpu.moments is None) == (norm is Norm.NONE)
    if gpu.moments is not None and cpu.moments is not None:
        # the statistics' sums over a neuron's time steps are f32
        torch.testing.assert_close(gpu.moments, cpu.moments, rtol=NEAR, atol=NEAR)
    step = BF16_STEP if inputs.x.dtype == torch.bfloat16 else 0.0
    assert_near(gpu.grad_x, cpu.grad_x, relative=step)
    if gpu.norm_gradients is not None:
        assert cpu.norm_gradients is not None
        for found, wanted in zip(gpu.norm_gradients, cpu.norm_gradients, strict=True):
            assert_near(found, wanted)


def test_the_kernels_of_a_training_step(launch: CpuLaunch) -> None:
    layer = next(each for each in LAYERS if each.name == "hard")
    inputs = random_inputs(layer, Norm.BATCH)
    make = functools.partial(GpuNeuronsRun, launch=launch)
    launch.seen.clear()
    y, moments = inputs.run(make).first()
    inputs.run(make).backward(moments, inputs.grad.clone(), torch.empty_like(y))
    assert launch.seen == [
        GpuKernel.STATISTICS,
        GpuKernel.FORWARD,
        GpuKernel.GRADIENT_SUMS,
        GpuKernel.FINISH,
        GpuKernel.GRADIENT_INPUT,
    ]


@dataclass(slots=True)
class Processes:
    """Two threads whose tensors are added up as processes' are."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))
    given: dict[int, Tensor] = field(default_factory=dict)

    def all_reduce(self, rank: int, tensor: Tensor) -> None:
        self.given[rank] = tensor.clone()
        self.barrier.wait()
        tensor.copy_(self.given[0] + self.given[1])
        self.barrier.wait()


@pytest.mark.parametrize("repeated", [False, True])
def test_batch_statistics_of_two_processes(launch: CpuLaunch, repeated: bool) -> None:
    """Two unequal parts of a batch, against the whole batch."""
    name = "repeated" if repeated else "hard"
    layer = next(each for each in LAYERS if each.name == name)
    whole = random_inputs(layer, Norm.BATCH)
    make = functools.partial(GpuNeuronsRun, launch=launch)
    want, processes = both_passes(whole, make), Processes()

    def process(rank: int) -> Pass:
        part = whole.samples(slice(0, 1) if rank == 0 else slice(1, None))
        return both_passes(replace(part, all_reduce=functools.partial(processes.all_reduce, rank)), make)

    with ThreadPoolExecutor(2) as threads:
        parts = list(threads.map(process, range(2)))
    assert want.moments is not None
    for part in parts:
        assert part.moments is not None
        # the shift by the first value differs, so that f32 sums over the time steps round otherwise
        torch.testing.assert_close(part.moments, want.moments, rtol=NEAR, atol=NEAR)
    for name in ("y", "again", "y_backward"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(want, name))
    assert_near(torch.cat([part.grad_x for part in parts], 1), want.grad_x)
    for at in (0, 1):
        gradients = [part.norm_gradients[at] for part in parts if part.norm_gradients is not None]
        assert want.norm_gradients is not None
        assert_near(sum(gradients, torch.zeros(())), want.norm_gradients[at])


@given(channels=st.integers(1, 40), seed=st.integers(0, 2**16), far=st.sampled_from([0.0, 1e3]))
@settings(max_examples=20, deadline=None)
def test_the_backward_pass_has_the_table_of_the_forward_pass(
    launch: CpuLaunch, channels: int, seed: int, far: float
) -> None:
    """Bit for bit, else spikes would differ between the passes."""
    neurons = population(input_scale=PER_CHANNEL, leak_bias=PER_CHANNEL)
    layer = CudaLayer(name="neurons", population=neurons, extents=extents(channels, 1, 2, 2))
    inputs = random_inputs(layer, Norm.BATCH, seed)
    inputs.x += far
    tables: list[dict[str, Tensor]] = []

    def spy(*arguments: object) -> None:
        launch(*arguments)  # type: ignore[arg-type]
        if arguments[1] in (GpuKernel.FORWARD, GpuKernel.GRADIENT_SUMS):
            arrays = arguments[3]
            assert isinstance(arrays, dict)
            tables.append({name: arrays[name].clone() for name in ("table", "reciprocal")})

    found = both_passes(inputs, functools.partial(GpuNeuronsRun, launch=spy))
    assert torch.equal(found.y, found.y_backward)
    first, again, backward = tables
    for other in (again, backward):
        assert torch.equal(first["table"][:3], other["table"][:3])
        torch.testing.assert_close(first["reciprocal"], other["reciprocal"], rtol=F64, atol=0)


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), LIF(timesteps=T), nn.Conv2d(5, 4, 3))


def evaluated() -> nn.Module:
    module = normed()
    module[1].eval()  # type: ignore[operator]
    return module


def pooled() -> nn.Module:
    """A pooling that torch computes, between two parts of a stage."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.BatchNorm2d(4),
        LIF(timesteps=T),
        nn.MaxPool2d(3, stride=2, padding=1),
        LIF(timesteps=T, decay=0.4),
        nn.Flatten(),
        nn.Linear(4 * 9, 3),
    )


class Repeated(nn.Module):
    """Shows an image at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = normed()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.unsqueeze(0).repeat(T, 1, 1, 1, 1).flatten(0, 1))
        return y.unflatten(0, (T, -1)).mean(0)


@pytest.mark.parametrize("need_x", [False, True])
@pytest.mark.parametrize("make", [normed, evaluated, pooled, Repeated])
def test_whole_stages(launch: CpuLaunch, make: Callable[[], nn.Module], need_x: bool) -> None:
    """Through the ops and autograd, with GPU kernels for the CPU's."""
    torch.manual_seed(0)
    module = make()
    x = 2 * torch.rand(2 if isinstance(module, Repeated) else T * 2, 2, 6, 6)
    fused = spikec.fuse(module, x, T)
    upstream, twin = upstream_like(module, x), copy.deepcopy(fused)
    want = step(twin, x, upstream, need_x=need_x)
    LAUNCHES.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime.fused.stage, "NeuronsRun", functools.partial(GpuNeuronsRun, launch=launch))
        got = step(fused, x, upstream, need_x=need_x)
    assert not LAUNCHES, "kernels of the CPU ran"
    assert torch.equal(got.y, want.y)
    for name, gradient in want.grads.items():
        found = got.grads[name]
        assert (found is None) == (gradient is None), name
        if found is not None and gradient is not None:
            # what a batch norm cancels is roundings alone, of values as large as the weight's gradients
            scale = max(float(gradient.abs().max()), 1.0)
            torch.testing.assert_close(found, gradient, rtol=0, atol=10 * NEAR * scale, msg=name)
    for (name, wanted), buffer in zip(twin.named_buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted, rtol=NEAR, atol=NEAR, msg=name)


@given(
    count=st.integers(1, 600),
    rate=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_bits_on_any_device(count: int, rate: float, dtype: torch.dtype, seed: int) -> None:
    spikes = (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < rate).to(dtype)
    bits = pack_by_torch(spikes)
    weights = 2 ** torch.arange(8)
    padded = torch.cat([spikes.long(), torch.zeros(-count % 8, dtype=torch.long)]).view(-1, 8)
    assert torch.equal(bits.long(), padded @ weights)
    values = torch.full((count,), torch.nan, dtype=dtype)
    expand_by_torch(bits, values)
    assert torch.equal(values, spikes)


class OnGpu(Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, float("nan")])
def test_values_that_are_no_spikes_are_refused_on_a_gpu_too(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    spikes = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    bits = pack(spikes.as_subclass(OnGpu), Arena(), "stage")
    assert bits.tolist() == [0b0110]
    spikes[1, 0] = value
    for x in (spikes, spikes.as_subclass(OnGpu)):
        with pytest.raises(CompileError, match="stage: error: the input holds values beside 0 and 1"):
            pack(x, Arena(), "stage")
