"""S-IBP against the enumeration of all inputs, and its parts against closed forms."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.certify.certificate import bounds_certificate
from compiler.certify.input_sets import Box, Flips, InputSet, L0Ball, LinfReal, Retiming
from compiler.certify.interval import interval, stability
from compiler.certify.last_layer import is_robust, margins
from compiler.evaluate import evaluate
from compiler.ir import Compare, CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import AvgPool2d, Conv2d, Encode, Flatten, Input, Li, Lif, Linear, Op, Readout
from tests.compiler.certify.networks import Kind, problem
from tests.compiler.certify.oracle import truth, truth64, violations
from tests.strategies import networks

KINDS = {
    "spikes": Kind(),
    "reals": Kind(takes_reals=True),
    "ties": Kind(is_dyadic=True, decays=(0.0, 0.25, 0.5, 1.0)),
    "negative thresholds": Kind(thresholds=(-0.25, -0.5), extras=False),
}


def network(
    *ops: Op, shape: tuple[int | str, ...], parameters: dict[str, object] | None = None, dtype: DType = DType.SPIKE
) -> Graph:
    axes = {2: "NC", 3: "TNC", 4: "NCHW", 5: "TNCHW"}[len(shape)]
    nodes = [Node("x", Input(shape=shape, dtype=dtype, axes=axes), (), Loc("net.py", 1))]
    for line, op in enumerate(ops, 2):
        nodes.append(Node(f"n{line}", op, (nodes[-1].name,), Loc("net.py", line)))
    arrays = {name: np.array(values, np.float32) for name, values in (parameters or {}).items()}
    return Graph("net", tuple(nodes), nodes[-1].name, arrays)


def check_enumerated(kind: Kind, seeds: range) -> tuple[int, int, int]:
    """Bounds compared, and how many sets are robust and proved so; every bound has to hold."""
    checked = proved = robust = 0
    for seed in seeds:
        p = problem(seed, kind)
        bounds = interval(p.graph, p.inputs)
        margin = margins(p.graph, bounds, [p.label])
        for found in (truth(p.graph, p.inputs), truth64(p.graph, p.inputs)):
            count, broken = violations(p.graph, bounds, found)
            checked += count + margin.shape[1]
            assert not broken, (seed, broken)
            least = found.margins(p.label)
            least[p.label] = torch.inf
            assert bool((margin[0] <= least).all()), (seed, margin, least)
            assert found.is_robust(p.label) or not bool(is_robust(margin)), seed
        proved += int(is_robust(margin).item())
        robust += truth(p.graph, p.inputs).is_robust(p.label)
    return checked, proved, robust


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_every_input(kind: str) -> None:
    checked, proved, robust = check_enumerated(KINDS[kind], range(25))
    assert checked > 5_000
    assert 0 < proved <= robust


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_every_input_of_many(kind: str) -> None:
    checked, _, _ = check_enumerated(KINDS[kind], range(100, 700))
    assert checked > 100_000


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_bounds_hold_for_drawn_inputs_of_larger_networks(data: st.DataObject, seed: int) -> None:
    """Pools and convolutions of all forms, residual blocks: too many inputs to list, so only some are run."""
    made = data.draw(networks(dyadic=seed % 2 == 0, residual=True, late_encode=True, free_neurons=True, max_size=7))
    graph, rng = made.graph, np.random.default_rng(seed)
    kind = graph.types[graph.input.name]
    clean = np.take(made.example, 0, kind.axes.index("N"))
    inputs: InputSet = LinfReal(clean=clean, eps=0.02)
    if kind.dtype is DType.SPIKE:
        free = rng.random(clean.shape) < 0.05
        inputs = Box(clean=clean, free=free) if seed % 3 else L0Ball(clean=clean, k=3)
    checked, broken = violations(graph, interval(graph, inputs), truth(graph, inputs, drawn=30))
    assert checked > 0
    assert not broken


def test_the_networks_have_everything() -> None:
    """What the enumeration covers, and that the cases it is there for occur: unstable neurons, positive membranes."""
    ops: Counter[str] = Counter()
    seen: Counter[object] = Counter()
    for seed in range(25):
        p = problem(seed)
        bounds = interval(p.graph, p.inputs)
        for node in p.graph.nodes:
            ops[type(node.op).__name__] += 1
            if isinstance(node.op, Lif):
                population = bounds.populations[node.name]
                unstable = ~(population.fires | population.silent)
                seen[node.op.reset] += int(unstable.sum())
                seen[node.op.compare] += int(unstable.sum())
                seen["above 0"] += int((unstable & (population.membrane.lower > 0)).sum())
                seen["late"] += int(unstable.sum()) * node.op.reset_delay
        seen[type(p.inputs)] += 1
    assert set(ops) >= {"Conv2d", "Linear", "BatchNorm", "AvgPool2d", "MaxPool2d", "Add", "Scale", "Li", "Readout"}
    for what in (*Reset, *Compare, "above 0", "late", Box, L0Ball, Retiming):
        assert seen[what] > 0, what


def test_a_batch_has_the_bounds_of_each_sample() -> None:
    for seed in range(6):
        p = problem(seed, Kind(is_dyadic=seed % 2 == 0))
        rng = np.random.default_rng(seed)
        clean = p.inputs.clean
        free = np.arange(clean.size).reshape(clean.shape) % 7 == rng.integers(7)
        box = Box(clean=1 - clean, free=free & (free.cumsum().reshape(free.shape) <= 8))
        sets: list[InputSet] = [p.inputs, box, L0Ball(clean=clean, k=1)]
        together = interval(p.graph, sets)
        for n, one in enumerate(sets):
            assert not violations(p.graph, together, truth(p.graph, one), sample=n)[1]
            alone = interval(p.graph, one)
            for name, bounds in alone.nodes.items():
                axis = p.graph.types[name].axes.index("N")
                for side in ("lower", "upper"):
                    got = getattr(together.nodes[name], side).select(axis, n)
                    want = getattr(bounds, side).select(axis, 0)
                    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_one_input_on_a_grid_has_one_value() -> None:
    """Dyadic numbers of few bits: no rounding, so the bounds of a single input are what `evaluate` gives."""
    exact = 0
    for seed in range(30):
        p = problem(seed, Kind(is_dyadic=True, decays=(0.0, 0.25, 0.5, 1.0)))
        one = Box(clean=p.inputs.clean, free=np.zeros(p.inputs.shape, bool))
        bounds, found = interval(p.graph, one), truth(p.graph, one)
        for name, value in bounds.nodes.items():
            if value.grid is None:
                break  # a mean over 3, say: all behind it is rounded
            assert bool((value.lower == value.upper).all())
            torch.testing.assert_close(value.lower, found.values[name].double(), rtol=0, atol=0)
            exact += 1
            if name in bounds.populations:
                membrane = bounds.populations[name].membrane
                torch.testing.assert_close(membrane.lower, found.membranes[name].double(), rtol=0, atol=0)
    assert exact > 150


@pytest.mark.parametrize(("width", "grid"), [(4, 2), (7, None)])
def test_a_mean_over_a_cut_window_is_on_no_grid(width: int, grid: int | None) -> None:
    """Windows of 4: quarters; the last one of a row of 7 has 3, and thirds are no multiples of any 2^-n."""
    pool = AvgPool2d(kernel=(1, 4), stride=(1, 4), ceil_mode=width % 4 > 0)
    graph = network(pool, Flatten(), shape=(1, "N", 1, 1, width))
    clean = np.ones((1, 1, 1, width), np.float32)
    inputs = Box(clean=clean, free=clean > 0)
    bounds = interval(graph, inputs)
    assert bounds.nodes["n2"].grid == grid
    assert not violations(graph, bounds, truth(graph, inputs))[1]


@pytest.mark.parametrize(("compare", "fires"), [(Compare.GE, True), (Compare.GT, False)])
def test_a_membrane_at_the_threshold(compare: Compare, fires: bool) -> None:
    """A tie is decided as the neuron does, and no rounding blurs it: 0.5 is exact."""
    graph = network(
        Linear(weight=Param("w")), Lif(decay=0.5, threshold=0.5, compare=compare), shape=(1, "N", 1),
        parameters={"w": [[0.5]]},
    )  # fmt: skip
    population = interval(graph, Box(clean=np.ones((1, 1), np.float32), free=np.zeros((1, 1), bool))).populations["n3"]
    assert (population.fires.item(), population.silent.item()) == (fires, not fires)


def test_a_membrane_within_rounding_of_the_threshold_is_unstable() -> None:
    """0.1 + 0.2 in f32 may or may not reach 0.3: no certificate may depend on it."""
    graph = network(
        Linear(weight=Param("w")), Lif(decay=0.5, threshold=0.3), shape=(1, "N", 2), parameters={"w": [[0.1, 0.2]]}
    )
    bounds = interval(graph, Box(clean=np.ones((1, 2), np.float32), free=np.zeros((1, 2), bool)))
    assert bounds.unstable == 1


def test_a_hard_reset_below_a_negative_threshold() -> None:
    """m in [-1, 0.5], threshold -0.5: v is the reset value 0 or in [-1, -0.5), so (6.6)'s upper end would be wrong."""
    graph = network(
        Linear(weight=Param("w"), bias=Param("b")), Lif(decay=1.0, threshold=-0.5), shape=(1, "N", 1),
        parameters={"w": [[1.5]], "b": [-1.0]},
    )  # fmt: skip
    after = interval(graph, Box(clean=np.zeros((1, 1), np.float32), free=np.ones((1, 1), bool))).populations["n3"].after
    assert (after.lower.item(), after.upper.item()) == (-1.0, 0.0)


