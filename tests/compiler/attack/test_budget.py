"""Budgets hold to the last bit, and what is brought back to them stays as near to the attack's wish as may be."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compiler.attack import Settings, Victim, attack, perturbation
from compiler.attack.budget import Budget, Norm, kept
from compiler.attack.inputs import Batch, View, attackable
from compiler.ir import CompileError, DType, Encoding, Graph, Node
from compiler.ir.ops import Input
from hwmodel.errors import Loc
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_victim import two_layers

Floats = npt.NDArray[np.float32]
values = arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32))
bounds = st.floats(1e-8, 4.0) | st.sampled_from([0.1, 1e-30, 1.0])


def measured(norm: Norm, before: Floats, after: Floats) -> float:
    return perturbation(before, after).named()[norm.value]


@given(values, values, st.sampled_from([Norm.L2, Norm.LINF]), bounds)
def test_what_is_brought_back_is_inside_and_on_the_way(before: Floats, after: Floats, norm: Norm, bound: float) -> None:
    got = Budget(norm=norm, bound=bound).projected(before, after)
    assert got.dtype == np.float32
    assert measured(norm, before, got) <= bound
    assert ((np.minimum(before, after) <= got) & (got <= np.maximum(before, after))).all()
    if measured(norm, before, after) <= 0.999 * bound:
        np.testing.assert_allclose(got, after, rtol=1e-6, atol=1e-12)


@given(values, values, st.floats(0.01, 2.0))
def test_scaling_keeps_the_direction_and_clipping_all_that_fits(before: Floats, after: Floats, bound: float) -> None:
    change = after.astype(np.float64) - before
    scaled = Budget(norm=Norm.L2, bound=bound).projected(before, after)
    size = float(np.linalg.norm(change))
    np.testing.assert_allclose(scaled - before.astype(np.float64), change * min(1.0, bound / (size or 1.0)), atol=2e-7)
    clipped = Budget(norm=Norm.LINF, bound=bound).projected(before, after)
    np.testing.assert_allclose(clipped - before.astype(np.float64), change.clip(-bound, bound), atol=2e-7)


@given(values, values, st.integers(1, 13), st.integers(0, 2**16))
def test_what_is_kept_is_worth_most(before: Floats, after: Floats, most: int, seed: int) -> None:
    """Against every other choice of as many changes."""
    worth = np.random.default_rng(seed).integers(-3, 4, before.shape).astype(np.float32)
    got = kept(before, after, worth, most)
    changed = np.flatnonzero(before != after)
    stays = np.flatnonzero(before != got)
    assert set(stays) <= set(changed)
    assert (got.reshape(-1)[stays] == after.reshape(-1)[stays]).all()
    assert len(stays) == min(most, len(changed))
    best = max(
        (sum(worth.reshape(-1)[list(choice)]) for choice in itertools.combinations(changed.tolist(), len(stays))),
        default=0,
    )
    assert worth.reshape(-1)[stays].sum() == best


@given(values, values, st.integers(1, 13))
def test_the_largest_changes_stay(before: Floats, after: Floats, most: int) -> None:
    got = Budget(norm=Norm.L0, bound=most).projected(before, after)
    size = np.abs(after.astype(np.float64) - before)
    assert measured(Norm.L0, before, got) <= most
    stays = before != got
    if not stays.all():
        assert size[stays].min(initial=np.inf) >= size[~stays & (before != after)].max(initial=0.0)


@given(st.floats(1.0, 60.0) | st.integers(1, 3000).map(math.sqrt))
def test_flips_of_an_l2_budget(bound: float) -> None:
    flips = Budget(norm=Norm.L2, bound=bound).flips
    assert flips is not None
    assert math.sqrt(flips) <= bound < math.sqrt(flips + 1)


def test_flips_of_the_other_budgets() -> None:
    assert Budget(norm=Norm.L2, bound=1e200).flips is None
    assert Budget(norm=Norm.L0, bound=7).flips == 7
    assert Budget(norm=Norm.LINF, bound=1.0).flips is None
    for norm, bound in ((Norm.LINF, 0.99), (Norm.L2, 0.99)):
        assert Budget(norm=norm, bound=bound).flips == 0


def real_sequence() -> Graph:
    """As `two_layers`, of a real-valued sequence."""
    graph = two_layers()
    first = Node("x", Input(shape=(4, "N", 6), dtype=DType.F32, axes="TNC"), (), Loc("net", 1))
    return graph.with_nodes((first, *graph.nodes[1:]))


@st.composite
def budgets(draw: st.DrawFn, graph: Graph) -> Budget:
    norm = draw(st.sampled_from(list(Norm)))
    if norm is Norm.L0:
        return Budget(norm=norm, bound=draw(st.integers(1, 6)))
    least = 1.0 if graph.types[graph.input.name].dtype is DType.SPIKE else 1e-4
    return Budget(norm=norm, bound=draw(st.floats(least, 2.0)))


@settings(max_examples=60, deadline=None)
@given(victims() | st.just(real_sequence()), st.data())
def test_no_iterate_leaves_its_budget(graph: Graph, data: st.DataObject) -> None:
    """Whatever the gradients are, of all kinds of input; restarts begin inside."""
    budget = data.draw(budgets(graph))
    setup = Settings(
        budget=budget,
        step=data.draw(st.sampled_from([None, 0.3])),
        pull=data.draw(st.sampled_from([0.0, 0.2])),
        gamma=0.4,
        sampling=data.draw(st.booleans()),
    )
    victim = Victim(graph)
    kind = attackable(victim, setup)
    axis, own = kind.axis, cases(graph, 3, data.draw(st.integers(0, 99)))
    clean = torch.stack([torch.from_numpy(case.x) for case in own], axis)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    batch = Batch(samples=range(3), steps=[0] * 3, clean=clean, now=clean)
    iterates = [kind.start(batch)]
    for step in range(5):
        batch = Batch(samples=range(3), steps=[step] * 3, clean=clean, now=iterates[-1])
        seen = kind.seen(batch)
        gradient = torch.randn(seen.shape, generator=generator)
        gradient.select(int(victim.has_time), step % 3).zero_()
        iterates.append(kind.changed(batch, [View(seen, gradient)]))
    is_spike = graph.types[graph.input.name].dtype is DType.SPIKE
    for now in iterates:
        assert ((now == 0) | (now == 1)).all() if is_spike else ((now >= 0) & (now <= 1)).all()
        for n, case in enumerate(own):
            after = now.select(axis, n).numpy()
            assert measured(budget.norm, case.x, after) <= budget.bound


@settings(max_examples=25, deadline=None)
@given(victims(), st.data(), st.integers(0, 2))
def test_outcomes_hold_to_their_budget(graph: Graph, data: st.DataObject, restarts: int) -> None:
    budget = data.draw(budgets(graph))
    setup = Settings(budget=budget, iterations=5, gamma=0.3, restarts=restarts)
    for outcome in attack(Victim(graph), cases(graph, 5, 1), setup):
        assert outcome.perturbation.named()[budget.norm.value] <= budget.bound


def test_of_spikes_the_flips_that_raise_the_loss_most_stay() -> None:
    """An old flip that the gradient would rather take back goes first, also where sampling does not take it back."""
    victim = Victim(two_layers())
    kind = attackable(victim, Settings(budget=Budget(norm=Norm.L0, bound=2)))
    clean, now = torch.zeros(4, 1, 6), torch.zeros(4, 1, 6)
    now[0, 0, 0] = now[1, 0, 1] = 1  # old flips
    ascent = torch.zeros(4, 1, 6)
    ascent[0, 0, 0], ascent[1, 0, 1] = -0.25, 0.2
    ascent[2, 0, 2], ascent[3, 0, 3] = 0.3, 0.15
    for step in range(60):
        after = kind.changed(Batch(samples=[0], steps=[step], clean=clean, now=now), [View(now, ascent)])
        assert after.nonzero()[:, 0].tolist() == [1, 2]


def test_refused_budgets() -> None:
    for bound in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(CompileError, match=r"the l2 budget is .* must be positive and finite"):
            Budget(norm=Norm.L2, bound=bound)
    with pytest.raises(CompileError, match=r"the l0 budget is 1\.5, must be a whole number"):
        Budget(norm=Norm.L0, bound=1.5)
    case = cases(two_layers(), 1, 0)[0]
    for norm in (Norm.L2, Norm.LINF):
        setup = Settings(budget=Budget(norm=norm, bound=0.5))
        with pytest.raises(CompileError, match=rf"net:1.*the {norm} budget 0\.5 is below one flip"):
            list(attack(Victim(two_layers()), [case], setup))
        image = two_layers(Encoding.DIRECT)
        assert list(attack(Victim(image), [replace(case, x=np.full(6, 0.5, np.float32))], setup))
