"""Predictions of a training step against what torch and the kernels really launch, keep and move."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import spikec
from compiler.fused.population import KernelName, Norm
from compiler.fused.predict import MIB, fits, kernel_seconds, predict_memory, predict_time
from compiler.fused.predict_facts import Direction, Family, Launch, Unit, Work, training_facts
from compiler.fused.predict_stages import PartExtents, evaluated, fused_work, population_launches
from compiler.fused.predict_torch import EQUATION, MODULE, EagerNeuron, neuron_launches, vanilla_work
from compiler.fused.stages import plan_stages
from compiler.ir import Graph
from compiler.ir.ops import BatchNorm, Lif
from compiler.passes import Retime
from frontends.from_torch import from_torch
from frontends.nn import LIF
from frontends.spiking_network import spiking_network
from frontends.zoo import entry
from hwmodel.gpus import gpu_table
from runtime.fused import cpu_kernels
from tests.bench.training_contenders.memory import kept_tensors

TABLE = gpu_table()
NOTATIONS = ("4C3(Encoding)-8C3S2-16FC-10FC", "4C3(Encoding)-8C3-AP2-16FC-10FC")
VIEWS_AND_EMPTY = {
    *("aten::reshape", "aten::select", "aten::unbind", "aten::expand", "aten::flatten", "aten::unflatten"),
    *("aten::detach", "aten::detach_", "aten::empty", "aten::view", "aten::lift_fresh", "aten::t"),
}


def module(notation: str, timesteps: int, *, batch_norm: bool) -> nn.Module:
    chosen = replace(entry("cifar-small"), notation=notation, input_shape=(3, 8, 8), batch_norm=batch_norm)
    return spiking_network(chosen, seed=0, timesteps=timesteps)


@functools.cache
def graph(notation: str, timesteps: int, *, batch_norm: bool = True) -> Graph:
    return from_torch(module(notation, timesteps, batch_norm=batch_norm), torch.zeros(2, 3, 8, 8), timesteps)


def operators(work: Callable[[], object]) -> Counter[str]:
    """Operators that the profiler saw and that no other called, without those that move no values."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    calls = [event for event in seen.events() if event.name.startswith("aten::")]
    calls = [call for call in calls if not (call.cpu_parent and call.cpu_parent.name.startswith("aten::"))]
    moving = [call for call in calls if call.name not in VIEWS_AND_EMPTY]
    return Counter(call.name for call in moving if call.name != "aten::to" or call.cpu_children)


def operators_each_way(layer: nn.Module, x: Tensor) -> dict[Direction, Counter[str]]:
    results: list[Tensor] = []
    grad = torch.ones_like(x)
    forward = operators(lambda: results.append(layer(x)))
    return {Direction.FORWARD: forward, Direction.BACKWARD: operators(lambda: results[0].backward(grad))}


