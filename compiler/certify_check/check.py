"""Decides what a certificate is worth, trusting nothing in it but what it can show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from compiler.certify_check.again import solved_again
from compiler.certify_check.certificate import FORMAT, Certificate, Claim
from compiler.certify_check.content import (
    Content,
    Fault,
    as_list,
    as_number,
    as_part,
    as_whole,
    graph_digest,
    is_sealed,
    unpacked,
)
from compiler.certify_check.layers import Layer, Neurons, layers
from compiler.certify_check.proof import Claims, GivenSlopes, margins_by_forms, margins_by_intervals, refined
from compiler.certify_check.ranges import Bounds, Knowledge
from compiler.certify_check.replay import recomputed, replayed
from compiler.certify_check.rounding import Reals
from compiler.certify_check.sets import read_inputs
from compiler.ir import Graph
from compiler.ir.ops import Lif


class Status(StrEnum):
    """What a check found."""

    PROVED = "proved"  # every claim follows from the graph and the set
    RE_SOLVED = "re-solved"  # another exact method decided alike
    REPLAYED = "replayed"  # the counterexample is a member, and the network fails on it
    RECOMPUTED = "recomputed"  # the statistics came out the same from their seeds
    UNDECIDED = "undecided"  # it could not be solved again within the limit
    REFUTED = "refuted"  # damaged, about something else, or a claim does not follow


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A check's result, in one sentence."""

    status: Status
    reason: str

    @property
    def is_good(self) -> bool:
        """Whether the certificate's statement was confirmed."""
        return self.status not in (Status.REFUTED, Status.UNDECIDED)


