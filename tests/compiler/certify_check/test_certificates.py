"""Certificates of random networks, whole, damaged, and tampered with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.certify.certificate import (
    bounds_certificate,
    certificate_of,
    counterexample_certificate,
    described,
    solved_certificate,
    statistics_certificate,
)
from compiler.certify.input_sets import Box, L0Ball, Retiming
from compiler.certify.interval import interval
from compiler.certify.last_layer import is_robust, margins
from compiler.certify.statistics import MaskTrial, count_masks
from compiler.certify.verdicts import Answer, Arithmetic, Method, Verdict
from compiler.certify_check.certificate import Certificate
from compiler.certify_check.check import Checked, Status, check
from compiler.certify_check.content import packed, sealed, unpacked
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading
from compiler.ir.ops import Encode, Input, Lif, Linear, Readout
from tests.compiler.certify.networks import Kind, Problem, problem
from tests.compiler.certify.oracle import truth

Edit = Callable[[dict[str, Any]], None]


CLEAN = np.ones((4, 1), np.float32)


def with_lines(threshold: float = 0.5, bias: float = 0.25) -> Problem:
    """One input that spikes at each of four steps, of which one spike may go: three are left, where one is enough.

    Intervals look at single steps, at each of which the spike may be the one that goes. Above a threshold of 0.5 the
    middle of a potential's bounds is below it, where lines are flat unless they are optimised.
    """
    arrays = {
        "first": np.array([[1.0]], np.float32),
        "second": np.array([[1.0], [0.0]], np.float32),
        "bias": np.array([0.0, bias], np.float32),
    }
    nodes = (
        Node("x", Input(shape=(4, "N", 1), dtype=DType.SPIKE, axes="TNC"), (), Loc("lines", 1)),
        Node("a", Linear(weight=Param("first")), ("x",), Loc("lines", 2)),
        Node("s", Lif(decay=0.0, threshold=threshold), ("a",), Loc("lines", 3)),
        Node("b", Linear(weight=Param("second"), bias=Param("bias")), ("s",), Loc("lines", 4)),
        Node("y", Readout(kind=Reading.RATE), ("b",), Loc("lines", 5)),
    )
    return Problem(graph=Graph("lines", nodes, "y", arrays), inputs=L0Ball(clean=CLEAN, k=1), label=0)


def certified(seeds: range, kind: Kind) -> list[tuple[Problem, Certificate]]:
    found = []
    for seed in seeds:
        one = problem(seed, kind)
        certificate = bounds_certificate(one.graph, one.inputs, one.label, method=Method.HULL)
        by_intervals = bool(is_robust(margins(one.graph, interval(one.graph, [one.inputs]), [one.label]))[0])
        assert certificate is not None or not by_intervals, f"seed {seed}: what S-IBP proves has no certificate"
        if certificate is not None:
            found.append((one, certificate))
    return found


@pytest.mark.parametrize("kind", [Kind(), Kind(takes_reals=True)], ids=["spikes", "reals"])
def test_certificates_of_random_networks_are_proved(kind: Kind) -> None:
    found = certified(range(24), kind)
    assert len(found) >= 8
    for one, certificate in found:
        result = check(one.graph, Certificate.read(certificate.text()))
        assert result.status is Status.PROVED, result.reason
        assert truth(one.graph, one.inputs).is_robust(one.label)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind(), Kind(takes_reals=True)], ids=["spikes", "reals"])
def test_many_certificates_are_proved(kind: Kind) -> None:
    for one, certificate in certified(range(1000, 1400), kind):
        assert check(one.graph, certificate).status is Status.PROVED
        assert truth(one.graph, one.inputs).is_robust(one.label)


def test_lines_prove_what_intervals_do_not() -> None:
    one = with_lines()
    assert not bool(is_robust(margins(one.graph, interval(one.graph, [one.inputs]), [one.label]))[0])
    assert bounds_certificate(one.graph, one.inputs, one.label, method=Method.IBP) is not None  # falls back on lines
    certificate = bounds_certificate(one.graph, one.inputs, one.label)
    assert certificate is not None
    assert check(one.graph, certificate).status is Status.PROVED


def test_optimised_lines_prove_what_others_do_not() -> None:
    one = with_lines(threshold=0.625, bias=0.125)
    assert bounds_certificate(one.graph, one.inputs, one.label, method=Method.BACKWARD) is None
    certificate = bounds_certificate(one.graph, one.inputs, one.label, method=Method.SLOPES)
    assert certificate is not None
    proof: Any = certificate.content["proof"]
    assert [row["way"] for row in proof["margins"]] == ["lines"]
    assert check(one.graph, certificate).status is Status.PROVED


SAMPLE = problem(2)
MADE = bounds_certificate(SAMPLE.graph, SAMPLE.inputs, SAMPLE.label, method=Method.BACKWARD)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_found(data: st.DataObject) -> None:
    assert MADE is not None
    whole = bytearray(MADE.text().encode())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    assert_refused(bytes(whole))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_missing_bytes_are_found(data: st.DataObject) -> None:
    assert MADE is not None
    whole = MADE.text().encode()
    start = data.draw(st.integers(0, len(whole) - 1))
    assert_refused(whole[:start] + whole[data.draw(st.integers(start + 1, len(whole))) :])


def assert_refused(content: bytes) -> None:
    try:
        certificate = Certificate.read(content.decode())
    except (UnicodeDecodeError, CompileError):
        return
    assert check(SAMPLE.graph, certificate).status is Status.REFUTED


def tampered(certificate: Certificate, edit: Edit) -> Certificate:
    """The certificate with an edited content, sealed again."""
    content: dict[str, Any] = Certificate.read(certificate.text()).content  # type: ignore[assignment]  # from JSON
    edit(content)
    return Certificate(sealed(content))


def result_of(one: Problem, edit: Edit) -> Checked:
    certificate = bounds_certificate(one.graph, one.inputs, one.label)
    assert certificate is not None
    assert check(one.graph, tampered(certificate, lambda content: None)).status is Status.PROVED
    return check(one.graph, tampered(certificate, edit))


def population(content: dict[str, Any], graph: Graph) -> tuple[dict[str, Any], tuple[int, int]]:
    """The claims about the first population, and their shape."""
    node = next(node for node in graph.nodes if isinstance(node.op, Lif))
    kind = graph.types[node.name]
    units = int(np.prod([kind.size(axis) for axis in "CHW" if kind.has(axis)]))
    return content["proof"]["populations"][node.name], (kind.size("T"), units)


@pytest.mark.parametrize("side", ["lower", "upper"])
def test_a_narrowed_interval_is_refuted(side: str) -> None:
    one = with_lines()

    def edit(content: dict[str, Any]) -> None:
        claims, shape = population(content, one.graph)
        bounds = unpacked(claims[side], np.float32, shape)
        bounds[0, 0] += 0.125 if side == "lower" else -0.125
        claims[side] = packed(bounds)

    result = result_of(one, edit)
    assert result.status is Status.REFUTED
    assert result.reason == "s: the interval of neuron 0 at step 0 does not follow"


def test_a_spike_that_is_not_known_is_refuted() -> None:
    one = with_lines()

    def edit(content: dict[str, Any]) -> None:
        claims, shape = population(content, one.graph)
        claims["stability"] = packed(np.ones(shape, np.int8))

    assert result_of(one, edit).status is Status.REFUTED  # not even where the lower bounds stay as they are


def test_a_spike_said_to_be_open_that_is_known_is_refuted() -> None:
    one = dataclasses.replace(with_lines(), inputs=Box(clean=CLEAN, free=CLEAN < 0))

    def edit(content: dict[str, Any]) -> None:
        claims, shape = population(content, one.graph)
        claims["stability"] = packed(np.zeros(shape, np.int8))

    assert result_of(one, edit).reason == "s: spikes are said to be known, or not, that are not so"


def test_a_larger_margin_is_refuted() -> None:
    def edit(content: dict[str, Any]) -> None:
        content["proof"]["margins"][0]["least"] *= 1.01

    result = result_of(with_lines(), edit)
    assert result.status is Status.REFUTED
    assert "is said to be" in result.reason


@pytest.mark.parametrize("least", [0.0, -1.0, True, None, "1"], ids=str)
def test_a_margin_that_is_none_is_refuted(least: object) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["proof"]["margins"][0]["least"] = least

    assert result_of(with_lines(), edit).status is Status.REFUTED


def test_a_missing_margin_is_refuted() -> None:
    def edit(content: dict[str, Any]) -> None:
        content["proof"]["margins"] = []

    assert result_of(with_lines(), edit).reason == "the margins are not those of all other classes"


def test_another_label_is_refuted() -> None:
    def edit(content: dict[str, Any]) -> None:
        content["label"] = 1
        content["proof"]["margins"][0]["class"] = 0

    assert result_of(with_lines(), edit).status is Status.REFUTED


def test_a_larger_set_is_refuted() -> None:
    one = with_lines()

    def edit(content: dict[str, Any]) -> None:
        content["inputs"] = described(L0Ball(clean=CLEAN, k=3))

    assert result_of(one, edit).status is Status.REFUTED


def test_another_network_is_refuted() -> None:
    one = with_lines()
    certificate = bounds_certificate(one.graph, one.inputs, one.label)
    assert certificate is not None
    arrays = {**one.graph.parameters, "bias": np.array([0.25, 0.0], np.float32)}
    other = one.graph.with_nodes(one.graph.nodes, parameters=arrays)
    assert check(other, certificate).reason == "it is about another network"
    moved = tuple(dataclasses.replace(node, loc=Loc("elsewhere", 9)) for node in one.graph.nodes)
    assert check(one.graph.with_nodes(moved), certificate).status is Status.PROVED  # read from another place


def test_a_steeper_line_is_refuted() -> None:
    one = with_lines()

    def line(slope: float) -> Edit:
        def edit(content: dict[str, Any]) -> None:
            row = content["proof"]["margins"][0]
            row["way"] = "lines"
            claims, shape = population(content, one.graph)
            count = int((unpacked(claims["stability"], np.int8, shape) == 0).sum())
            content["proof"]["slopes"] = {"s": packed(np.full((1, count), slope, np.float32))}

        return edit

    assert result_of(one, line(0.5)).status is Status.PROVED
    assert result_of(one, line(0.0)).status is Status.REFUTED
    assert result_of(one, line(9.0)).status is Status.REFUTED
    assert result_of(one, line(np.nan)).status is Status.REFUTED
    assert result_of(one, line(np.inf)).status is Status.REFUTED


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("inputs"),
        lambda content: content.update(claim="other"),
        lambda content: content.update(format="spikec certificate 2"),
        lambda content: content.update(label=7),
        lambda content: content.update(label=-1),
        lambda content: content["inputs"].update(kind="cube"),
        lambda content: content["inputs"].update(clean=content["inputs"]["clean"][:-4]),
        lambda content: content["inputs"].update(clean=packed(np.ones((5, 2), bool))),
        lambda content: content["inputs"].update(clean=3),
        lambda content: content["inputs"].update(k=1.5),
        lambda content: content["proof"].pop("populations"),
        lambda content: content["proof"]["populations"].pop("s"),
        lambda content: content["proof"]["populations"]["s"].update(lower=packed(np.zeros((4, 3), np.float32))),
        lambda content: content["proof"]["populations"]["s"].update(lower=packed(np.full((4, 1), np.nan, np.float32))),
        lambda content: content["proof"]["margins"][0].update(way="trust"),
        lambda content: content["proof"]["margins"][0].update(way="lines"),
    ],
    ids=range(16),
)
def test_what_cannot_be_read_is_refuted(edit: Edit) -> None:
    assert result_of(with_lines(), edit).status is Status.REFUTED


def test_a_text_that_is_no_certificate_is_told() -> None:
    with pytest.raises(CompileError, match="is no certificate"):
        Certificate.read("{}", "c.json")


def test_counterexamples_are_replayed() -> None:
    one = with_lines()
    for arithmetic in Arithmetic:
        certificate = counterexample_certificate(one.graph, one.inputs, 1, CLEAN, arithmetic)
        assert check(one.graph, certificate).status is Status.REPLAYED
        right = counterexample_certificate(one.graph, one.inputs, 0, CLEAN, arithmetic)
        assert check(one.graph, right).reason == "label 0 is alone highest on the example"
    outside = counterexample_certificate(one.graph, one.inputs, 0, np.zeros_like(CLEAN), Arithmetic.F32)
    assert check(one.graph, outside).reason == "the example is not in the set"


def test_exact_verdicts_are_solved_again() -> None:
    pytest.importorskip("z3")
    one = with_lines()
    certificate = solved_certificate(one.graph, one.inputs, 0, Arithmetic.INTEGERS)
    assert check(one.graph, certificate).status is Status.RE_SOLVED
    wrong = solved_certificate(one.graph, one.inputs, 1, Arithmetic.INTEGERS)
    assert check(one.graph, wrong).status is Status.REFUTED
    sets = (L0Ball(clean=CLEAN, k=2), Box(clean=CLEAN, free=np.eye(4, 1) > 0), Retiming(clean=CLEAN, moved=1))
    for inputs in sets:
        assert check(one.graph, solved_certificate(one.graph, inputs, 0, Arithmetic.F32)).status is Status.RE_SOLVED


def test_the_certificate_of_a_verdict() -> None:
    one = with_lines()
    robust = Verdict(answer=Answer.ROBUST, method=Method.HULL, arithmetic=Arithmetic.F32, margin=0.1)
    failed = Verdict(
        answer=Answer.COUNTEREXAMPLE, method=Method.SEARCH, arithmetic=Arithmetic.F32, counterexample=CLEAN
    )
    unknown = Verdict(answer=Answer.UNKNOWN, method=Method.SLOPES, arithmetic=Arithmetic.F32)
    for verdict, label, status in ((robust, 0, Status.PROVED), (failed, 1, Status.REPLAYED)):
        certificate = certificate_of(one.graph, one.inputs, label, verdict)
        assert certificate is not None
        assert check(one.graph, certificate).status is status
    assert certificate_of(one.graph, one.inputs, 0, unknown) is None


def test_statistics_are_recomputed() -> None:
    arrays = {"weight": np.array([[0.5, 0.25], [-0.25, 0.5]], np.float32)}
    nodes = (
        Node("x", Input(shape=("N", 2), dtype=DType.F32, axes="NC"), (), Loc("masks", 1)),
        Node("code", Encode(kind=Encoding.BERNOULLI, timesteps=3, seed=1), ("x",), Loc("masks", 2)),
        Node("a", Linear(weight=Param("weight")), ("code",), Loc("masks", 3)),
        Node("s", Lif(decay=0.5, threshold=0.25), ("a",), Loc("masks", 4)),
        Node("y", Readout(kind=Reading.RATE), ("s",), Loc("masks", 5)),
    )
    graph, image = Graph("masks", nodes, "y", arrays), np.array([0.9, 0.3], np.float32)
    found = count_masks(graph, image, MaskTrial(label=0, eps=0.05, masks=40, seed=3, sample=0))
    assert 0 < found.certified < 40
    certificate = statistics_certificate(graph, image, found)
    assert check(graph, certificate).status is Status.RECOMPUTED
    more = statistics_certificate(graph, image, dataclasses.replace(found, certified=found.certified + 1))
    assert check(graph, more).status is Status.REFUTED
