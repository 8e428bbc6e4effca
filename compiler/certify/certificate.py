"""Certificates of verdicts, made to be checked by `compiler.certify_check`, which shares no bound with this folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.certify.drafts import Draft, Rows
from compiler.certify.input_sets import Box, Chain, InputSet, L0Ball, LinfReal, Retiming
from compiler.certify.interval import interval
from compiler.certify.linear import Substitution, refine, substitution
from compiler.certify.model import check_set
from compiler.certify.relaxation import Relaxation, neurons, relax
from compiler.certify.slopes import Ascent, ascend
from compiler.certify.statistics import MaskCount
from compiler.certify.transposed import Weights
from compiler.certify.verdicts import Answer, Arithmetic, Method, Verdict
from compiler.certify_check.certificate import Certificate, Claim
from compiler.certify_check.content import Content, packed
from compiler.certify_check.forms import Slopes, envelope, reset_line
from compiler.certify_check.layers import Layer, Neurons, layers
from compiler.certify_check.proof import margins_by_forms, margins_by_intervals
from compiler.certify_check.ranges import Cell, Knowledge
from compiler.certify_check.rounding import Reals
from compiler.certify_check.sets import read_inputs
from compiler.ir import CompileError, Graph, Loc, Reset
from compiler.ir.ops import Lif

BITS = (12, 24)  # of claimed bounds: few make certificates short, and a proof that fails so is tried with all of f32
ASCENT = Ascent(steps=20, enough=0.0)


def certificate_of(
    graph: Graph, inputs: InputSet, label: int, verdict: Verdict, prepared: Mapping[str, Layer] | None = None
) -> Certificate | None:
    """The certificate of a verdict; None of UNKNOWN, and where the checker's bounds do not reach what was proved.

    ROBUST by bounds: all intervals of potentials that the proof rests on, the spikes that are known, and the slopes of
    lines. ROBUST by an exact solver: such bounds where they suffice, else only the statement, to be solved again.
    COUNTEREXAMPLE: the input.

    graph: as the verdict is about it, without a Bernoulli encoding. prepared: `layers(graph)`, where many certificates
    of one graph are made.
    """
    match verdict.answer:
        case Answer.COUNTEREXAMPLE:
            assert verdict.counterexample is not None
            return counterexample_certificate(graph, inputs, label, verdict.counterexample, verdict.arithmetic)
        case Answer.ROBUST:
            found = bounds_certificate(
                graph, inputs, label, method=verdict.method, arithmetic=verdict.arithmetic, prepared=prepared
            )
            if found is None and verdict.method is Method.EXACT:
                return solved_certificate(graph, inputs, label, verdict.arithmetic)
            return found
        case Answer.UNKNOWN:
            return None


def bounds_certificate(
    graph: Graph,
    inputs: InputSet,
    label: int,
    *,
    method: Method | None = None,
    arithmetic: Arithmetic = Arithmetic.F32,
    prepared: Mapping[str, Layer] | None = None,
) -> Certificate | None:
    """A proof by bounds that the label alone is highest on all inputs of a set; None where none is found.

    From the cheapest means on: intervals alone, then lines on intervals narrowed by lines, then other slopes of these
    lines: those of equation 6.5, and optimised ones. method: what decided: what needs less or more than that is not
    tried; None: all are.
    Raises: CompileError if the set is not one of inputs that the network takes.
    """
    check_set(graph, inputs)
    data = described(inputs)
    given, own = read_inputs(data, graph.types[graph.input.name]), prepared or layers(graph)
    for is_refined, bits in product((False, True), BITS):
        if not is_refined and method in (Method.BACKWARD, Method.SLOPES, Method.EXACT):
            continue
        draft = Draft(known=Knowledge(graph, given, own), is_refined=is_refined, bits=bits)
        draft.known.walk(draft)
        if not draft.known.is_finite:
            return None
        rows = Rows(draft.known, label)
        rows.attempt("intervals", margins_by_intervals(draft.known, label))
        if is_refined or method is not Method.IBP:
            _add_lines(rows)
        if is_refined and method in (None, Method.SLOPES) and len(rows.open):
            rows.attempt_lines(_ascended(rows, graph, inputs))
        if rows.is_proved:
            proof = {"populations": draft.content(), **rows.content()}
            return Certificate.seal(Claim.BOUNDS, graph, data, label, arithmetic, proof)
    return None


def counterexample_certificate(
    graph: Graph, inputs: InputSet, label: int, example: npt.NDArray[np.float32], arithmetic: Arithmetic
) -> Certificate:
    """That a network fails on an input of a set. Shapes: example as the set."""
    proof = {"example": packed(np.asarray(example, np.float32))}
    return Certificate.seal(Claim.COUNTEREXAMPLE, graph, described(inputs), label, arithmetic, proof)


def solved_certificate(graph: Graph, inputs: InputSet, label: int, arithmetic: Arithmetic) -> Certificate:
    """That an exact solver found no counterexample: a statement without a proof."""
    return Certificate.seal(Claim.SOLVED, graph, described(inputs), label, arithmetic, {})


def statistics_certificate(graph: Graph, image: npt.NDArray[np.float32], found: MaskCount) -> Certificate:
    """Under how many fresh masks all images around one are proved to get the label.

    graph: with its Bernoulli encoding.
    """
    trial = found.trial
    data = {
        "kind": "masks",
        "image": packed(np.asarray(image, np.float32)),
        "eps": float(trial.eps),
        "masks": trial.masks,
        "seed": str(trial.seed),
        "sample": trial.sample,
        "surround": str(trial.surround),
        "by": str(trial.proof),
    }
    proof = {"certified": found.certified}
    return Certificate.seal(Claim.STATISTICS, graph, data, trial.label, Arithmetic.F32, proof)


@singledispatch
def described(inputs: InputSet) -> Content:
    """The data of a set, as certificates hold it."""
    raise CompileError(f"certificates of {type(inputs).__name__} cannot be written", Loc("input set"))


@described.register
def _(inputs: Box) -> Content:
    return {"kind": "box", "clean": packed(inputs.clean > 0), "free": packed(inputs.free)}


@described.register
def _(inputs: L0Ball) -> Content:
    return {
        "kind": "l0",
        "clean": packed(inputs.clean > 0),
        "free": packed(inputs.free),
        "k": int(inputs.k),
        "per_step": bool(inputs.per_step),
    }


@described.register
def _(inputs: Chain) -> Content:
    return {
        "kind": "chain",
        "clean": packed(inputs.clean > 0),
        "image": packed(inputs.image),
        "eps": float(inputs.eps),
        "draws": packed(inputs.draws),
    }


@described.register
def _(inputs: LinfReal) -> Content:
    least, most = inputs.clip
    return {
        "kind": "linf",
        "clean": packed(inputs.clean),
        "eps": float(inputs.eps),
        "least": float(least),
        "most": float(most),
    }


@described.register
def _(inputs: Retiming) -> Content:
    return {"kind": "retiming", "clean": packed(inputs.clean > 0), "moved": int(inputs.moved)}


def _add_lines(rows: Rows) -> None:
    """Prove what intervals do not, by lines with one simple choice of slopes after the other."""
    if not len(rows.open):
        return
    margins = np.zeros(len(rows.others) + 1)
    margins[rows.others[rows.open]] = margins_by_forms(rows.known, rows.label, rows.others[rows.open])
    rows.attempt("envelope", margins)
    if len(rows.open):
        rows.attempt_lines(_paper_slopes(rows.known))


def _paper_slopes(known: Knowledge) -> Slopes:
    """Those of equation 6.5."""

    def choose(name: str, step: int, cell: Cell, fired: Reals, rest: Reals) -> Reals:
        layer = known.layers[name]
        assert isinstance(layer, Neurons)
        assert isinstance(layer.op, Lif)
        op, units = layer.op, np.flatnonzero(known.cells[name][step].open)
        reset = Reset.NONE if op.reset is Reset.SOFT and op.reset_delay else op.reset
        threshold, value = torch.from_numpy(layer.threshold[units]), torch.from_numpy(layer.value[units])
        lower, upper = torch.from_numpy(cell.lower), torch.from_numpy(cell.upper)
        cells = neurons(lower, upper, threshold, reset, value, op.compare)
        slope, _ = relax(Relaxation.PAPER, cells, torch.from_numpy(fired.copy()), torch.from_numpy(rest.copy()))
        return slope.numpy()

    return choose


def _ascended(rows: Rows, graph: Graph, inputs: InputSet) -> Slopes:
    """Optimised slopes, of the envelope's where it bends upwards."""
    own = substitution(Weights(graph), interval(graph, [inputs]), inputs, Relaxation.HULL)
    with torch.no_grad():
        refine(own)
    shares = _best_shares(own, rows)
    places, known = rows.open, rows.known

    def choose(name: str, step: int, cell: Cell, fired: Reals, rest: Reals) -> Reals:
        layer = known.layers[name]
        assert isinstance(layer, Neurons)
        units = np.flatnonzero(known.cells[name][step].open)
        keep, shift = reset_line(layer)
        falling, rising, whole = envelope(cell, layer.threshold[units], keep, shift[units], fired, rest)
        share = shares[name][:, step, units] if name in shares else np.zeros((len(places), len(units)))
        return np.where(falling <= rising, falling + share * (rising - falling), whole)

    return choose