@pytest.mark.parametrize("is_conv", [False, True])
@pytest.mark.parametrize("per_step", [False, True])
def test_few_flips_bound_the_first_layer_exactly(is_conv: bool, per_step: bool) -> None:
    """On a grid, the least and largest sums of the first layer over an l0 ball are those of some member."""
    rng = np.random.default_rng(3)
    op: Op = Linear(weight=Param("w"), bias=Param("b"))
    shape: tuple[int | str, ...] = (2, "N", 5)
    weights = rng.integers(-8, 9, (4, 5)) / 8
    if is_conv:
        op = Conv2d(weight=Param("w"), bias=Param("b"), stride=(1, 2), padding=(1, 0), groups=2)
        shape, weights = (2, "N", 2, 2, 3), rng.integers(-8, 9, (4, 1, 2, 2)) / 8
    graph = network(op, shape=shape, parameters={"w": weights, "b": rng.integers(-8, 9, 4) / 8})
    size = tuple(n for n in shape if isinstance(n, int))
    clean = (rng.random(size) < 0.5).astype(np.float32)
    k = 1 if per_step else 2
    sets = [L0Ball(clean=clean, k=k, per_step=per_step, flips=flips) for flips in (Flips.BOTH, Flips.INSERT)]
    bounds = interval(graph, sets).nodes["n2"]
    assert bounds.grid == 3
    for n, one in enumerate(sets):
        values = truth(graph, one).values["n2"].double()
        torch.testing.assert_close(bounds.lower[:, n], values.amin(1), rtol=0, atol=0)
        torch.testing.assert_close(bounds.upper[:, n], values.amax(1), rtol=0, atol=0)
    hull = interval(graph, Box(clean=clean, free=sets[0].lower < sets[0].upper)).nodes["n2"]
    assert bool((hull.lower[:, 0] < bounds.lower[:, 0]).any())


