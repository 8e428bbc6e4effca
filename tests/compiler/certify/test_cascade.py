"""Verdicts against the truth by enumeration, in both arithmetics; what is certified beside a sample changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from compiler.certify.cascade import CHOSEN, Cascade, certify
from compiler.certify.counterexamples import favoured
from compiler.certify.input_sets import Box, Chain, InputSet, L0Ball, LinfReal, Retiming
from compiler.certify.integer_network import lower
from compiler.certify.integers import is_alone_highest, scores
from compiler.certify.quantise import quantise_dyadic
from compiler.certify.verdicts import Answer, Arithmetic, Means, Method, Verdict
from compiler.evaluate import evaluate
from compiler.ir import Graph
from hwmodel.errors import CompileError
from tests.compiler.certify.networks import Kind, Problem, input_set, problem
from tests.compiler.certify.oracle import batch_of, truth

FIELDS = ("answer", "method", "arithmetic", "margin", "means", "timed_out")
FEW_STEPS = Cascade(slope_steps=2)
SPIKES, REALS = Kind(), Kind(takes_reals=True)


def verdict_of(given: Problem, cascade: Cascade | None = None, arithmetic: Arithmetic = Arithmetic.F32) -> Verdict:
    (found,) = certify(given.graph, [given.inputs], [given.label], cascade=cascade, arithmetic=arithmetic)
    return found


def is_wrong(graph: Graph, x: np.ndarray, label: int) -> bool:
    """Whether the label is not alone at the top, by `evaluate` of that input alone."""
    axis = graph.types[graph.input.name].axes.index("N")
    row = evaluate(graph, torch.from_numpy(np.expand_dims(x, axis).copy())).output[0].tolist()
    return any(score >= row[label] for j, score in enumerate(row) if j != label)


def quantised(given: Problem) -> Problem:
    """The problem on a dyadic grid, with the label that it then has."""
    graph = quantise_dyadic(given.graph).graph
    clean = np.expand_dims(given.inputs.clean, 1)
    return replace(given, graph=graph, label=int(scores(lower(graph), clean)[0].argmax()))


@pytest.mark.parametrize("kind", [SPIKES, REALS], ids=["spikes", "reals"])
def test_no_verdict_is_wrong(kind: Kind) -> None:
    """Of sets of reals, many members are drawn; all others are listed."""
    seen: Counter[Answer] = Counter()
    for seed in range(36):
        given = problem(seed, kind)
        found = verdict_of(given)
        seen[found.answer] += 1
        true = truth(given.graph, given.inputs).is_robust(given.label)
        assert found.arithmetic is Arithmetic.F32
        match found.answer:
            case Answer.ROBUST:
                assert true, seed
                assert found.counterexample is None
                assert found.margin is not None or found.method is Method.EXACT
            case Answer.COUNTEREXAMPLE:
                assert found.counterexample is not None
                assert given.inputs.contains(found.counterexample), seed
                assert is_wrong(given.graph, found.counterexample, given.label), seed
                assert found.is_clean_error == np.array_equal(found.counterexample, given.inputs.clean)
            case Answer.UNKNOWN:
                assert not found.timed_out
    assert seen[Answer.ROBUST] > 5
    assert seen[Answer.COUNTEREXAMPLE] > 5


def test_integers_leave_nothing_unknown() -> None:
    """Small sets are listed by `Method.EXACT`; the truth here is listed apart from it."""
    how: Counter[tuple[Method | None, Answer]] = Counter()
    for seed in range(32, 60):
        given = quantised(problem(seed))
        found = verdict_of(given, arithmetic=Arithmetic.INTEGERS)
        batch = batch_of(given.graph, given.inputs).numpy()
        true = bool(is_alone_highest(scores(lower(given.graph), batch), given.label).all())
        assert found.answer is (Answer.ROBUST if true else Answer.COUNTEREXAMPLE), seed
        how[found.method, found.answer] += 1
    assert how[Method.IBP, Answer.ROBUST] > 2
    assert how[Method.EXACT, Answer.ROBUST] > 0
    assert how[Method.SEARCH, Answer.COUNTEREXAMPLE] > 2


def test_exact_verdicts_alone_are_the_same() -> None:
    """Also by the solver, which no small set reaches by itself."""
    for seed in range(12):
        given = quantised(problem(seed))
        want = verdict_of(given, arithmetic=Arithmetic.INTEGERS).answer
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("compiler.certify.exact.ENUMERATED", 0)
            for methods in ((Method.EXACT,), (Method.IBP, Method.EXACT), (Method.HULL, Method.BACKWARD, Method.EXACT)):
                found = verdict_of(given, Cascade(methods=methods), Arithmetic.INTEGERS)
                assert found.answer is want, (seed, methods)
                assert found.means in (None, Means.BOUNDS, Means.CP_SAT)


def test_f32_has_exact_verdicts_where_it_computes_exactly() -> None:
    """On a coarse grid; elsewhere `Method.EXACT` says nothing."""
    dyadic = Kind(is_dyadic=True, extras=False, decays=(0.5, 0.25), thresholds=(0.25, 0.5))
    methods = Cascade(methods=(Method.EXACT,))
    found = [verdict_of(problem(seed, dyadic), methods) for seed in range(20)]
    truths = [(p := problem(seed, dyadic)) and truth(p.graph, p.inputs).is_robust(p.label) for seed in range(20)]
    for one, is_robust in zip(found, truths, strict=True):
        assert one.answer in (Answer.UNKNOWN, Answer.ROBUST if is_robust else Answer.COUNTEREXAMPLE)
    assert sum(one.answer is Answer.ROBUST for one in found) > 3
    other = Kind(is_dyadic=False)
    for seed in range(20):
        one = verdict_of(problem(seed, other), methods)
        assert one.answer is Answer.UNKNOWN or one.is_clean_error


def test_nothing_is_robust_by_sampling() -> None:
    for seed in range(12):
        given = problem(seed, SPIKES)
        assert verdict_of(given, Cascade(methods=(Method.SEARCH,))).answer is not Answer.ROBUST


def test_bounds_only_grow_along_the_cascade() -> None:
    """More methods never give a lower margin, nor fewer proofs."""
    wins = 0
    for seed in range(24):
        given = problem(seed)
        tried = [Cascade(methods=(Method.IBP, *more)) for more in ((), (Method.HULL,), (Method.HULL, Method.BACKWARD))]
        tried.append(Cascade(methods=(Method.IBP, Method.HULL, Method.BACKWARD, Method.SLOPES), slope_steps=4))
        found = [verdict_of(given, cascade) for cascade in tried]
        margins = [-np.inf if one.margin is None else one.margin for one in found]
        assert margins == sorted(margins), seed
        proofs = [one.answer is Answer.ROBUST for one in found]
        assert proofs == sorted(proofs), seed
        wins += proofs[-1] and not proofs[0]
    assert wins > 0


def all_of(verdict: Verdict) -> tuple[object, ...]:
    """What two equal verdicts agree on."""
    example = None if verdict.counterexample is None else verdict.counterexample.tobytes()
    return (*(getattr(verdict, name) for name in FIELDS), example)


@pytest.mark.parametrize("seed", [42, 43])
def test_what_is_beside_a_sample_changes_nothing(seed: int) -> None:
    """Many sets around one network, in one call, in two, and in another order; some share a place in their blocks."""
    given = problem(seed)
    rng = np.random.default_rng(seed)
    sets = [input_set(rng, given.graph) for _ in range(20)]
    labels = [label_of(given.graph, one.clean) for one in sets]
    samples = [*range(5, 23), 37, 53]
    together = list(certify(given.graph, sets, labels, samples=samples, cascade=FEW_STEPS))
    assert len({one.answer for one in together}) > 1
    order = rng.permutation(20).tolist()
    mixed = certify(
        given.graph,
        [sets[i] for i in order],
        [labels[i] for i in order],
        samples=[samples[i] for i in order],
        cascade=FEW_STEPS,
    )
    for i, other in zip(order, mixed, strict=True):
        assert all_of(together[i]) == all_of(other)
        (alone,) = certify(given.graph, [sets[i]], [labels[i]], samples=[samples[i]], cascade=FEW_STEPS)
        assert all_of(together[i]) == all_of(alone)


def label_of(graph: Graph, clean: np.ndarray) -> int:
    axis = graph.types[graph.input.name].axes.index("N")
    return int(evaluate(graph, torch.from_numpy(np.expand_dims(clean, axis).copy())).output.argmax())


def test_a_time_limit_gives_unknown() -> None:
    timed = 0
    for seed in range(14):
        given = quantised(problem(seed))
        fast = verdict_of(given, Cascade(seconds=1e-9), Arithmetic.INTEGERS)
        slow = verdict_of(given, arithmetic=Arithmetic.INTEGERS)
        assert fast.answer in (slow.answer, Answer.UNKNOWN)
        assert fast.timed_out == (fast.answer is Answer.UNKNOWN)
        timed += fast.timed_out
    assert timed > 0


def test_little_work_gives_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a limit that does not depend on the machine, so that it is no time-out."""
    monkeypatch.setattr("compiler.certify.exact.ENUMERATED", 0)
    cascade = Cascade(methods=(Method.EXACT,), work=1e-12)
    found = [verdict_of(quantised(problem(seed)), cascade, Arithmetic.INTEGERS) for seed in range(16)]
    assert any(one.answer is Answer.UNKNOWN for one in found)
    assert not any(one.timed_out for one in found)


