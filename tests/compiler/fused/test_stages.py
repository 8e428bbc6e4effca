"""A plan computes what its network computes, each node once, and cuts where the rules say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional

from compiler.evaluate import Execution, evaluate, execute
from compiler.fused.plan import Plan, Stage, Step, TorchStep
from compiler.fused.population import Norm, Population, Window
from compiler.fused.stages import plan_stages
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, TensorType
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Site,
    window_extent,
)
from frontends.from_torch import from_torch
from frontends.zoo import build, entry, names
from tests.strategies import RandomNetwork, networks

LOC = Loc("net.py", 1)


def run_plan(plan: Plan, x: Tensor) -> Tensor:
    """The plan's output, step by step; a step sees only what earlier steps handed on."""
    run = Execution(plan.graph, (), {}, 0)
    values: dict[str, Tensor] = {}
    for step in plan.steps:
        if isinstance(step, Stage):
            values.update(run_stage(step, values[step.source], run))
        else:
            inputs = [values[name] for name in step.node.inputs] or [x]
            values[step.node.name] = execute(step.node.op, inputs, step.node, run)
    return values[plan.output]


def run_stage(stage: Stage, x: Tensor, run: Execution) -> dict[str, Tensor]:
    if stage.repeated:
        assert stage.encode is not None
        x = execute(stage.encode.op, [x], stage.encode, run)
    if stage.batch_norm is not None:
        x = execute(stage.batch_norm.op, [x], stage.batch_norm, run)
    lifs = iter(stage.lifs)
    for part, result in zip(stage.parts, stage.results, strict=True):
        if isinstance(part, Population):
            node = next(lifs)
            check_numbers(part, node)
            x = execute(node.op, [x], node, run)
            x = x if part.window is None else pooled(part.window, x, run.graph.types[result])
        else:
            x = execute(part, [x], run.graph.node(result), run)
    if stage.flatten is not None:
        x = execute(stage.flatten.op, [x], stage.flatten, run)
    values = {node.name: execute(node.op, [x], node, run) for node in stage.linears}
    return values if stage.spikes is None else {**values, stage.spikes: x}


def check_numbers(part: Population, node: Node) -> None:
    """The population says what the neuron says; None where the number differs by channel."""
    op = node.op
    assert isinstance(op, Lif)
    for what in ("decay", "threshold", "input_scale", "leak_bias", "reset_value", "initial"):
        number = getattr(op, what)
        assert getattr(part, what) == (None if isinstance(number, Param) else number)
    for what in ("reset", "reset_delay", "compare", "detach_reset", "surrogate"):
        assert getattr(part, what) == getattr(op, what)


def pooled(window: Window, x: Tensor, result: TensorType) -> Tensor:
    """What the kernels make of a window."""
    extents = tuple(
        window_extent(size, kernel, kernel, 0, window.ceil)
        for size, kernel in zip(x.shape[-2:], window.kernel, strict=True)
    )
    assert extents == (result.size("H"), result.size("W"))
    is_whole = all(size % kernel == 0 for size, kernel in zip(x.shape[-2:], window.kernel, strict=True))
    assert window.exact == is_whole
    padding = [
        max(0, extents[at] * window.kernel[at] - x.shape[-2 + at]) for at in (1, 0)
    ]  # of the last window, as torch orders it: columns first
    full = functional.pad(x, (0, padding[0], 0, padding[1]))[
        ..., : extents[0] * window.kernel[0], : extents[1] * window.kernel[1]
    ]
    ones = functional.pad(torch.ones_like(x), (0, padding[0], 0, padding[1]))[..., : full.shape[-2], : full.shape[-1]]
    tiles, counts = (
        value.unflatten(-2, (extents[0], -1)).unflatten(-1, (extents[1], -1)).transpose(-2, -3)
        for value in (full, ones)
    )
    if not window.average:
        return tiles.amax((-1, -2))
    return tiles.sum((-1, -2)) / counts.sum((-1, -2))


def assert_sound(plan: Plan) -> None:
    """Each node once, each step after those whose values it reads."""
    covered = Counter(name for step in plan.steps for name in step.nodes)
    assert covered == Counter(node.name for node in plan.graph.nodes)
    known: set[str] = set()
    for step in plan.steps:
        assert set(reads(step)) <= known
        known.update(step.outputs)
    assert plan.output in known


