"""Exact verdicts decided again: by every member, by the first path, and by both solvers; forged ones are refused."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.certify.certificate import described, solved_certificate
from compiler.certify.exact import Answer, decide
from compiler.certify.input_sets import Box, InputSet, L0Ball, LinfReal
from compiler.certify.integer_network import lower
from compiler.certify.integers import inexact_in_f32, is_alone_highest, scores
from compiler.certify.quantise import quantise_dyadic
from compiler.certify.verdicts import Arithmetic
from compiler.certify_check import again
from compiler.certify_check.certificate import Certificate
from compiler.certify_check.check import Status, check
from compiler.certify_check.formulas import Expression, Formulas, Rule, variable
from compiler.certify_check.layers import layers
from compiler.certify_check.membership import members
from compiler.certify_check.ranges import Knowledge
from compiler.certify_check.rounding import Reals
from compiler.certify_check.sets import read_inputs
from compiler.certify_check.solvers import Solution, Undecided, by_cp_sat, by_z3, solution
from compiler.certify_check.unrolled import Unrolled
from compiler.ir import CompileError, DType, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import Input, Lif, Linear, Readout
from tests.compiler.certify.networks import Kind, problem
from tests.compiler.certify.oracle import batch_of

SPIKES = Kind(is_dyadic=True, decays=(0.25, 0.5, 0.75, 0.0, 1.0))
SOLVERS = [by_z3, by_cp_sat]
Solver = Callable[[Formulas, float], Solution | None]

pytest.importorskip("z3")


def dyadic_problem(seed: int) -> tuple[Graph, InputSet, int]:
    """A network that integers compute exactly, a set of spikes, and the class of the clean input."""
    made = problem(seed, SPIKES)
    return quantise_dyadic(made.graph, fraction_bits=10, decay_bits=6).graph, made.inputs, made.label


def unrolled(graph: Graph, inputs: InputSet, slack: float = 0.0) -> Unrolled:
    """Formulas that rest on intervals of potentials which are wider than they need be."""

    def judge(known: Knowledge, name: str, step: int, lower: Reals, upper: Reals) -> tuple[Reals, Reals]:
        return lower - slack, upper + slack

    known = Knowledge(graph, read_inputs(described(inputs), graph.types[graph.input.name]), layers(graph))
    known.walk(judge)
    return Unrolled(known, time.perf_counter() + 30.0)


def check_one(seed: int) -> str:
    """Formulas under both solvers, every member, and the first path say the same; of what kind the problem was.

    Intervals alone decide nearly all that is robust of so small networks: wide ones leave it to the formulas.
    """
    graph, inputs, label = dyadic_problem(seed)
    numerators = scores(lower(graph), batch_of(graph, inputs).numpy())
    is_robust = bool(is_alone_highest(numerators, label).all())
    for slack, solver in itertools.product((0.0, 2.0), SOLVERS):
        own = unrolled(graph, inputs, slack)
        is_open = own.demand_a_rival(label)
        assert is_robust or is_open
        assert (solver(own.formulas, 30.0) is None) == is_robust
    assert (decide(graph, inputs, label).answer is Answer.ROBUST) == is_robust
    result = check(graph, solved_certificate(graph, inputs, label, Arithmetic.INTEGERS))
    assert result.status is (Status.RE_SOLVED if is_robust else Status.REFUTED), result.reason
    return f"{type(inputs).__name__} {is_robust} {is_open}"


def test_answers_are_those_of_every_member() -> None:
    seen = Counter(check_one(seed) for seed in range(30))
    for kind in ("Box", "L0Ball", "Retiming", "Chain"):
        assert seen[f"{kind} True True"] > 0, f"no robust {kind} was left to the solvers"
        assert seen[f"{kind} False True"] > 0


@settings(max_examples=10, deadline=None)
@given(st.integers(1000, 2**32 - 1))
def test_answers_are_those_of_every_member_of_any_network(seed: int) -> None:
    check_one(seed)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.integers(1000, 2**32 - 1))
def test_answers_are_those_of_every_member_of_many_networks(seed: int) -> None:
    check_one(seed)


def test_rules_of_sets_hold_of_the_members_alone() -> None:
    kinds = Counter[str]()
    for seed in range(120):
        one = problem(seed, SPIKES, bits=5)
        formulas, own = Formulas(), read_inputs(described(one.inputs), one.graph.types[one.graph.input.name])
        bits = members(own, formulas)
        if len(formulas.bounds) > 8:
            continue
        found = 0
        for values in itertools.product((0, 1), repeat=len(formulas.bounds)):
            x = own.clean.astype(np.float32)
            for place, name in bits.items():
                x[place] = values[name]
            is_allowed = all(holds(rule, values) for rule in formulas.rules)
            assert is_allowed == one.inputs.contains(x.reshape(one.inputs.shape))
            found += is_allowed
        assert found == one.inputs.count
        kinds[type(own).__name__] += 1
    assert min(kinds[kind] for kind in ("Free", "Few", "Moved", "Codes")) > 2


def holds(rule: Rule, values: tuple[int, ...]) -> bool:
    is_on = all(values[own] if own >= 0 else not values[~own] for own in rule.when)
    return not is_on or sum(factor * values[name] for name, factor in rule.terms.items()) >= rule.least


def test_formulas_of_one_input_leave_the_scores_no_choice() -> None:
    """Wide intervals decide no spike of any neuron: each one, and so each score, follows from the formulas alone."""
    for seed in range(80):
        graph, inputs, _ = dyadic_problem(seed)
        (x,) = inputs.sample(np.random.default_rng(seed), 1)
        own = unrolled(graph, Box(clean=x, free=np.zeros(x.shape, bool)), slack=4.0)
        network = lower(graph)
        want = scores(network, np.expand_dims(x, graph.types[graph.input.name].axes.index("N")))[0].tolist()
        others = []
        for number, score in enumerate(want):
            off = own.value(graph.output, 0, number) - Expression(Fraction(score, network.scales[graph.output][0]))
            others += [own.formulas.boolean(), own.formulas.boolean()]
            own.formulas.above(off, when=[others[-2]], strict=True)
            own.formulas.above(Expression(Fraction(0)) - off, when=[others[-1]], strict=True)
        assert by_cp_sat(own.formulas, 30.0) is not None, seed
        own.formulas.any_of(others)
        assert by_cp_sat(own.formulas, 30.0) is None, seed


def deep(seed: int, reset: Reset = Reset.HARD) -> tuple[Graph, L0Ball, int]:
    """Three populations over four steps, and any flip."""
    rng = np.random.default_rng([seed, 11])
    arrays, nodes = {}, [Node("x", Input(shape=(4, "N", 8), dtype=DType.SPIKE, axes="TNC"), (), Loc("deep", 1))]
    for number, (taken, size) in enumerate(itertools.pairwise((8, 8, 6, 3))):
        arrays[f"w{number}"] = (np.round(rng.normal(0.05, 0.4, (size, taken)) * 64) / 64).astype(np.float32)
        nodes.append(Node(f"a{number}", Linear(weight=Param(f"w{number}")), (nodes[-1].name,), Loc("deep", 2)))
        op = Lif(decay=0.25, threshold=0.25, reset=reset)
        nodes.append(Node(f"s{number}", op, (nodes[-1].name,), Loc("deep", 3)))
    nodes.append(Node("y", Readout(kind=Reading.RATE), (nodes[-1].name,), Loc("deep", 4)))
    graph = Graph("deep", tuple(nodes), "y", arrays)
    clean = (rng.random((4, 8)) < 0.4).astype(np.float32)
    label = int(scores(lower(graph), clean[:, None]).argmax())
    return graph, L0Ball(clean=clean, k=1), label


def first_and_second(seed: int, reset: Reset) -> bool:
    """Whether both say that the label holds."""
    graph, inputs, label = deep(seed, reset)
    is_robust = decide(graph, inputs, label).answer is Answer.ROBUST
    own = unrolled(graph, inputs)
    own.demand_a_rival(label)
    for solver in SOLVERS:
        assert (solver(own.formulas, 30.0) is None) == is_robust
    return is_robust


@pytest.mark.parametrize("reset", list(Reset))
def test_answers_are_those_of_the_first_path(reset: Reset) -> None:
    seen = Counter(first_and_second(seed, reset) for seed in range(5))
    assert seen[False] > 0


@pytest.mark.slow
@pytest.mark.parametrize("reset", list(Reset))
def test_answers_are_those_of_the_first_path_more_often(reset: Reset) -> None:
    seen = Counter(first_and_second(seed, reset) for seed in range(100, 180))
    assert min(seen[False], seen[True]) > 0


@cache
def verdicts(answer: Answer) -> list[tuple[Graph, L0Ball, int]]:
    """Those of some networks of which that is the answer."""
    return [made for made in map(deep, range(5)) if decide(*made).answer is answer]


def test_a_verdict_about_what_is_so_is_solved_again() -> None:
    assert len(verdicts(Answer.ROBUST)) > 1
    for (graph, inputs, label), arithmetic in itertools.product(verdicts(Answer.ROBUST), Arithmetic):
        result = check(graph, solved_certificate(graph, inputs, label, arithmetic))
        assert result.status is Status.RE_SOLVED
        assert result.reason == "solved again by Z3 from other formulas: no input defeats the label"


def test_a_verdict_about_what_is_not_so_is_refused() -> None:
    assert len(verdicts(Answer.COUNTEREXAMPLE)) > 1
    for (graph, inputs, label), arithmetic in itertools.product(verdicts(Answer.COUNTEREXAMPLE), Arithmetic):
        result = check(graph, solved_certificate(graph, inputs, label, arithmetic))
        assert result.status is Status.REFUTED
        assert result.reason == "solved again, there is an input on which the label is not alone highest"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_flipped_bit_of_such_a_verdict_is_found(data: st.DataObject) -> None:
    graph, inputs, label = verdicts(Answer.ROBUST)[0]
    whole = bytearray(solved_certificate(graph, inputs, label, Arithmetic.INTEGERS).text().encode())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        certificate = Certificate.read(whole.decode())
    except (UnicodeDecodeError, CompileError):
        return
    assert check(graph, certificate).status is Status.REFUTED


def test_a_solution_that_the_network_does_not_confirm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs, label = verdicts(Answer.ROBUST)[0]
    monkeypatch.setattr(again, "solution", lambda formulas, ends: ([0] * len(formulas.bounds), "nobody"))
    with pytest.raises(AssertionError, match="is none in the network"):
        check(graph, solved_certificate(graph, inputs, label, Arithmetic.INTEGERS))


def test_no_time_is_no_answer() -> None:
    graph, inputs, label = verdicts(Answer.COUNTEREXAMPLE)[0]
    result = check(graph, solved_certificate(graph, inputs, label, Arithmetic.INTEGERS), seconds=0.0)
    assert (result.status, result.reason) == (Status.UNDECIDED, "no answer within 0 s")


def test_numbers_that_f32_rounds_and_other_values_are_refused() -> None:
    graph, inputs, label = verdicts(Answer.COUNTEREXAMPLE)[0]
    arrays = {**graph.parameters, "w1": graph.parameters["w1"] + np.float32(2.0**-22)}
    rounded = graph.with_nodes(graph.nodes, parameters=arrays)
    result = check(rounded, solved_certificate(rounded, inputs, label, Arithmetic.F32))
    assert result.reason == "it is about f32, which rounds where an exact solver does not"
    reals = problem(0, Kind(takes_reals=True))
    clean = np.ones(reals.inputs.shape, np.float32)
    real_set = LinfReal(clean=clean, eps=0.5)
    result = check(reals.graph, solved_certificate(reals.graph, real_set, reals.label, Arithmetic.INTEGERS))
    assert result.status is Status.REFUTED
    assert "sets of spikes" in result.reason


def test_f32_rounds_where_the_first_path_says_so() -> None:
    seen = set()
    for seed in range(80):
        graph, inputs, _ = dyadic_problem(seed)
        rounds = bool(inexact_in_f32(lower(graph)))
        assert again.rounds_in_f32(unrolled(graph, inputs).known) == rounds, seed
        seen.add(rounds)
    assert seen == {True, False}


@pytest.mark.parametrize(("weight", "rounds"), [(4_000_000.0, False), (5_000_000.0, True)], ids=str)
def test_a_mean_at_the_end_keeps_sums_apart_up_to_23_bits(weight: float, rounds: bool) -> None:
    nodes = (
        Node("x", Input(shape=(2, "N", 1), dtype=DType.SPIKE, axes="TNC"), (), Loc("mean", 1)),
        Node("a", Linear(weight=Param("w")), ("x",), Loc("mean", 2)),
        Node("y", Readout(kind=Reading.RATE), ("a",), Loc("mean", 3)),
    )
    graph = Graph("mean", nodes, "y", {"w": np.array([[weight], [0.0]], np.float32)})
    inputs = L0Ball(clean=np.ones((2, 1), np.float32), k=1)
    assert again.rounds_in_f32(unrolled(graph, inputs).known) == rounds == bool(inexact_in_f32(lower(graph)))


def test_missing_solvers(monkeypatch: pytest.MonkeyPatch) -> None:
    formulas = Formulas()
    formulas.any_of([formulas.boolean()])
    ends = time.perf_counter() + 30.0
    assert solution(formulas, ends) == ([1], "Z3")
    monkeypatch.setitem(sys.modules, "z3", None)
    assert solution(formulas, ends) == ([1], "CP-SAT")
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(CompileError, match="neither of which is installed"):
        solution(formulas, ends)


def test_rules_are_integers_without_a_common_divisor() -> None:
    formulas = Formulas()
    first, second = formulas.boolean(), formulas.boolean()
    total = Expression(Fraction(-5, 8), {first: Fraction(1, 2), second: Fraction(-3, 2)})
    formulas.above(total)  # x - 3 y >= 5/4
    formulas.above(total, strict=True)
    formulas.above(Expression(Fraction(-1, 2), {first: Fraction(1, 2)}), strict=True)  # x > 1
    assert [rule.terms for rule in formulas.rules] == [{first: 1, second: -3}] * 2 + [{first: 1}]
    assert [rule.least for rule in formulas.rules] == [2, 2, 2]


@pytest.mark.parametrize("scale", [1, 2**20, 2**31, 2**40], ids=str)
def test_large_coefficients(scale: int) -> None:
    """a S + b (S + 1) - c (2 S) of bits, between 1 and S: a alone, b where S is 1, or all three."""
    for solver in SOLVERS:
        formulas = Formulas()
        a, b, c = (formulas.boolean() for _ in range(3))
        total = variable(a).times(Fraction(scale)) + variable(b).times(Fraction(scale + 1))
        total = total - variable(c).times(Fraction(2 * scale))
        formulas.above(total - Expression(Fraction(1)))
        formulas.above(Expression(Fraction(scale)) - total)
        formulas.above(variable(b) - Expression(Fraction(1)))
        assert solver(formulas, 30.0) == [1, 1, 1]
        formulas.above(variable(a) - Expression(Fraction(1)), when=[~c])
        formulas.above(Expression(Fraction(0)) - variable(a))
        assert solver(formulas, 30.0) is None


def test_sums_of_more_than_64_bits_are_left_to_z3() -> None:
    formulas = Formulas()
    name = formulas.integer(0, 2**40)
    formulas.above(Expression(Fraction(-1, 2**30), {name: Fraction(2**70, 3), formulas.boolean(): Fraction(1, 7)}))
    with pytest.raises(Undecided):
        by_cp_sat(formulas, 30.0)
    assert by_z3(formulas, 30.0) is not None


def test_a_batch_norm_is_refused() -> None:
    made = next(made for made in map(problem, range(100)) if any("batchnorm" in node.name for node in made.graph.nodes))
    own = unrolled(made.graph, made.inputs, slack=2.0)
    with pytest.raises(CompileError, match="fold it first"):
        own.demand_a_rival(made.label)