def sets_of_each_kind() -> Sequence[InputSet]:
    rng = np.random.default_rng(0)
    clean = (rng.random((3, 4)) < 0.5).astype(np.float32)
    free = np.arange(12).reshape(3, 4) < 6
    return (
        Box(clean=clean, free=free),
        L0Ball(clean=clean, k=3),
        L0Ball(clean=clean, k=1, per_step=True),
        Retiming(clean=clean, moved=2),
        Chain(image=rng.random(4).astype(np.float32), eps=0.3, draws=rng.random((3, 4), np.float32)),
        LinfReal(clean=rng.random(4).astype(np.float32), eps=0.2),
    )


@pytest.mark.parametrize("inputs", sets_of_each_kind(), ids=lambda one: type(one).__name__)
def test_favoured_members_are_the_least(inputs: InputSet) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        form = torch.from_numpy(rng.normal(size=inputs.shape))
        x = favoured(inputs, form)
        assert x is not None
        assert inputs.contains(x)
        least = float(inputs.support(form))
        assert float((form * torch.from_numpy(x)).sum()) == pytest.approx(least, abs=1e-6)


def test_wrong_labels_and_lengths() -> None:
    given = problem(1)
    with pytest.raises(CompileError, match="label 3 is none of the 3 classes"):
        list(certify(given.graph, [given.inputs], [3]))
    with pytest.raises(CompileError, match="1 sets, 2 labels and 1 samples"):
        certify(given.graph, [given.inputs], [0, 1])


