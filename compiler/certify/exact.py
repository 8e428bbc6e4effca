"""Exact verdicts: the integer network as a constraint model, solved by OR-tools' CP-SAT."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from compiler.certify.input_sets import InputSet
from compiler.certify.integer_network import IntegerNetwork, lower
from compiler.certify.integers import check_magnitudes, is_alone_highest, multiplications, scores
from compiler.certify.model import check_set
from compiler.certify.spiking_model import MembraneBounds, SpikingModel
from compiler.ir import CompileError, Graph, Loc

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Floats = npt.NDArray[np.float32]
SEED = 0
ENUMERATED = 1e9  # multiplications, about a second's, up to which a set's members are tried one by one
AT_ONCE = 512  # members


class Answer(StrEnum):
    """What is known about all inputs of a set."""

    ROBUST = "robust"  # on each, the label alone has the highest score
    COUNTEREXAMPLE = "counterexample"  # on one of them it has not
    UNKNOWN = "unknown"


class Means(StrEnum):
    """What decided."""

    BOUNDS = "bounds"  # the ranges of the model's own forms
    ENUMERATION = "enumeration"  # every member, one by one
    CP_SAT = "cp-sat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An exact answer, or none within the effort.

    counterexample: a member of the set, replayed in integers, for that answer only. Shapes: as the set.
    stable, unstable: neuron steps whose spike the bounds decide, and the others.
    """

    answer: Answer
    counterexample: Floats | None
    means: Means
    seconds: float
    stable: int
    unstable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much solving may cost.

    seconds: of wall time, all in all. work: CP-SAT's deterministic time, which does not depend on the machine: with
    one worker and no other limit reached, the same answer and example everywhere. None: no such limit.
    """

    seconds: float = 30.0
    work: float | None = None
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a counterexample is: the label not alone at the top, or, with a target, the target alone at the top."""

    label: int
    target: int | None = None

    def is_hit(self, network: IntegerNetwork, batch: Floats) -> npt.NDArray[np.bool_]:
        """Of which inputs of a batch that is so, in integers. Shapes: as the graph's input -> (N,)."""
        numerators = scores(network, batch)
        if self.target is None:
            return ~is_alone_highest(numerators, self.label)
        return is_alone_highest(numerators, self.target)


def decide(
    graph: Graph,
    inputs: InputSet,
    label: int,
    *,
    effort: Effort | None = None,
    bounds: MembraneBounds | None = None,
) -> Verdict:
    """Whether the label alone has the highest score on every input of the set, in exact arithmetic.

    The network computes in integers (`lower`), which is what `evaluate` computes too where `inexact_in_f32` names no
    node. A tie with another class is no win of the label, so it is a counterexample. What the model's bounds do not
    decide is tried member by member where the set is small, and else solved.

    inputs: spikes, in the form that the network takes.
    bounds: of membrane potentials, by Lif node, over this set; they must hold in exact arithmetic, as those of interval
        and linear bounds do. Shapes: (T, C, ...) each.
    Raises: CompileError for a set of real inputs or of another shape, a label that is no class, a network that is not
        on a dyadic grid (`quantise_dyadic`), numbers too large for 64 bits, and where OR-tools is not installed.
    """
    return decide_goal(lower(graph), inputs, Goal(label=label), effort or Effort(), bounds or {})


def decide_goal(
    network: IntegerNetwork, inputs: InputSet, goal: Goal, effort: Effort, bounds: MembraneBounds
) -> Verdict:
    """Whether no input of the set is a hit; `decide` for goals of either kind.

    Raises: CompileError as `decide`.
    """
    started = time.perf_counter()
    spiking, is_possible = modelled(network, inputs, goal, bounds)
    verdict = Verdict(
        answer=Answer.ROBUST,
        counterexample=None,
        means=Means.BOUNDS,
        seconds=0.0,
        stable=spiking.stable,
        unstable=spiking.unstable,
    )
    if is_possible:
        ends = started + effort.seconds
        count = inputs.count
        if count is not None and count * multiplications(network) <= ENUMERATED:
            answer, found = _enumerated(network, inputs, goal, ends)
            means = Means.ENUMERATION
        else:
            answer, found = solved(spiking, goal, replace(effort, seconds=ends - time.perf_counter()))
            means = Means.CP_SAT
        verdict = replace(verdict, answer=answer, counterexample=found, means=means)
    return replace(verdict, seconds=time.perf_counter() - started)


