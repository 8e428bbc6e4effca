"""Chapter 5's comparisons: bounded attacks beside the ANN conversion, and a network beside the ANN of its structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product

from compiler.attack import Outcome, Settings, Victim, attack
from compiler.attack.ann import AnnTwin, ann_conversion_attack
from compiler.attack.boundary import attack as boundary_attack
from compiler.attack.budget import Budget, Norm
from compiler.attack.network import Network
from compiler.attack.transfer import Transfer, cross
from compiler.losses import Loss
from spikec.reproduce.attack_study import Goal, Measure, Study, Summary, percent, shown

EPSILONS = (8, 16, 32, 64)  # of 255
CROSS_THRESHOLD = 2.0  # of the penultimate layer (section 5.4.7)
_BOUNDARY_ITERATIONS = 10  # of 64 queries each
Made = Callable[[Victim, Settings], Iterable[Outcome]]


def bounded_measures(study: Study) -> Iterator[Measure]:
    """Table 5.8: points of accuracy that attacks cost, trained by MSE, the threshold as tuned."""
    for (prefix, made), goal in product((("", _ours), ("sharmin_", _sharmin)), Goal):
        for epsilon in EPSILONS:
            settings = Settings(budget=Budget(norm=Norm.LINF, bound=epsilon / 255))
            study.progress(f"{prefix}{goal} within {epsilon} of 255")
            outcomes = made(study, goal, settings)
            yield Measure(
                item=f"table-5.8.{prefix}{goal}_{epsilon}",
                value=100 * study.accuracy_loss(Loss.MSE, outcomes),
                text="print has CIFAR10; trained by MSE; of the samples of all cases, by one code each; linf bound",
            )


def _ours(study: Study, goal: Goal, settings: Settings) -> tuple[Outcome, ...]:
    return study.outcomes(Loss.MSE, goal, settings, threshold=1.0)


def _sharmin(study: Study, goal: Goal, settings: Settings) -> tuple[Outcome, ...]:
    victim = Victim(study.graph(Loss.MSE))
    return tuple(ann_conversion_attack(victim, study.cases(goal), settings))


def cross_measures(study: Study) -> Iterator[Measure]:
    """Figure 5.15, untargeted and targeted together."""
    network = Victim(study.graph(Loss.CROSS_ENTROPY), loss=Loss.CROSS_ENTROPY, threshold=CROSS_THRESHOLD)
    cases = [case for goal in Goal for case in study.cases(goal)]
    yield from _beside(study, "figure-5.15", network, lambda one: attack(one, cases, Settings()))


def boundary_measures(study: Study) -> Iterator[Measure]:
    """Figure 5.16, untargeted."""
    network = Victim(study.graph(Loss.CROSS_ENTROPY), loss=Loss.CROSS_ENTROPY)
    settings = Settings(iterations=_BOUNDARY_ITERATIONS)
    cases = study.cases(Goal.UNTARGETED)
    yield from _beside(study, "figure-5.16", network, lambda one: boundary_attack(one, cases, settings))


def _beside(
    study: Study, group: str, network: Victim, made: Callable[[Network], Iterable[Outcome]]
) -> Iterator[Measure]:
    """Both networks attacked, and their examples exchanged."""
    twin = AnnTwin(study.twin)
    study.progress(f"{group}, the spiking network")
    own = tuple(made(network))
    study.progress(f"{group}, the ANN")
    others = tuple(made(twin))
    spiking, ann = Summary.of(own), Summary.of(others)
    text = f"trained by cross entropy: spiking {shown(spiking)}; ANN, accuracy {study.twin_accuracy:.3f}, {shown(ann)}"
    yield Measure(item=f"{group}.snn_needs_more", value=spiking.metric > ann.metric, text=text)
    to_spiking, to_ann = cross(others, network), cross(own, twin)
    rates = {name: _rate(one) for name, one in (("spiking", to_spiking), ("ann", to_ann))}
    text = f"ANN examples on the spiking network {_told(to_spiking)}, the other way {_told(to_ann)}"
    if group == "figure-5.15":
        yield Measure(item=f"{group}.ann_to_snn", value=100 * rates["spiking"], text=text)
        yield Measure(item=f"{group}.snn_transfers_better", value=rates["ann"] > rates["spiking"], text=text)
    else:
        yield Measure(item=f"{group}.ann_transfers_better", value=rates["spiking"] > rates["ann"], text=text)


def _rate(transfer: Transfer) -> float:
    return transfer.share.value if transfer.share is not None else 0.0


def _told(transfer: Transfer) -> str:
    return percent(transfer.share) if transfer.share is not None else "none to show"