def _best_shares(own: Substitution, rows: Rows) -> dict[str, Reals]:
    """For every open margin the free slopes of the best iterate. Shapes: (R, T, U)."""
    others = torch.from_numpy(rows.others[rows.open])
    forms = torch.zeros(len(others), len(rows.others) + 1, dtype=torch.float64)
    forms[:, rows.label] = 1.0
    forms[torch.arange(len(others)), others] = -1.0
    start = {
        name: torch.stack([cell.high for cell in cells]).to(torch.float64).expand(len(forms), -1, -1)
        for name, cells in own.ranges.cells.items()
    }
    best = torch.full((len(forms),), -torch.inf, dtype=torch.float64)
    kept = {name: value.clone() for name, value in start.items()}

    def bound(free: Mapping[str, Tensor]) -> Tensor:
        nonlocal best
        values = own.margins(forms, free)
        is_better = values.detach() > best
        for name, value in free.items():
            kept[name][is_better] = value.detach()[is_better]
        best = torch.maximum(best, values.detach())
        return values

    with torch.enable_grad():
        ascend(bound, start, ASCENT)
    return {name: value.numpy() for name, value in kept.items()}


__all__ = [
    "bounds_certificate",
    "certificate_of",
    "counterexample_certificate",
    "described",
    "solved_certificate",
    "statistics_certificate",
]
