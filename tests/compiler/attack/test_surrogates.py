"""Surrogates made of a pass's own membrane potentials: against autograd, their definitions, and other batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from compiler.attack import Victim
from compiler.attack.surrogates import AdaptiveSharpness, PotentialDependent, SurrogateRule
from compiler.attack.victim import BLOCK
from compiler.differentiate import BatchStatistics, KeepCompressed, Loss, differentiate, run_training
from compiler.ir import Compare, CompileError, Encoding, Graph, Node, Reset
from compiler.ir.ops import Lif
from tests.compiler.attack.networks import victims
from tests.compiler.attack.test_victim import random_input, two_layers

RULES: dict[str, SurrogateRule] = {
    "potential": PotentialDependent(),
    "adaptive": AdaptiveSharpness(),
    "sharp": AdaptiveSharpness(vanishing=0.99, reserve=0.0),
}
rules = pytest.mark.parametrize("rule", list(RULES.values()), ids=list(RULES))
Rule = Callable[[Tensor], Tensor]


class Fire(torch.autograd.Function):
    """A step whose derivative is given."""

    @staticmethod
    def forward(ctx, u: Tensor, slope: Tensor, is_ge: bool) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(slope)
        return (u >= 0 if is_ge else u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


def potentials(op: Lif, x: Tensor) -> Tensor:
    """m of all steps, without autograd."""
    with torch.no_grad():
        return _steps(op, x, torch.zeros_like(x))[1]


def _steps(op: Lif, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and membrane potentials by autograd's own means; numbers must be scalars."""
    decay, threshold, scale, bias, reset_value, initial = (
        float(number)  # type: ignore[arg-type]
        for number in (op.decay, op.threshold, op.input_scale, op.leak_bias, op.reset_value, op.initial)
    )
    v, spikes, potential = torch.full_like(x[0], initial), [], []
    for t in range(len(x)):
        m = decay * v + scale * x[t] + bias
        s: Tensor = Fire.apply(m - threshold, slope[t], op.compare is Compare.GE)  # type: ignore[no-untyped-call]
        r = s.detach() if op.detach_reset else s
        v = m if op.reset is Reset.NONE else m - threshold * r if op.reset is Reset.SOFT else m + r * (reset_value - m)
        spikes.append(s)
        potential.append(m)
    return torch.stack(spikes), torch.stack(potential)


def neurons(reset: Reset, detach: bool) -> Graph:
    graph = two_layers()

    def lif(node: Node) -> Node:
        if not isinstance(node.op, Lif):
            return node
        op = Lif(decay=0.7, threshold=0.4, input_scale=0.8, leak_bias=0.05, reset=reset, detach_reset=detach)
        return Node(node.name, op, node.inputs, node.loc)

    return graph.with_nodes(tuple(lif(node) for node in graph.nodes))


@rules
@pytest.mark.parametrize("reset", list(Reset))
@pytest.mark.parametrize("detach", [False, True])
def test_a_run_s_slopes_are_those_of_autograd(rule: SurrogateRule, reset: Reset, detach: bool) -> None:
    """Where a custom function gives the fire function the same derivative, in f64."""
    graph = neurons(reset, detach)
    training = differentiate(graph, Loss.MSE, statistics=BatchStatistics.RUNNING)
    x = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    labels = torch.arange(5) % 3
    value = x
    for weight, name in (("w1", "hidden"), ("w2", "last")):
        value = value @ torch.from_numpy(np.array(graph.parameters[weight], np.float64)).T
        op = graph.node(name).op
        assert isinstance(op, Lif)
        assert isinstance(op.threshold, float)
        value = _steps(op, value, rule(potentials(op, value) - op.threshold))[0]
    loss = (value.mean(0) - torch.nn.functional.one_hot(labels, 3)).square().mean()
    (want,) = torch.autograd.grad(loss, x)
    run = run_training(
        training, x.detach(), labels, want=("d.x",), dtype=torch.float64, slopes={"hidden": rule, "last": rule}
    )
    assert want.count_nonzero() > 100
    torch.testing.assert_close(run.values["d.x"], want, rtol=1e-9, atol=1e-12)


