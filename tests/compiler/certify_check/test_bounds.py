"""The checker's own bounds: they hold, and agree with those of the prover, which they share no code with."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from compiler.certify.certificate import described
from compiler.certify.interval import interval
from compiler.certify.last_layer import margins
from compiler.certify_check.forms import corners
from compiler.certify_check.layers import Neurons, layers
from compiler.certify_check.proof import margins_by_forms, margins_by_intervals, refined
from compiler.certify_check.ranges import Cell, Knowledge
from compiler.certify_check.rounding import Reals, fineness, loss
from compiler.certify_check.sets import read_inputs
from compiler.ir import Graph, Reset
from tests.compiler.certify.networks import Kind, Problem, problem
from tests.compiler.certify.oracle import Truth, truth

KINDS = [Kind(), Kind(takes_reals=True), Kind(is_dyadic=False)]
IDS = ["spikes", "reals", "rounded"]


def knowledge(one: Problem) -> Knowledge:
    """The checker's intervals."""
    inputs = read_inputs(described(one.inputs), one.graph.types[one.graph.input.name])
    known = Knowledge(one.graph, inputs, layers(one.graph))
    known.walk()
    return known


def spread(graph: Graph, name: str, values: torch.Tensor, shape: tuple[int, ...]) -> tuple[Reals, Reals]:
    """The least and the largest of a node's values over all inputs. Shapes: -> (S, F) twice."""
    axis = graph.types[name].axes.index("N")
    low, high = values.double().amin(axis), values.double().amax(axis)
    return low.numpy().reshape(shape), high.numpy().reshape(shape)


def check_intervals(known: Knowledge, found: Truth) -> int:
    """How many values lie within their intervals."""
    checked = 0
    for name, own in known.values.items():
        low, high = spread(known.graph, name, found.values[name], own.lower.shape)
        assert np.all(own.lower <= low)
        assert np.all(high <= own.upper)
        checked += low.size
    for name, cells in known.cells.items():
        if name in found.membranes:
            shape = (len(cells), len(cells[0].lower))
            low, high = spread(known.graph, name, found.membranes[name], shape)
            assert np.all(np.stack([cell.lower for cell in cells]) <= low)
            assert np.all(high <= np.stack([cell.upper for cell in cells]))
            checked += low.size
    return checked


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_bounds_hold_for_every_input(kind: Kind) -> None:
    checked = sum(check_bounds(seed, kind) for seed in range(300, 320))
    assert checked > 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_bounds_hold_for_every_input_of_many(kind: Kind) -> None:
    assert sum(check_bounds(seed, kind) for seed in range(2000, 2600)) > 50_000


def check_bounds(seed: int, kind: Kind) -> int:
    """Intervals, margins by intervals, and margins and potentials by lines of whatever slopes."""
    one = problem(seed, kind)
    known, found = knowledge(one), truth(one.graph, one.inputs)
    checked = check_intervals(known, found)
    least = found.margins(one.label).numpy()
    rng = np.random.default_rng(seed)

    def anyhow(name: str, step: int, cell: Cell, fired: Reals, rest: Reals) -> Reals:
        return rng.normal(0.0, 1.0, fired.shape)

    others = np.array([j for j in range(len(least)) if j != one.label])
    for bounds in (
        margins_by_intervals(known, one.label)[others],
        margins_by_forms(known, one.label, others),
        margins_by_forms(known, one.label, others, anyhow),
    ):
        assert np.all(bounds <= least[others])
    for name, cells in known.cells.items():
        layer = known.layers[name]
        assert isinstance(layer, Neurons)
        if name not in found.membranes:
            continue
        low, high = spread(one.graph, name, found.membranes[name], (len(cells), len(cells[0].lower)))
        for step in range(len(cells)):
            lower, upper = refined(known, name, step, np.arange(len(low[step])))
            assert np.all(lower <= low[step])
            assert np.all(high[step] <= upper)
            checked += low[step].size
    return checked


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_intervals_are_those_of_the_prover(kind: Kind) -> None:
    for seed in range(400, 415):
        one = problem(seed, kind)
        known, bounds = knowledge(one), interval(one.graph, [one.inputs])
        for name, own in known.values.items():
            axis = one.graph.types[name].axes.index("N")
            for side, sign in (("lower", 1.0), ("upper", -1.0)):
                theirs = getattr(bounds.nodes[name], side).select(axis, 0).numpy().reshape(own.lower.shape)
                ours = getattr(own, side)
                assert np.all(sign * ours >= sign * theirs), f"seed {seed}: {name} is looser"
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)  # both only round
        theirs = margins(one.graph, bounds, [one.label])[0].numpy()
        others = np.arange(len(theirs)) != one.label
        assert np.all(margins_by_intervals(known, one.label)[others] >= theirs[others] - 1e-6)


