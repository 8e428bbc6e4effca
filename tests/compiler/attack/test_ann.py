"""ANN counterparts against ReLU networks written by hand, and what of their examples reaches the spiking network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from compiler.attack import Case, Outcome, Settings, Status, Victim, attack
from compiler.attack.ann import Activation, AnnTwin, ann_conversion_attack, last_neurons
from compiler.attack.budget import Budget, Norm
from compiler.attack.goal import succeeds
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.attack.victim import BLOCK
from compiler.differentiate import Loss
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading
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
    Readout,
)
from tests.compiler.attack.networks import cases, victims
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers

FEW = settings(max_examples=15, deadline=None)
budgets = st.sampled_from(
    [Budget(norm=Norm.LINF, bound=0.1), Budget(norm=Norm.L2, bound=0.3), Budget(norm=Norm.L0, bound=2)]
)


def residual(kind: Encoding) -> Graph:
    """Image (2, 6, 6) -> conv, norm, Lif, max pool, + its own conv -> Lif -> mean pool -> linear -> Lif -> rate."""
    rng = np.random.default_rng(1)
    lif = Lif(decay=0.5, threshold=0.7, input_scale=0.9, leak_bias=Param("leak"))
    norm = BatchNorm(mean=Param("mean"), var=Param("var"), weight=Param("gain"), bias=Param("shift"), eps=1e-5)
    nodes = (
        Node("image", Input(shape=("N", 2, 6, 6), dtype=DType.F32, axes="NCHW"), (), Loc("net", 1)),
        Node("x", Encode(kind=kind, timesteps=3, seed=3 if kind is Encoding.BERNOULLI else None), ("image",), Loc("n")),
        Node("conv1", Conv2d(weight=Param("w1"), bias=Param("b1"), padding=(1, 1)), ("x",), Loc("n")),
        Node("norm1", norm, ("conv1",), Loc("n")),
        Node("lif1", lif, ("norm1",), Loc("n")),
        Node("pool1", MaxPool2d(kernel=(2, 2), stride=(2, 2)), ("lif1",), Loc("n")),
        Node("conv2", Conv2d(weight=Param("w2"), padding=(1, 1)), ("pool1",), Loc("n")),
        Node("sum", Add(), ("pool1", "conv2"), Loc("n")),
        Node("lif2", Lif(decay=0.25, threshold=0.5), ("sum",), Loc("n")),
        Node("pool2", AvgPool2d(kernel=(3, 3), stride=(3, 3)), ("lif2",), Loc("n")),
        Node("flat", Flatten(), ("pool2",), Loc("n")),
        Node("fc", Linear(weight=Param("w3"), bias=Param("b3")), ("flat",), Loc("n")),
        Node("lif3", Lif(decay=0.5, threshold=2.0), ("fc",), Loc("n")),
        Node("y", Readout(kind=Reading.RATE), ("lif3",), Loc("n")),
    )
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "mean": (4,), "gain": (4,), "shift": (4,), "leak": (4,)}
    shapes |= {"w2": (4, 4, 3, 3), "w3": (3, 4), "b3": (3,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Graph("net", nodes, "y", arrays | {"var": rng.uniform(0.5, 2, 4).astype(np.float32)})


def by_hand(graph: Graph, x: Tensor, *, clipped: bool) -> Tensor:
    """The same network in plain torch, its neurons replaced."""
    p = {name: torch.tensor(np.array(array), dtype=torch.float32) for name, array in graph.parameters.items()}

    def relu(z: Tensor) -> Tensor:
        return z.clamp(0, 1) if clipped else functional.relu(z)

    h = functional.conv2d(x, p["w1"], p["b1"], padding=1)
    h = functional.batch_norm(h, p["mean"], p["var"], p["gain"], p["shift"], False, 0.0, 1e-5)
    h = functional.max_pool2d(relu((0.9 * h + p["leak"].reshape(-1, 1, 1)) / 0.7), 2)
    h = relu((h + functional.conv2d(h, p["w2"], padding=1)) / 0.5)
    return functional.linear(functional.avg_pool2d(h, 3).flatten(1), p["w3"], p["b3"]) / 2.0


@pytest.mark.parametrize("kind", [Encoding.DIRECT, Encoding.BERNOULLI])
@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("activation", list(Activation))
def test_it_is_the_relu_network_of_the_same_parameters(kind: Encoding, loss: Loss, activation: Activation) -> None:
    graph = residual(kind)
    twin = AnnTwin(graph, loss=loss, activation=activation)
    x = torch.rand((20, 2, 6, 6), generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = torch.arange(20) % 3
    scores = by_hand(graph, x, clipped=activation is Activation.CLIPPED)
    torch.testing.assert_close(twin.scores(x.detach()), scores.detach(), rtol=1e-4, atol=1e-5)
    errors = (
        (scores - functional.one_hot(classes, 3)).square().mean(1)
        if loss is Loss.MSE
        else functional.cross_entropy(10 * scores, classes, reduction="none")
    )
    (want,) = torch.autograd.grad(errors.sum(), x)
    assert float(want.abs().max()) > 0.0
    torch.testing.assert_close(twin.gradient(x.detach(), classes) * BLOCK, want, rtol=1e-3, atol=1e-5)
    assert (twin.encoding, twin.has_time, twin.classes) == (None, False, 3)
    assert last_neurons(graph) == {"lif3"}


def normalised_errors(scores: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of scores over their largest absolute value, a constant."""
    largest = scores.detach().abs().amax(1, keepdim=True)
    return functional.cross_entropy(10 * scores / largest, classes, reduction="none")