def test_a_budget_for_each_step_needs_steps() -> None:
    """Axis 0 of an image are its channels: the members have a flip in each, while bounds would count one in all."""
    shape = ("N", 2, 1, 3)
    graph = network(Flatten(), Linear(weight=Param("w")), shape=shape, parameters={"w": np.eye(3, 6)}, dtype=DType.F32)
    image = np.zeros((2, 1, 3), np.float32)
    per_step = L0Ball(clean=image, k=1, per_step=True)
    message = "a budget of flips for each step, and the input has no steps"
    with pytest.raises(CompileError, match=message):
        interval(graph, per_step)
    with pytest.raises(CompileError, match=message):
        bounds_certificate(graph, per_step, 0)
    assert float(interval(graph, L0Ball(clean=image, k=1)).nodes[graph.output].upper.max()) == 1.0


def test_moved_spikes_bound_the_first_layer_exactly() -> None:
    rng = np.random.default_rng(5)
    graph = network(Linear(weight=Param("w")), shape=(3, "N", 4), parameters={"w": rng.integers(-8, 9, (3, 4)) / 8})
    inputs = Retiming(clean=(rng.random((3, 4)) < 0.5).astype(np.float32), moved=2)
    bounds, values = interval(graph, inputs).nodes["n2"], truth(graph, inputs).values["n2"].double()
    torch.testing.assert_close(bounds.lower[:, 0], values.amin(1), rtol=0, atol=0)
    torch.testing.assert_close(bounds.upper[:, 0], values.amax(1), rtol=0, atol=0)