def reads(step: Step) -> tuple[str, ...]:
    return (step.source,) if isinstance(step, Stage) else step.node.inputs


@settings(max_examples=60)
@given(networks(late_encode=True, free_neurons=True, encodings=tuple(Encoding)))
def test_a_plan_computes_the_network(network: RandomNetwork) -> None:
    """Weights on a grid: f32 sums are exact, so that an encoding before or behind a layer gives the same bits."""
    check(network)


@settings(max_examples=30)
@given(networks(residual=True, free_neurons=True, blocks=(1, 2)))
def test_a_plan_of_residual_blocks_computes_the_network(network: RandomNetwork) -> None:
    check(network)


def check(network: RandomNetwork) -> None:
    plan, x = plan_stages(network.graph), torch.from_numpy(network.example)
    assert_sound(plan)
    assert torch.equal(run_plan(plan, x), evaluate(network.graph, x).output)
    neurons = {node.name for node in network.graph.nodes if isinstance(node.op, Lif)}
    assert neurons == {lif.name for step in plan.steps if isinstance(step, Stage) for lif in step.lifs}


@pytest.mark.parametrize("name", names())
def test_every_network_of_the_zoo_has_a_plan(name: str) -> None:
    graph = zoo_graph(name)
    plan = plan_stages(graph)
    assert_sound(plan)
    stages = [step for step in plan.steps if isinstance(step, Stage)]
    layers = [node for node in plan.graph.nodes if isinstance(node.op, Conv2d | Linear)]
    assert sum(len(stage.linears) for stage in stages) >= len(layers) - 2  # the first layer, one behind a readout
    has_norms = any(isinstance(node.op, BatchNorm) for node in plan.graph.nodes)
    assert has_norms == any(stage.batch_norm is not None for stage in stages)


def zoo_graph(name: str) -> Graph:
    module = build(name, timesteps=2).eval()
    with torch.no_grad():
        return from_torch(module, torch.rand(entry(name).example_shape(1, 2)), 2)


@dataclass
class Net:
    """A network written node by node."""

    nodes: tuple[Node, ...] = ()
    arrays: tuple[tuple[str, np.ndarray], ...] = ()  # type: ignore[type-arg]

    def add(self, name: str, op: Op, *inputs: str) -> Net:
        return replace(self, nodes=(*self.nodes, Node(name, op, inputs, LOC)))

    def conv(self, name: str, source: str, channels: int = 2, out: int = 2) -> Net:
        weight = np.random.default_rng(len(name)).integers(-8, 9, (out, channels, 3, 3)).astype(np.float32) / 16
        grown = replace(self, arrays=(*self.arrays, (f"{name}.w", weight)))
        return grown.add(name, Conv2d(weight=Param(f"{name}.w"), padding=(1, 1)), source)

    def norm(self, name: str, source: str, channels: int = 2) -> Net:
        params = {what: Param(f"{name}.{what}") for what in ("weight", "bias", "mean", "var")}
        ones = tuple((param.name, np.ones(channels, np.float32)) for param in params.values())
        return replace(self, arrays=(*self.arrays, *ones)).add(name, BatchNorm(**params, eps=0.0), source)

    def lif(self, name: str, source: str) -> Net:
        return self.add(name, Lif(decay=0.5, threshold=0.5), source)

    def graph(self, output: str) -> Graph:
        return Graph("net", self.nodes, output, dict(self.arrays))


def image(size: int = 4) -> Net:
    return Net().add("x", Input(shape=("N", 2, size, size), dtype=DType.F32, axes="NCHW"))


def encoded(kind: Encoding = Encoding.DIRECT, size: int = 4) -> Net:
    seed = 3 if kind is Encoding.BERNOULLI else None
    return image(size).add("code", Encode(kind=kind, timesteps=3, seed=seed), "x")


def events(size: int = 4) -> Net:
    return Net().add("x", Input(shape=(3, "N", 2, size, size), dtype=DType.SPIKE, axes="TNCHW"))


def planned(graph: Graph) -> Plan:
    """The plan, checked against the evaluator on a random input."""
    plan = plan_stages(graph)
    assert_sound(plan)
    shape = [2 if isinstance(size, str) else size for size in graph.types[graph.input.name].shape]
    x = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(run_plan(plan, x), evaluate(graph, x).output)
    return plan


