"""What is certified is broken by no attack and no sample, and what an attack breaks is certified by nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compiler.attack import Case, Settings, Status, Victim
from compiler.attack.budget import Budget, Norm
from compiler.attack.goal import decided
from compiler.attack.methods import Method, method
from compiler.certify import exact
from compiler.certify.cascade import Cascade, certify
from compiler.certify.exact import Answer, decide
from compiler.certify.input_sets import Chain, InputSet, L0Ball, LinfReal
from compiler.certify.integer_network import lower
from compiler.certify.integers import inexact_in_f32
from compiler.certify.interval import interval
from compiler.certify.last_layer import is_robust
from compiler.certify.last_layer import margins as interval_margins
from compiler.certify.linear import Intermediate, linear_margins
from compiler.certify.quantise import quantise_dyadic
from compiler.certify.relaxation import Relaxation
from compiler.certify.slopes import Ascent
from compiler.evaluate import evaluate
from compiler.ir import Encoding, Graph
from compiler.passes import PrependEncode
from tests.compiler.certify.networks import Kind, problem
from tests.compiler.certify.oracle import truth
from tests.compiler.certify.second import decide_by_smt

Floats = npt.NDArray[np.float32]
ATTACKS = (Method.BIM, Method.RANDOM)
SEARCH = Settings(iterations=8)
DRAWN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A network, a set of inputs to it, the label of the clean one, and attacks that stay inside the set.

    victim: what is attacked; of a Bernoulli code, the network with the encoding in front of `graph`.
    """

    graph: Graph
    inputs: InputSet
    label: int
    victim: Graph
    x: Floats  # as the victim takes it
    budget: Budget


def told(graph: Graph, x: Floats) -> torch.Tensor:
    """The class that alone has the highest score, -1 where none has. Shapes: x (M, ...) without N -> (M,)."""
    axis = graph.types[graph.input.name].axes.index("N")
    scores = evaluate(graph, torch.from_numpy(np.moveaxis(x, 0, axis).copy())).output
    return scores.argmax(1).masked_fill(~decided(scores), -1)


def lively(seed: int, kind: Kind) -> Graph:
    """The first random network from a seed on that tells several classes apart."""
    rng = np.random.default_rng([seed, 4])
    while True:
        graph = problem(seed, kind).graph
        x = rng.random((40, *shape_of(graph)), np.float32)
        classes = told(graph, x if kind.takes_reals else np.round(x)).tolist()
        if sum(classes.count(k) >= 4 for k in range(3)) >= 2:
            return graph
        seed += 5000


def shape_of(graph: Graph) -> tuple[int, ...]:
    """Of one sample."""
    kind = graph.types[graph.input.name]
    return tuple(size for size, axis in zip(kind.shape, kind.axes, strict=True) if not isinstance(size, str))


def target(seed: int, what: str) -> Target:
    """Around a sample of a random network, told rightly: flips, real images, or images under fixed draws."""
    rng = np.random.default_rng([seed, 3])
    graph = lively(seed, Kind(takes_reals=what == "reals"))
    shape, eps, k = shape_of(graph), float(rng.choice([0.02, 0.1, 0.3])), int(rng.integers(1, 3))
    budget = Budget(norm=Norm.L0, bound=k) if what == "flips" else Budget(norm=Norm.LINF, bound=eps)
    label = -1
    while label < 0:
        x = rng.random(shape[1:] if what == "chain" else shape, np.float32)
        x = np.round(x) if what == "flips" else x
        inputs = around(x, what, eps, k, rng.random(shape, np.float32))
        label = int(told(graph, inputs.clean[None])[0])
    victim = PrependEncode(Encoding.BERNOULLI, 0)(graph) if what == "chain" else graph
    return Target(graph=graph, inputs=inputs, label=label, victim=victim, x=x, budget=budget)


def around(x: Floats, what: str, eps: float, k: int, draws: Floats) -> InputSet:
    """The set that a budget leaves an attack."""
    match what:
        case "flips":
            return L0Ball(clean=x, k=k)
        case "reals":
            return LinfReal(clean=x, eps=eps)
        case _:
            return Chain(image=x, eps=eps, draws=draws)


