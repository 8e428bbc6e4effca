"""Certification: each sample goes from the cheapest method to the costliest until one of them decides."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from compiler.attack.victim import BLOCK
from compiler.certify import counterexamples
from compiler.certify.exact import Answer, Effort, Goal, decide_goal, require_solver
from compiler.certify.input_sets import InputSet
from compiler.certify.interval import interval
from compiler.certify.last_layer import margins as interval_margins
from compiler.certify.linear import Substitution, class_margins, refine, substitution
from compiler.certify.model import Bounds
from compiler.certify.relaxation import Relaxation
from compiler.certify.slopes import Ascent
from compiler.certify.spiking_model import MembraneBounds
from compiler.certify.transposed import Weights
from compiler.certify.verdicts import Arithmetic, Method, Replay, Verdict
from compiler.ir import CompileError, Graph, Loc

LINEAR = (Method.HULL, Method.BACKWARD, Method.SLOPES)
CHOSEN = tuple(method for method in Method if method is not Method.CLEAN)  # those that can be left out

SEEDS = 1 << 63  # what the random generators take


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """Which methods are tried, always in the order of `Method`, and how much they may cost.

    `Method.EXACT` needs a set of spikes, and a network whose scores integers tell exactly: of others nothing is
    decided by it.

    seconds: wall time of a sample's bounds and exact verdict, looked at between methods; past it the answer is UNKNOWN.
    work: CP-SAT's deterministic time for a sample, about a second each; unlike seconds it gives the same verdicts on
        any machine. None: no such limit.
    rounds: of the search. slope_steps: of the slopes' optimisation. seed: of all that is drawn.
    Raises: CompileError for no methods, or a number outside its range.
    """

    methods: tuple[Method, ...] = CHOSEN
    seconds: float = math.inf
    work: float | None = 10.0
    rounds: int = counterexamples.ROUNDS
    slope_steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        loc = Loc("certify")
        if not self.methods or Method.CLEAN in self.methods or len(set(self.methods)) < len(self.methods):
            raise CompileError(
                f"methods are {', '.join(self.methods) or 'none'}", loc, hint=f"some of {', '.join(CHOSEN)}, each once"
            )
        for name, value in (("seconds", self.seconds), ("work", self.work)):
            if value is not None and not value > 0:
                raise CompileError(f"{name} is {value:g}, must be positive", loc)
        for name, number, least in (
            ("rounds", self.rounds, 1),
            ("slope_steps", self.slope_steps, 0),
            ("seed", self.seed, 0),
        ):
            if number < least:
                raise CompileError(f"{name} is {number}, must be at least {least}", loc)
        if self.seed >= SEEDS:
            raise CompileError(f"seed is {self.seed}, must be below {SEEDS}", loc)


def certify(
    graph: Graph,
    sets: Sequence[InputSet],
    labels: Sequence[int],
    *,
    cascade: Cascade | None = None,
    arithmetic: Arithmetic = Arithmetic.F32,
    samples: Sequence[int] | None = None,
) -> Iterator[Verdict]:
    """The verdict of each sample's set, in their order; up to 16 samples go on together.

    Bounds hold in f32 and in exact arithmetic alike. Exact verdicts are about integers: in f32 they count only where
    `evaluate` computes exactly the same (`inexact_in_f32`).

    graph: without a Bernoulli encoding, whose sets are of spikes (`DropEncode`).
    samples: the samples' indices, from which their random numbers follow; 0, 1, 2, ... unless given. What else is
        certified changes nothing about a verdict.
    Raises: CompileError if a set or a label does not fit, f32 may overflow, the output is no vector of class scores,
        an op has no bounds, or integers are asked for of a network that has none.
    """
    indices = list(range(len(sets))) if samples is None else list(samples)
    if not len(indices) == len(sets) == len(labels):
        raise CompileError(
            f"there are {len(sets)} sets, {len(labels)} labels and {len(indices)} samples", Loc("certify")
        )
    rows = zip(indices, sets, labels, strict=True)
    queries = [Query(sample=sample, inputs=inputs, label=label) for sample, inputs, label in rows]
    return Run.of(graph, cascade or Cascade(), arithmetic).verdicts(queries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One sample: its index, its label, and the set of inputs around it."""

    sample: int
    inputs: InputSet
    label: int