def summary(plan: Plan) -> list[str]:
    """A line for each step: source, nodes and what is handed on."""
    return [
        f"{step.source} -> {' '.join(step.nodes)} -> {' '.join(step.outputs)}"
        if isinstance(step, Stage)
        else step.node.name
        for step in plan.steps
    ]


def test_an_encoding_moves_behind_the_first_convolution() -> None:
    plan = planned(encoded().conv("c", "code").norm("bn", "c").lif("s", "bn").conv("d", "s").graph("d"))
    assert summary(plan) == ["x", "c", "c -> c.encoded bn s d -> d"]
    stage = plan.steps[-1]
    assert isinstance(stage, Stage)
    assert stage.repeated
    (population,) = stage.parts
    assert isinstance(population, Population)
    assert population.repeated
    assert population.norm is Norm.BATCH


def test_an_encoding_moves_through_pooling_and_linear_layers() -> None:
    pool = AvgPool2d(kernel=(2, 2), stride=(2, 2))
    net = encoded().conv("c", "code").add("p", pool, "c").add("f", Flatten(), "p")
    net = replace(net, arrays=(*net.arrays, ("w", np.ones((5, 8), np.float32))))
    plan = planned(net.add("fc", Linear(weight=Param("w")), "f").lif("s", "fc").graph("s"))
    assert summary(plan) == ["x", "c", "p", "f", "fc", "fc -> fc.encoded s -> s"]


def test_a_batch_norm_with_other_readers_counts_each_value_for_every_step() -> None:
    net = encoded().conv("c", "code").norm("bn", "c").lif("s", "bn").conv("d", "s").add("a", Add(), "d", "bn")
    plan = planned(net.graph("a"))
    assert summary(plan) == ["x", "c", "bn", "bn.encoded", "bn -> s.encoded s d -> d", "a"]
    assert [step.repeats for step in plan.steps if isinstance(step, TorchStep)] == [1, 3, 3, 1, 1]


def test_a_batch_norm_before_the_encoding_counts_each_value_once() -> None:
    net = image().conv("c", "x").norm("bn", "c").add("code", Encode(kind=Encoding.DIRECT, timesteps=3), "bn")
    plan = planned(net.lif("s", "code").lif("r", "code").add("a", Add(), "s", "r").graph("a"))
    assert summary(plan) == ["x", "c", "bn", "bn -> code s -> s", "bn -> r.encoded r -> r", "a"]
    assert all(step.repeats == 1 for step in plan.steps if isinstance(step, TorchStep))


def test_a_batch_norm_of_single_values_keeps_its_sequence() -> None:
    """One sample of one pixel has no variance, T of them have."""
    net = encoded(size=1).conv("c", "code").norm("bn", "c").lif("s", "bn").conv("d", "s").add("a", Add(), "d", "bn")
    assert summary(planned(net.graph("a"))) == ["x", "c", "c.encoded", "bn", "bn -> s d -> d", "a"]


def test_an_encoding_with_readers_of_every_kind() -> None:
    """Neurons have an encoding each, layers move before it, the sum reads the sequence."""
    net = encoded().lif("s", "code").conv("c", "code").add("a", Add(), "c", "code").add("b", Add(), "a", "s")
    plan = planned(net.graph("b"))
    assert summary(plan) == ["x", "code", "x -> s.encoded s -> s", "c", "c.encoded", "a", "b"]
    assert [step.repeated for step in plan.steps if isinstance(step, Stage)] == [True]


def test_an_output_that_is_encoded_stays_a_sequence() -> None:
    plan = planned(encoded().conv("c", "code").graph("c"))
    assert summary(plan) == ["x", "c", "c.encoded"]
    assert plan.output == "c.encoded"


def test_two_populations_read_one_value() -> None:
    net = events().conv("c", "x").conv("d", "x").add("a", Add(), "c", "d").lif("s", "a").lif("r", "a")
    net = net.conv("e", "s").conv("f", "r").add("b", Add(), "e", "f")
    plan = planned(net.graph("b"))
    assert summary(plan) == ["x", "x -> c d -> c d", "a", "a -> s e -> e", "a -> r f -> f", "b"]
    assert [step.packed for step in plan.steps if isinstance(step, Stage)] == [True, False, False]