@pytest.mark.parametrize("reading", Reading)
@pytest.mark.parametrize("has_li", [False, True])
def test_row_differences_see_what_class_bounds_do_not(reading: Reading, has_li: bool) -> None:
    """A class that is 1 above the other whatever the input: class bounds overlap, the difference does not."""
    li = [Li(decay=0.5, input_scale=0.5, leak_bias=0.25, initial=0.25)] if has_li else []
    graph = network(
        Linear(weight=Param("w"), bias=Param("b")), *li, Readout(kind=reading), shape=(2, "N", 2),
        parameters={"w": [[2, 1], [2, 1]], "b": [1, 0]},
    )  # fmt: skip
    bounds = interval(graph, Box(clean=np.zeros((2, 2), np.float32), free=np.ones((2, 2), bool)))
    scores = bounds.nodes[graph.output]
    assert scores.lower[0, 0] < scores.upper[0, 1]
    # Li: 0.5 after a step, 0.75 after two; the least of both steps bounds the maxima.
    want = 1.0 if not has_li else {Reading.RATE: 0.625, Reading.LAST: 0.75, Reading.MAX: 0.5}[reading]
    margin = margins(graph, bounds, [0])
    assert margin.tolist() == [[torch.inf, want]]
    assert is_robust(margin).tolist() == [True]
    assert is_robust(margins(graph, bounds, [1])).tolist() == [False]


def test_classes_that_integrate_differently_have_no_row_difference() -> None:
    """Equal rows, but the second class forgets nothing: it is ahead after the second step."""
    graph = network(
        Linear(weight=Param("w"), bias=Param("b")), Li(decay=Param("decay")), Readout(kind=Reading.LAST),
        shape=(2, "N", 1), parameters={"w": [[1], [1]], "b": [0.25, 0], "decay": [0, 1]},
    )  # fmt: skip
    inputs = Box(clean=np.ones((2, 1), np.float32), free=np.zeros((2, 1), bool))
    assert truth(graph, inputs).margins(0).tolist() == [0.0, -0.75]
    assert margins(graph, interval(graph, inputs), [0]).tolist() == [[torch.inf, -0.75]]


def test_a_tie_is_not_robust() -> None:
    graph = network(
        Linear(weight=Param("w"), bias=Param("b")), Readout(kind=Reading.RATE), shape=(1, "N", 1),
        parameters={"w": [[1], [0]], "b": [0, 0]},
    )  # fmt: skip
    bounds = interval(graph, Box(clean=np.ones((1, 1), np.float32), free=np.ones((1, 1), bool)))
    margin = margins(graph, bounds, [0])
    assert margin.tolist() == [[torch.inf, 0.0]]
    assert is_robust(margin).tolist() == [False]


def test_larger_sets_have_wider_bounds() -> None:
    for seed in range(20):
        p = problem(seed)
        small = interval(p.graph, L0Ball(clean=p.inputs.clean, k=1))
        large = interval(p.graph, L0Ball(clean=p.inputs.clean, k=2))
        everything = interval(p.graph, Box(clean=p.inputs.clean, free=np.ones(p.inputs.shape, bool)))
        for name in small.nodes:
            for inner, outer in ((small, large), (large, everything)):
                assert bool((outer.nodes[name].lower <= inner.nodes[name].lower).all())
                assert bool((outer.nodes[name].upper >= inner.nodes[name].upper).all())


