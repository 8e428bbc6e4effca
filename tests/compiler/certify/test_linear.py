"""Linear bounds against every input of small sets, against each other, and with faults put in on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from compiler.certify import known_ranges, linear, transposed
from compiler.certify.closing import closing, restricted
from compiler.certify.input_sets import InputSet, L0Ball, LinfReal
from compiler.certify.interval import interval
from compiler.certify.known_ranges import sample_ranges
from compiler.certify.last_layer import margins as interval_margins
from compiler.certify.linear import Intermediate, Substitution, linear_margins, margins, refine
from compiler.certify.relaxation import Neurons, Relaxation, neurons, relax
from compiler.certify.slopes import Ascent, Slopes, ascend
from compiler.certify.transposed import Descent, Sparse, Weights, transpose
from compiler.evaluate import execute
from compiler.ir import Compare, CompileError, Graph, Node
from compiler.ir.ops import Input, Lif, MaxPool2d, Op, Readout
from tests.compiler.certify.networks import Kind, Problem, problem
from tests.compiler.certify.oracle import Execution64, batch_of, truth

KINDS = {
    "any": Kind(),
    "dyadic": Kind(is_dyadic=True),
    "maps": Kind(is_image=True),
    "features": Kind(is_image=False),
    "reals": Kind(takes_reals=True),
}
EVERY = [(relaxation, intermediate) for relaxation in Relaxation for intermediate in Intermediate]


def problems(count: int, kind: Kind, first: int = 0) -> Iterator[Problem]:
    """Problems in which some spikes depend on the input: in others there is nothing to relax."""
    seed = first
    while count:
        own = problem(seed, kind, bits=6)
        if interval(own.graph, own.inputs).unstable:
            yield own
            count -= 1
        seed += 1


def holds(own: Problem) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each kind of bound of a problem, with the values that it bounds from below."""
    found = truth(own.graph, own.inputs)
    least = found.margins(own.label).index_fill(0, torch.tensor(own.label), torch.inf)
    given = (own.graph, [own.inputs], [own.label])
    for relaxation, intermediate in EVERY:
        made = linear_margins(*given, relaxation=relaxation, intermediate=intermediate)
        yield f"{relaxation} {intermediate}", made[0], least
    for relaxation in Relaxation:
        ascended = linear_margins(*given, relaxation=relaxation, ascent=Ascent(steps=2, rate=0.5))
        yield f"{relaxation} ascended", ascended[0], least
        ranges = refined(own, relaxation).ranges
        for name, cells in ranges.cells.items():
            membranes = found.membranes[name].double().flatten(2)
            for step, cell in enumerate(cells):
                yield f"{relaxation} {name} {step} below", cell.lower, membranes[step].amin(0)
                yield f"{relaxation} {name} {step} above", -cell.upper, -membranes[step].amax(0)


def refined(own: Problem, relaxation: Relaxation) -> Substitution:
    weights = Weights(own.graph)
    made = Substitution(
        weights=weights,
        ranges=sample_ranges(weights, interval(own.graph, own.inputs), 0),
        closing=closing(own.graph, own.inputs),
        relaxation=relaxation,
    )
    refine(made)
    return made


def broken(given: Iterator[Problem]) -> tuple[int, list[str]]:
    """How many numbers were bounded, and which bounds do not hold."""
    count, faults = 0, []
    for index, own in enumerate(given):
        for what, bound, value in holds(own):
            count += bound.numel()
            if not bool((bound <= value).all()):
                faults.append(f"problem {index}: {what}")
    return count, faults


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_every_input(kind: str) -> None:
    count, faults = broken(problems(10, KINDS[kind]))
    assert not faults
    assert count > 500


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_for_every_input_of_many_networks(kind: str) -> None:
    count, faults = broken(problems(150, KINDS[kind], first=1000))
    assert not faults
    assert count > 10_000  # networks of features alone have the fewest potentials


def test_the_best_is_never_below_s_ibp_or_s_crown() -> None:
    better = 0
    for kind in KINDS.values():
        for own in problems(12, kind):
            given = (own.graph, [own.inputs], [own.label])
            best = margins(*given)
            s_ibp = interval_margins(own.graph, interval(own.graph, own.inputs), [own.label])
            s_crown = linear_margins(*given, relaxation=Relaxation.PAPER, intermediate=Intermediate.INTERVAL)
            for other in (s_ibp, s_crown, linear_margins(*given)):
                assert (best >= other).all()
            least = truth(own.graph, own.inputs).margins(own.label)
            assert (best[0] <= least.index_fill(0, torch.tensor(own.label), torch.inf)).all()
            better += int((best > torch.maximum(s_ibp, s_crown)).sum())
    assert better > 0