def test_a_slope_stands_for_the_surrogate_alone() -> None:
    """The same function as the surrogate's gives the same bits, and spikes do not change."""
    graph = two_layers()
    training = differentiate(graph, Loss.CROSS_ENTROPY, statistics=BatchStatistics.RUNNING)
    x, labels = (torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float(), torch.arange(5) % 3

    def rectangle(u: Tensor) -> Tensor:
        return (u.abs() < 0.5).to(u.dtype)

    plain = run_training(training, x, labels, want=("d.x", "hidden"))
    same = run_training(training, x, labels, want=("d.x", "hidden"), slopes={"hidden": rectangle, "last": rectangle})
    other = run_training(training, x, labels, want=("d.x", "hidden"), slopes={"hidden": torch.ones_like})
    assert torch.equal(same.values["d.x"], plain.values["d.x"])
    assert not torch.equal(other.values["d.x"], plain.values["d.x"])
    each = run_training(training, x, labels, want=("d.x",), slopes={"last": rectangle, "hidden": torch.ones_like})
    assert torch.equal(each.values["d.x"], other.values["d.x"])
    assert torch.equal(other.values["hidden"], plain.values["hidden"])


def test_refused_slopes() -> None:
    training = differentiate(two_layers(), Loss.MSE, statistics=BatchStatistics.RUNNING)
    x, labels = torch.zeros(4, 2, 6), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(CompileError, match="a slope is given for fc1, which is no Lif"):
        run_training(training, x, labels, slopes={"fc1": torch.ones_like})
    with pytest.raises(CompileError, match="hidden: a slope needs potentials that are not kept"):
        run_training(KeepCompressed()(training), x, labels, slopes={"hidden": torch.ones_like})
    for numbers in ({"vanishing": 0.0}, {"vanishing": 1.0}, {"reserve": -0.1}, {"reserve": math.inf}):
        with pytest.raises(CompileError, match="must be"):
            AdaptiveSharpness(**numbers)


shapes = st.sampled_from([(3, 2, 5), (4, 2, 3, 2, 2), (1, 2, 4), (2, 2, 2, 1, 3)])
widths = st.sampled_from([1e-3, 1.0, 50.0])


@given(shapes, widths, st.sampled_from([0.0, -3.0, 1000.0]), st.integers(0, 2**16))
def test_the_normal_density_of_the_spread_so_far(
    shape: tuple[int, ...], width: float, centre: float, seed: int
) -> None:
    u = torch.from_numpy(np.random.default_rng(seed).normal(centre, width, shape))
    got = PotentialDependent()(u).numpy()
    for t, n, c in np.ndindex(shape[:3]):
        own = u[: t + 1, n, c] if len(shape) > 3 else u[: t + 1, n]
        spread = float(np.std(own.numpy(), ddof=1)) if own.numel() > 1 else 1.0
        want = stats.norm.pdf(u[t, n, c].numpy(), loc=spread / 2, scale=spread)
        np.testing.assert_allclose(got[t, n, c], want, rtol=1e-5, atol=1e-300)


@given(shapes, widths, st.sampled_from([0.3, 0.85, 0.99]), st.integers(0, 2**16))
def test_gradients_vanish_to_the_degree_asked_for_at_most(
    shape: tuple[int, ...], width: float, vanishing: float, seed: int
) -> None:
    """Without a reserve, in the mean over a population; a single distance from the threshold reaches the bound."""
    u = torch.from_numpy(np.random.default_rng(seed).normal(0, width, shape))
    slope = AdaptiveSharpness(vanishing=vanishing, reserve=0.0)(u)
    peak = AdaptiveSharpness(vanishing=vanishing, reserve=0.0)
    for t, n in np.ndindex(shape[:2]):
        sizes = u[t, n].abs().flatten()
        alpha = 2 / math.pi * math.tan(math.pi / 2 * vanishing) / float(sizes.mean())
        formula = alpha / 2 / (1 + (math.pi / 2 * alpha * u[t, n]) ** 2)
        torch.testing.assert_close(slope[t, n], formula)
        areas = [
            integrate.quad(lambda at, a=alpha: a / 2 / (1 + (math.pi / 2 * a * at) ** 2), -size, size)[0]
            for size in sizes.tolist()
        ]
        assert np.mean(areas) <= vanishing + 1e-9
    same = torch.full(shape, -width, dtype=torch.float64)
    alpha = 2 * float(peak(same).flatten()[0]) * (1 + math.tan(math.pi / 2 * vanishing) ** 2)
    area = integrate.quad(lambda at: alpha / 2 / (1 + (math.pi / 2 * alpha * at) ** 2), -width, width)[0]
    assert area == pytest.approx(vanishing)


@rules
def test_slopes_are_finite_where_potentials_do_not_spread(rule: SurrogateRule) -> None:
    for value in (0.0, -0.3, 1e-42, 1e-30, 1e-7, 1e30):
        for shape in ((3, 2, 4), (3, 2, 4, 1, 1), (1, 1, 1)):
            slope = rule(torch.full(shape, value))
            assert torch.isfinite(slope).all()
            assert (slope >= 0).all()


@rules
@settings(max_examples=15, deadline=None)
@given(victims(), st.integers(0, 99))
def test_a_sample_s_gradient_depends_on_itself_alone(rule: SurrogateRule, graph: Graph, seed: int) -> None:
    victim = Victim(graph, surrogate=rule)
    x = random_input(victim, 20, seed)
    classes, axis = torch.arange(20) % victim.classes, int(victim.has_time)
    whole = victim.gradient(x, classes)
    for at in (0, 7, 19):
        alone = victim.gradient(x.select(axis, at).unsqueeze(axis), classes[at : at + 1], [at])
        assert torch.equal(alone.select(axis, 0), whole.select(axis, at))
    assert torch.equal(victim.scores(x), Victim(graph).scores(x))


@rules
def test_rules_have_gradients_where_the_window_has_none(rule: SurrogateRule) -> None:
    graph = two_layers(Encoding.DIRECT)
    loud = graph.with_nodes(graph.nodes, parameters={"w2": graph.parameters["w2"] * np.float32(100)})
    x = torch.rand(BLOCK, 6, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(BLOCK) % 3
    counts = [
        int(victim.gradient(x, classes).flatten(1).any(1).sum())
        for victim in (Victim(loud), Victim(loud, surrogate=rule))
    ]
    assert counts[0] < 0.7 * BLOCK
    assert counts[1] > counts[0]