@dataclass(slots=True, kw_only=True)
class _State:
    """How far one sample is: its verdict so far, its bounds, and the time they took."""

    query: Query
    verdict: Verdict
    bounds: Bounds | None = None
    own: Substitution | None = None  # rests on the bounds, and betters them
    seconds: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.verdict.answer is Answer.UNKNOWN and not self.verdict.timed_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What all samples of one certification share."""

    cascade: Cascade
    replay: Replay
    weights: Weights
    classes: int

    @classmethod
    def of(cls, graph: Graph, cascade: Cascade, arithmetic: Arithmetic) -> Run:
        """Raises: CompileError as `certify`, and where OR-tools is needed and not installed."""
        kind, node = graph.types[graph.output], graph.node(graph.output)
        if kind.axes != "NC":
            raise graph.site(node).fail(
                f"the output {kind} is no vector of class scores", "end the network in a readout over time"
            )
        if kind.size("C") < 2:
            raise graph.site(node).fail("is one score, which no other can beat", "certify networks of several classes")
        replay = Replay.of(graph, arithmetic)
        if replay.network is not None and Method.EXACT in cascade.methods:
            require_solver()
        return cls(cascade=cascade, replay=replay, weights=Weights(graph), classes=kind.size("C"))

    def verdicts(self, queries: Iterable[Query]) -> Iterator[Verdict]:
        """Of each sample, in their order.

        Raises: CompileError as `certify`.
        """
        group: dict[int, Query] = {}
        for query in queries:
            if query.sample % BLOCK in group:
                yield from self._decided(list(group.values()))
                group = {}
            group[query.sample % BLOCK] = query
        yield from self._decided(list(group.values()))

    def _decided(self, queries: Sequence[Query]) -> Iterator[Verdict]:
        """Of some samples, no two of which have the same place in a block."""
        states = [self._begun(query) for query in queries]
        if Method.IBP in self.cascade.methods:
            for state in states:
                self._timed(state, Method.IBP)
        if Method.SEARCH in self.cascade.methods:
            self._search([state for state in states if state.is_open])
        for state in states:
            for method in (*LINEAR, Method.EXACT):
                if method in self.cascade.methods:
                    self._timed(state, method)
            yield state.verdict

    def _begun(self, query: Query) -> _State:
        unknown = Verdict(answer=Answer.UNKNOWN, method=None, arithmetic=self.replay.arithmetic)
        clean = query.inputs.clean
        if not 0 <= query.label < self.classes:
            node = self.weights.graph.node(self.weights.graph.output)
            raise self.weights.graph.site(node).fail(f"label {query.label} is none of the {self.classes} classes")
        if self.replay.is_right(clean, query.label):
            return _State(query=query, verdict=unknown)
        wrong = replace(unknown, answer=Answer.COUNTEREXAMPLE, method=Method.CLEAN, counterexample=clean)
        return _State(query=query, verdict=wrong)

    def _timed(self, state: _State, method: Method) -> None:
        """Try a method on a sample that is not decided, if it has time left."""
        if not state.is_open:
            return
        if state.seconds >= self.cascade.seconds:
            state.verdict = replace(state.verdict, timed_out=True)
            return
        started = time.perf_counter()
        with torch.no_grad():
            if method is Method.EXACT:
                self._decide(state)
            else:
                self._bound(state, method)
        state.seconds += time.perf_counter() - started

    def _bound(self, state: _State, method: Method) -> None:
        """Better margins, if the method gives them; ROBUST if all are above 0."""
        graph, query = self.weights.graph, state.query
        best = -math.inf if state.verdict.margin is None else state.verdict.margin
        if state.bounds is None:
            state.bounds = interval(graph, [query.inputs])
            best = _least(interval_margins(graph, state.bounds, [query.label]))
        if method is not Method.IBP and not best > 0:
            best = max(best, self._linear(self._substitution(state, state.bounds), query.label, method))
        answer = Answer.ROBUST if best > 0 else Answer.UNKNOWN
        margin = best if math.isfinite(best) else None
        state.verdict = replace(state.verdict, answer=answer, method=method, margin=margin)

    def _substitution(self, state: _State, bounds: Bounds) -> Substitution:
        if state.own is None:
            state.own = substitution(self.weights, bounds, state.query.inputs, Relaxation.HULL)
        return state.own

    def _linear(self, own: Substitution, label: int, method: Method) -> float:
        """The least margin by the linear forms of one method. No relaxation beats the other everywhere."""
        if method is Method.BACKWARD or (method is Method.SLOPES and Method.BACKWARD not in self.cascade.methods):
            refine(own)
        ascent = Ascent(steps=self.cascade.slope_steps, enough=0.0) if method is Method.SLOPES else None
        hull = class_margins(own, label, self.classes, ascent)
        if method is Method.SLOPES:
            return _least(hull)
        paper = class_margins(replace(own, relaxation=Relaxation.PAPER), label, self.classes, None)
        return _least(torch.fmax(hull, paper))

    def _search(self, states: Sequence[_State]) -> None:
        """Look for counterexamples of all samples together."""
        found = counterexamples.search(
            self.replay,
            [state.query.inputs for state in states],
            [state.query.label for state in states],
            [state.query.sample for state in states],
            seed=self.cascade.seed,
            rounds=self.cascade.rounds,
        )
        for state, x in zip(states, found, strict=True):
            answer = Answer.UNKNOWN if x is None else Answer.COUNTEREXAMPLE
            state.verdict = replace(state.verdict, answer=answer, method=Method.SEARCH, counterexample=x)

    def _decide(self, state: _State) -> None:
        """An exact verdict, where there is one in this arithmetic."""
        query, network = state.query, self.replay.network
        if network is None or not query.inputs.is_binary:
            return
        effort = Effort(seconds=self.cascade.seconds - state.seconds, work=self.cascade.work)
        bounds = {} if state.bounds is None else _potentials(self._substitution(state, state.bounds))
        exact = decide_goal(network, query.inputs, Goal(label=query.label), effort, bounds)
        if exact.counterexample is not None and self.replay.is_right(exact.counterexample, query.label):
            raise AssertionError("a counterexample in integers is none in f32, which computes the same")
        state.verdict = replace(
            state.verdict,
            answer=exact.answer,
            method=Method.EXACT,
            counterexample=exact.counterexample,
            means=exact.means,
            timed_out=exact.answer is Answer.UNKNOWN and exact.seconds >= effort.seconds,
        )


def _least(margins: torch.Tensor) -> float:
    """The least margin; -inf where a bound says nothing."""
    return float(margins.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).min())


def _potentials(own: Substitution) -> MembraneBounds:
    """Bounds of membrane potentials. Shapes: (T, C, ...) each."""
    made = {}
    for name, cells in own.ranges.cells.items():
        shape = (len(cells), *own.weights.shape(name))
        lower, upper = (torch.stack([getattr(cell, side) for cell in cells]) for side in ("lower", "upper"))
        made[name] = (lower.reshape(shape).numpy(), upper.reshape(shape).numpy())
    return made
