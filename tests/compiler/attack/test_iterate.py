"""Attacks keep what an input must keep, depend on nothing but sample and seed, and reach what they claim."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compiler.attack import Case, Outcome, Settings, Status, Victim, attack, perturbation
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.ir import CompileError, DType, Encoding, Graph, Surrogate, SurrogateKind
from compiler.losses import Loss
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_victim import two_layers

FEW = settings(max_examples=20, deadline=None)
setups = st.builds(
    Settings,
    iterations=st.integers(1, 6),
    gamma=st.sampled_from([0.05, 0.5, 1.0]),
    step=st.sampled_from([0.1, 1.0]),
    epsilon=st.sampled_from([math.inf, 0.02, 0.2]),
    pull=st.sampled_from([0.0, 0.1]),
    sampling=st.booleans(),
    flipping=st.booleans(),
    seed=st.integers(0, 9),
)


def seen_by(victim: Victim, outcome: Outcome, seed: int) -> torch.Tensor:
    """What the network got when the outcome was decided, computed anew."""
    x = torch.from_numpy(outcome.adversarial)
    if victim.encoding is Encoding.BERNOULLI:
        shape = (victim.graph.timesteps, *x.shape)
        draws = uniform_draws(seed, Purpose.ENCODE, [outcome.case.sample], [outcome.iterations], shape)
        return (draws < x).float()
    return x.unsqueeze(int(victim.has_time))


@FEW
@given(victims(), setups, st.booleans())
def test_what_every_outcome_holds_to(graph: Graph, setup: Settings, targeted: bool) -> None:
    victim = Victim(graph)
    given_cases = cases(graph, 5, setup.seed, targeted=targeted)
    outcomes = sorted(attack(victim, given_cases, setup), key=lambda outcome: outcome.case.sample)
    assert [outcome.case.sample for outcome in outcomes] == list(range(5))
    spikes = graph.types[graph.input.name].dtype is DType.SPIKE
    for outcome in outcomes:
        after = outcome.adversarial
        assert np.isin(after, (0, 1)).all() if spikes else ((after >= 0) & (after <= 1)).all()
        assert outcome.perturbation == perturbation(outcome.case.x, after)
        assert outcome.iterations <= setup.iterations
        assert (outcome.queries, outcome.gradients) == (outcome.iterations + 1, outcome.iterations)
        scores = victim.scores(seen_by(victim, outcome, setup.seed), [outcome.case.sample])[0]
        highest = (scores == scores.max()).nonzero().flatten().tolist()
        match outcome.status:
            case Status.SUCCESS:
                assert len(highest) == 1
                assert highest[0] == outcome.case.target if targeted else highest[0] != outcome.case.label
                assert outcome.perturbation.dissertation <= setup.epsilon
            case Status.CLEAN_ERROR:
                assert highest != [outcome.case.label]
                assert np.array_equal(after, outcome.case.x)
            case Status.OUT_OF_BOUND:
                assert outcome.perturbation.dissertation > setup.epsilon
            case Status.VANISHED:
                assert not setup.flipping
            case Status.FAILURE:
                assert outcome.iterations == setup.iterations


@FEW
@given(victims(), setups, st.integers(0, 2**16))
def test_an_outcome_depends_on_its_sample_and_the_seed_alone(graph: Graph, setup: Settings, shuffle: int) -> None:
    """However many others are attacked beside it, in which order."""
    victim = Victim(graph)
    given_cases = cases(graph, 70, setup.seed)
    whole = {outcome.case.sample: outcome for outcome in attack(victim, given_cases, setup)}
    rng = np.random.default_rng(shuffle)
    some = [given_cases[n] for n in rng.permutation(70)[: rng.integers(1, 20)]]
    for outcome in attack(victim, some, setup):
        want = whole[outcome.case.sample]
        assert outcome.adversarial.tobytes() == want.adversarial.tobytes()
        assert replace(outcome, adversarial=want.adversarial, case=want.case) == want


def classified(victim: Victim, count: int, seed: int) -> list[Case]:
    """Samples with the network's own answers as labels, where it has one."""
    found = []
    for case in cases(victim.graph, count, seed):
        scores = victim.scores(seen_now(victim, case, seed))[0]
        if (scores == scores.max()).sum() == 1:
            found.append(replace(case, label=int(scores.argmax())))
    return found


