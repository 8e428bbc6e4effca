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
from compiler.attack.budget import Budget, Norm, kept
from compiler.attack.inputs import Batch, View, ternary
from compiler.attack.randomness import Purpose, step_number, uniform_draws
from compiler.attack.settings import Floats, Flow
from compiler.ir import CompileError, DType, Encoding, Graph, Surrogate, SurrogateKind
from compiler.ir.ops import Encode
from compiler.losses import Loss
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_victim import two_layers

Pair = tuple[torch.Tensor, torch.Tensor]
FEW = settings(max_examples=20, deadline=None)


@st.composite
def attacks(draw: st.DrawFn) -> tuple[Graph, Settings]:
    """Networks with settings that suit them."""
    graph = draw(victims())
    has_draws = any(isinstance(node.op, Encode) and node.op.kind is Encoding.BERNOULLI for node in graph.nodes)
    least = 1.0 if graph.types[graph.input.name].dtype is DType.SPIKE else 0.05
    budgets = st.builds(
        lambda norm, bound: Budget(norm=norm, bound=round(bound) + 1 if norm is Norm.L0 else bound),
        st.sampled_from(list(Norm)),
        st.floats(least, 3.0),
    )
    setups = st.builds(
        Settings,
        iterations=st.integers(1, 6),
        gamma=st.sampled_from([0.05, 0.5, 1.0]),
        step=st.sampled_from([None, 0.1, 1.0]),
        epsilon=st.sampled_from([math.inf, 0.02, 0.2]),
        pull=st.sampled_from([0.0, 0.1]),
        sampling=st.booleans(),
        flipping=st.booleans(),
        seed=st.integers(0, 9),
        flow=st.sampled_from(list(Flow)),
        restarts=st.integers(0, 2),
        draws=st.integers(1, 3 if has_draws else 1),
        budget=st.none() | budgets,
    )
    return graph, draw(setups)


def seen_by(victim: Victim, outcome: Outcome, seed: int) -> torch.Tensor:
    """What the network got when the outcome was decided, computed anew."""
    x = torch.from_numpy(outcome.adversarial)
    if victim.encoding is Encoding.BERNOULLI:
        shape = (victim.graph.timesteps, *x.shape)
        draws = uniform_draws(seed, Purpose.ENCODE, [outcome.case.sample], [outcome.draw], shape)
        return (draws < x).float()
    return x.unsqueeze(int(victim.has_time))


@FEW
@given(attacks(), st.booleans())
def test_what_every_outcome_holds_to(attacked: tuple[Graph, Settings], targeted: bool) -> None:
    graph, setup = attacked
    victim = Victim(graph)
    given_cases = cases(graph, 5, setup.seed, targeted=targeted)
    outcomes = sorted(attack(victim, given_cases, setup), key=lambda outcome: outcome.case.sample)
    assert [outcome.case.sample for outcome in outcomes] == list(range(5))
    spikes = graph.types[graph.input.name].dtype is DType.SPIKE
    for outcome in outcomes:
        after = outcome.adversarial
        assert np.isin(after, (0, 1)).all() if spikes else ((after >= 0) & (after <= 1)).all()
        assert outcome.perturbation == perturbation(outcome.case.x, after)
        assert outcome.iterations <= setup.updates * (setup.restarts + 1)
        assert outcome.queries == outcome.iterations + 1
        assert outcome.gradients == outcome.iterations * setup.draws
        assert outcome.vanished_at_start <= outcome.vanished <= outcome.iterations
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
                assert outcome.draw == step_number(setup.restarts, setup.updates)