class _Rectangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, m: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(m)
        return (m >= 0.5).to(m.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        (m,) = ctx.saved_tensors
        return grad * ((m - 0.5).abs() < 0.5).to(m.dtype)


class Equation(nn.Module):
    """Equation 4.1 as it stands."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.unflatten(0, (self.timesteps, -1))
        m, spike = torch.zeros_like(sequence[0]), torch.zeros_like(sequence[0])
        spikes = []
        for drive in sequence:
            m = 0.25 * m * (1 - spike) + drive
            spike = _Rectangle.apply(m)
            spikes.append(spike)
        return torch.stack(spikes).flatten(0, 1)


NEURONS = [(MODULE, lambda steps: LIF(timesteps=steps)), (EQUATION, Equation)]


@pytest.mark.parametrize(("neuron", "make"), NEURONS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_eager_neurons_launch_what_the_profiler_counts(
    neuron: EagerNeuron, make: Callable[[int], nn.Module], steps: int
) -> None:
    """Forward and backward, operator by operator; one copy of the initial potential's number is no kernel."""
    seen = operators_each_way(make(steps), torch.rand(2 * steps, 3, 4, 4, requires_grad=True))
    facts = training_facts(graph(NOTATIONS[0], steps), batch=2)["layers.lif1"]
    for direction in Direction:
        want: Counter[str] = Counter()
        for launch in neuron_launches(neuron, facts):
            want[f"aten::{launch.kernel}"] += launch.count if launch.direction is direction else 0
        assert seen[direction] == +want


def launches_each_way(units: Iterable[Unit]) -> Counter[Direction]:
    count: Counter[Direction] = Counter()
    for launch in (launch for unit in units for launch in unit.launches):
        count[launch.direction] += launch.count
    return count


def test_launches_of_a_layer_with_batch_norm() -> None:
    """By hand at T = 4: vanilla 2 + 26 forward and 1 + 50 backward, ours 2 and 2 with a finishing sum."""
    x = torch.rand(8, 3, 4, 4, requires_grad=True)
    seen = operators_each_way(nn.Sequential(nn.BatchNorm2d(3), LIF(timesteps=4)), x)
    forward, backward = (seen[direction].total() for direction in Direction)
    work = vanilla_work(graph(NOTATIONS[0], 4), batch=2)
    units = [unit for unit in work.units if unit.name in ("layers.norm1", "layers.lif1")]
    assert (forward, backward) == (28, 51)
    assert launches_each_way(units) == {Direction.FORWARD: forward, Direction.BACKWARD: backward}


@pytest.mark.parametrize(
    ("norm", "forward", "backward"),
    [
        (Norm.BATCH, ["statistics", "forward"], ["gradient_sums", "finish", "gradient_input"]),
        (Norm.RUNNING, ["forward"], ["gradient", "finish"]),
        (Norm.NONE, ["forward"], ["gradient"]),
    ],
)
def test_launches_of_a_fused_population(norm: Norm, forward: list[str], backward: list[str]) -> None:
    plan = plan_stages(graph(NOTATIONS[0], 4, batch_norm=norm is not Norm.NONE))
    stage = next(step for step in (evaluated(plan) if norm is Norm.RUNNING else plan).steps if hasattr(step, "parts"))
    (population,) = stage.parts
    launches = list(population_launches(population, PartExtents(taken=8, given=8, channels=4)))
    assert [one.kernel for one in launches if one.direction is Direction.FORWARD] == forward
    assert [one.kernel for one in launches if one.direction is Direction.BACKWARD] == backward


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_fused_launches_and_bytes_are_those_of_the_kernels(
    notation: str, batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of a real step on the CPU, by the sizes of their arguments; `grad` in place is read and written."""
    moved: Counter[str] = Counter()
    launched: Counter[str] = Counter()
    call = cpu_kernels.CpuKernels.__call__

    def record(self: cpu_kernels.CpuKernels, name: object, *arguments: object) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        size = sum(tensor.nbytes for tensor in tensors)
        if self.population.in_place and str(name) in ("gradient_input", "gradient"):
            size += tensors[-1 if str(name) == "gradient_input" else -2].nbytes  # the gradient, in place
        moved[str(name)] += size
        launched[str(name)] += 1
        call(self, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cpu_kernels.CpuKernels, "__call__", record)
    images = torch.rand(2, 3, 8, 8)
    model = spikec.fuse(module(notation, 4, batch_norm=batch_norm), images, 4).train()
    model(images).sum().backward()
    work = fused_work(plan_stages(graph(notation, 4, batch_norm=batch_norm)), batch=2)
    launches = [launch for unit in work.units for launch in unit.launches]
    for name in map(str, KernelName):
        mine = [launch for launch in launches if launch.kernel == name]
        assert len(mine) == launched[name], name
        predicted = sum(launch.moved_bytes for launch in mine)
        if name == "forward" and batch_norm:  # on a GPU it makes the table from the sums, on the CPU others do
            predicted -= sum(table_and_sums_bytes(unit) for unit in work.units if unit.kind == "stage")
        assert predicted == moved[name], name


def table_and_sums_bytes(unit: Unit) -> int:
    """Five rows in f32, and 64 groups of two sums in f64, each time that the neurons behind the norm run forward."""
    statistics = next(launch for launch in unit.launches if launch.kernel == "statistics")
    channels = statistics.written_bytes // (64 * 2 * 8)
    forwards = [launch for launch in unit.launches if launch.kernel == "forward"]
    normed = sum(launch.read_bytes == forwards[0].read_bytes for launch in forwards)
    return normed * channels * (5 * 4 + 64 * 2 * 8)


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Unique storages that autograd keeps, without parameters and buffers."""
    with kept_tensors() as alive:
        result = model(images)
        storages = [kept.tensor.untyped_storage() for kept in alive]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for tensor in (*model.parameters(), *model.buffers()):
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    assert result.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("neuron", "make"), NEURONS)
def test_vanilla_keeps_what_autograd_keeps(
    notation: str,
    batch_norm: bool,
    neuron: EagerNeuron,
    make: Callable[[int], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = module(notation, 5, batch_norm=batch_norm).train()
    for name, part in list(model.layers.named_children()):
        if isinstance(part, LIF):
            setattr(model.layers, name, make(5))
    monkeypatch.setattr(type(model), "timesteps", 5)  # the neurons may be of another class
    work = vanilla_work(graph(notation, 5, batch_norm=batch_norm), 3, neuron)
    assert kept_bytes(model, torch.rand(3, 3, 8, 8)) == work.kept_bytes


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fused_keeps_the_layers_results_alone(batch_norm: bool) -> None:
    """By hand: image, results of four layers (the first one without a time axis), the mean spikes."""
    work = fused_work(plan_stages(graph(NOTATIONS[0], 5, batch_norm=batch_norm)), batch=3)
    assert work.kept_bytes == 3 * 4 * (3 * 64 + 4 * 64 + 5 * 8 * 16 + 5 * 16 + 16)


def test_peak_by_hand() -> None:
    """Two layers and neurons between them; the most is alive in the backward pass of the second."""
    sizes = {"image": 10, "x": 100, "s": 100, "y": 20}
    none: tuple[Launch, ...] = ()
    first = Unit(
        name="a",
        kind="linear",
        reads={"image": 10},
        writes={"x": 100},
        launches=none,
        kept={"image": 10},
        parameter_bytes=7,
        input_gradient=False,
    )
    neurons = Unit(
        name="n",
        kind="lif",
        reads={"x": 100},
        writes={"s": 100},
        launches=none,
        kept={"m": 300},
        forward_bytes=50,
        backward_bytes=90,
    )
    last = Unit(
        name="b",
        kind="linear",
        reads={"s": 100},
        writes={"y": 20},
        launches=none,
        kept={"s": 100},
        parameter_bytes=3,
    )
    work = Work(network="n", dataflow="d", timesteps=1, batch=1, units=(first, neurons, last), block_bytes=1000)
    memory = predict_memory(work, workspace_bytes=10_000, optimiser_copies=1)
    forward = (10 + sizes["x"], 10 + 300 + sizes["x"] + sizes["s"] + 50, 10 + 300 + sizes["s"] + sizes["y"])
    backward_last = 10 + 300 + 100 + sizes["y"] + sizes["s"] + 3
    backward_neurons = 10 + 300 + sizes["s"] + sizes["x"] + 90 + 3
    assert memory.peak == 2 * 10 + 1000 + 10_000 + max(*forward, backward_last, backward_neurons)
    assert memory.activations == 410
    assert memory.parameters == 20


def test_kernel_times_by_hand() -> None:
    """V100: 900 GB/s and 3133 GB/s within 6 MiB, 0.8 of both; 15.7 TFLOP/s, 0.6 of them; 2 us at least."""
    gpu, software = TABLE.gpus["V100"], TABLE.software
    large = Launch(kernel="add", direction=Direction.FORWARD, read_bytes=6_000_000, written_bytes=3_000_000)
    assert kernel_seconds(large, gpu, software) == pytest.approx(9e6 / (900e9 * 0.8))
    cached = replace(large, read_bytes=3_000_000, written_bytes=3_000_000)
    assert kernel_seconds(cached, gpu, software) == pytest.approx(6e6 / (3133e9 * 0.8))
    assert kernel_seconds(replace(large, read_bytes=4, written_bytes=4), gpu, software) == 2e-6
    layer = replace(large, family=Family.CONVOLUTION, multiply_adds=10**9)
    assert kernel_seconds(layer, gpu, software) == pytest.approx(2e9 / (15.7e12 * 0.6))


def test_host_time_counts_where_it_is_the_longer_one() -> None:
    """Launches of few values: the host's 5 us against the device's 2; a stage is one operator of 500 us."""
    launch = Launch(kernel="add", direction=Direction.FORWARD, read_bytes=4, written_bytes=4, count=100)
    unit = Unit(name="a", kind="add", reads={}, writes={}, launches=(launch,))
    work = Work(network="n", dataflow="d", timesteps=1, batch=1, units=(unit,))
    gpu, software = TABLE.gpus["H100"], TABLE.software
    time = predict_time(work, gpu, software)
    assert (time.total_device_s, time.host_s, time.step_s) == pytest.approx((200e-6, 500e-6, 500e-6))
    stage = replace(work, units=(replace(unit, kind="stage"),))
    assert predict_time(stage, gpu, software).host_s == pytest.approx(500e-6)
    assert predict_time(stage, gpu, software, Direction.FORWARD).host_s == pytest.approx(250e-6)


def works(notation: str, timesteps: int, batch: int, *, batch_norm: bool) -> tuple[Work, Work]:
    network = Retime(timesteps)(graph(notation, 4, batch_norm=batch_norm))
    return vanilla_work(network, batch, EQUATION), fused_work(plan_stages(network), batch)


@settings(deadline=None, max_examples=40)
@given(
    notation=st.sampled_from(NOTATIONS),
    timesteps=st.integers(1, 12),
    batch=st.integers(1, 64),
    batch_norm=st.booleans(),
    gpu=st.sampled_from(sorted(TABLE.gpus)),
)
def test_more_steps_or_samples_never_cost_less(
    notation: str, timesteps: int, batch: int, batch_norm: bool, gpu: str
) -> None:
    """Memory, and time of host and device."""
    small = works(notation, timesteps, batch, batch_norm=batch_norm)
    for more in ((timesteps + 1, batch), (timesteps, batch + 1)):
        for one, two in zip(small, works(notation, *more, batch_norm=batch_norm), strict=True):
            assert one.kept_bytes <= two.kept_bytes
            assert predict_memory(one, workspace_bytes=0).peak <= predict_memory(two, workspace_bytes=0).peak
            times = [predict_time(work, TABLE.gpus[gpu], TABLE.software) for work in (one, two)]
            assert times[0].host_s <= times[1].host_s
            assert times[0].total_device_s <= times[1].total_device_s
    vanilla, fused = small
    _, longer = works(notation, timesteps + 1, batch, batch_norm=batch_norm)
    assert launches_each_way(fused.units) == launches_each_way(longer.units)
    assert fused.kept_bytes < vanilla.kept_bytes


def test_facts_are_those_of_the_graph() -> None:
    """By hand: 3x3 kernels, strides 1 and 2, 8 x 8 images, T = 5, batch 3."""
    facts = training_facts(graph(NOTATIONS[0], 5), batch=3)
    assert facts["layers.conv1"].multiply_adds == 15 * 4 * 64 * 27
    assert facts["layers.conv2"].multiply_adds == 15 * 8 * 16 * 36
    assert facts["layers.fc3"].multiply_adds == 15 * 16 * 128
    assert facts["layers.conv2"].parameter_bytes == 4 * (8 * 36 + 8)
    assert (facts["layers.lif2"].outputs, facts["layers.lif2"].steps) == (15 * 8 * 16, 5)
    assert not facts["layers.conv1"].input_gradient
    assert facts["layers.norm1"].input_gradient
    kinds = Counter(type(node.op) for node in graph(NOTATIONS[0], 5).nodes)
    assert Counter(fact.kind for fact in facts.values())["lif"] == kinds[Lif] == kinds[BatchNorm]


# Multiprocessors, FP32 lanes of each, GHz, bytes of L2 a clock; H100 states its peak at 1.98 GHz, L2's at 1.755.
CLOCKED = {
    "V100": (80, 64, 1.53, 2048 * 1.53),
    "A100": (108, 64, 1.41, 5120 * 1.41),
    "H100": (132, 128, 1.98, 5120 * 1.755),
}


@pytest.mark.parametrize("short", CLOCKED)
def test_peaks_of_data_sheets_are_lanes_times_clocks(short: str) -> None:
    """A second path to them, within the last digit printed."""
    gpu, (processors, lanes, ghz, l2_gb_s) = TABLE.gpus[short], CLOCKED[short]
    assert gpu.matrix_multiply.value == pytest.approx(2 * processors * lanes * ghz / 1000, rel=0.003)
    assert gpu.l2_bandwidth.value == pytest.approx(l2_gb_s, rel=0.001)


def test_what_fits_into_a_gpu() -> None:
    memory = predict_memory(works(NOTATIONS[0], 4, 2, batch_norm=True)[0], workspace_bytes=64 * MIB)
    for gpu in TABLE.gpus.values():
        assert fits(replace(memory, peak=int(gpu.memory.value * 2**30)), gpu)
        assert not fits(replace(memory, peak=int(gpu.memory.value * 2**30) + 1), gpu)
