"""How many flipped spikes a decision stands: what bounds prove, the exact number, and what an attack needs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from compiler.attack.methods import Method as AttackMethod
from compiler.attack.methods import Refinement, attack_with
from compiler.attack.settings import Case, Settings, Status
from compiler.attack.victim import Victim
from compiler.certify.cascade import Cascade, certify
from compiler.certify.exact import Effort, Floats, Goal, batch_of
from compiler.certify.input_sets import L0Ball
from compiler.certify.integer_network import lower
from compiler.certify.minimum_flips import MinimumFlips, minimum_flips
from compiler.certify.verdicts import Answer, Arithmetic, Method
from compiler.ir import Graph
from compiler.losses import Loss

BOUNDS = (Method.IBP, Method.HULL, Method.BACKWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipRange:
    """Of one sample, with certified < least.lower <= least.flips <= attack wherever they are known.

    certified: the most flips that bounds alone prove harmless, in the effort's seconds once more; None where the clean
        input is told wrongly, in integers.
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
    given = effort or Effort()
    example = _attacked(graph, Case(sample=sample, x=clean, label=label), seed)
    least = minimum_flips(graph, clean, label, known=example, effort=given)
    if least.flips == 0:
        return FlipRange(certified=None, least=least, attack=None)
    return FlipRange(
        certified=_certified(graph, clean, label, sample, time.monotonic() + given.seconds),
        least=least,
        attack=None if example is None else int((example != clean).sum()),
    )


def _attacked(graph: Graph, case: Case, seed: int) -> Floats | None:
    """An input that integers too tell as another class than the label alone."""
    victim = Victim(graph, loss=Loss.CROSS_ENTROPY)
    (outcome,) = attack_with(AttackMethod.SPARSE, victim, [case], Settings(seed=seed), Refinement.GREEDY)
    if outcome.status is not Status.SUCCESS:
        return None
    network = lower(graph)
    is_hit = Goal(label=case.label).is_hit(network, batch_of(network, outcome.adversarial))[0]
    return outcome.adversarial if is_hit else None


def _certified(graph: Graph, clean: Floats, label: int, sample: int, ends: float) -> int:
    """The most flips proved harmless by then: more and more until that fails, and then between.

    A larger ball is never easier.
    """
    every = int(L0Ball(clean=clean, k=0).free.sum())
    proved, failed = 0, every + 1
    while failed - proved > 1 and time.monotonic() < ends:
        k = min(max(1, 2 * proved), every) if failed > every else (proved + failed) // 2
        if _is_proved(graph, clean, label, sample, k):
            proved = k
        else:
            failed = k
    return proved


def _is_proved(graph: Graph, clean: Floats, label: int, sample: int, k: int) -> bool:
    ball = L0Ball(clean=clean, k=k)
    (verdict,) = certify(
        graph, [ball], [label], cascade=Cascade(methods=BOUNDS), arithmetic=Arithmetic.INTEGERS, samples=[sample]
    )
    return verdict.answer is Answer.ROBUST
