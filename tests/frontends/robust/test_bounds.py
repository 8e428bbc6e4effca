"""Bounds in training against those of certificates, against every input of small sets, and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from compiler.certify import flip_sums as certificates
from compiler.certify.input_sets import Chain, InputSet, L0Ball, Retiming
from compiler.certify.interval import interval
from compiler.certify.last_layer import margins as certified_margins
from compiler.certify.linear import Intermediate
from compiler.certify.linear import linear_margins as certified_linear_margins
from compiler.certify.relaxation import Relaxation
from compiler.ir import CompileError, DType, Graph, Loc, Node, Param, Reading, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Conv2d, Input, Lif, Linear, MaxPool2d, Readout
from frontends.robust.flip_sums import flip_sums
from frontends.robust.intervals import intervals
from frontends.robust.linear_margins import check_linear_rules, linear_margins
from frontends.robust.margins import interval_margins
from frontends.robust.values import Bounds, Budget, Interval
from frontends.to_torch import GraphModule, to_torch
from tests.compiler.certify.networks import Kind, Problem, problem
from tests.compiler.certify.oracle import truth

NEAR = 1e-4  # what f32 rounding may add to a certificate's bounds on these networks, and be amplified to
KINDS = {
    "maps": Kind(is_dyadic=False, is_image=True),
    "features": Kind(is_dyadic=False, is_image=False),
    "reals": Kind(is_dyadic=False, takes_reals=True),
}
RELAXED = Kind(is_dyadic=False, is_image=False, resets=(Reset.HARD,), decays=(0.9,), extras=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """A problem's network as a module in f64, the set that is bounded, and its bounds."""

    graph: Graph
    module: GraphModule
    inputs: InputSet
    labels: Tensor
    bounds: Bounds


def bounded(own: Problem) -> Bounded:
    """Flips may be anywhere: training knows no masks, nor moved spikes."""
    inputs = own.inputs
    if isinstance(inputs, L0Ball | Retiming):
        inputs = L0Ball(clean=inputs.clean, k=inputs.k if isinstance(inputs, L0Ball) else 1)
    module = to_torch(own.graph).double().eval()
    given = given_of(own.graph, inputs)
    return Bounded(
        graph=own.graph,
        module=module,
        inputs=inputs,
        labels=torch.tensor([own.label]),
        bounds=intervals(own.graph, module, given),
    )