def moved(victim: Victim, setup: Settings, case: Case, now: torch.Tensor, views: list[Pair], number: int) -> Floats:
    """An iterate of one sample, its formulas written down anew; a view is what the network got and the ascent."""
    own, step = [case.sample], setup.step
    gone = not any(ascent.any() for _, ascent in views)
    clean = torch.from_numpy(case.x)

    def draws(purpose: Purpose, shape: tuple[int, ...], copy: int = 0) -> torch.Tensor:
        return uniform_draws(setup.seed, purpose, own, [number], shape, copy)

    if not victim.has_time:
        chosen, sign = draws(Purpose.FLIP, (1, *now.shape))[0, 0], views[0][1].sign()
        random = torch.where(chosen < setup.gamma / 2, -1.0, torch.where(chosen < setup.gamma, 1.0, 0.0))
        whole = setup.budget is not None and setup.flow is Flow.FGSM and setup.budget.norm is Norm.LINF
        size = step or (setup.budget.bound if setup.budget is not None and whole else 0.02)
        change = size * (random if gone else sign)
    else:
        ternary = []
        for copy, (seen, ascent) in enumerate(views):
            shape = (len(seen), *seen.shape[1:])
            if gone:
                ternary.append((draws(Purpose.FLIP, shape, copy)[:, 0] < setup.gamma) * (1 - 2 * seen))
                continue
            passes = torch.ones_like(seen)
            if setup.sampling and ascent.any():
                passes = (draws(Purpose.SAMPLE, shape, copy)[:, 0] < ascent.abs() / ascent.abs().max()).float()
            ternary.append((ascent.sign() * passes + seen).clamp(0, 1) - seen)
        change = torch.stack(ternary)[0] if victim.encoding is None else torch.stack(ternary).mean(1).mean(0)
        change = change if victim.encoding is None else (step or 1.0) * change
    after = now + change
    if victim.graph.types[victim.graph.input.name].dtype is not DType.SPIKE:
        after = after if setup.pull == 0.0 else after - setup.pull * 2 * (now - clean)
        after = after.clamp(0, 1)
        return after.numpy() if setup.budget is None else setup.budget.projected(case.x, after.numpy())
    if setup.budget is None or setup.budget.flips is None:
        return after.numpy()
    worth = -draws(Purpose.FLIP, tuple(now.shape))[:, 0] if gone else views[0][1] * (after - clean)
    return kept(case.x, after.numpy(), worth.numpy(), setup.budget.flips)


def alone(victim: Victim, setup: Settings, case: Case) -> tuple[Status, Floats, int, int]:
    """Algorithm 5 on one sample, scores and gradients by passes of their own."""
    axis, at, updates = int(victim.has_time), [case.sample], 0
    wanted, sign = (case.label, 1.0) if case.target is None else (case.target, -1.0)
    status, x = Status.FAILURE, case.x

    def seen(x: Floats, number: int, copy: int = 0) -> torch.Tensor:
        now = torch.from_numpy(x)
        if victim.encoding is not Encoding.BERNOULLI:
            return now
        shape = (victim.graph.timesteps, *x.shape)
        return (uniform_draws(setup.seed, Purpose.ENCODE, at, [number], shape, copy)[:, 0] < now).float()

    for restart in range(setup.restarts + 1):
        status, x = Status.FAILURE, case.x
        if restart and not victim.has_time:
            linf = setup.budget is not None and setup.budget.norm is Norm.LINF
            reach = setup.budget.bound if setup.budget is not None and linf else (setup.step or 0.02)
            start = uniform_draws(setup.seed, Purpose.START, at, [step_number(restart, 0)], (1, *x.shape))[0, 0]
            x = (torch.from_numpy(x) + reach * (2 * start - 1)).clamp(0, 1).numpy()
            x = x if setup.budget is None else setup.budget.projected(case.x, x)
        for step in range(setup.updates + 1):
            number = step_number(restart, step)
            codes = [seen(x, number, copy) for copy in range(setup.draws)]
            scores = victim.scores(codes[0].unsqueeze(axis), at)[0]
            best = (scores == scores.max()).nonzero().flatten().tolist()
            if step == 0 and restart == 0 and best != [case.label]:
                return Status.CLEAN_ERROR, x, 0, 0
            if step and perturbation(case.x, x).dissertation > setup.epsilon:
                status = Status.OUT_OF_BOUND
                break
            if step and len(best) == 1 and (best == [wanted]) == (case.target is not None):
                return Status.SUCCESS, x, updates, number
            if step == setup.updates:
                break
            classes = torch.tensor([wanted])
            gradients = [victim.gradient(code.unsqueeze(axis), classes, at).select(axis, 0) for code in codes]
            updates += 1
            if not setup.flipping and not any(gradient.any() for gradient in gradients):
                status, number = Status.VANISHED, number + 1
                break
            views = [(code, sign * gradient) for code, gradient in zip(codes, gradients, strict=True)]
            x = moved(victim, setup, case, torch.from_numpy(x), views, number)
    return status, x, updates, number


@settings(max_examples=40, deadline=None)
@given(attacks(), st.booleans(), st.sampled_from([None, 1.5]))
def test_as_one_sample_after_the_other(
    attacked: tuple[Graph, Settings], targeted: bool, threshold: float | None
) -> None:
    """A plain loop over one sample comes to the same bits."""
    graph, setup = attacked
    try:
        victim = Victim(graph, threshold=threshold)
    except CompileError:  # no penultimate neurons, or one threshold for each of their channels
        victim = Victim(graph)
    for outcome in attack(victim, cases(graph, 4, setup.seed, targeted=targeted), setup):
        status, x, updates, number = alone(victim, setup, outcome.case)
        assert (outcome.status, outcome.iterations, outcome.draw) == (status, updates, number)
        assert outcome.adversarial.tobytes() == x.tobytes()


