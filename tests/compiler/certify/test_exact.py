"""Exact verdicts against every member of a set, against a second solver, and against bounds; what they refuse."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from compiler.certify import exact
from compiler.certify.exact import Answer, Effort, Goal, Means, decide
from compiler.certify.input_sets import Box, Chain, InputSet, L0Ball, LinfReal
from compiler.certify.integer_network import lower
from compiler.certify.integers import inexact_in_f32, is_alone_highest, scores
from compiler.certify.interval import interval
from compiler.certify.minimum_flips import minimum_flips
from compiler.certify.quantise import quantise_dyadic
from compiler.evaluate import evaluate
from compiler.ir import Compare, CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import Encode, Input, Lif, Linear, Readout
from tests.compiler.certify.networks import Kind, problem
from tests.compiler.certify.oracle import batch_of
from tests.compiler.certify.second import decide_by_smt

LOC = Loc("exact.py")
SPIKES = Kind(is_dyadic=True, decays=(0.25, 0.5, 0.75, 0.0, 1.0))


def dyadic_problem(seed: int) -> tuple[Graph, InputSet, int]:
    """A network on a grid, a set of spikes, and the class that has the highest score on the clean input."""
    made = problem(seed, SPIKES)
    graph = quantise_dyadic(made.graph, fraction_bits=10, decay_bits=6).graph
    return graph, made.inputs, made.label


def truth(graph: Graph, inputs: InputSet, label: int) -> Answer:
    """By every member, in f32, which computes these networks exactly."""
    assert not inexact_in_f32(lower(graph))
    values = evaluate(graph, batch_of(graph, inputs)).output.numpy()
    numerators = scores(lower(graph), batch_of(graph, inputs).numpy())
    order, exact_order = (v[:, :, None] > v[:, None, :] for v in (values, numerators))
    np.testing.assert_array_equal(order, exact_order)
    return Answer.ROBUST if is_alone_highest(numerators, label).all() else Answer.COUNTEREXAMPLE


def check_against_members(seeds: range, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    monkeypatch.setattr(exact, "ENUMERATED", 0)
    seen: Counter[str] = Counter()
    for seed in seeds:
        graph, inputs, label = dyadic_problem(seed)
        clean = np.expand_dims(inputs.clean, 1)
        if inexact_in_f32(lower(graph)) or not (
            is_alone_highest(scores(lower(graph), clean), label)[0] or seed % 8 == 0
        ):
            continue  # a label that does not win is a counterexample for every solver
        verdict = decide(graph, inputs, label)
        assert verdict.answer is truth(graph, inputs, label), seed
        if verdict.counterexample is not None:
            assert inputs.contains(verdict.counterexample)
        seen[f"{verdict.answer} {verdict.means}"] += 1
        seen[type(inputs).__name__] += 1
    return seen


def test_verdicts_are_those_of_every_member(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = check_against_members(range(220), monkeypatch)
    assert {"robust bounds", "robust cp-sat", "counterexample cp-sat"} <= set(seen)
    assert {"Box", "L0Ball", "Chain", "Retiming"} <= set(seen)


@pytest.mark.slow
def test_more_verdicts_are_those_of_every_member(monkeypatch: pytest.MonkeyPatch) -> None:
    check_against_members(range(1000, 3000), monkeypatch)


def check_against_z3(seeds: range, monkeypatch: pytest.MonkeyPatch) -> Counter[Answer]:
    monkeypatch.setattr(exact, "ENUMERATED", 0)
    seen: Counter[Answer] = Counter()
    for seed in seeds:
        graph, inputs, label = dyadic_problem(seed)
        first, second = decide(graph, inputs, label).answer, decide_by_smt(graph, inputs, label)
        assert first is second, seed
        seen[first] += 1
    return seen


def test_a_second_solver_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = check_against_z3(range(300, 350), monkeypatch)
    assert min(seen[Answer.ROBUST], seen[Answer.COUNTEREXAMPLE]) >= 10


@pytest.mark.slow
def test_a_second_solver_agrees_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    check_against_z3(range(10_000, 10_300), monkeypatch)


def test_given_bounds_change_no_verdict_and_leave_fewer_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "ENUMERATED", 0)
    for seed in range(400, 430):
        graph, inputs, label = dyadic_problem(seed)
        known = {
            name: (population.membrane.lower[:, 0].numpy(), population.membrane.upper[:, 0].numpy())
            for name, population in interval(graph, inputs).populations.items()
        }
        alone, helped = decide(graph, inputs, label), decide(graph, inputs, label, bounds=known)
        assert helped.answer is alone.answer
        assert helped.unstable <= alone.unstable


def test_bounds_that_are_false_are_noticed() -> None:
    graph = layer(np.eye(3), timesteps=2)
    inputs = Box(clean=np.zeros((2, 3), np.float32), free=np.ones((2, 3), bool))
    impossible = np.full((2, 3), 5.0)
    with pytest.raises(CompileError, match="lif: no potential is inside the bounds that were given"):
        decide(graph, inputs, 0, bounds={"lif": (impossible, impossible)})


def test_few_members_are_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying them and solving agree."""
    means: Counter[str] = Counter()
    for seed in range(500, 540):
        graph, inputs, label = dyadic_problem(seed)
        tried = decide(graph, inputs, label)
        means[tried.means] += 1
        with monkeypatch.context() as patch:
            patch.setattr(exact, "ENUMERATED", 0)
            assert decide(graph, inputs, label).answer is tried.answer
    assert means[Means.ENUMERATION] >= 10