def seen_now(victim: Victim, case: Case, seed: int) -> torch.Tensor:
    x = torch.from_numpy(case.x)
    if victim.encoding is Encoding.BERNOULLI:
        draws = uniform_draws(seed, Purpose.ENCODE, [case.sample], [0], (victim.graph.timesteps, *x.shape))
        return (draws < x).float()
    return x.unsqueeze(int(victim.has_time))


def louder(graph: Graph, factor: float) -> Graph:
    """With stronger last weights."""
    return graph.with_nodes(graph.nodes, parameters={"w2": graph.parameters["w2"] * np.float32(factor)})


@pytest.mark.parametrize("kind", [None, Encoding.BERNOULLI, Encoding.DIRECT])
@pytest.mark.parametrize("targeted", [False, True])
def test_examples_are_found(kind: Encoding | None, targeted: bool) -> None:
    victim = Victim(two_layers(kind), surrogate=Surrogate(kind=SurrogateKind.ATAN, width=1.0), loss=Loss.CROSS_ENTROPY)
    start = classified(victim, 60, 0)
    if targeted:
        start = [replace(case, target=(case.label + 1) % 3) for case in start]
    outcomes = list(attack(victim, start, Settings(step=0.1 if kind is not None else 1.0)))
    assert len(outcomes) >= 10
    assert all(outcome.status is not Status.CLEAN_ERROR for outcome in outcomes)
    found = [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]
    assert len(found) >= (0.4 if targeted else 0.5) * len(outcomes)


def test_vanishing_gradients_flip_the_share_gamma() -> None:
    """The last membrane potentials mostly lie far outside their windows, so that only flips are left."""
    victim = Victim(louder(two_layers(), 1000.0))
    start = classified(victim, 100, 0)
    outcomes = list(attack(victim, start, Settings(iterations=1, gamma=0.25)))
    gone = [outcome for outcome in outcomes if outcome.vanished]
    assert len(gone) >= 50
    flips = sum(outcome.perturbation.l0 for outcome in gone)
    assert stats.binomtest(flips, len(gone) * 24, 0.25).pvalue > 1e-4
    samples = {outcome.case.sample for outcome in gone}
    stuck = list(attack(victim, [case for case in start if case.sample in samples], Settings(flipping=False)))
    assert all((outcome.status, outcome.perturbation.l0) == (Status.VANISHED, 0) for outcome in stuck)


def test_refused_cases() -> None:
    graph = two_layers()
    victim = Victim(graph)
    good = cases(graph, 1, 0)[0]
    refused = {
        "has shape": replace(good, x=good.x[:, :5]),
        "values other than 0 and 1": replace(good, x=good.x * 0.5),
        "has label 3, the classes are 0 to 2": replace(good, label=3),
        "has target -1": replace(good, target=-1),
        "has its own label": replace(good, target=good.label),
    }
    for message, case in refused.items():
        with pytest.raises(CompileError, match=f"sample 0: .*{message}"):
            list(attack(victim, [case], Settings()))
    image = two_layers(Encoding.DIRECT)
    for values in (np.full(6, 1.5, np.float32), np.full(6, np.nan, np.float32)):
        with pytest.raises(CompileError, match=r"values outside \[0, 1\]"):
            list(attack(Victim(image), [Case(sample=0, x=values, label=0)], Settings()))


@pytest.mark.parametrize(
    ("field", "value"),
    [("iterations", 0), ("seed", -1), ("step", 0.0), ("epsilon", 0.0), ("gamma", 0.0), ("gamma", 1.5), ("pull", -1.0)],
)
def test_refused_settings(field: str, value: float) -> None:
    with pytest.raises(CompileError, match=field):
        Settings(**{field: value})  # type: ignore[arg-type]