@FEW
@given(attacks(), st.integers(0, 2**16))
def test_an_outcome_depends_on_its_sample_and_the_seed_alone(attacked: tuple[Graph, Settings], shuffle: int) -> None:
    """However many others are attacked beside it, in which order."""
    graph, setup = attacked
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


@pytest.mark.parametrize("kind", [None, Encoding.BERNOULLI, Encoding.DIRECT])
def test_restarts_find_more_and_lose_nothing(kind: Encoding | None) -> None:
    victim = Victim(two_layers(kind))
    start = classified(victim, 80, 0)
    budget = Budget(norm=Norm.L0, bound=2) if kind is None else Budget(norm=Norm.LINF, bound=0.3)
    setup = Settings(iterations=3, step=0.1 if kind else None, budget=budget, gamma=0.3)
    once = {outcome.case.sample: outcome for outcome in attack(victim, start, setup)}
    often = list(attack(victim, start, replace(setup, restarts=4)))
    for outcome in often:
        first = once[outcome.case.sample]
        assert outcome.status is not Status.CLEAN_ERROR  # whatever a restart's own code of the clean image is taken for
        if first.status is Status.SUCCESS:
            assert outcome.adversarial.tobytes() == first.adversarial.tobytes()
            assert outcome.queries == first.queries
        else:
            assert outcome.queries > first.queries
    counts = [sum(outcome.status is Status.SUCCESS for outcome in found) for found in (once.values(), often)]
    assert counts[0] < counts[1]


def test_one_update_of_fgsm_spends_the_whole_budget() -> None:
    victim = Victim(two_layers(Encoding.DIRECT))
    setup = Settings(flow=Flow.FGSM, budget=Budget(norm=Norm.LINF, bound=0.125), gamma=1.0, iterations=9)
    for outcome in attack(victim, classified(victim, 20, 0), setup):
        assert outcome.iterations == 1
        x = outcome.case.x
        change = outcome.adversarial - x
        assert (np.isclose(abs(change), 0.125) | np.isin(outcome.adversarial, (0, 1)) | (change == 0)).all()
        assert outcome.perturbation.linf > 0.1


def test_several_draws_are_of_independent_codes() -> None:
    """Their mean change has less noise: two runs that differ in the seed alone come closer to each other."""
    victim = Victim(two_layers(Encoding.BERNOULLI), surrogate=Surrogate(kind=SurrogateKind.ATAN, width=1.0))
    start = [replace(case, target=(case.label + 1) % 3) for case in classified(victim, 40, 0)]

    def distance(draws: int) -> float:
        runs = []
        for seed in (11, 12):
            found = attack(victim, start, Settings(iterations=1, draws=draws, seed=seed))
            runs.append({outcome.case.sample: outcome.adversarial for outcome in found if outcome.iterations})
        both = runs[0].keys() & runs[1].keys()
        assert len(both) >= 10
        return float(np.mean([np.square(runs[0][at] - runs[1][at]).sum() for at in both]))

    assert distance(30) < 0.2 * distance(1)


def test_spikes_are_flipped_at_random_only_where_no_code_has_a_gradient() -> None:
    clean = torch.full((2, 6), 0.5)
    batch = Batch(samples=[0, 1], steps=[0, 0], clean=clean, now=clean)
    codes = [torch.zeros(4, 2, 6), torch.ones(4, 2, 6)]
    gradients = [torch.zeros(4, 2, 6), torch.zeros(4, 2, 6)]
    gradients[1][1, 0, 2] = -1.0  # of sample 0 the second code has one, of sample 1 neither
    views = [View(code, gradient) for code, gradient in zip(codes, gradients, strict=True)]
    first, second = ternary(Settings(gamma=0.5, draws=2), batch, views)
    assert not first[:, 0].any()
    assert second[:, 0].nonzero().tolist() == [[1, 2]]
    assert second[1, 0, 2] == -1
    assert 0 < first[:, 1].sum() < 24
    assert 0 < -second[:, 1].sum() < 24
    assert not torch.equal(first[:, 1], -second[:, 1])


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
    [
        ("iterations", 0),
        ("seed", -1),
        ("step", 0.0),
        ("step", np.inf),
        ("epsilon", 0.0),
        ("gamma", 0.0),
        ("gamma", 1.5),
        ("pull", -1.0),
        ("restarts", -1),
        ("draws", 0),
    ],
)
def test_refused_settings(field: str, value: float) -> None:
    with pytest.raises(CompileError, match=field):
        Settings(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [None, Encoding.DIRECT])
def test_draws_are_refused_where_nothing_is_drawn(kind: Encoding | None) -> None:
    with pytest.raises(CompileError, match=r"net:1.*2 draws are to be averaged, and the network draws none"):
        list(attack(Victim(two_layers(kind)), [], Settings(draws=2)))
