"""Every attack by its name, and what may be done with its examples afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType

from compiler.attack import ann, boundary, greedy, iterate, random_search, rate, retime, sparse, trial
from compiler.attack.reduce import reduce_flips
from compiler.attack.retime import RetimeBudget
from compiler.attack.settings import Case, Flow, Outcome, Settings
from compiler.attack.victim import Victim
from compiler.ir import CompileError, DType

Attack = Callable[[Victim, Iterable[Case], Settings], Iterator[Outcome]]


class Method(StrEnum):
    """How examples are looked for."""

    BIM = "bim"  # algorithm 5
    FGSM = "fgsm"  # one update of it
    RGA = "rga"  # algorithm 5 with the gradient of firing rates
    SPARSE = "sparse"  # flips many spikes at once, then takes back what is not needed
    GREEDY = "greedy"  # flips the best spike, one after the other
    RETIME = "retime"  # moves spikes in time
    ANN = "ann"  # examples of the network's ANN counterpart
    BOUNDARY = "boundary"  # walks along the decision boundary, without gradients
    RANDOM = "random"  # random search by scores
    TRIAL_SPIKES = "trial-spikes"  # flips one spike at a time and looks
    TRIAL_PIXELS = "trial-pixels"  # changes one block of pixels at a time and looks


class Refinement(StrEnum):
    """What is done with examples of spikes to have fewer flips."""

    NONE = "none"
    REDUCE = "reduce"  # takes flips back until none can be spared
    GREEDY = "greedy"  # then replaces flips by fewer


def method(name: Method) -> Attack:
    """The attack of a name."""
    return _ATTACKS[name]


def attack_with(
    name: Method,
    victim: Victim,
    cases: Iterable[Case],
    settings: Settings,
    refinement: Refinement = Refinement.NONE,
    *,
    retiming: RetimeBudget | None = None,
    starts: Sequence[Case] = (),
) -> Iterator[Outcome]:
    """The outcomes of an attack, in no fixed order, its examples refined.

    retiming: what `Method.RETIME` may move; everything unless given. starts: labelled samples that
    `Method.BOUNDARY` may begin at, without which few targeted cases find a start.
    Raises: CompileError for a refinement of a network that takes no spikes, or of a method that moves spikes; for
    retiming limits of another method; for restarts, several draws, a pull, a threshold or a surrogate that the method
    has no use for; for what the method refuses.
    """
    _check_used(name, victim, settings, refinement)
    _check_fits(name, victim, refinement, retiming)
    if retiming is not None:
        return retime.attack(victim, cases, settings, budget=retiming)
    if name is Method.BOUNDARY:
        outcomes = boundary.attack(victim, cases, settings, starts=starts)
    else:
        outcomes = method(name)(victim, cases, settings)
    if refinement is Refinement.NONE:
        return outcomes
    reduced = reduce_flips(victim, outcomes)
    return reduced if refinement is Refinement.REDUCE else greedy.refine(victim, reduced, settings)


def _check_used(name: Method, victim: Victim, settings: Settings, refinement: Refinement) -> None:
    """Raises: CompileError for settings that would be looked at by nobody."""
    iterated = (Method.BIM, Method.FGSM, Method.RGA)
    tuned = (*iterated, Method.SPARSE, Method.GREEDY, Method.RETIME)
    is_alone = refinement is Refinement.NONE  # refinements take gradients of their own
    for what, is_given, methods in (
        ("a threshold is", is_alone and victim.threshold is not None, tuned),
        ("a surrogate is", is_alone and victim.surrogate is not None, [one for one in tuned if one is not Method.RGA]),
        ("restarts are", settings.restarts > 0, iterated),
        ("several draws are", settings.draws > 1, iterated),
        ("a pull is", settings.pull > 0.0, (*iterated, Method.ANN)),
    ):
        if is_given and name not in methods:
            hint = f"methods that have them: {', '.join(methods)}"
            raise CompileError(f"{what} given, and method {name} has none", victim.graph.input.loc, hint=hint)


def _check_fits(name: Method, victim: Victim, refinement: Refinement, retiming: RetimeBudget | None) -> None:
    """Raises: CompileError as `attack_with` says."""
    node = victim.graph.input
    if retiming is not None and name is not Method.RETIME:
        raise CompileError(
            f"limits on moved spikes are given, and method {name} moves none", node.loc, hint="use retime"
        )
    if refinement is Refinement.NONE:
        return
    if victim.graph.types[node.name].dtype is not DType.SPIKE:
        raise CompileError(
            f"{node.name}: refinement {refinement} takes back flips of spikes, and the network takes intensities",
            node.loc,
            hint="leave the refinement out",
        )
    if name is Method.RETIME:
        raise CompileError(
            f"refinement {refinement} takes back single flips, and retime keeps the number of spikes",
            node.loc,
            hint="leave the refinement out; retime takes back moves that are not needed by itself",
        )


def _fast_gradient_sign(victim: Victim, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """One update of algorithm 5 (equation 5.2)."""
    return iterate.attack(victim, cases, replace(settings, flow=Flow.FGSM))


_ATTACKS: Mapping[Method, Attack] = MappingProxyType(
    {
        Method.BIM: iterate.attack,
        Method.FGSM: _fast_gradient_sign,
        Method.RGA: rate.attack,
        Method.SPARSE: sparse.attack,
        Method.GREEDY: greedy.attack,
        Method.RETIME: retime.attack,
        Method.ANN: ann.ann_conversion_attack,
        Method.BOUNDARY: boundary.attack,
        Method.RANDOM: random_search.attack,
        Method.TRIAL_SPIKES: trial.spikes_attack,
        Method.TRIAL_PIXELS: trial.pixels_attack,
    }
)