@pytest.mark.parametrize("reset", list(Reset))
def test_a_line_is_below_all_that_a_neuron_does(reset: Reset) -> None:
    rng = np.random.default_rng(8)
    threshold = rng.normal(0.0, 1.0, 500)
    lower, upper = threshold - rng.exponential(1.0, 500), threshold + rng.exponential(1.0, 500)
    lower[:50], upper[50:100] = threshold[:50], threshold[50:100]
    nothing = np.zeros(500)
    cell = Cell(
        lower=lower,
        upper=upper,
        fires=nothing > 0,
        silent=nothing > 0,
        lost=nothing,
        size=nothing,
        lost_reset=nothing,
        grid=None,
    )
    value = rng.normal(0.0, 1.0, 500)
    keep = 0.0 if reset is Reset.HARD else 1.0
    shift = {Reset.HARD: value, Reset.SOFT: -threshold, Reset.NONE: nothing}[reset]
    fired, rest, slope = rng.normal(0.0, 1.0, (3, 500))
    own = [fired * s + rest * v - slope * m for m, s, v in corners(cell, threshold, keep, shift)]
    constant = np.minimum.reduce(own)
    for share in np.linspace(0.0, 1.0, 21):
        below, above = lower + share * (threshold - lower), threshold + share * (upper - threshold)
        assert np.all(rest * below >= slope * below + constant - 1e-12)
        assert np.all(fired + rest * (keep * above + shift) >= slope * above + constant - 1e-12)
    assert len(own) == 4
    ends = [rest * m - slope * m for m in (lower, threshold)]
    ends += [fired + rest * (keep * m + shift) - slope * m for m in (threshold, upper)]
    np.testing.assert_allclose(constant, np.minimum.reduce(ends), rtol=0.0, atol=1e-12)  # no line is higher


def test_minima_over_sets_are_exact() -> None:
    kinds = set()
    rng = np.random.default_rng(5)
    for seed in range(40):
        one = problem(seed, bits=5)
        own = read_inputs(described(one.inputs), one.graph.types[one.graph.input.name])
        kinds.add(type(own).__name__)
        forms = rng.normal(0.0, 1.0, (4, *own.clean.shape))
        listed = np.stack(list(one.inputs.members())).reshape(-1, *own.clean.shape).astype(np.float64)
        want = np.einsum("rsf,msf->rm", forms, listed).min(1)
        np.testing.assert_allclose(own.least(forms), want, rtol=1e-12, atol=1e-12)  # sums in another order
        for x in islice(one.inputs.members(), 40):
            assert own.contains(x)
            other = x.copy()
            other.flat[rng.integers(x.size)] = rng.choice([0.0, 1.0, 0.5])
            assert own.contains(other) == one.inputs.contains(other)
            moved = rng.permuted(x, axis=0)
            assert own.contains(moved) == one.inputs.contains(moved)
    assert kinds == {"Free", "Few", "Moved", "Codes"}


def test_real_sets_hold_what_the_prover_says() -> None:
    rng = np.random.default_rng(6)
    for seed in range(10):
        one = problem(seed, Kind(takes_reals=True))
        own = read_inputs(described(one.inputs), one.graph.types[one.graph.input.name])
        np.testing.assert_array_equal(own.lower.reshape(one.inputs.shape), one.inputs.lower)
        np.testing.assert_array_equal(own.upper.reshape(one.inputs.shape), one.inputs.upper)
        for x in one.inputs.sample(rng, 5):
            assert own.contains(x)


def test_losses_cover_what_f32_does() -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        terms = rng.normal(0.0, 1.0, 200).astype(np.float32)
        weights = rng.normal(0.0, 1.0, 200).astype(np.float32)
        exact = float((terms.astype(np.float64) * weights.astype(np.float64)).sum())
        size = np.array(np.abs(terms.astype(np.float64) * weights).sum())
        total = np.float32(0.0)
        for product in terms * weights:
            total = np.float32(total + product)
        assert abs(float(total) - exact) <= float(loss(200, size, None))
    assert float(loss(3, np.array(2.0**24), 0)) == 0.0
    assert float(loss(3, np.array(2.0**24 + 1), 0)) > 0.0
    assert float(loss(3, np.array(2.0**128), 0)) == np.inf


def test_fineness() -> None:
    assert fineness([0.0, 3.0, -8.0]) == 0
    assert fineness([0.375, 2.0]) == 3
    assert fineness([0.1]) is not None  # of a double: its last bit
    assert fineness([2.0**-130]) is None