def test_networks_without_class_scores() -> None:
    given = problem(1)
    inner = next(node.name for node in given.graph.nodes if given.graph.types[node.name].has("T") and node.inputs)
    cut = given.graph.with_nodes(
        given.graph.nodes[: [n.name for n in given.graph.nodes].index(inner) + 1], output=inner
    )
    with pytest.raises(CompileError, match="is no vector of class scores"):
        certify(cut, [given.inputs], [0])


def test_integers_need_a_grid_and_spikes() -> None:
    real = problem(0, REALS)
    with pytest.raises(CompileError, match="real inputs are on no grid"):
        verdict_of(real, arithmetic=Arithmetic.INTEGERS)
    with pytest.raises(CompileError, match="2\\*\\*-20"):
        verdict_of(problem(0, Kind(is_dyadic=False)), arithmetic=Arithmetic.INTEGERS)


WRONG: dict[str, dict[str, object]] = {
    "no methods": {"methods": ()},
    "clean": {"methods": (Method.CLEAN,)},
    "twice": {"methods": (Method.IBP, Method.IBP)},
    "no time": {"seconds": 0.0},
    "time that is no number": {"seconds": float("nan")},
    "no work": {"work": -1.0},
    "no rounds": {"rounds": 0},
    "negative steps": {"slope_steps": -1},
    "negative seed": {"seed": -1},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers(name: str) -> None:
    with pytest.raises(CompileError):
        Cascade(**WRONG[name])  # type: ignore[arg-type]


def test_the_order_is_that_of_cost() -> None:
    assert CHOSEN == (Method.IBP, Method.SEARCH, Method.HULL, Method.BACKWARD, Method.SLOPES, Method.EXACT)
