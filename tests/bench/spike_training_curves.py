"""Learning curves with spike kernels and without them, of the same seeds: do they differ by more than seeds do?

    python -m tests.bench.spike_training_curves --data mnist:FOLDER --samples 10000 --json curves.json --figure c.svg

Trains `zoo:certify-conv` on fused kernels, each seed once with the kernels that measurements choose and once with the
dense ones alone; both recompute. A seed decides the weights at the beginning and the order of the samples. Both runs of
a seed begin with the same bits and part when another order of summation first moves a spike. A point of a curve is the
mean loss of ten steps. The difference of the two mean curves is held against the spread of one: the standard deviation
over seeds, of both sorts of run together. Two groups drawn from one normal distribution differ by less than the quoted
number of spreads at half of all points, since a mean over few seeds is itself uncertain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from compiler.fused.spikes.costs import SpikeKernels
    from frontends.datasets import Samples
    from spikec.training.fused import FusedTrainer

MODEL, TIMESTEPS, BATCH, RATE = "zoo:certify-conv", 10, 128, 1e-3
RISE = 20  # steps in which the rate rises; at the full rate from the first step on, all inputs end in one class
SMOOTH = 10  # steps of a point
WITH, WITHOUT = "measured", "off"
LABELS = {WITH: "kernels by measurement", WITHOUT: "dense kernels"}
COLOURS = {WITH: "#33658a", WITHOUT: "#d62728"}

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training.

    losses: of each step, before its update. accuracies: of the test samples, after each epoch. ways: by pass and way,
    in how many steps how many layers took it.
    """

    kernels: str
    seed: int
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    ways: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Of the runs of both sorts.

    ratio: |difference of the mean curves| / spread, over the points. chance: its median where only seeds differ.
    shift: loss with measured kernels less that of the same seed without, mean over the steps, and its standard error
    over seeds; it shows a bias that the spread of unlike seeds would hide.
    accuracies: after the last epoch. ways: by sort and pass, the share of the passes that took each way.
    """

    points: int
    seeds: int
    ratio_median: float
    ratio_max: float
    chance_median: float
    shift_mean: float
    shift_error: float
    first_losses_equal: bool  # to the last bit, before any update
    accuracy_mean: Mapping[str, float]
    accuracy_spread: Mapping[str, float]
    ways: Mapping[str, Mapping[str, float]]


def train(kernels: SpikeKernels, seed: int, epochs: int, sets: tuple[Samples, Samples]) -> Run:
    """One training; a batch that is not whole at the end of an epoch is left out."""
    from compiler.losses import Loss
    from frontends.descent import DescentRecipe, Optimiser, Schedule
    from spikec.models import load_model
    from spikec.training.fused import FusedTrainer
    from spikec.training.loop import time_first

    samples, test = sets
    steps = epochs * (len(samples) // BATCH)
    recipe = DescentRecipe(
        epochs=epochs,
        batch=BATCH,
        learning_rate=RATE,
        optimiser=Optimiser.ADAM,
        loss=Loss.CROSS_ENTROPY,
        schedule=Schedule.CONSTANT,
        warmup=RISE / steps,
        threads=1,
    )
    graph = load_model(MODEL, timesteps=TIMESTEPS, seed=seed).graph
    trainer = FusedTrainer(graph, recipe, kernels=kernels, recompute=True)
    random = np.random.default_rng(seed)
    losses: list[float] = []
    accuracies: list[float] = []
    ways: Counter[str] = Counter()
    started = time.perf_counter()
    for _ in range(epochs):
        order = random.permutation(len(samples))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[first : first + BATCH]
            rate = recipe.rate(len(losses), steps)
            losses.append(trainer.step(time_first(samples, chosen), samples.y[chosen], rate).loss)
            ways.update(passes(trainer))
            if len(losses) % SMOOTH == 0:
                tell(f"  {kernels}, seed {seed}, step {len(losses)}: {statistics.mean(losses[-SMOOTH:]):.4f}")
        accuracies.append(float(np.mean(trainer.predict(time_first(test, slice(None))) == test.y)))
        tell(f"  {kernels}, seed {seed}: {accuracies[-1]:.4f} of the test samples")
    return Run(
        kernels=kernels.value,
        seed=seed,
        losses=tuple(losses),
        accuracies=tuple(accuracies),
        ways=dict(ways),
        seconds=time.perf_counter() - started,
    )


def passes(trainer: FusedTrainer) -> list[str]:
    """Pass and way of each layer with spike input in the last step."""
    return [f"{row.of} {row.way}" for row in trainer.explained()]


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(runs: Sequence[Run], kernels: str) -> Points:
    """Mean losses of ten steps. Shape: (seeds, points)."""
    losses = np.array([run.losses for run in runs if run.kernels == kernels])
    points = losses.shape[1] // SMOOTH
    means: Points = losses[:, : points * SMOOTH].reshape(len(losses), points, SMOOTH).mean(2)
    return means


def final_accuracies(runs: Sequence[Run], kernels: str) -> Points:
    """Shape: (seeds,)."""
    return np.array([run.accuracies[-1] for run in runs if run.kernels == kernels])


def compared(runs: Sequence[Run]) -> Comparison:
    """Of two seeds or more, each trained both ways."""
    from scipy.stats import t

    ours, theirs = (curves(runs, kernels) for kernels in (WITH, WITHOUT))
    seeds = len(ours)
    spread = np.sqrt((ours.var(0, ddof=1) + theirs.var(0, ddof=1)) / 2)
    shift = (ours - theirs).mean(1)
    ratio = np.abs(ours.mean(0) - theirs.mean(0)) / spread
    ends = {kernels: final_accuracies(runs, kernels) for kernels in (WITH, WITHOUT)}
    firsts = {kernels: {run.seed: run.losses[0] for run in runs if run.kernels == kernels} for kernels in ends}
    return Comparison(
        points=len(ratio),
        seeds=seeds,
        ratio_median=float(np.median(ratio)),
        ratio_max=float(ratio.max()),
        # the difference of two means of n, over their pooled deviation, is t's times the root of 2 / n
        chance_median=float(t.ppf(0.75, 2 * seeds - 2) * np.sqrt(2 / seeds)),
        shift_mean=float(shift.mean()),
        shift_error=float(shift.std(ddof=1) / np.sqrt(seeds)),
        first_losses_equal=firsts[WITH] == firsts[WITHOUT],
        accuracy_mean={kernels: float(values.mean()) for kernels, values in ends.items()},
        accuracy_spread={kernels: float(values.std(ddof=1)) for kernels, values in ends.items()},
        ways={kernels: shares(runs, kernels) for kernels in ends},
    )


def shares(runs: Sequence[Run], kernels: str) -> dict[str, float]:
    """By pass and way, the share of all times that the pass was made."""
    counts: Counter[str] = Counter()
    for run in runs:
        if run.kernels == kernels:
            counts.update(run.ways)
    totals: Counter[str] = Counter()
    for name, count in counts.items():
        totals[name.split(" ")[0]] += count
    return {name: count / totals[name.split(" ")[0]] for name, count in sorted(counts.items())}


# -- figure -----------------------------------------------------------------------------------------------------------


def figure(runs: Sequence[Run]) -> Figure:
    """Bands of mean and standard deviation over the seeds: the loss by steps, the accuracy by epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    seeds = len({run.seed for run in runs})
    made = Figure(figsize=(10.0, 4.2), layout="constrained")
    made.suptitle(f"{MODEL}, {TIMESTEPS} time steps, batches of {BATCH}: mean and deviation of {seeds} seeds")
    left, right = made.subplots(1, 2, width_ratios=[3, 2])
    for kernels in (WITHOUT, WITH):
        loss = curves(runs, kernels)
        band(left, np.arange(0.5, loss.shape[1]) * SMOOTH, loss, kernels)
        accuracy = np.array([run.accuracies for run in runs if run.kernels == kernels])
        band(right, np.arange(1, accuracy.shape[1] + 1, dtype=np.float64), accuracy, kernels)
    left.set(xlabel="step", ylabel=f"cross entropy, mean of {SMOOTH} steps", xlim=(0, None), ylim=(0, None))
    right.set(xlabel="epoch", ylabel="accuracy on test samples")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    left.legend(frameon=False)
    return made


