"""Rate gradients: their closed form, the slope against finite differences, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.attack import Settings, Status, Victim
from compiler.attack.rate import SATURATION, RateVictim, attack, firing_rate, rate_slope
from compiler.attack.victim import BLOCK
from compiler.differentiate import Loss
from compiler.evaluate import evaluate
from compiler.ir import Encoding, Graph, Loc, Node, Param, Reading
from compiler.ir.ops import Encode, Li, Lif, Linear, Readout
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import random_input, two_layers

FEW = settings(max_examples=15, deadline=None)


def test_the_closed_form_of_two_layers() -> None:
    """dL/dx[t] = W1' (slope1 * W2' (slope2 * dL/dscores)) / T at each step."""
    graph = two_layers()
    victim = Victim(graph, loss=Loss.MSE)
    x = random_input(victim, 7, 0)
    classes = torch.arange(7) % 3
    w1, w2 = (torch.tensor(np.array(graph.parameters[name])) for name in ("w1", "w2"))
    traced = evaluate(graph, x, traces=["hidden"])
    d_scores = 2 * (traced.output - torch.nn.functional.one_hot(classes, 3)) / 3
    decay = torch.tensor(0.5)
    hidden = rate_slope((x.mean(0) @ w1.T) / 0.5, decay) / 0.5
    last = rate_slope((traced.traces["hidden"].mean(0) @ w2.T) / 0.5, decay) / 0.5
    want = ((d_scores * last) @ w2 * hidden) @ w1 / x.shape[0]
    got = RateVictim(victim).gradient(x, classes) * BLOCK
    assert float(want.abs().max()) > 0.0
    for step in got:
        torch.testing.assert_close(step, want, rtol=1e-4, atol=1e-6)


drives = st.floats(-1.0, 3.0, width=32)
decays = st.floats(0.0, 1.0, width=32)


@given(drives, decays)
def test_the_slope_is_that_of_the_rate(drive: float, decay: float) -> None:
    """Away from corners, by central differences in f64."""
    corners = (0.0, 1 - decay, SATURATION)
    if min(abs(drive - corner) for corner in corners) < 1e-4:
        return
    z, tau, half = (torch.tensor(value, dtype=torch.float64) for value in (drive, decay, 1e-5))
    difference = (firing_rate(z + half, tau) - firing_rate(z - half, tau)) / (2 * half)
    torch.testing.assert_close(rate_slope(z, tau), difference, rtol=1e-6, atol=1e-8)
    assert 0.0 <= float(firing_rate(z, tau)) <= 1.0 + 1e-9


@given(decays, st.floats(0.0, 1.0, width=32))
def test_the_rate_s_fixed_points(decay: float, below: float) -> None:
    tau = torch.tensor(decay, dtype=torch.float64)
    assert float(firing_rate(torch.tensor(-below, dtype=torch.float64), tau)) == 0.0
    torch.testing.assert_close(firing_rate(1 - tau, tau), 0.2 * (1 - tau))
    torch.testing.assert_close(firing_rate(torch.tensor(SATURATION, dtype=torch.float64), tau), torch.ones_like(tau))


@FEW
@given(victims(), st.sampled_from(list(Loss)), st.integers(0, 99))
def test_scores_are_the_victim_s_and_bits_depend_on_the_place_alone(graph: Graph, loss: Loss, seed: int) -> None:
    victim = Victim(graph, loss=loss)
    rate = RateVictim(victim)
    x = random_input(victim, 20, seed)
    classes = torch.arange(20) % victim.classes
    axis = int(victim.has_time)
    assert torch.equal(rate.scores(x), victim.scores(x))
    whole = rate.gradient(x, classes)
    some = np.random.default_rng(seed).permutation(20)[:5]
    places = [int(at) % BLOCK + BLOCK * n for n, at in enumerate(some)]
    part = rate.gradient(x.index_select(axis, torch.tensor(some)), classes[some], places)
    assert torch.equal(part, whole.index_select(axis, torch.tensor(some)))


@pytest.mark.parametrize("reading", list(Reading))
def test_without_neurons_it_is_the_exact_gradient(reading: Reading) -> None:
    net = two_layers()
    nodes = (
        *net.nodes[:2],
        Node("membrane", Li(decay=0.5), ("fc1",), Loc("net", 4)),
        Node("fc2", Linear(weight=Param("w2")), ("membrane",), Loc("net", 5)),
        Node("y", Readout(kind=reading), ("fc2",), Loc("net", 7)),
    )
    victim = Victim(net.with_nodes(nodes))
    x = random_input(victim, 5, 1)
    classes = torch.zeros(5, dtype=torch.int64)
    torch.testing.assert_close(RateVictim(victim).gradient(x, classes), victim.gradient(x, classes))


def test_a_threshold_for_the_attack_changes_the_forward_pass_and_no_slope() -> None:
    graph = two_layers()
    plain, tuned = RateVictim(Victim(graph)), RateVictim(Victim(graph, threshold=1.0))
    x = random_input(plain.victim, 5, 0)
    classes = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(plain.scores(x), tuned.scores(x))
    assert not torch.equal(plain.gradient(x, classes), tuned.gradient(x, classes))
    hidden = tuned.loud.node("hidden").op
    assert isinstance(hidden, Lif)
    assert hidden.threshold == 1.0


def test_neurons_without_a_positive_threshold_pass_nothing() -> None:
    graph = two_layers()
    nodes = tuple(
        replace(node, op=replace(node.op, threshold=0.0)) if isinstance(node.op, Lif) and node.name == "last" else node
        for node in graph.nodes
    )
    victim = Victim(graph.with_nodes(nodes))
    x = random_input(victim, 5, 0)
    assert not RateVictim(victim).gradient(x, torch.zeros(5, dtype=torch.int64)).any()


@pytest.mark.parametrize("kind", [None, Encoding.BERNOULLI, Encoding.DIRECT])
def test_examples_are_found(kind: Encoding | None) -> None:
    """Where mean drives seldom leave (0, 2) thresholds; outside, there is no slope."""
    loud = two_layers(kind)
    quiet = loud.with_nodes(loud.nodes, parameters={name: array * 0.4 for name, array in loud.parameters.items()})
    victim = Victim(quiet, loss=Loss.CROSS_ENTROPY)
    start = classified(victim, 60, 0)
    outcomes = list(attack(victim, start, Settings(step=0.1 if kind is not None else 1.0)))
    found = [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]
    assert len(found) >= 0.4 * len(outcomes)
    for outcome in outcomes:
        after = outcome.adversarial
        assert np.isin(after, (0, 1)).all() if kind is None else ((after >= 0) & (after <= 1)).all()
        assert outcome.gradients == outcome.iterations


def test_direct_codes_are_rates_already() -> None:
    """The image's gradient is the sum over the steps that it is shown at."""
    graph = two_layers(Encoding.DIRECT)
    assert isinstance(graph.nodes[1].op, Encode)
    victim = Victim(graph)
    given_cases = cases(graph, 6, 0)
    x = torch.stack([torch.from_numpy(case.x) for case in given_cases])
    classes = torch.tensor([case.label for case in given_cases])
    inner = RateVictim(Victim(two_layers()))
    steps = inner.gradient(x.expand(4, 6, 6), classes)
    torch.testing.assert_close(RateVictim(victim).gradient(x, classes), steps.sum(0), rtol=1e-4, atol=1e-7)
