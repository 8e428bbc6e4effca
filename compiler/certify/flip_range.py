"""How many flipped spikes a decision stands: what bounds prove, the exact number, and what an attack needs."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.attack.methods import Method as AttackMethod
from compiler.attack.methods import Refinement, attack_with
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import Victim
from compiler.certify.cascade import Cascade, certify
from compiler.certify.exact import Effort, Floats
from compiler.certify.input_sets import L0Ball
from compiler.certify.minimum_flips import MinimumFlips, minimum_flips
from compiler.certify.verdicts import Answer, Arithmetic, Method
from compiler.ir import Graph
from compiler.losses import Loss

BOUNDS = (Method.IBP, Method.HULL, Method.BACKWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipRange:
    """Of one sample, with certified < least.lower <= least.flips <= attack wherever they are known.

    certified: the most flips that bounds alone prove harmless; None where the clean input is told wrongly.
    least: the least number that changes the decision.
    attack: flips of the best example of an attack without proofs; None where it found none.
    """

    certified: int | None
    least: MinimumFlips
    attack: int | None


def flip_range(
    graph: Graph, clean: Floats, label: int, *, sample: int = 0, seed: int = 0, effort: Effort | None = None
) -> FlipRange:
    """The flips that a sample stands, by bounds, exactly, and by an attack whose example the exact search begins at.

    A tie of the label with another class is no win. The attack generates and reduces sparse flips (`Method.SPARSE`)
    and refines them greedily; the bounds are those of S-IBP, the hull, and backward intermediate ranges.

    graph: on a dyadic grid, taking spikes. sample: its index, from which and the seed the attack's draws follow.
    Shapes: clean as one sample of the input without N.
    Raises: CompileError as `minimum_flips`.
    """
    outcome = _attacked(graph, Case(sample=sample, x=clean, label=label), seed)
    example = outcome.adversarial if outcome.status is Status.SUCCESS else None
    return FlipRange(
        certified=None if outcome.status is Status.CLEAN_ERROR else _certified(graph, clean, label, sample),
        least=minimum_flips(graph, clean, label, known=example, effort=effort),
        attack=None if example is None else outcome.perturbation.l0,
    )


def _attacked(graph: Graph, case: Case, seed: int) -> Outcome:
    victim = Victim(graph, loss=Loss.CROSS_ENTROPY)
    (outcome,) = attack_with(AttackMethod.SPARSE, victim, [case], Settings(seed=seed), Refinement.GREEDY)
    return outcome


def _certified(graph: Graph, clean: Floats, label: int, sample: int) -> int:
    """A larger ball is never easier, so that the first one that is not proved ends it."""
    cascade = Cascade(methods=BOUNDS)
    every = int(L0Ball(clean=clean, k=0).free.sum())
    for k in range(1, every + 1):
        ball = L0Ball(clean=clean, k=k)
        (verdict,) = certify(graph, [ball], [label], cascade=cascade, arithmetic=Arithmetic.INTEGERS, samples=[sample])
        if verdict.answer is not Answer.ROBUST:
            return k - 1
    return every