def test_the_known_bounds_only_shrink_and_slopes_only_help() -> None:
    shrunk, lifted = False, 0.0
    for own in problems(10, Kind()):
        before = interval(own.graph, own.inputs).populations
        for name, cells in refined(own, Relaxation.HULL).ranges.cells.items():
            for step, cell in enumerate(cells):
                lower, upper = (getattr(before[name].membrane, side)[step, 0].flatten() for side in ("lower", "upper"))
                assert ((lower <= cell.lower) & (cell.upper <= upper)).all()
                shrunk |= bool((lower < cell.lower).any())
        given = (own.graph, [own.inputs], [own.label])
        plain, better = linear_margins(*given), linear_margins(*given, ascent=Ascent(steps=10))
        assert (better >= plain).all()
        lifted += float((better - plain).nan_to_num(nan=0.0).sum())
    assert shrunk
    assert lifted > 0.1


def test_slopes_are_not_optimised_further_than_is_enough() -> None:
    """max of -(a - 0.9)^2 + 0.5 over a from 0: above 0.2 from the step on where a > 0.9 - sqrt(0.3)."""
    tried = []

    def bound(free: Slopes) -> Tensor:
        tried.append(float(free["a"].detach()[0]))
        return 0.5 - (free["a"] - 0.9) ** 2

    start = {"a": torch.zeros(1, dtype=torch.float64)}
    assert float(ascend(bound, start, Ascent(steps=50, enough=0.2))) > 0.2
    assert sum(a > 0.9 - 0.3**0.5 for a in tried) == 1
    few = len(tried)
    assert float(ascend(bound, start, Ascent(steps=50))) == pytest.approx(0.5, abs=1e-3)
    assert len(tried) == few + 51
    assert all(0.0 <= a <= 1.0 for a in tried)


def test_a_set_of_one_input_has_its_margins() -> None:
    """All neurons are stable then: nothing but rounding is lost."""
    count = 0
    for seed in range(40):
        own = problem(seed)
        inputs: InputSet = (
            LinfReal(clean=own.inputs.clean, eps=0.0)
            if isinstance(own.inputs, LinfReal)
            else L0Ball(clean=own.inputs.clean, k=0)
        )
        if interval(own.graph, inputs).unstable:
            continue  # a potential so near to its threshold that rounding decides
        found = linear_margins(own.graph, [inputs], [own.label])[0]
        want = truth(own.graph, inputs).margins(own.label).where(torch.isfinite(found), torch.inf)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
        assert (found <= want).all()
        count += 1
    assert count > 20


def test_a_sample_does_not_depend_on_the_others() -> None:
    first = problem(3, Kind(is_image=False), bits=6)
    rng = np.random.default_rng(0)
    clean = [(rng.random(first.inputs.shape) < 0.5).astype(np.float32) for _ in range(3)]
    sets: list[InputSet] = [L0Ball(clean=x, k=1) for x in clean]
    together = margins(first.graph, sets, [0, 1, 2], ascent=Ascent(steps=2))
    for index, one in enumerate(sets):
        alone = margins(first.graph, [one], [index], ascent=Ascent(steps=2))
        assert torch.equal(together[index], alone[0])


def linear_nodes(own: Problem) -> Iterator[Node]:
    for node in own.graph.nodes:
        if not isinstance(node.op, Input | Lif | MaxPool2d | Readout):
            yield node


@pytest.mark.parametrize("kind", ["maps", "reals", "any"])
def test_linear_rules_are_the_transposed_of_what_is_evaluated(kind: str) -> None:
    """A rule's coefficients are the gradient of the form by the input, and its constant the form of the rest."""
    seen: set[type[Op]] = set()
    for seed in range(30):
        own = problem(seed, KINDS[kind])
        weights = Weights(own.graph)
        ranges = sample_ranges(weights, interval(own.graph, own.inputs), 0)
        for name in ranges.rounding:
            ranges.rounding[name].zero_()
        for node in linear_nodes(own):
            seen.add(type(node.op))
            check_transposed(own.graph, node, weights, ranges)
    assert len(seen) >= 5


def check_transposed(graph: Graph, node: Node, weights: Weights, ranges: transposed.Ranges) -> None:
    generator = torch.Generator().manual_seed(len(node.name))

    def random(name: str, *, samples: int = 1) -> Tensor:
        shape = [samples if axis == "N" else graph.types[name].size(axis) for axis in graph.types[name].axes]
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    inputs = [random(name).requires_grad_() for name in node.inputs]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    y = execute(node.op, list(inputs), node, Execution64(graph))
    torch.set_default_dtype(before)
    form = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad((form * y).sum(), inputs)
    run = Descent(
        weights=weights, ranges=ranges, relaxation=Relaxation.HULL, constant=torch.zeros(1, dtype=torch.float64)
    )
    axis = graph.types[node.name].axes.index("N")
    parts = transpose(node, form.movedim(axis, 0), run)
    for name, part, gradient in zip(node.inputs, parts, gradients, strict=True):
        assert not isinstance(part, Sparse)
        torch.testing.assert_close(part, gradient.movedim(graph.types[name].axes.index("N"), 0), rtol=1e-9, atol=1e-9)
    rest = (form * y).sum() - sum((g * x).sum() for g, x in zip(gradients, inputs, strict=True))
    torch.testing.assert_close(run.constant[0], rest.detach(), rtol=1e-9, atol=1e-9)