def check(graph: Graph, certificate: Certificate, *, seconds: float = 60.0) -> Checked:
    """Check a certificate against the network that it is said to be about.

    Bounds are computed anew from the graph and the set: every claimed interval and every decided spike has to follow
    from the claims before it, with the rounding of f32 taken into account, and every margin from all of them.

    seconds: limit for solving again.
    Raises: CompileError if the graph has ops that the checker has no rule for.
    """
    return Checker.of(graph).check(certificate, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks certificates of one network, of which it keeps what all of them need."""

    graph: Graph
    digest: str
    kept: dict[str, Layer] = field(default_factory=dict)  # the graph's layers, once one needs them

    @classmethod
    def of(cls, graph: Graph) -> Checker:
        """Of a network."""
        return cls(graph, graph_digest(graph))

    def check(self, certificate: Certificate, *, seconds: float = 60.0) -> Checked:
        """As `check`."""
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # of numbers that a certificate made up
                return self._checked(certificate.content, seconds)
        except Fault as fault:
            return Checked(status=Status.REFUTED, reason=str(fault))

    def _checked(self, content: Content, seconds: float) -> Checked:
        graph = self.graph
        claim, label = _opened(graph, self.digest, content)
        given, proof = as_part(content.get("inputs")), as_part(content.get("proof"))
        if claim is Claim.STATISTICS:
            return Checked(status=Status.RECOMPUTED, reason=recomputed(graph, given, label, proof))
        inputs = read_inputs(given, graph.types[graph.input.name])
        arithmetic = str(content.get("arithmetic"))
        if claim is Claim.COUNTEREXAMPLE:
            return Checked(status=Status.REPLAYED, reason=replayed(graph, inputs, label, arithmetic, proof))
        if not self.kept:
            self.kept.update(layers(graph))
        known = Knowledge(graph, inputs, self.kept)
        if claim is Claim.BOUNDS:
            return Checked(status=Status.PROVED, reason=_proved(known, label, proof))
        known.walk()
        answer = solved_again(known, label, arithmetic, seconds)
        status = Status.UNDECIDED if answer is None else Status.RE_SOLVED
        return Checked(status=status, reason=answer or f"no answer within {seconds:g} s")


def _opened(graph: Graph, digest: str, content: Content) -> tuple[Claim, int]:
    """The claim and the label of a certificate that is whole and about this graph."""
    try:
        is_whole = is_sealed(content)
    except (ValueError, TypeError) as fault:
        raise Fault(f"the content is not JSON: {fault}") from fault
    if not is_whole:
        raise Fault("the content does not match its SHA-256: it is damaged")
    if content.get("format") != FORMAT:
        raise Fault(f"the format is {content.get('format')!r}, not {FORMAT!r}")
    if content.get("graph") != digest:
        raise Fault("it is about another network")
    if content.get("claim") not in list(Claim):
        raise Fault(f"{content.get('claim')!r} is no claim")
    kind = graph.types[graph.output]
    if kind.axes != "NC":
        raise Fault("the network ends in no class scores")
    label = as_whole(content.get("label"))
    if label >= kind.size("C"):
        raise Fault(f"label {label} is none of {kind.size('C')} classes")
    return Claim(str(content["claim"])), label


@dataclass(frozen=True, slots=True)
class _Judge:
    """Takes claimed bounds of potentials where they follow, and refuses the certificate else."""

    claims: Mapping[str, Claims]

    def __call__(self, known: Knowledge, name: str, step: int, lower: Reals, upper: Reals) -> Bounds:
        layer, own = known.layers[name], self.claims[name]
        assert isinstance(layer, Neurons)
        low, high = own.at(step, layer, known.cells[name][step].grid)
        units = np.flatnonzero(own.refined[step])
        if len(units):
            least, most = refined(known, name, step, units)
            lower, upper = lower.copy(), upper.copy()
            lower[units], upper[units] = np.fmax(lower[units], least), np.fmin(upper[units], most)
        follows = (low <= lower) & (upper <= high)
        if not follows.all():
            raise Fault(f"{name}: the interval of neuron {np.flatnonzero(~follows)[0]} at step {step} does not follow")
        return low, high


def _proved(known: Knowledge, label: int, proof: Content) -> str:
    """Why the label is alone highest on every input."""
    claims = _claims(known, as_part(proof.get("populations")))
    known.walk(_Judge(claims))
    for name, own in claims.items():
        found = np.stack([cell.fires.astype(np.int8) - cell.silent for cell in known.cells[name]])
        if not np.array_equal(found, own.stability):
            raise Fault(f"{name}: spikes are said to be known, or not, that are not so")
    if not known.is_finite:
        raise Fault("values may be larger than f32 holds")
    classes = known.graph.types[known.graph.output].size("C")
    rows = [as_part(row) for row in as_list(proof.get("margins"))]
    others = [j for j in range(classes) if j != label]
    if [row.get("class") for row in rows] != others:
        raise Fault("the margins are not those of all other classes")
    found_margins = _margins(known, label, rows, as_part(proof.get("slopes")))
    for j, row, found_margin in zip(others, rows, found_margins, strict=True):
        claimed = as_number(row.get("least"))
        if not claimed > 0.0:
            raise Fault(f"the margin to class {j} is said to be {claimed:g}, not above 0")
        if not found_margin >= claimed:
            raise Fault(f"the margin to class {j} is said to be {claimed:g}, only {found_margin:g} follows")
    least = min((as_number(row.get("least")) for row in rows), default=np.inf)
    return f"label {label} leads every other class by {least:g} on every input"


def _margins(known: Knowledge, label: int, rows: list[Content], slopes: Content) -> Reals:
    """Every row's margin, in the way that it names."""
    ways = np.array([str(row.get("way")) for row in rows], object)
    classes = np.array([as_whole(row.get("class")) for row in rows], np.int64)
    if not np.isin(ways, ("intervals", "envelope", "lines")).all():
        raise Fault("a margin is shown in no known way")
    found = np.full(len(rows), -np.inf)
    if (ways == "intervals").any():
        found = np.where(ways == "intervals", margins_by_intervals(known, label)[classes], found)
    if (ways == "envelope").any():
        found[ways == "envelope"] = margins_by_forms(known, label, classes[ways == "envelope"])
    lined = classes[ways == "lines"]
    if len(lined):
        given = {}
        for name, cells in known.cells.items():
            count = sum(int(cell.open.sum()) for cell in cells)
            if isinstance(known.graph.node(name).op, Lif):
                given[name] = unpacked(slopes.get(name), np.float32, (len(lined), count)).astype(np.float64)
        found[ways == "lines"] = margins_by_forms(known, label, lined, GivenSlopes(known, given))
    return found


def _claims(known: Knowledge, parts: Content) -> dict[str, Claims]:
    graph = known.graph
    names = [node.name for node in graph.nodes if isinstance(node.op, Lif)]
    if sorted(parts) != sorted(names):
        raise Fault("the claims are not about the network's populations")
    claims = {}
    for name in names:
        part, layer = as_part(parts[name]), known.layers[name]
        assert isinstance(layer, Neurons)
        shape = (graph.types[name].size("T"), len(layer.threshold))
        claims[name] = Claims(
            lower=unpacked(part.get("lower"), np.float32, shape).astype(np.float64),
            upper=unpacked(part.get("upper"), np.float32, shape).astype(np.float64),
            stability=unpacked(part.get("stability"), np.int8, shape),
            refined=unpacked(part.get("refined"), np.bool_, shape),
        )
    return claims


__all__ = ["Certificate", "Checked", "Checker", "Status", "check"]
