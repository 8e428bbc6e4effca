"""The network under attack: gradients against autograd, thresholds that move the forward pass alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compiler.attack import Victim, penultimate
from compiler.attack.surrogates import PotentialDependent, SurrogateRule
from compiler.attack.victim import BLOCK, with_threshold
from compiler.differentiate import BatchStatistics, Loss, differentiate, run_training
from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Surrogate, SurrogateKind
from compiler.ir.ops import Encode, Input, Lif, Linear, Readout
from frontends.to_torch import to_torch
from tests.compiler.attack.networks import victims


def two_layers(kind: Encoding | None = None, threshold: float | Param = 0.5) -> Graph:
    """x -> linear -> Lif "hidden" -> linear -> Lif "last" -> rate."""
    rng = np.random.default_rng(0)
    first: tuple[Node, ...]
    if kind is None:
        first = (Node("x", Input(shape=(4, "N", 6), dtype=DType.SPIKE, axes="TNC"), (), Loc("net", 1)),)
    else:
        seed = 3 if kind is Encoding.BERNOULLI else None
        first = (
            Node("image", Input(shape=("N", 6), dtype=DType.F32, axes="NC"), (), Loc("net", 1)),
            Node("x", Encode(kind=kind, timesteps=4, seed=seed), ("image",), Loc("net", 2)),
        )
    nodes = (
        *first,
        Node("fc1", Linear(weight=Param("w1")), ("x",), Loc("net", 3)),
        Node("hidden", Lif(decay=0.5, threshold=threshold), ("fc1",), Loc("net", 4)),
        Node("fc2", Linear(weight=Param("w2")), ("hidden",), Loc("net", 5)),
        Node("last", Lif(decay=0.5, threshold=0.5), ("fc2",), Loc("net", 6)),
        Node("y", Readout(kind=Reading.RATE), ("last",), Loc("net", 7)),
    )
    arrays = {"w1": rng.normal(size=(8, 6)), "w2": rng.normal(size=(3, 8)), "th": np.full(8, 0.5)}
    used = arrays if isinstance(threshold, Param) else {name: arrays[name] for name in ("w1", "w2")}
    return Graph("net", nodes, "y", used)


def random_input(victim: Victim, samples: int, seed: int) -> torch.Tensor:
    kind = victim.sequence.types[victim.sequence.input.name]
    shape = tuple(samples if isinstance(size, str) else size for size in kind.shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (x < 0.4).float() if kind.dtype is DType.SPIKE else x


@settings(max_examples=25, deadline=None)
@given(victims(), st.sampled_from(list(Loss)), st.integers(0, 99))
def test_gradients_are_those_of_autograd(graph: Graph, loss: Loss, seed: int) -> None:
    victim = Victim(graph, loss=loss)
    x = random_input(victim, 3, seed).requires_grad_()
    classes = torch.arange(3) % victim.classes
    scores = to_torch(victim.sequence).eval()(x)
    if loss is Loss.MSE:
        errors = (scores - torch.nn.functional.one_hot(classes, victim.classes)).square().mean(1)
    else:
        errors = torch.nn.functional.cross_entropy(10 * scores, classes, reduction="none")
    (want,) = torch.autograd.grad(errors.sum(), x)
    got = victim.gradient(x.detach(), classes) * BLOCK
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()) + 1e-12)
    torch.testing.assert_close(victim.scores(x.detach()), scores.detach())


@settings(max_examples=15, deadline=None)
@given(victims(), st.integers(1, 40), st.integers(0, 99))
def test_a_sample_s_bits_depend_on_its_place_in_a_block_alone(graph: Graph, samples: int, seed: int) -> None:
    victim = Victim(graph)
    x = random_input(victim, samples, seed)
    classes = torch.arange(samples) % victim.classes
    axis = int(victim.has_time)
    rng = np.random.default_rng(seed)
    some = rng.permutation(samples)[: rng.integers(1, samples + 1)]
    places = [int(at) % BLOCK + BLOCK * n for n, at in enumerate(some)]
    part, own = x.index_select(axis, torch.tensor(some)), classes[some]
    whole = victim.gradient(x, classes).index_select(axis, torch.tensor(some))
    assert torch.equal(victim.gradient(part, own, places), whole)
    assert torch.equal(victim.scores(part, places), victim.scores(x)[some])


@settings(max_examples=15, deadline=None)
@given(victims(), st.sampled_from([None, 1.0]), st.sampled_from([None, PotentialDependent()]), st.integers(0, 99))
def test_one_pass_gives_scores_and_gradients(
    graph: Graph, threshold: float | None, surrogate: SurrogateRule | None, seed: int
) -> None:
    """The same bits as passes of their own, of the samples that are asked for."""
    try:
        victim = Victim(graph, threshold=threshold, surrogate=surrogate)
    except CompileError:  # no penultimate neurons, or one threshold for each of their channels
        victim = Victim(graph, surrogate=surrogate)
    x, classes = random_input(victim, 5, seed), torch.arange(5) % victim.classes
    places = [7, 0, 15, 4 * BLOCK + 3, 9]
    passed = victim.forward(x, places)
    assert torch.equal(passed.scores, victim.scores(x, places))
    some, axis = torch.tensor([3, 1]), int(victim.has_time)
    whole = victim.gradient(x, classes, places)
    assert torch.equal(passed.gradient(classes[some], some.tolist()), whole.index_select(axis, some))


def test_another_threshold_moves_the_forward_pass_alone() -> None:
    """The window stays centred on the old threshold, so that where m is the same, so is the slope."""
    graph = two_layers()
    tuned = with_threshold(graph, "hidden", 2.0)
    op = tuned.node("hidden").op
    assert isinstance(op, Lif)
    assert op.threshold == 2.0
    assert op.threshold + op.surrogate.offset == 0.5
    x = (torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    fewer, more = (evaluate(net, x, traces=["hidden"]).traces["hidden"].sum() for net in (tuned, graph))
    assert fewer < more
    slopes = [
        run_training(
            differentiate(net, Loss.MSE, statistics=BatchStatistics.RUNNING),
            x,
            torch.zeros(5, dtype=torch.int64),
            want=("d.hidden", "d.fc1", "hidden.membrane"),
        ).values
        for net in (graph, tuned)
    ]
    first = [values["d.fc1"][-1] != 0 for values in slopes]
    inside = [(values["hidden.membrane"][-1] - 0.5).abs() < 0.5 for values in slopes]
    for has_slope, window in zip(first, inside, strict=True):
        assert not (has_slope & ~window).any()
    assert first[1].any()


def test_a_threshold_for_the_attack_leaves_the_scores_alone() -> None:
    graph = two_layers()
    x = (torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    plain, tuned = Victim(graph), Victim(graph, threshold=1.0)
    assert torch.equal(plain.scores(x), tuned.scores(x))
    classes = torch.zeros(5, dtype=torch.int64)
    assert not torch.equal(plain.gradient(x, classes), tuned.gradient(x, classes))


def test_another_surrogate_for_the_attack() -> None:
    wide = Surrogate(kind=SurrogateKind.ATAN, width=2.0)
    victim = Victim(two_layers(), surrogate=wide)
    x = (torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    lifs = two_layers()
    same = Victim(
        lifs.with_nodes(
            tuple(
                replace(node, op=replace(node.op, surrogate=wide)) if isinstance(node.op, Lif) else node
                for node in lifs.nodes
            )
        )
    )
    classes = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(victim.gradient(x, classes), same.gradient(x, classes))


@given(victims())
def test_the_penultimate_neurons_stand_in_front_of_the_last_layer(graph: Graph) -> None:
    layers = [node.name for node in graph.nodes if isinstance(node.op, Linear)]
    assume(layers)
    try:
        found = penultimate(graph)
    except CompileError:
        ahead = {name for name in graph.types if name != graph.output}
        assert not any(
            isinstance(graph.node(name).op, Lif)
            for name in ahead
            if list(graph.types).index(name) < list(graph.types).index(layers[-1])
        )
        return
    assert isinstance(found.op, Lif)
    assert list(graph.types).index(found.name) < list(graph.types).index(layers[-1])


def test_refusals() -> None:
    with pytest.raises(CompileError, match="no gradient goes through a latency code"):
        Victim(two_layers(Encoding.LATENCY))
    graph = two_layers()
    with pytest.raises(CompileError, match="no vector of class scores"):
        Victim(graph.with_nodes(graph.nodes[:-1], output="last"))
    with pytest.raises(CompileError, match="hidden: has a threshold for each channel"):
        Victim(two_layers(threshold=Param("th")), threshold=1.0)
    alone = graph.with_nodes((graph.nodes[0], graph.nodes[1], replace(graph.nodes[-1], inputs=("fc1",))))
    with pytest.raises(CompileError, match="no neurons in front of its last layer"):
        Victim(alone, threshold=1.0)