def test_neurons_pooling_neurons_are_one_stage() -> None:
    """The form conv, LIF, average pooling, LIF, conv; then spikes that a sum reads too."""
    pool = AvgPool2d(kernel=(2, 2), stride=(2, 2), ceil_mode=True)
    net = events(5).conv("c", "x").lif("s", "c").add("p", pool, "s").lif("r", "p").conv("d", "r").conv("e", "r")
    plan = planned(net.add("a", Add(), "d", "e").add("b", Add(), "a", "r").graph("b"))
    assert summary(plan) == ["x", "x -> c -> c", "c -> s p r d e -> d e r", "a", "b"]
    stage = plan.steps[2]
    assert isinstance(stage, Stage)
    assert stage.results == ("p", "r")
    first, second = stage.parts
    assert isinstance(first, Population)
    assert first.window == Window(kernel=(2, 2), average=True, exact=False, ceil=True)
    assert isinstance(second, Population)
    assert second.window is None


@pytest.mark.parametrize(
    "pool",
    [
        MaxPool2d(kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        AvgPool2d(kernel=(2, 2), stride=(1, 1)),
        AvgPool2d(kernel=(5, 5), stride=(5, 5)),  # more pixels than a kernel unrolls
    ],
)
def test_pooling_that_no_window_expresses_is_a_part(pool: AvgPool2d | MaxPool2d) -> None:
    plan = planned(events(6).conv("c", "x").lif("s", "c").add("p", pool, "s").lif("r", "p").graph("r"))
    stage = plan.steps[-1]
    assert isinstance(stage, Stage)
    assert stage.parts[1] is pool
    assert stage.results == ("s", "p", "r")
    assert stage.spikes == "r"


def test_pooling_of_shared_spikes_stands_alone() -> None:
    """The maximum of spikes is a spike: the layer behind keeps bits."""
    pool = MaxPool2d(kernel=(2, 2), stride=(2, 2))
    net = events().conv("c", "x").lif("s", "c").add("p", pool, "s").add("q", pool, "s").conv("d", "p")
    plan = planned(net.add("a", Add(), "d", "q").graph("a"))
    assert summary(plan) == ["x", "x -> c -> c", "c -> s -> s", "p", "q", "p -> d -> d", "a"]
    last = plan.steps[-2]
    assert isinstance(last, Stage)
    assert last.packed


def test_a_flatten_goes_behind_its_neurons() -> None:
    net = events().conv("c", "x").add("f", Flatten(), "c").lif("s", "f")
    net = replace(net, arrays=(*net.arrays, ("w", np.ones((5, 32), np.float32))))
    plan = planned(net.add("fc", Linear(weight=Param("w")), "s").graph("fc"))
    assert summary(plan) == ["x", "x -> c -> c", "c -> s f fc -> fc"]


def test_a_flatten_stays_before_neurons_with_a_number_for_each_feature() -> None:
    net = events().conv("c", "x").add("f", Flatten(), "c")
    net = replace(net, arrays=(*net.arrays, ("th", np.linspace(0.1, 1, 32, dtype=np.float32))))
    plan = planned(net.add("s", Lif(decay=0.5, threshold=Param("th")), "f").graph("s"))
    assert summary(plan) == ["x", "x -> c -> c", "f", "f -> s -> s"]
    stage = plan.steps[-1]
    assert isinstance(stage, Stage)
    (population,) = stage.parts
    assert isinstance(population, Population)
    assert population.rows == ("threshold",)


def test_codes_are_kept_as_bits_and_currents_are_not() -> None:
    pool = AvgPool2d(kernel=(2, 2), stride=(2, 2))
    net = encoded(Encoding.BERNOULLI).conv("c", "code").lif("s", "c").add("p", pool, "s").add("q", pool, "s")
    net = net.conv("d", "p").add("a", Add(), "d", "q").add("r", Readout(kind=Reading.RATE), "a")
    plan = planned(net.graph("r"))
    assert summary(plan) == ["x", "code", "code -> c -> c", "c -> s -> s", "p", "q", "d", "a", "r"]
    assert isinstance(plan.steps[6], TorchStep)


@dataclass(frozen=True)
class Strange(Op):
    """An op that no rule knows."""

    def infer(self, inputs: tuple[TensorType, ...], site: Site) -> TensorType:
        return inputs[0]


def test_an_unknown_op_is_refused() -> None:
    graph = encoded().add("odd", Strange(), "code").graph("odd")
    with pytest.raises(CompileError, match=r"net.py:1: error: odd: no rule to train Strange in stages\n  hint: train"):
        plan_stages(graph)