def band(axes: Axes, x: Points, values: Points, kernels: str) -> None:
    """values: (seeds, points)."""
    mean, spread = values.mean(0), values.std(0, ddof=1)
    style = "-" if kernels == WITH else "--"
    axes.plot(x, mean, style, color=COLOURS[kernels], marker="o", markersize=3, label=LABELS[kernels])
    axes.fill_between(x, mean - spread, mean + spread, color=COLOURS[kernels], alpha=0.18, linewidth=0)


# -- command ----------------------------------------------------------------------------------------------------------


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--samples", type=int, default=10_000, help="the first of the training set")
    parser.add_argument("--test-samples", type=int, default=2_000, help="the first of the test set")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3, help="two or more")
    parser.add_argument("--json", type=Path, help="written after each pair of runs from the second on")
    parser.add_argument("--figure", type=Path, help="an SVG file")
    given = parser.parse_args()
    if given.seeds < 2 or given.epochs * (given.samples // BATCH) < SMOOTH:
        parser.error(f"two seeds and {SMOOTH} steps at least")
    return given


def in_environment() -> None:
    """Begin anew unless the environment says one thread, which is read when a process starts."""
    one = {"OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"}
    if any(os.environ.get(name) != value for name, value in one.items()):
        arguments = [sys.executable, "-m", "tests.bench.spike_training_curves", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | one)


def written(runs: Sequence[Run], given: argparse.Namespace) -> str:
    about = {
        "model": MODEL,
        "timesteps": TIMESTEPS,
        "batch": BATCH,
        "learning_rate": RATE,
        "rise": RISE,
        "data": given.data,
        "samples": given.samples,
        "test_samples": given.test_samples,
        "epochs": given.epochs,
    }
    return json.dumps(about | asdict(compared(runs)) | {"runs": [asdict(run) for run in runs]})


def show(found: Comparison) -> None:
    print(
        f"{found.points} points, {found.seeds} seeds: |difference| / spread is {found.ratio_median:.2f} at the median "
        f"and {found.ratio_max:.2f} at most; {found.chance_median:.2f} is the median where only seeds differ"
    )
    print(
        f"losses with measured kernels less those of the same seed: {found.shift_mean:.4f} +- {found.shift_error:.4f}"
    )
    print(f"first losses {'equal' if found.first_losses_equal else 'differ'} bit for bit")
    for kernels, mean in found.accuracy_mean.items():
        print(f"{kernels:10} accuracy {100 * mean:.2f} % +- {100 * found.accuracy_spread[kernels]:.2f}")
        for name, share in found.ways[kernels].items():
            print(f"  {name:32} {100 * share:6.1f} % of the passes")


def main() -> None:
    given = parsed()
    in_environment()

    from compiler.fused.spikes.costs import SpikeKernels
    from frontends.datasets import train_and_test
    from spikec.explore.figure import save_svg

    train_set, test_set = train_and_test(given.data)
    sets = train_set.take(slice(0, given.samples)), test_set.take(slice(0, given.test_samples))
    runs: list[Run] = []
    for seed in range(given.seeds):
        both = (SpikeKernels(WITH), SpikeKernels(WITHOUT))
        runs += [train(kernels, seed, given.epochs, sets) for kernels in (both if seed % 2 == 0 else both[::-1])]
        if seed and given.json is not None:
            given.json.write_text(written(runs, given))
    show(compared(runs))
    if given.figure is not None:
        save_svg(lambda: figure(runs), given.figure)


if __name__ == "__main__":
    main()