def test_the_gradient_of_normalised_scores() -> None:
    graph = residual(Encoding.DIRECT)
    x = torch.rand((20, 2, 6, 6), generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = torch.arange(20) % 3
    (want,) = torch.autograd.grad(normalised_errors(by_hand(graph, x, clipped=False), classes).sum(), x)
    twin = AnnTwin(graph, normalised=True)
    torch.testing.assert_close(twin.gradient(x.detach(), classes) * BLOCK, want, rtol=1e-3, atol=1e-5)
    assert torch.equal(twin.scores(x.detach()), AnnTwin(graph).scores(x.detach()))


def test_scores_of_zero_have_a_gradient_too() -> None:
    graph = residual(Encoding.DIRECT)
    silent = graph.with_nodes(
        graph.nodes,
        parameters={**graph.parameters, "b3": np.zeros(3, np.float32)} | {"w3": np.zeros((3, 4), np.float32)},
    )
    twin = AnnTwin(silent, normalised=True)
    assert not twin.gradient(torch.rand(2, 2, 6, 6), torch.tensor([0, 1])).any()


@pytest.mark.parametrize("loud", [1.0, 1e4])
def test_the_twin_is_fooled_however_large_its_scores(loud: float) -> None:
    """With scores that are not normalised, the loss saturates or grows by the label's own score."""
    graph = two_layers(Encoding.DIRECT)
    graph = graph.with_nodes(
        graph.nodes, parameters={**graph.parameters, "w2": graph.parameters["w2"] * np.float32(loud)}
    )
    twin, victim = AnnTwin(graph), Victim(graph)
    start = classified(victim, 60, 0)
    setup = Settings(budget=Budget(norm=Norm.LINF, bound=0.5))
    outcomes = list(ann_conversion_attack(victim, start, setup))
    fooled = [
        int(twin.scores(torch.from_numpy(outcome.adversarial)[None]).argmax()) != outcome.case.label
        for outcome in outcomes
        if outcome.gradients
    ]
    assert len(fooled) >= 5
    assert np.mean(fooled) >= 0.5


@pytest.mark.parametrize("targeted", [False, True])
def test_the_plain_attack_fools_the_twin(targeted: bool) -> None:
    twin = AnnTwin(residual(Encoding.DIRECT))
    start = cases(twin.graph, 40, 0)
    labels = twin.scores(torch.stack([torch.from_numpy(case.x) for case in start])).argmax(1).tolist()
    start = [replace(case, label=label) for case, label in zip(start, labels, strict=True)]
    if targeted:
        start = [replace(case, target=(case.label + 1) % 3) for case in start]
    outcomes = list(attack(twin, start, Settings(step=0.05)))
    found = [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]
    assert len(found) >= 0.8 * len(outcomes)
    for outcome in found:
        scores = twin.scores(torch.from_numpy(outcome.adversarial)[None], [outcome.case.sample])
        wanted = torch.tensor([outcome.case.label if outcome.case.target is None else outcome.case.target])
        assert bool(succeeds(scores, wanted, targeted=targeted)[0])


def judged(victim: Victim, outcome: Outcome, seed: int) -> bool:
    """Whether the network is fooled at the recorded draw, computed anew."""
    x, case = torch.from_numpy(outcome.adversarial), outcome.case
    if victim.encoding is Encoding.BERNOULLI:
        shape = (victim.graph.timesteps, *x.shape)
        draws = uniform_draws(seed, Purpose.ENCODE, [case.sample], [outcome.draw], shape)
        seen = (draws < x).float()
    else:
        seen = x[None]
    wanted = torch.tensor([case.label if case.target is None else case.target])
    return bool(succeeds(victim.scores(seen, [case.sample]), wanted, targeted=case.target is not None)[0])


@FEW
@given(victims(image_input=True), budgets, st.sampled_from([math.inf, 0.001]), st.booleans(), st.integers(0, 9))
def test_outcomes_keep_the_budget_and_are_the_network_s(
    graph: Graph, budget: Budget, epsilon: float, targeted: bool, seed: int
) -> None:
    victim = Victim(graph)
    setup = Settings(budget=budget, iterations=4, epsilon=epsilon, seed=seed)
    given_cases = cases(graph, 20, seed, targeted=targeted)
    outcomes = {outcome.case.sample: outcome for outcome in ann_conversion_attack(victim, given_cases, setup)}
    assert sorted(outcomes) == list(range(20))
    for outcome in outcomes.values():
        assert ((outcome.adversarial >= 0) & (outcome.adversarial <= 1)).all()
        assert outcome.perturbation.named()[budget.norm] <= budget.bound
        if outcome.status is Status.CLEAN_ERROR:
            assert (outcome.queries, outcome.gradients, outcome.perturbation.l0) == (1, 0, 0)
            continue
        assert (outcome.queries, outcome.gradients, outcome.iterations) == (2, 4, 4)
        if outcome.status is Status.OUT_OF_BOUND:
            assert outcome.perturbation.dissertation > epsilon
        else:
            assert judged(victim, outcome, seed) == (outcome.status is Status.SUCCESS)
    for outcome in ann_conversion_attack(victim, given_cases[3:8], setup):
        want = outcomes[outcome.case.sample]
        assert outcome.adversarial.tobytes() == want.adversarial.tobytes()
        assert replace(outcome, adversarial=want.adversarial, case=want.case) == want


@pytest.mark.parametrize("iterations", [1, 2, 25])
def test_the_whole_budget_is_used_though_the_twin_is_fooled_at_once(iterations: int) -> None:
    victim = Victim(two_layers(Encoding.DIRECT))
    budget = Budget(norm=Norm.LINF, bound=0.1)
    setup = Settings(budget=budget, iterations=iterations)
    outcomes = list(ann_conversion_attack(victim, classified(victim, 20, 0), setup))
    assert outcomes
    for outcome in outcomes:
        change = np.abs(outcome.adversarial - outcome.case.x)
        free = (outcome.adversarial > 0) & (outcome.adversarial < 1)
        assert np.isclose(change[free], 0.1, atol=1e-6).mean() > 0.5


@pytest.mark.parametrize("targeted", [False, True])
def test_the_twin_moves_the_way_it_is_asked_to(targeted: bool) -> None:
    """Its loss grows by the label, and falls by a target."""
    victim = Victim(two_layers(Encoding.DIRECT))
    twin = AnnTwin(victim.graph)
    start = classified(victim, 60, 0)
    if targeted:
        start = [replace(case, target=(case.label + 1) % 3) for case in start]
    setup = Settings(budget=Budget(norm=Norm.LINF, bound=0.005))
    outcomes = list(ann_conversion_attack(victim, start, setup))
    losses = []
    for x in ([outcome.case.x for outcome in outcomes], [outcome.adversarial for outcome in outcomes]):
        scores = twin.scores(torch.from_numpy(np.stack(x)))
        wanted = [o.case.label if o.case.target is None else o.case.target for o in outcomes]
        losses.append(normalised_errors(scores, torch.tensor(wanted)))
    moved = [outcome.perturbation.l0 > 0 for outcome in outcomes]
    assert sum(moved) >= 3
    assert bool((losses[1] < losses[0] if targeted else losses[1] > losses[0])[torch.tensor(moved)].all())


def test_refusals() -> None:
    with pytest.raises(CompileError, match="an ANN counterpart has no time"):
        AnnTwin(two_layers())
    victim = Victim(two_layers(Encoding.DIRECT))
    with pytest.raises(CompileError, match=r"perturbs up to a budget, and none is given\n  hint: .*linf"):
        list(ann_conversion_attack(victim, [], Settings()))
    budget = Budget(norm=Norm.LINF, bound=0.1)
    case = Case(sample=0, x=np.full(6, 2, np.float32), label=0)
    with pytest.raises(CompileError, match=r"sample 0: .*outside \[0, 1\]"):
        list(ann_conversion_attack(victim, [case], Settings(budget=budget)))
    spikes = Victim(two_layers())
    with pytest.raises(CompileError, match="an ANN counterpart has no time"):
        list(ann_conversion_attack(spikes, [], Settings(budget=Budget(norm=Norm.L0, bound=3))))
    graph = two_layers(Encoding.DIRECT)
    with pytest.raises(CompileError, match="no vector of scores"):
        AnnTwin(graph.with_nodes(graph.nodes[:-1], output="last"))
