"""Attacks a network from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from compiler.attack.iterate import checked
from compiler.attack.methods import Method, Refinement
from compiler.attack.settings import Case, Settings, Status
from compiler.attack.surrogates import SurrogateRule
from compiler.ir import CompileError, Graph, Loc, Surrogate
from compiler.losses import Loss
from spikec.attack.plan import FRESH_DRAWS, Plan
from spikec.attack.records import Record
from spikec.attack.session import run_attack
from spikec.attack.summary import Summary
from spikec.workers import Workers

Floats = npt.NDArray[np.float32]
Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attacked:
    """What became of the samples, in their order.

    examples: the last values of each sample, the adversarial example where `succeeded`.
    Shapes: examples as x was given; succeeded (N,).
    """

    summary: Summary
    examples: Floats
    succeeded: npt.NDArray[np.bool_]

    @property
    def records(self) -> tuple[Record, ...]:
        """Of each sample its status, sizes and counts."""
        return self.summary.records

    @property
    def success_rate(self) -> float:
        """Successes over the samples that the network tells right; NaN where it tells none."""
        share = self.summary.success
        return float("nan") if share is None else share.value


def attack_network(
    graph: Graph,
    x: npt.ArrayLike,
    labels: Sequence[int] | npt.NDArray[np.int64],
    *,
    targets: Sequence[int] | npt.NDArray[np.int64] | None = None,
    method: Method | str = Method.BIM,
    settings: Settings | None = None,
    refinement: Refinement | str = Refinement.NONE,
    loss: Loss | str = Loss.CROSS_ENTROPY,
    threshold: float | None = None,
    surrogate: Surrogate | SurrogateRule | None = None,
    fresh: int = FRESH_DRAWS,
) -> Attacked:
    """Look for adversarial examples of samples, on one thread; the same seed gives the same examples.

    x: in [0, 1], or 0 and 1 where the network takes spikes.
    targets: classes to be told; any other than the label without.
    method, refinement: those of `spikec attack`.
    threshold, surrogate: of the penultimate and of all neurons, while gradients are taken; their own unless given.
    fresh: Bernoulli codes that each example is judged by afterwards.

    Shapes: x as the graph's input, (N, C, ...) or (T, N, C, ...); labels, targets (N,).
    Raises: CompileError for samples that do not fit the network, and for what the method refuses.
    """
    values = np.asarray(x, np.float32)
    axis = int(graph.types[graph.input.name].axes.startswith("T"))
    plan = Plan(
        graph=graph,
        method=_member(Method, method),
        settings=settings or Settings(),
        refinement=_member(Refinement, refinement),
        loss=_member(Loss, loss),
        threshold=threshold,
        surrogate=surrogate,
        fresh=fresh,
    )
    victim = plan.victim()
    cases = [checked(case, victim) for case in _cases(values, axis, labels, targets)]
    records = run_attack(plan, cases, Workers(jobs=1), lambda _done, _total: None)
    rows = [case.x if record.example is None else record.example for case, record in zip(cases, records, strict=True)]
    return Attacked(
        summary=Summary(records=records, method=plan.method),
        examples=np.stack(rows, axis),
        succeeded=np.array([record.status is Status.SUCCESS for record in records]),
    )


def _cases(
    x: Floats,
    axis: int,
    labels: Sequence[int] | npt.NDArray[np.int64],
    targets: Sequence[int] | npt.NDArray[np.int64] | None,
) -> list[Case]:
    """Raises: CompileError if there are not as many labels and targets as samples."""
    samples = x.shape[axis] if x.ndim > axis else 0
    for name, given in (("labels", labels), ("targets", targets)):
        if given is not None and len(given) != samples:
            raise CompileError(f"there are {len(given)} {name} for {samples} samples", Loc("attack"))
    if not samples:
        raise CompileError("there are no samples to attack", Loc("attack"))
    return [
        Case(
            sample=at,
            x=np.ascontiguousarray(x.take(at, axis)),
            label=int(labels[at]),
            target=None if targets is None else int(targets[at]),
        )
        for at in range(samples)
    ]


def _member(kind: type[Choice], name: Choice | str) -> Choice:
    try:
        return kind(name)
    except ValueError as fault:
        what = kind.__name__.lower()
        raise CompileError(f"{name!r} is no {what}", Loc("attack"), hint=f"known: {', '.join(kind)}") from fault