def bits(rows: list[list[int]]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32)


def layer(
    weight: npt.ArrayLike,
    *,
    timesteps: int = 1,
    threshold: float = 1.0,
    compare: Compare = Compare.GE,
    reset: Reset = Reset.HARD,
    decay: float = 0.5,
) -> Graph:
    """One linear layer with its neurons, read out as rates."""
    values = np.array(weight, np.float32)
    nodes = (
        Node("x", Input(shape=(timesteps, "N", values.shape[1]), dtype=DType.SPIKE, axes="TNC"), (), LOC),
        Node("fc", Linear(weight=Param("w")), ("x",), LOC),
        Node("lif", Lif(decay=decay, threshold=threshold, compare=compare, reset=reset), ("fc",), LOC),
        Node("out", Readout(kind=Reading.RATE), ("lif",), LOC),
    )
    return Graph("layer", nodes, "out", {"w": values})


@pytest.mark.parametrize("reset", Reset)
@pytest.mark.parametrize("threshold", [1.0, 0.5, -0.5])
def test_neurons_that_always_fire_and_others_beside_them(
    reset: Reset, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer, in which bits that are always on drive some neurons over the threshold whatever the others do."""
    monkeypatch.setattr(exact, "ENUMERATED", 0)
    for seed in range(40):
        rng = np.random.default_rng([seed, 5])
        graph = layer(rng.integers(-3, 7, (3, 5)) / 4, timesteps=4, threshold=threshold, reset=reset)
        free = np.zeros((4, 5), bool)
        free.flat[rng.permutation(20)[:5]] = True
        inputs = Box(clean=(rng.random((4, 5)) < 0.6).astype(np.float32), free=free)
        numerators = scores(lower(graph), batch_of(graph, inputs).numpy())
        label = int(numerators.sum(0).argmax())
        is_robust = is_alone_highest(numerators, label).all()
        assert (decide(graph, inputs, label).answer is Answer.ROBUST) == is_robust, seed


@pytest.mark.parametrize(("compare", "answer"), [(Compare.GE, Answer.COUNTEREXAMPLE), (Compare.GT, Answer.ROBUST)])
def test_a_potential_at_the_threshold(compare: Compare, answer: Answer) -> None:
    """The rival's potential reaches exactly 1.0, its threshold, where both of its bits are on; then it ties."""
    graph = layer([[2.0, 0.0, 0.0], [0.0, 0.5, 0.5]], compare=compare)
    inputs = Box(clean=bits([[1, 0, 0]]), free=np.array([[False, True, True]]))
    assert decide(graph, inputs, 0).answer is answer


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("aim", ["untargeted", "targeted"])
def test_minimum_flips_is_that_of_every_input(seed: int, aim: str) -> None:
    rng = np.random.default_rng(seed)
    graph = layer(rng.integers(-4, 8, (3, 3)) / 4, timesteps=3, reset=list(Reset)[seed % 3])
    clean = (rng.random((3, 3)) < 0.5).astype(np.float32)
    network, every = lower(graph), Box(clean=clean, free=np.ones((3, 3), bool))
    listed = batch_of(graph, every).numpy()
    label = int(scores(network, clean[:, None]).argmax())
    goal = Goal(label=label, target=None if aim == "untargeted" else (label + 1) % 3)
    hits = goal.is_hit(network, listed)
    distances = (listed != clean[:, None]).sum((0, 2))[hits]
    got = minimum_flips(graph, clean, label, target=goal.target)
    assert got.flips == (distances.min() if len(distances) else None)
    if got.example is None:
        assert got.lower == clean.size + 1
    else:
        assert got.is_optimal
        assert (got.example != clean).sum() == got.flips
        assert goal.is_hit(network, got.example[:, None])[0]


@pytest.mark.parametrize("seed", range(6))
def test_minimum_flips_by_search_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no time is left for one ball after the other, the minimisation gives the same number."""
    rng = np.random.default_rng([seed, 1])
    graph = layer(rng.integers(-4, 8, (3, 4)) / 4, timesteps=3, reset=list(Reset)[seed % 3])
    clean = (rng.random((3, 4)) < 0.5).astype(np.float32)
    label = int(scores(lower(graph), clean[:, None]).argmax())
    want = minimum_flips(graph, clean, label)
    monkeypatch.setattr("compiler.certify.minimum_flips.PROOF_SHARE", 0.0)
    got = minimum_flips(graph, clean, label)
    assert (got.flips, got.lower) == (want.flips, want.lower)


def test_a_known_example_needs_only_the_proof_below_it() -> None:
    """Each bit is a spike of its class, and class 0 leads by two: it takes two flips to tie, four are known.

    Of those, any one can be taken back, and then one more.
    """
    graph = layer(np.eye(3) * 2, timesteps=2)
    clean = bits([[1, 0, 0], [1, 0, 0]])
    known = bits([[0, 1, 1], [1, 1, 0]])
    got = minimum_flips(graph, clean, 0, known=known)
    assert (got.flips, got.lower) == (2, 2)
    worse = minimum_flips(graph, clean, 0, known=known, effort=Effort(seconds=0.0))
    assert (worse.flips, worse.lower) == (2, 0)
    with pytest.raises(CompileError, match="the known input is not the clean one with allowed flips"):
        minimum_flips(graph, clean, 0, known=known, mask=np.zeros((2, 3), bool))


def test_a_counterexample_of_a_chain_is_the_code_of_an_image() -> None:
    rng = np.random.default_rng(3)
    graph = layer(rng.integers(-4, 8, (3, 6)) / 4, timesteps=4)
    draws = rng.random((4, 6), np.float32)
    inputs = Chain(image=rng.random(6, np.float32), eps=0.6, draws=draws)
    label = int(scores(lower(graph), inputs.clean[:, None]).argmax())
    found = decide(graph, inputs, label).counterexample
    assert found is not None
    np.testing.assert_array_equal((draws < inputs.image_of(found)).astype(np.float32), found)


def hard_problem() -> tuple[Graph, L0Ball, int]:
    """Too many members to list, and no bounds that decide."""
    rng = np.random.default_rng(0)
    hidden = layer(rng.integers(-4, 6, (24, 40)) / 8, timesteps=4)
    nodes = (
        *hidden.nodes[:-1],
        Node("fc2", Linear(weight=Param("w2")), ("lif",), LOC),
        Node("lif2", Lif(decay=0.25, threshold=0.5), ("fc2",), LOC),
        Node("out", Readout(kind=Reading.RATE), ("lif2",), LOC),
    )
    graph = Graph(
        "hard", nodes, "out", {**hidden.parameters, "w2": (rng.integers(-4, 6, (4, 24)) / 8).astype(np.float32)}
    )
    clean = (rng.random((4, 40)) < 0.3).astype(np.float32)
    return graph, L0Ball(clean=clean, k=6), int(scores(lower(graph), clean[:, None]).argmax())


def test_without_time_nothing_is_known() -> None:
    graph, inputs, label = hard_problem()
    verdict = decide(graph, inputs, label, effort=Effort(seconds=0.0))
    assert (verdict.answer, verdict.means, verdict.counterexample) == (Answer.UNKNOWN, Means.CP_SAT, None)


def test_one_effort_gives_one_example() -> None:
    graph, inputs, label = hard_problem()
    found = [decide(graph, inputs, label, effort=Effort(seconds=600.0, work=5.0)).counterexample for _ in range(2)]
    assert found[0] is not None
    np.testing.assert_array_equal(found[0], found[1])


def test_a_solver_that_lies_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs, label = hard_problem()
    monkeypatch.setattr(Goal, "is_hit", lambda self, network, batch: np.zeros(1, bool))
    with pytest.raises(AssertionError, match="none in integers"):
        decide(graph, inputs, label)


def test_sets_of_reals_are_refused() -> None:
    graph = layer(np.eye(3))
    real = LinfReal(clean=np.full((1, 3), 0.5, np.float32), eps=0.1)
    with pytest.raises(CompileError, match="takes spikes, the input set has real values"):
        decide(graph, real, 0)


def test_what_does_not_fit_is_refused() -> None:
    graph = layer(np.eye(3))
    inputs = Box(clean=np.zeros((1, 3), np.float32), free=np.ones((1, 3), bool))
    with pytest.raises(CompileError, match=r"x: an input set is \(2, 3\), one sample of the network \(1, 3\)"):
        decide(graph, Box(clean=np.zeros((2, 3), np.float32), free=np.ones((2, 3), bool)), 0)
    with pytest.raises(CompileError, match="out: label 3 is none of 3 classes"):
        decide(graph, inputs, 3)
    with pytest.raises(CompileError, match="out: target -1 is none of 3 classes"):
        minimum_flips(graph, inputs.clean, 0, target=-1)
    with pytest.raises(CompileError, match=r"lif: is .* not one score a class"):
        decide(graph.with_nodes(graph.nodes[:-1], output="lif"), inputs, 0)


def test_an_encoding_has_to_be_dropped() -> None:
    graph = layer(np.eye(3), timesteps=2)
    source = Node("image", Input(shape=("N", 3), dtype=DType.F32, axes="NC"), (), LOC)
    encode = Node("x", Encode(kind=Encoding.BERNOULLI, timesteps=2, seed=0), ("image",), LOC)
    encoded = graph.with_nodes((source, encode, *graph.nodes[1:]))
    with pytest.raises(CompileError, match="x: bernoulli encoding has no integer arithmetic"):
        decide(encoded, Box(clean=np.zeros((2, 3), np.float32), free=np.ones((2, 3), bool)), 0)


@pytest.mark.parametrize(("module", "call"), [("ortools.sat.python", decide), ("z3", decide_by_smt)])
def test_a_missing_solver_is_said(module: str, call: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    inputs = Box(clean=np.zeros((1, 3), np.float32), free=np.ones((1, 3), bool))
    with pytest.raises(CompileError, match="which is not installed"):
        call(layer(np.eye(3)), inputs, 0)  # type: ignore[operator]
