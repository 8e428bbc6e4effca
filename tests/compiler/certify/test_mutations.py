"""Bounds broken on purpose, each in a way that has been printed or shipped: the enumeration has to notice every one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from compiler.certify import arithmetic, flip_sums, last_layer, neuron_intervals
from compiler.certify.input_sets import Box, L0Ball
from compiler.certify.interval import Run, bound, interval
from compiler.certify.model import Interval
from compiler.ir import Compare, DType, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import BatchNorm, Input, Li, Lif, Linear, Op, Readout
from tests.compiler.certify.networks import Kind, Problem, problem
from tests.compiler.certify.oracle import truth, violations

Patch = pytest.MonkeyPatch
Rule = Callable[[Op, list[Interval], Node, Run], Interval]


def broken_by(problems: Iterator[Problem]) -> list[str]:
    """The first bounds that do not hold."""
    for p in problems:
        bounds, found = interval(p.graph, p.inputs), truth(p.graph, p.inputs)
        broken = violations(p.graph, bounds, found)[1]
        least = found.margins(p.label)
        margin = last_layer.margins(p.graph, bounds, [p.label])[0]
        others = torch.arange(len(least)) != p.label
        if broken or bool((margin > least)[others].any()):
            return broken or ["margin"]
    return []


def random(kind: Kind, seeds: int = 60) -> Iterator[Problem]:
    return (problem(seed, kind) for seed in range(seeds))


def chained(*ops: Op, size: int, timesteps: int, parameters: dict[str, Tensor]) -> Graph:
    nodes = [Node("x", Input(shape=(timesteps, "N", size), dtype=DType.SPIKE, axes="TNC"), (), Loc("net.py", 1))]
    for line, op in enumerate(ops, 2):
        nodes.append(Node(f"n{line}", op, (nodes[-1].name,), Loc("net.py", line)))
    arrays = {name: values.numpy().astype(np.float32) for name, values in parameters.items()}
    return Graph("net", tuple(nodes), nodes[-1].name, arrays)


@contextmanager
def rule(op: type[Op], made: Rule) -> Iterator[None]:
    """Another rule for an op."""
    own = bound.registry[op]
    bound.register(op, made)
    try:
        yield
    finally:
        bound.register(op, own)


DYADIC = Kind(is_dyadic=True)
PLAIN = Kind(extras=False, is_image=False)


@pytest.mark.parametrize("kind", [DYADIC, PLAIN, Kind(thresholds=(-0.25, -0.5))], ids=["dyadic", "plain", "negative"])
def test_unbroken_bounds_hold_on_the_same_networks(kind: Kind) -> None:
    assert not broken_by(random(kind, 15))


def test_membranes_initialised_at_each_step(monkeypatch: Patch) -> None:
    """Algorithm 6 as printed: `m = 0 for all layers` stands inside the loop over time."""

    def forget(self: object, after: Interval) -> object:
        zero = torch.zeros_like(after.lower)
        return neuron_intervals._Carried(lower=zero, upper=zero, size=zero, grid=0)

    monkeypatch.setattr(neuron_intervals._Step, "decayed", forget)
    assert broken_by(random(PLAIN))


def test_threshold_as_upper_end_of_a_reset_below_zero(monkeypatch: Patch) -> None:
    """Equation 6.6 as printed: where unstable, z's upper end is the threshold, even one below the reset value of 0."""
    own = neuron_intervals._reset

    def printed(
        op: Lif, membrane: Interval, cut: neuron_intervals.Pieces, numbers: neuron_intervals.Numbers
    ) -> Interval:
        after = own(op, membrane, cut, numbers)
        if op.reset is not Reset.HARD:
            return after
        is_stable = cut.fires | cut.silent
        threshold = numbers("threshold").expand(cut.upper.shape)
        low = torch.where(is_stable, after.lower, cut.lower.clamp(max=0.0))
        return replace(after, lower=low, upper=torch.where(is_stable, after.upper, threshold))

    monkeypatch.setattr(neuron_intervals, "_reset", printed)
    negative = Kind(extras=False, thresholds=(-0.25, -0.5), resets=(Reset.HARD,))
    assert broken_by(random(negative))
    positive = Kind(extras=False, thresholds=(0.25, 0.5, 0.0), resets=(Reset.HARD,))
    assert not broken_by(random(positive, 15))  # there it is right


@pytest.mark.parametrize("compare", Compare)
def test_ties_decided_the_other_way(compare: Compare, monkeypatch: Patch) -> None:
    """A bound for > of a neuron that fires at >=, or the reverse."""
    own = neuron_intervals._cut
    other = Compare.GT if compare is Compare.GE else Compare.GE
    monkeypatch.setattr(
        neuron_intervals, "_cut", lambda membrane, threshold, rule: own(
            membrane, threshold, other if rule is compare else rule
        )
    )  # fmt: skip
    assert broken_by(random(Kind(is_dyadic=True, decays=(0.0, 0.25, 0.5))))