def examples(given: Target) -> Iterator[Floats]:
    """What attacks end at and random members, as inputs of the network."""
    case = Case(sample=0, x=given.x, label=given.label)
    settings = Settings(iterations=8, budget=given.budget)
    for name in ATTACKS:
        for outcome in method(name)(Victim(given.victim), [case], settings):
            if outcome.status is Status.CLEAN_ERROR:
                continue
            ends = outcome.adversarial
            yield (given.inputs.draws < ends).astype(np.float32) if isinstance(given.inputs, Chain) else ends
    yield from given.inputs.sample(np.random.default_rng(0), DRAWN)


def proofs(given: Target) -> dict[str, bool]:
    """What each method says, whether alone or in the cascade."""
    graph, sets, labels = given.graph, [given.inputs], [given.label]
    found = {"S-IBP": interval_margins(graph, interval(graph, sets), labels)}
    for relaxation in Relaxation:
        for intermediate in Intermediate:
            found[f"{relaxation} {intermediate}"] = linear_margins(
                graph, sets, labels, relaxation=relaxation, intermediate=intermediate
            )
    found["slopes"] = linear_margins(graph, sets, labels, ascent=Ascent(steps=3))
    return {name: bool(is_robust(margins)) for name, margins in found.items()}


def is_broken(given: Target, x: Floats) -> bool:
    """Whether the label is not alone at the top of a member's scores."""
    assert given.inputs.contains(x)
    return int(told(given.graph, x[None])[0]) != given.label


def check(seeds: range, what: str) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        given = target(seed, what)
        broken = [is_broken(given, x) for x in examples(given)]
        proved = proofs(given)
        (verdict,) = certify(given.graph, [given.inputs], [given.label], cascade=Cascade(rounds=3, slope_steps=3))
        if any(broken):
            assert not any(proved.values()), (seed, proved)
            assert verdict.answer is not Answer.ROBUST, seed
        if any(proved.values()):
            assert verdict.answer is not Answer.COUNTEREXAMPLE, seed
        if verdict.counterexample is not None:
            assert is_broken(given, verdict.counterexample), seed
        seen[verdict.answer] += 1
        seen["broken"] += any(broken)
        seen["broken by an attack"] += any(broken[:-DRAWN])
        seen.update(name for name, holds in proved.items() if holds)
    return seen


@pytest.mark.parametrize("what", ["flips", "reals", "chain"])
def test_attacks_and_certificates_never_contradict(what: str) -> None:
    seen = check(range(24), what)
    assert min(seen[Answer.ROBUST], seen[Answer.COUNTEREXAMPLE], seen["broken by an attack"]) >= 3, seen
    assert seen["S-IBP"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("what", ["flips", "reals", "chain"])
def test_attacks_and_certificates_never_contradict_more_often(what: str) -> None:
    check(range(1000, 1400), what)


def check_exact(seeds: range, monkeypatch: pytest.MonkeyPatch) -> Counter[Answer]:
    """CP-SAT, Z3 and the list of all members, in f32, which computes these networks exactly."""
    monkeypatch.setattr(exact, "ENUMERATED", 0)
    seen: Counter[Answer] = Counter()
    for seed in seeds:
        made = problem(seed, Kind(is_dyadic=True, decays=(0.25, 0.5, 0.75, 0.0, 1.0)), bits=6)
        graph = quantise_dyadic(made.graph, fraction_bits=10, decay_bits=6).graph
        if inexact_in_f32(lower(graph)):
            continue
        by_list = Answer.ROBUST if truth(graph, made.inputs).is_robust(made.label) else Answer.COUNTEREXAMPLE
        assert decide(graph, made.inputs, made.label).answer is by_list, seed
        assert decide_by_smt(graph, made.inputs, made.label) is by_list, seed
        margins = linear_margins(graph, [made.inputs], [made.label])
        assert by_list is Answer.ROBUST or not is_robust(margins)[0], seed
        seen[by_list] += 1
    return seen


def test_two_solvers_and_enumeration_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = check_exact(range(700, 724), monkeypatch)
    assert min(seen[Answer.ROBUST], seen[Answer.COUNTEREXAMPLE]) >= 4, seen


@pytest.mark.slow
def test_two_solvers_and_enumeration_agree_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exact(range(20_000, 20_300), monkeypatch)


def test_the_oracle_tells_an_unsound_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Margins that are too good are found out."""
    good = interval_margins

    def better(graph: Graph, bounds: object, labels: object) -> torch.Tensor:
        return good(graph, bounds, labels) + 0.6  # type: ignore[arg-type]

    monkeypatch.setitem(globals(), "interval_margins", better)
    with pytest.raises(AssertionError):
        check(range(24), "flips")
