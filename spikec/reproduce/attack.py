"""Chapter 5: attacks on a small network behind a Bernoulli code, here and now; those on MNIST as they were measured."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import pairwise, product
from typing import TypeVar

import torch

from compiler.attack import Settings, Status
from compiler.attack.spike_gradients import constructed, transformed
from compiler.losses import Loss
from spikec.reproduce.attack_study import BOTH, SHORT, Goal, Measure, Study, Subjects, shown
from spikec.reproduce.attack_twin import boundary_measures, bounded_measures, cross_measures
from spikec.reproduce.facts import Facts, Kind, Row, Value

Progress = Callable[[str], None]
Item = TypeVar("Item")

GAMMAS = (0.01, 0.02, 0.05, 0.1, 0.2)
THRESHOLDS = (0.3, 0.5, 1.0, 1.5, 2.0)  # of the penultimate layer; the first is its own
TUNED = 1.0  # of the released code
PULLS = (0.0, 0.1, 0.5)
EPSILON = 0.08
ITERATIONS = 25
MOST = 0.99  # of success, where print says close to 100 %
GROUPS = (
    *(f"table-5.{number}" for number in (2, 3, 4, 6, 7, 8)),
    *(f"figure-5.{number}" for number in (5, *range(7, 17))),
)


def attack_rows(
    facts: Facts, progress: Progress, subjects: Callable[[], Subjects] | None, is_wanted: Callable[[str], bool]
) -> Iterator[Row]:
    """Tables by calculation, MNIST as recorded, and attacks on the subjects unless there are none.

    is_wanted: whether anything of a table or figure is; others are not run.
    """
    yield from _exact(facts)
    yield from _recorded(facts)
    chosen = [measure for groups, measure in _MEASURES if any(map(is_wanted, groups))]
    if subjects is None or not chosen:
        return
    study = Study(subjects(), progress)
    for measure in (measure for make in chosen for measure in make(study)):
        basis = f"{study.basis}{'; ' if measure.text else ''}{measure.text}"
        yield facts[measure.item].row(measure.value, Kind.MEASURED, basis, variant=study.subjects.name)


def _exact(facts: Facts) -> Iterator[Row]:
    names = {1: "plus", 0: "zero", -1: "minus"}
    for spike, sign in product((0, 1), names):
        change = transformed(torch.tensor([float(sign)]), torch.tensor([float(spike)]))
        item = f"table-5.2.spike_{spike}_gradient_{names[sign]}"
        yield facts[item].row(int(change), Kind.EXACT, "the converter's last step, by calculation")
    for mask, spike in product((0, 1), (0, 1)):
        change = constructed(torch.tensor([bool(mask)]), torch.tensor([float(spike)]))
        item = f"table-5.4.mask_{mask}_spike_{spike}"
        yield facts[item].row(int(change), Kind.EXACT, "the flipper's change, by calculation")


def _recorded(facts: Facts) -> Iterator[Row]:
    """What was measured on MNIST before; items of other data sets have nothing of ours."""
    text = (resources.files("spikec.reproduce") / "measured_attack.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    values: Mapping[str, Value] = table["values"]
    notes: Mapping[str, str] = table["notes"]
    exact = ("table-5.2.", "table-5.4.")
    for item, fact in facts.by_item.items():
        if item.rpartition(".")[0] not in GROUPS or item.startswith(exact):
            continue
        if item in values:
            note = f"; {notes[item]}" if item in notes else ""
            yield fact.row(values[item], Kind.REPRODUCED, f"{table['how']}{note}")
        else:
            yield fact.row(None, Kind.GIVEN, "not measured here: the data set is not at hand")


def _vanishing(study: Study) -> Iterator[Measure]:
    for loss in BOTH:
        share = study.vanished_at_first(loss)
        text = f"scaled to 500 inputs; {100 * share.low:.1f} to {100 * share.high:.1f} %"
        yield Measure(item=f"table-5.3.mnist_{SHORT[loss]}", value=500 * share.value, text=text)


def _accuracy(study: Study) -> Iterator[Measure]:
    for loss in BOTH:
        accuracy = 100 * study.accuracy(loss)
        yield Measure(item=f"table-5.6.mnist_{SHORT[loss]}", value=accuracy, text="all test samples, one code each")


def _losses(study: Study) -> Iterator[Measure]:
    """Table 5.7; the trap is there if intervals of both goals lie apart, cross entropy below."""
    found = {(loss, goal): study.summary(loss, goal) for loss, goal in product(BOTH, Goal)}
    for (loss, goal), summary in found.items():
        yield Measure(
            item=f"table-5.7.mnist_{SHORT[loss]}_{goal}", value=100 * summary.success.value, text=shown(summary)
        )
    mse, ce = (found[loss, Goal.TARGETED].success for loss in BOTH)
    texts = (f"{SHORT[loss]} {shown(found[loss, Goal.TARGETED])}" for loss in BOTH)
    yield Measure(
        item="table-5.7.trap",
        value=ce.high < mse.low,
        text=f"cross entropy of ten times the rate; holds if the intervals lie apart: {', '.join(texts)}",
    )


def _sampling(study: Study) -> Iterator[Measure]:
    yield Measure(item="figure-5.5.masked_out", value=100 * study.masked_out(Loss.MSE), text="all samples together")
    settings = {flag: Settings(sampling=flag, flipping=False) for flag in (True, False)}
    found = {
        (loss, goal, flag): study.summary(loss, goal, settings[flag])
        for loss, goal, flag in product(BOTH, Goal, settings)
    }
    text = "; ".join(
        f"{SHORT[loss]} {goal} {'with' if flag else 'without'} sampling {shown(summary)}"
        for (loss, goal, flag), summary in found.items()
    )
    pairs = [
        (found[loss, Goal.UNTARGETED, flag], found[loss, Goal.TARGETED, flag]) for loss, flag in product(BOTH, settings)
    ]
    yield Measure(
        item="figure-5.9.targets_need_more", value=all(one.metric < two.metric for one, two in pairs), text=text
    )
    value = all(one.success.value >= two.success.value for one, two in pairs)
    yield Measure(item="figure-5.9.targets_succeed_less", value=value, text=text)
    sampled = [(found[loss, goal, True], found[loss, goal, False]) for loss, goal in product(BOTH, Goal)]
    value = all(one.metric < two.metric for one, two in sampled)
    yield Measure(item="figure-5.9.sampling_perturbs_less", value=value, text=text)
    failures = {
        (loss, goal): _share(study, loss, goal, settings[True], Status.FAILURE) for loss, goal in product(BOTH, Goal)
    }
    text = ", ".join(f"{SHORT[loss]} {goal} {100 * share:.1f} %" for (loss, goal), share in failures.items())
    yield Measure(
        item="figure-5.9.sampling_hardly_fails", value=max(failures.values()) <= 1 - MOST, text=f"failures: {text}"
    )


def _share(study: Study, loss: Loss, goal: Goal, settings: Settings, status: Status) -> float:
    """Of attacked cases, those that ended so."""
    outcomes = study.outcomes(loss, goal, settings)
    attacked = [outcome for outcome in outcomes if outcome.status is not Status.CLEAN_ERROR]
    return sum(outcome.status is status for outcome in attacked) / len(attacked)


def _penultimate(study: Study) -> Iterator[Measure]:
    counts = {loss: study.penultimate_spikes(loss, ITERATIONS) for loss in BOTH}
    first, last = counts[Loss.MSE][0], counts[Loss.MSE][-1]
    yield Measure(
        item="figure-5.7.mse_spikes_fall",
        value=last < first,
        text=f"spikes a sample, first and last: {first:.1f}, {last:.1f}",
    )
    first, last = counts[Loss.CROSS_ENTROPY][0], counts[Loss.CROSS_ENTROPY][-1]
    yield Measure(
        item="figure-5.7.ce_spikes_rise", value=last > first, text=f"spikes a sample: {first:.1f}, {last:.1f}"
    )
    means = {
        threshold: sum(study.penultimate_spikes(Loss.CROSS_ENTROPY, ITERATIONS, threshold=threshold)) / ITERATIONS
        for threshold in THRESHOLDS
    }
    text = ", ".join(f"{threshold:g}: {mean:.1f}" for threshold, mean in means.items())
    value = _falls(list(means.values()))
    yield Measure(item="figure-5.8.threshold_lowers_spikes", value=value, text=f"mean spikes by threshold {text}")


def _gammas(study: Study) -> Iterator[Measure]:
    """Figures 5.10 and 5.11."""
    found = {
        (loss, goal): [study.summary(loss, goal, Settings(gamma=gamma)) for gamma in GAMMAS]
        for loss, goal in product(BOTH, Goal)
    }
    text = _series(found, GAMMAS, lambda summary: f"{100 * summary.success.value:.1f} % {summary.metric:.3f}")
    untargeted = [min(found[loss, Goal.UNTARGETED][at].success.value for loss in BOTH) for at in range(len(GAMMAS))]
    targeted = [sum(found[loss, Goal.TARGETED][at].success.value for loss in BOTH) for at in range(len(GAMMAS))]
    saturated = next((gamma for gamma, share in zip(GAMMAS, untargeted, strict=True) if share >= MOST), None)
    yield Measure(item="figure-5.10.gamma_saturated", value=saturated, text=f"at least {MOST:.0%}; {text}")
    best = GAMMAS[max(range(len(GAMMAS)), key=targeted.__getitem__)]
    yield Measure(item="figure-5.10.gamma_best_targeted", value=best, text=text)
    flipped = {key: series for key, series in found.items() if series[0].vanished > 0}
    rises = bool(flipped) and all(series[-1].metric > series[0].metric for series in flipped.values())
    named = ", ".join(f"{SHORT[loss]} {goal}" for loss, goal in flipped) or "none"
    text = f"least and largest gamma, where spikes were flipped at random: {named}"
    yield Measure(item="figure-5.10.gamma_perturbs_more", value=rises, text=text)
    flips = {key: [summary.vanished for summary in series] for key, series in found.items()}
    text = _series(flips, GAMMAS, lambda mean: f"{mean:.2f}")
    value = all(series[0] >= series[-1] for series in flips.values())
    yield Measure(item="figure-5.11.gamma_flips_less_often", value=value, text=f"iterations of flipping, mean: {text}")


def _thresholds(study: Study) -> Iterator[Measure]:
    """Figure 5.12."""
    found = {
        (loss, goal): [study.summary(loss, goal, threshold=threshold) for threshold in THRESHOLDS]
        for loss, goal in product(BOTH, Goal)
    }
    text = _series(found, THRESHOLDS, lambda summary: f"{100 * summary.success.value:.1f} % {summary.metric:.3f}")
    for goal, name in ((Goal.UNTARGETED, "untargeted_near_all"), (Goal.TARGETED, "targeted_images_near_all")):
        value = all(max(summary.success.value for summary in found[loss, goal][1:]) >= MOST for loss in BOTH)
        yield Measure(item=f"figure-5.12.{name}", value=value, text=f"at some threshold above its own; {text}")
    metrics = [summary.metric for series in found.values() for summary in series]
    yield Measure(
        item="figure-5.12.perturbation_most", value=sorted(metrics)[len(metrics) * 9 // 10], text="nine of ten means"
    )
    bounded = {
        (loss, goal): [study.summary(loss, goal, Settings(epsilon=EPSILON), threshold=TUNED)]
        for loss, goal in product(BOTH, Goal)
    }
    text = _series(bounded, (TUNED,), lambda summary: f"{100 * summary.success.value:.1f} %")
    value = all(series[0].success.value >= 0.5 for series in bounded.values())
    yield Measure(item="figure-5.12.bounded_considerable", value=value, text=f"at least half: {text}")


def _pulls(study: Study) -> Iterator[Measure]:
    """Figure 5.13."""
    found = {
        (loss, goal): [study.summary(loss, goal, Settings(pull=pull), threshold=TUNED) for pull in PULLS]
        for loss, goal in product(BOTH, Goal)
    }
    text = _series(found, PULLS, lambda summary: f"{100 * summary.success.value:.1f} % {summary.metric:.4f}")
    helps = all(
        small.metric < none.metric and small.success.high >= none.success.value for none, small, _ in found.values()
    )
    yield Measure(item="figure-5.13.small_pull_helps", value=helps, text=text)
    losses = [
        100 * (found[loss, Goal.TARGETED][0].success.value - found[loss, Goal.TARGETED][2].success.value)
        for loss in BOTH
    ]
    yield Measure(item="figure-5.13.large_pull_costs", value=max(losses), text=text)


def _series(found: Mapping[tuple[Loss, Goal], Sequence[Item]], at: Sequence[float], show: Callable[[Item], str]) -> str:
    """All sweeps in words."""
    parts = []
    for (loss, goal), series in found.items():
        points = ", ".join(f"{x:g}: {show(item)}" for x, item in zip(at, series, strict=True))
        parts.append(f"{SHORT[loss]} {goal} {points}")
    return "; ".join(parts)


def _falls(values: Sequence[float]) -> bool:
    return all(later <= earlier for earlier, later in pairwise(values))


_MEASURES: tuple[tuple[tuple[str, ...], Callable[[Study], Iterator[Measure]]], ...] = (
    (("table-5.3",), _vanishing),
    (("table-5.6",), _accuracy),
    (("table-5.7",), _losses),
    (("table-5.8",), bounded_measures),
    (("figure-5.5", "figure-5.9"), _sampling),
    (("figure-5.7", "figure-5.8"), _penultimate),
    (("figure-5.10", "figure-5.11"), _gammas),
    (("figure-5.12",), _thresholds),
    (("figure-5.13",), _pulls),
    (("figure-5.15",), cross_measures),
    (("figure-5.16",), boundary_measures),
)
