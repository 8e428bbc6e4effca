"""Chapter 6: what follows by calculation, small networks trained here and now, and MNIST as it was measured."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from itertools import pairwise

import numpy as np
import torch

from compiler.certify.input_checks import real_interval
from compiler.certify.input_sets import L0Ball
from frontends.datasets import train_and_test
from frontends.zoo import entry
from spikec.reproduce.attack_study import Measure
from spikec.reproduce.facts import Facts, Kind, Row, Value
from spikec.reproduce.robust_study import DATA, EPSILON, RobustStudy, Training

Progress = Callable[[str], None]

TIMESTEPS = (1, 3, 5)  # of robust training
ATTACKED = (0.03, 0.06, 0.1, 0.15, 0.2)  # half-widths
TRAINED = (0.015, EPSILON, 2 * EPSILON)  # half-widths
LEAST_ERROR = 0.2  # of the plain network: print compares attacks that reach about 20 % and more
GROUPS = ("table-6.1", "table-6.2", "section-6.2.2", "section-6.3.2", "figure-6.4", "figure-6.5")


def robust_rows(
    facts: Facts, progress: Progress, study: Callable[[], RobustStudy] | None, is_wanted: Callable[[str], bool]
) -> Iterator[Row]:
    """Rows by calculation, MNIST as recorded, and measurements of a study unless there is none.

    is_wanted: whether anything of a table or figure is; others are not run.
    """
    exact = list(_exact(facts))
    yield from exact
    yield from _recorded(facts, {row.item for row in exact})
    chosen = [measure for group, measure in _MEASURES if is_wanted(group)]
    if study is None or not chosen:
        return
    made = study()
    for measure in (one for make in chosen for one in make(made)):
        basis = f"{made.basis}{'; ' if measure.text else ''}{measure.text}"
        yield facts[measure.item].row(measure.value, Kind.MEASURED, basis, variant=DATA)


def _exact(facts: Facts) -> Iterator[Row]:
    fc, conv = entry("certify-fc"), entry("certify-conv")
    text = "the network of the zoo"
    for name, value in (
        ("timesteps", fc.timesteps),
        ("threshold", fc.neuron.threshold),
        ("decay", fc.neuron.decay),
        ("fc", _widths(fc.notation)),
        ("conv", _widths(conv.notation)),
    ):
        yield facts[f"table-6.1.{name}"].row(value, Kind.EXACT, text)
    yield facts["section-6.2.2.unstable_probability"].row(
        unstable_share(np.zeros(1, np.float32), 0.125),
        Kind.INCONSISTENT,
        "of a black pixel: half of its interval lies below 0, where no draw is",
    )
    yield facts["section-6.2.2.l0_unbounded"].row(
        not _l0_is_bounded(),
        Kind.REPRODUCED,
        "the least value of a linear form within k flips is a sum of its k best changes, as all members show",
    )


def unstable_share(images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], width: float) -> float:
    """How probable it is that a spike depends on where in its interval the pixel is, in widths; the mean of pixels.

    (clip(x + width/2) - clip(x - width/2)) / width. Source: equation 6.11, with its corner cases.
    """
    least, most = real_interval(images, width / 2, (0.0, 1.0))
    return float((most.astype(np.float64) - least).mean() / width)


def _widths(notation: str) -> str:
    return ", ".join(part.removesuffix("FC") for part in notation.split("-"))


def _l0_is_bounded() -> bool:
    """Of one set, whether the closed form is the least over its list."""
    rng = np.random.default_rng(0)
    ball = L0Ball(clean=(rng.random((2, 4)) < 0.5).astype(np.float32), k=3)
    form = torch.from_numpy(rng.integers(-8, 9, (2, 4)) / 8)
    least = min(float((form.numpy() * x).sum()) for x in ball.members())
    return float(ball.support(form)) == least


def _recorded(facts: Facts, known: set[str]) -> Iterator[Row]:
    """What was measured on MNIST before; items of other data sets have nothing of ours."""
    text = (resources.files("spikec.reproduce") / "measured_robust.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    values: Mapping[str, Value] = table["values"]
    notes: Mapping[str, str] = table["notes"]
    for item, fact in facts.by_item.items():
        if item.rpartition(".")[0] not in GROUPS or item in known:
            continue
        if item in values:
            note = f"; {notes[item]}" if item in notes else ""
            yield fact.row(values[item], Kind.REPRODUCED, f"{table['how']}{note}")
        else:
            yield fact.row(None, Kind.GIVEN, "not measured here: no data set at hand, or no measure in print")


def _accuracies(study: RobustStudy) -> Iterator[Measure]:
    for structure in study.notations:
        accuracy = 100 * study.twin(Training(structure=structure)).accuracy
        yield Measure(item=f"table-6.1.mnist_{structure}", value=accuracy, text="all test samples, one code each")


def _unstable(study: RobustStudy) -> Iterator[Measure]:
    """Equation 6.11 over real images."""
    _, test = train_and_test(DATA)
    black = float((test.x == 0).mean())
    text = f"{100 * black:.0f} % of the pixels are black; width {4 * EPSILON:g}"
    yield Measure(item="section-6.2.2.unstable_probability", value=unstable_share(test.x, 4 * EPSILON), text=text)


def _epochs(study: RobustStudy) -> Iterator[Measure]:
    text = f"fc, a step of S-CROWN's margins beside a plain one of all time steps, batch {study.recipe.batch}"
    for steps in TIMESTEPS:
        yield Measure(item=f"section-6.3.2.epoch_ratio_{steps}", value=study.step_ratio("fc", steps), text=text)


def _timesteps(study: RobustStudy) -> Iterator[Measure]:
    """Figure 6.4: the best of both is the largest share that is certified, which takes the right class for granted."""
    trainings = {steps: Training(structure="fc", eps=EPSILON, timesteps=steps) for steps in TIMESTEPS}
    shares = {steps: study.certified_share(training, EPSILON) for steps, training in trainings.items()}
    text = ", ".join(
        f"{steps} steps: {100 * shares[steps]:.0f} % certified, accuracy {100 * study.twin(training).accuracy:.1f} %"
        for steps, training in trainings.items()
    )
    yield Measure(item="figure-6.4.best_timesteps", value=max(shares, key=shares.__getitem__), text=text)


def _epsilons(study: RobustStudy) -> Iterator[Measure]:
    """Figure 6.5."""
    trainings = [Training(structure="fc", eps=eps, timesteps=3) for eps in TRAINED]
    accuracies = [study.twin(training).accuracy for training in trainings]
    errors = [1 - study.certified_share(training, training.eps) for training in trainings]
    text = ", ".join(
        f"half-width {training.eps:g}: accuracy {100 * accuracy:.1f} %, robust error {100 * error:.0f} %"
        for training, accuracy, error in zip(trainings, accuracies, errors, strict=True)
    )
    falls = all(later <= earlier for earlier, later in pairwise(accuracies))
    yield Measure(item="figure-6.5.larger_epsilon_costs_accuracy", value=falls, text=text)
    rises = all(later >= earlier for earlier, later in pairwise(errors))
    yield Measure(item="figure-6.5.larger_epsilon_errs_more", value=rises, text=text)


def _attacks(study: RobustStudy) -> Iterator[Measure]:
    """Table 6.2: errors of twins under the attack of chapter 5, where the plain one errs often enough."""
    gains = {structure: _gains(study, structure) for structure in study.notations}
    text = "; ".join(f"{name}: {_told(study, name)}" for name in gains)
    structure, eps = max(
        ((name, eps) for name, own in gains.items() for eps in own), key=lambda key: gains[key[0]][key[1]]
    )
    plain, robust = _pair(structure)
    lost = 100 * (study.twin(plain).accuracy - study.twin(robust).accuracy)
    yield Measure(item="table-6.2.best_reduction", value=gains[structure][eps], text=f"{structure}; {text}")
    yield Measure(item="table-6.2.best_accuracy_loss", value=lost, text=f"{structure}, all test samples")
    yield Measure(item="table-6.2.best_attack_epsilon", value=2 * eps, text=f"{structure}; twice the half-width")
    every = [gain for own in gains.values() for gain in own.values()]
    yield Measure(item="table-6.2.harder_in_all_cases", value=min(every) > 0, text=text)
    rises = all(later >= earlier for own in gains.values() for earlier, later in pairwise(own.values()))
    yield Measure(item="table-6.2.gains_more_at_larger_epsilon", value=rises, text=text)
    best = {name: max(own.values()) for name, own in gains.items()}
    yield Measure(item="table-6.2.conv_gains_more", value=best["conv"] > best["fc"], text=text)


def _pair(structure: str) -> tuple[Training, Training]:
    """Plain and robust."""
    return Training(structure=structure), Training(structure=structure, eps=EPSILON, timesteps=3)


def _gains(study: RobustStudy, structure: str) -> dict[float, float]:
    """By how many points robust training lowers the attack error, by half-width; the largest one always counts."""
    plain, robust = _pair(structure)
    chosen = [eps for eps in ATTACKED if study.attack_error(plain, eps) >= LEAST_ERROR] or [ATTACKED[-1]]
    return {eps: 100 * (study.attack_error(plain, eps) - study.attack_error(robust, eps)) for eps in chosen}


def _told(study: RobustStudy, structure: str) -> str:
    plain, robust = _pair(structure)
    return ", ".join(
        f"within {eps:g} {100 * study.attack_error(plain, eps):.0f} and {100 * study.attack_error(robust, eps):.0f} %"
        for eps in _gains(study, structure)
    )


_MEASURES: tuple[tuple[str, Callable[[RobustStudy], Iterator[Measure]]], ...] = (
    ("table-6.1", _accuracies),
    ("table-6.2", _attacks),
    ("section-6.2.2", _unstable),
    ("section-6.3.2", _epochs),
    ("figure-6.4", _timesteps),
    ("figure-6.5", _epsilons),
)