def modelled(
    network: IntegerNetwork, inputs: InputSet, goal: Goal, bounds: MembraneBounds
) -> tuple[SpikingModel, bool]:
    """The constraint model of a hit, and whether its bounds allow for one.

    Raises: CompileError as `decide`.
    """
    _check(network, inputs, goal)
    spiking = SpikingModel(network, inputs, bounds, require_solver().CpModel())
    model, variables, own = spiking.model, spiking.variables, goal.label if goal.target is None else goal.target
    rivals = np.array([j for j in range(len(spiking.scores.constant)) if j != own], np.int64)
    ahead = spiking.scores.at(rivals) + spiking.scores.at(np.full(len(rivals), own)).times(-1)
    least, most = spiking.form_bounds(ahead)
    if goal.target is not None:
        for row in range(len(rivals)):
            model.add(variables.expression(ahead, row) <= -1)
        return spiking, bool((least <= -1).all())
    reaching = []
    for row in np.flatnonzero(most >= 0).tolist():
        reaches = model.new_bool_var("")
        model.add(variables.expression(ahead, row) >= 0).only_enforce_if(reaches)
        reaching.append(reaches)
    model.add_bool_or(reaching)
    return spiking, bool(reaching)


def solver_for(effort: Effort) -> cp_model.CpSolver:
    """CP-SAT within an effort."""
    solver = require_solver().CpSolver()
    parameters = solver.parameters
    parameters.max_time_in_seconds = max(0.0, effort.seconds)
    parameters.num_workers = effort.workers
    parameters.random_seed = SEED
    if effort.workers == 1:
        # Measured on unrolled networks: relaxations of reified sums are too weak to pay for their linear programs.
        parameters.linearization_level = 0
    if effort.work is not None:
        parameters.max_deterministic_time = effort.work
    return solver  # type: ignore[no-any-return]  # the module is imported by name


def solved(spiking: SpikingModel, goal: Goal, effort: Effort) -> tuple[Answer, Floats | None]:
    """CP-SAT's answer to a model, with the input that it found."""
    cp_model = require_solver()
    solver = solver_for(effort)
    status = solver.solve(spiking.model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer.COUNTEREXAMPLE, replayed(spiking, goal, solver)
    assert status in (cp_model.INFEASIBLE, cp_model.UNKNOWN), "the model is valid by construction"
    return (Answer.ROBUST if status == cp_model.INFEASIBLE else Answer.UNKNOWN), None


def replayed(spiking: SpikingModel, goal: Goal, solver: cp_model.CpSolver) -> Floats:
    """The input of a solution, which is checked: a member of the set and, executed in integers, a hit."""
    found = np.array(spiking.inputs.clean, np.float32)
    for position, handle in spiking.bits.at.items():
        found.flat[position] = solver.value(handle)
    if not spiking.inputs.contains(found) or not goal.is_hit(spiking.network, batch_of(spiking.network, found))[0]:
        raise AssertionError("the solver's counterexample is none in integers")
    return found


def batch_of(network: IntegerNetwork, *samples: Floats) -> Floats:
    """Samples as the network's input."""
    axis = int(network.graph.types[network.graph.input.name].has("T"))
    return np.stack(samples, axis)


def require_solver() -> ModuleType:
    """OR-tools' CP-SAT.

    Raises: CompileError where it is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ModuleNotFoundError:
        raise CompileError(
            "exact verdicts need OR-tools, which is not installed",
            Loc("ortools"),
            hint='pip install "spikec[verify]"',
        ) from None
    return cp_model


def _enumerated(network: IntegerNetwork, inputs: InputSet, goal: Goal, ends: float) -> tuple[Answer, Floats | None]:
    """The first member that is a hit."""
    members = inputs.members()
    while some := list(islice(members, AT_ONCE)):
        if time.perf_counter() > ends:
            return Answer.UNKNOWN, None
        hits = np.flatnonzero(goal.is_hit(network, batch_of(network, *some)))
        if len(hits):
            return Answer.COUNTEREXAMPLE, some[hits[0]]
    return Answer.ROBUST, None


def _check(network: IntegerNetwork, inputs: InputSet, goal: Goal) -> None:
    graph = network.graph
    check_set(graph, inputs)
    node = graph.node(graph.output)
    kind = graph.types[node.name]
    if kind.axes != "NC":
        raise graph.site(node).fail(f"is {kind}, not one score a class", "end the network with a readout")
    for what, value in (("label", goal.label), ("target", goal.target)):
        if value is not None and not 0 <= value < kind.size("C"):
            raise graph.site(node).fail(f"{what} {value} is none of {kind.size('C')} classes")
    check_magnitudes(network, 1.0)