def test_batch_norm_with_a_negative_gain_unswapped() -> None:
    """The lower end through a falling line is the upper one."""

    def unswapped(op: Op, inputs: list[Interval], node: Node, run: Run) -> Interval:
        made = own(op, inputs, node, run)
        assert isinstance(op, BatchNorm)
        gain = torch.from_numpy(run.graph.parameters[op.weight.name].copy())
        axis = run.graph.types[node.name].axes.index("C")
        falls = (gain < 0).reshape(-1, *(1,) * (made.lower.ndim - axis - 1))
        return replace(
            made, lower=torch.where(falls, made.upper, made.lower), upper=torch.where(falls, made.lower, made.upper)
        )

    own = bound.registry[BatchNorm]
    with rule(BatchNorm, unswapped):
        assert broken_by(random(DYADIC))


def test_bias_counted_at_every_step() -> None:
    """A constant inside the sum over time (6.14 and 6.15 as printed) is there T times."""

    def repeated(op: Op, inputs: list[Interval], node: Node, run: Run) -> Interval:
        made = own(op, inputs, node, run)
        assert isinstance(op, Linear)
        if op.bias is None:
            return made
        bias = torch.from_numpy(run.graph.parameters[op.bias.name].copy()) * (run.graph.timesteps - 1)
        return replace(made, lower=made.lower + bias, upper=made.upper + bias)

    own = bound.registry[Linear]
    with rule(Linear, repeated):
        assert broken_by(random(PLAIN))


def balls() -> Iterator[Problem]:
    for seed in range(20):
        p = problem(seed, PLAIN)
        yield replace(p, inputs=L0Ball(clean=p.inputs.clean, k=2))


def test_one_flip_too_few(monkeypatch: Patch) -> None:
    assert not broken_by(balls())
    own = flip_sums._least
    monkeypatch.setattr(flip_sums, "_least", lambda changes, most: own(changes, most - 1))
    assert broken_by(balls())


def test_only_binary_inputs_to_a_layer(monkeypatch: Patch) -> None:
    """Equation 6.8 as printed: an input that is not 0 at both ends, or 1 at both, counts as nothing or as a whole."""

    def printed(op: Op, inputs: list[Interval], node: Node, run: Run) -> Interval:
        (x,) = inputs
        lower, upper = (x.lower == 1).double(), (x.upper == 1).double()
        return own(op, [replace(x, lower=lower, upper=upper, flips=None)], node, run)

    own = bound.registry[Linear]
    with rule(Linear, printed):
        assert broken_by(random(Kind(is_image=True)))


def tenths() -> Iterator[Problem]:
    """Weights that are multiples of 0.05, a threshold of 0.3: ties in decimal numbers, not in f32."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weight = torch.from_numpy(np.round(rng.normal(0.02, 0.12, (64, 24)) / 0.05) * 0.05)
        graph = chained(
            Linear(weight=Param("w")), Lif(decay=0.9, threshold=0.3), Readout(kind=Reading.RATE), size=24,
            timesteps=4, parameters={"w": weight},
        )  # fmt: skip
        clean = (rng.random((4, 24)) < 0.4).astype(np.float32)
        yield Problem(graph=graph, inputs=Box(clean=clean, free=np.zeros(clean.shape, bool)), label=0)


def test_bounds_not_rounded_outwards(monkeypatch: Patch) -> None:
    """One input, so one value in real numbers; in f32 it depends on the order of the sum."""
    assert not broken_by(tenths())
    monkeypatch.setattr(arithmetic, "error", lambda operations, size, grid: torch.zeros_like(size))
    broken = [line for p in tenths() for line in broken_by(iter([p]))]
    assert any(line.startswith("n3:") for line in broken)  # spikes, not only the last bits of membranes


def exact_layers(*ops: Op, timesteps: int, is_exact: bool) -> Iterator[Problem]:
    """One input each to linear layers, of weights on a grid or any, and what stands behind them."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drawn = torch.from_numpy(rng.normal(0, 1 / 3, (3, 24)))
        weight = (drawn * 64).round() / 64 if is_exact else drawn
        graph = chained(Linear(weight=Param("w")), *ops, size=24, timesteps=timesteps, parameters={"w": weight})
        clean = (rng.random((timesteps, 24)) < 0.4).astype(np.float32)
        yield Problem(graph=graph, inputs=Box(clean=clean, free=np.zeros(clean.shape, bool)), label=0)


TAILS: dict[str, Callable[[], Iterator[Problem]]] = {
    "layer": lambda: exact_layers(Readout(kind=Reading.LAST), timesteps=3, is_exact=False),
    "mean": lambda: exact_layers(Readout(kind=Reading.RATE), timesteps=3, is_exact=True),
    "integrators": lambda: exact_layers(Li(decay=0.9), Readout(kind=Reading.LAST), timesteps=6, is_exact=True),
}


@pytest.mark.parametrize("tail", TAILS)
def test_margins_without_the_errors_of_both_scores(tail: str, monkeypatch: Patch) -> None:
    """The difference of two rounded scores is not the rounded difference: in a layer, a mean, or integrators."""
    assert not broken_by(TAILS[tail]())
    monkeypatch.setattr(last_layer, "_pairs", lambda scores, labels: torch.zeros_like(scores.lower))
    assert broken_by(TAILS[tail]()) == ["margin"]