def test_restricted_sets_have_the_same_minima() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = set()
    for seed in range(60):
        own = problem(seed, KINDS["reals"] if seed % 6 == 0 else KINDS["any"])
        kinds.add(type(own.inputs))
        forms = torch.randn(5, *own.inputs.shape, dtype=torch.float64, generator=generator)
        found = closing(own.graph, own.inputs).support(forms)
        torch.testing.assert_close(found, own.inputs.support(forms), rtol=1e-12, atol=1e-12)
        listed = batch_of(own.graph, own.inputs).double()
        axis = own.graph.types[own.graph.input.name].axes.index("N")
        values = forms.flatten(1) @ listed.movedim(axis, 0).flatten(1).T
        assert (found <= values.amin(1) + 1e-9).all()
    assert kinds >= set(restricted.registry) - {object}


Fault = Callable[[pytest.MonkeyPatch], None]


def constants_at_each_step(patch: pytest.MonkeyPatch) -> None:
    """B inside of the sum over time (6.14 and 6.15 as printed)."""
    shed = Descent.shed

    def often(run: Descent, terms: Tensor) -> None:
        shed(run, terms * (terms.shape[1] if terms.ndim > 2 else 1))

    patch.setattr(Descent, "shed", often)


def no_rounding(patch: pytest.MonkeyPatch) -> None:
    def exact(*given: object) -> transposed.Ranges:
        ranges = sample_ranges(*given)  # type: ignore[arg-type]
        for error in ranges.rounding.values():
            error.zero_()
        return ranges

    patch.setattr(linear, "sample_ranges", exact)


def no_decay_of_the_rest(patch: pytest.MonkeyPatch) -> None:
    """What a step leaves to the next one is forgotten: a potential of 0 at the start of each step (algorithm 6)."""
    through = transposed.through_time

    def forgetful(own: transposed.Dynamics, *rest: object) -> Tensor:
        return through(replace(own, decay=torch.zeros_like(own.decay)), *rest)  # type: ignore[arg-type]

    patch.setattr(transposed, "through_time", forgetful)


def hull_of_the_middle(patch: pytest.MonkeyPatch) -> None:
    """Constants that look at the bounds' ends alone, not at the threshold."""

    def loose(kind: Relaxation, cells: Neurons, spike: Tensor, rest: Tensor, free: Tensor | None) -> object:
        slope, constant = relax(kind, cells, spike, rest, free)
        ends = (
            (rest - slope) * cells.lower,
            spike + rest * (cells.keep * cells.upper + cells.shift) - slope * cells.upper,
        )
        return slope, torch.where(cells.unstable, torch.minimum(*ends), constant)

    patch.setattr(transposed, "relax", loose)


def ties_the_other_way(patch: pytest.MonkeyPatch) -> None:
    """Neurons that fire at their threshold are taken for ones that do not, and the other way round."""

    def other(*given: object) -> object:
        *most, compare = given
        return neurons(*most, compare=Compare.GT if compare is Compare.GE else Compare.GE)  # type: ignore[arg-type, misc]

    patch.setattr(known_ranges, "neurons", other)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (constants_at_each_step, "any"),
        (no_rounding, "any"),
        (no_decay_of_the_rest, "features"),
        (hull_of_the_middle, "features"),
        (ties_the_other_way, "dyadic"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_check_finds_faults(fault: Fault, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    for own in problems(60, KINDS[kind]):
        for _, bound, value in holds(own):
            if not bool((bound <= value).all()):
                return
    pytest.fail("no bound is broken")


def test_what_does_not_fit_is_refused() -> None:
    own = problem(0)
    for labels, message in (([0, 1], "2 labels are given for 1 input sets"), ([7], "label 7 is none of the 3 classes")):
        with pytest.raises(CompileError, match=message):
            margins(own.graph, [own.inputs], labels)
    spikes = next(node.name for node in own.graph.nodes if isinstance(node.op, Lif))
    with pytest.raises(CompileError, match="no vector of class scores"):
        linear_margins(own.graph.with_nodes(own.graph.nodes, output=spikes), [own.inputs], [0])
    for steps, rate in ((-1, 0.1), (1, 0.0)):
        with pytest.raises(CompileError, match="slopes"):
            Ascent(steps=steps, rate=rate)