def given_of(graph: Graph, inputs: InputSet) -> Interval:
    axis = graph.types[graph.input.name].axes.index("N")

    def one(side: npt.NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(np.expand_dims(np.array(side, np.float64), axis))

    budget = Budget(clean=one(inputs.clean), most=inputs.step_flips) if inputs.step_flips else None
    return Interval(lower=one(inputs.lower), upper=one(inputs.upper), budget=budget)


def problems(count: int, kind: Kind, first: int = 0) -> Iterator[Bounded]:
    """Without those where a potential's bound is at its threshold but for rounding: there certificates give way."""
    seed = first
    while count:
        own = problem(seed, kind, bits=6)
        seed += 1
        made = bounded(own)
        if not has_tie(made):
            yield made
            count -= 1


def has_maximum(graph: Graph) -> bool:
    return any(
        isinstance(node.op, MaxPool2d) or (isinstance(node.op, Readout) and node.op.kind is Reading.MAX)
        for node in graph.nodes
    )


def has_tie(own: Bounded) -> bool:
    for node in own.graph.nodes:
        if isinstance(node.op, Lif):
            axes = own.graph.types[node.name].axes
            threshold = node.op.threshold
            if isinstance(threshold, Param):
                level = torch.from_numpy(own.graph.parameters[threshold.name].astype("f8"))
                level = level.reshape(-1, *(1,) * (len(axes) - axes.index("C") - 1))
            else:
                level = torch.tensor(float(threshold), dtype=torch.float64)
            ends = own.bounds.membranes[node.name]
            if any(bool(((end - level).abs() < NEAR).any()) for end in (ends.lower, ends.upper)):
                return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_and_margins_are_those_of_certificates(kind: str) -> None:
    compared = few = 0
    for own in problems(25, KINDS[kind]):
        want = interval(own.graph, own.inputs)
        for name, bounds in own.bounds.nodes.items():
            for ours, theirs, sign in (
                (bounds.lower, want.nodes[name].lower, 1),
                (bounds.upper, want.nodes[name].upper, -1),
            ):
                assert ((ours - theirs) * sign >= -1e-9).all(), "certificates round outwards"
                torch.testing.assert_close(ours, theirs, rtol=0, atol=NEAR)
                compared += ours.numel()
        found = interval_margins(own.graph, own.module, own.bounds, own.labels)
        best = certified_margins(own.graph, want, own.labels).scatter(1, own.labels[:, None], 0.0)
        torch.testing.assert_close(found.detach(), best, rtol=0, atol=10 * NEAR)
        few += isinstance(own.inputs, L0Ball)
    assert compared > 1_000
    assert few > 0


@pytest.mark.parametrize("kind", [*KINDS, "relaxed"])
def test_linear_margins_are_those_of_certificates(kind: str) -> None:
    compared = differing = refused = 0
    for own in problems(50, {**KINDS, "relaxed": RELAXED}[kind], first=500):
        if has_maximum(own.graph):
            with pytest.raises(CompileError, match="S-CROWN of a maximum"):
                check_linear_rules(own.graph)
            refused += 1
            continue
        check_linear_rules(own.graph)
        if not interval(own.graph, own.inputs).unstable:
            continue  # nothing is relaxed
        found = linear_margins(own.graph, own.module, own.bounds, own.labels).detach()
        paper, hull = (certified_linear(own, relaxation) for relaxation in Relaxation)
        assert (found <= paper + 20 * NEAR).all()
        if not isinstance(own.inputs, Chain):  # of which training takes the hull
            torch.testing.assert_close(found, paper, rtol=1e-3, atol=20 * NEAR)
        compared += 1
        differing += bool(((paper - hull).abs() > 0.01).any())
    assert compared >= 5
    assert refused > 0
    assert differing >= 3 or kind != "relaxed", "else no test tells one relaxation from another"


def certified_linear(own: Bounded, relaxation: Relaxation) -> Tensor:
    (label,) = own.labels.tolist()
    found = certified_linear_margins(
        own.graph, [own.inputs], [label], relaxation=relaxation, intermediate=Intermediate.INTERVAL
    )
    return found.scatter(1, own.labels[:, None], 0.0)


@pytest.mark.parametrize(
    "kind", [Kind(is_dyadic=True), Kind(is_dyadic=True, takes_reals=True)], ids=["spikes", "reals"]
)
def test_bounds_hold_for_every_input_with_ties(kind: Kind) -> None:
    """All numbers are on a grid, so that ties are exact and rounding has no part."""
    for seed in range(25):
        own = bounded(problem(seed, kind, bits=6))
        if isinstance(own.inputs, L0Ball) and (own.inputs.count or 0) > 1 << 9:
            continue
        found = truth(own.graph, own.inputs)
        for name, bounds in own.bounds.nodes.items():
            axis = own.graph.types[name].axes.index("N")
            values = found.values[name].double()
            slack = 1e-5 if own.graph.types[name].dtype is DType.F32 else 0.0
            assert (values.amin(axis) >= bounds.lower.select(axis, 0) - slack).all()
            assert (values.amax(axis) <= bounds.upper.select(axis, 0) + slack).all()


def test_a_batch_is_bounded_as_its_samples_are() -> None:
    generator = torch.Generator().manual_seed(0)
    own = next(problems(1, Kind(is_dyadic=False, is_image=True, extras=False)))
    shape = own.bounds.nodes[own.graph.input.name].lower.shape
    clean = (torch.rand(shape[0], 3, *shape[2:], generator=generator) < 0.4).double()
    free = torch.rand(clean.shape, generator=generator) < 0.2
    labels = torch.tensor([0, 1, 2])

    def margins(part: slice) -> Tensor:
        given = Interval(lower=clean.masked_fill(free, 0.0)[:, part], upper=clean.masked_fill(free, 1.0)[:, part])
        made = intervals(own.graph, own.module, given)
        return torch.stack(
            [function(own.graph, own.module, made, labels[part]) for function in (interval_margins, linear_margins)]
        )

    whole = margins(slice(0, 3))
    for n in range(3):
        torch.testing.assert_close(whole[:, n], margins(slice(n, n + 1))[:, 0])


CONVOLUTIONS = [
    Conv2d(weight=Param("w"), padding=(1, 0), stride=(1, 2), groups=2),
    Conv2d(weight=Param("w"), padding=(1, 1)),
]


@pytest.mark.parametrize("op", [Linear(weight=Param("w")), *CONVOLUTIONS], ids=["linear", "groups", "padding"])
@pytest.mark.parametrize("most", [1, 3, 40])
def test_few_flips_are_those_of_certificates(op: Linear | Conv2d, most: int) -> None:
    generator = torch.Generator().manual_seed(most)
    shape, size = ((5, 30), (4, 30)) if isinstance(op, Linear) else ((5, 4, 6, 5), (6, 4 // op.groups, 3, 2))
    clean = (torch.rand(shape, generator=generator) < 0.4).double()
    weight = torch.randn(size, generator=generator).double()
    low, high = flip_sums(op, weight, clean, most)
    change, budget = 1 - 2 * clean, torch.full((5,), most)
    for ours, theirs in zip((low, high), certificates.flip_sums(op, weight, change, budget), strict=True):
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs, rtol=0, atol=1e-5)


def test_few_flips_far_down_the_order_are_found() -> None:
    """The first candidates of all outputs exist for no sample: their inputs have the other value."""
    weight = -torch.linspace(2, 1, 200, dtype=torch.float64).repeat(2, 1)
    clean = torch.ones(1, 200, dtype=torch.float64)
    clean[:, 190:] = 0
    low, _ = flip_sums(Linear(weight=Param("w")), weight, clean, 3)
    torch.testing.assert_close(low, weight[:, 190:193].sum(1)[None])


def test_a_part_of_a_flip_counts_in_part() -> None:
    weight, clean = torch.tensor([[-4.0, -2.0, -1.0, 3.0]]), torch.zeros(1, 4)
    op = Linear(weight=Param("w"))
    assert [flip_sums(op, weight, clean, most)[0].item() for most in (0.25, 1.0, 1.5, 9.0)] == [-1.0, -4.0, -5.0, -7.0]
    assert [flip_sums(op, weight, clean, most)[1].item() for most in (0.5, 2.0)] == [1.5, 3.0]


def test_gradients_of_both_ends_by_hand() -> None:
    """Two neurons over one step: the margin's gradient goes through s_low of the label and s_high of the other."""
    atan = Surrogate(kind=SurrogateKind.ATAN, width=1.0)
    nodes = (
        Node("x", Input(shape=(1, "N", 2), dtype=DType.SPIKE, axes="TNC"), (), Loc("t")),
        Node("fc", Linear(weight=Param("w")), ("x",), Loc("t")),
        Node("lif", Lif(decay=0.5, threshold=0.25, surrogate=atan), ("fc",), Loc("t")),
        Node("rate", Readout(kind=Reading.RATE), ("lif",), Loc("t")),
    )
    graph = Graph("two", nodes, "rate", {"w": np.array([[0.5, -0.25], [0.125, 0.5]], np.float32)})
    module = to_torch(graph)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    given = Interval(lower=torch.stack([one, zero], 2), upper=torch.stack([one, one], 2))
    margin = interval_margins(graph, module, intervals(graph, module, given), torch.tensor([0]))
    assert margin.tolist() == [[0.0, 0.0]]  # m of the label in [0.25, 0.5], of the other in [0.125, 0.625]
    (gradient,) = torch.autograd.grad(margin[0, 1], list(module.parameters()))

    def slope(u: float) -> float:
        return 1 / (1 + (np.pi / 2 * u) ** 2)

    want = [[slope(0.0), slope(0.0)], [-slope(0.375), -slope(0.375)]]
    torch.testing.assert_close(gradient, torch.tensor(want))