def test_stability_names_dead_and_restless_neurons() -> None:
    graph = network(
        Linear(weight=Param("w"), bias=Param("b")), Lif(decay=0.5, threshold=1.0), shape=(3, "N", 2),
        parameters={"w": [[0.25, 0.125], [1, 1], [-0.5, 0]], "b": [0, 0, 2]},
    )  # fmt: skip
    bounds = interval(graph, Box(clean=np.zeros((3, 2), np.float32), free=np.ones((3, 2), bool)))
    assert stability(bounds)["n3"].tolist() == [[-1, 0, 1]]


def test_real_inputs_go_through_a_direct_code() -> None:
    graph = network(
        Encode(kind=Encoding.DIRECT, timesteps=2), Linear(weight=Param("w")), Readout(kind=Reading.LAST),
        shape=("N", 2), parameters={"w": [[1, -2]]}, dtype=DType.F32,
    )  # fmt: skip
    clean = np.array([0.5, 0.25], np.float32)
    scores = interval(graph, LinfReal(clean=clean, eps=0.125)).nodes[graph.output]
    assert scores.lower.item() == pytest.approx(-0.375)
    assert scores.upper.item() == pytest.approx(0.375)
    assert scores.lower.item() <= -0.375  # the end itself is a member
    one = interval(graph, LinfReal(clean=clean, eps=0.0)).nodes[graph.output]
    assert one.lower.item() == one.upper.item() == evaluate(graph, torch.from_numpy(clean[None])).output.item() == 0


SPIKES = Box(clean=np.zeros((2, 2), np.float32), free=np.ones((2, 2), bool))


def test_bad_input_is_refused() -> None:
    graph = network(Linear(weight=Param("w")), shape=(2, "N", 2), parameters={"w": np.eye(2)})
    with pytest.raises(CompileError, match=r"an input set is \(3, 2\)"):
        interval(graph, Box(clean=np.zeros((3, 2), np.float32), free=np.zeros((3, 2), bool)))
    with pytest.raises(CompileError, match="takes spikes, the input set has real values"):
        interval(graph, LinfReal(clean=np.zeros((2, 2), np.float32), eps=0.1))
    with pytest.raises(CompileError, match="no input set"):
        interval(graph, [])
    with pytest.raises(CompileError, match="no vector of class scores"):
        margins(graph, interval(graph, SPIKES), [0])
    large = network(Linear(weight=Param("w")), shape=(2, "N", 2), parameters={"w": np.full((2, 2), 3e38)})
    with pytest.raises(CompileError, match="n2: values may be larger than f32 holds"):
        interval(large, SPIKES)
    restless = network(Lif(decay=1.0, threshold=-3e38, reset=Reset.SOFT), shape=(2, "N", 2))
    with pytest.raises(CompileError, match="n2: values may be larger than f32 holds"):
        interval(restless, SPIKES)


def test_labels_are_checked() -> None:
    graph = network(
        Linear(weight=Param("w")), Readout(kind=Reading.RATE), shape=(2, "N", 2), parameters={"w": np.eye(2)}
    )
    for labels in ([2], [-1], [0, 1]):
        with pytest.raises(CompileError, match="not one of 2 classes for each of 1 samples"):
            margins(graph, interval(graph, SPIKES), labels)


def test_a_drawn_code_has_to_be_dropped() -> None:
    code = Encode(kind=Encoding.BERNOULLI, timesteps=2, seed=0)
    graph = network(code, shape=("N", 2), dtype=DType.F32)
    with pytest.raises(CompileError, match=r"(?s)bernoulli code.*DropEncode"):
        interval(graph, LinfReal(clean=np.zeros(2, np.float32), eps=0.1))
    late = network(Encode(kind=Encoding.LATENCY, timesteps=2), shape=("N", 2), dtype=DType.F32)
    with pytest.raises(CompileError, match="latency code"):
        interval(late, LinfReal(clean=np.zeros(2, np.float32), eps=0.1))
