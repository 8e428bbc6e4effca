"""The numbers that learning curves are compared by, against hand-made curves and draws of one distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from spikec.explore.figure import save_svg
from tests.bench.spike_training_curves import SMOOTH, WITH, WITHOUT, Run, compared, curves, figure, shares


def run(
    kernels: str, seed: int, losses: Sequence[float], accuracy: float = 0.5, ways: Mapping[str, int] | None = None
) -> Run:
    return Run(
        kernels=kernels, seed=seed, losses=tuple(losses), accuracies=(0.1, accuracy), ways=ways or {}, seconds=1.0
    )


def level(*values: float) -> list[float]:
    """Losses whose points are these values."""
    return [value + (step - (SMOOTH - 1) / 2) for value in values for step in range(SMOOTH)]


def test_two_points_of_two_seeds() -> None:
    runs = [
        run(WITH, 0, level(4.0, 2.0), 0.7),
        run(WITHOUT, 0, level(4.0, 3.0), 0.8),
        run(WITHOUT, 1, level(6.0, 5.0), 0.8),
        run(WITH, 1, level(6.0, 4.0), 0.9),
    ]
    np.testing.assert_allclose(curves(runs, WITH), [[4, 2], [6, 4]])
    found = compared(runs)
    # both points: deviation of two seeds that are 2 apart is 2 / sqrt(2); differences of the means are 0 and 1
    assert found.ratio_max == pytest.approx(1 / np.sqrt(2))
    assert found.ratio_median == pytest.approx(0.5 / np.sqrt(2))
    # of both seeds the first point is the same and the second 1 lower
    assert (found.shift_mean, found.shift_error) == (-0.5, 0.0)
    assert (found.points, found.seeds, found.first_losses_equal) == (2, 2, True)
    assert found.accuracy_mean == pytest.approx({WITH: 0.8, WITHOUT: 0.8})
    assert found.accuracy_spread == pytest.approx({WITH: 0.2 / np.sqrt(2), WITHOUT: 0.0}, abs=1e-12)


def test_steps_that_fill_no_point_are_left_out() -> None:
    assert curves([run(WITH, 0, [*level(1.0, 3.0), 9.0])], WITH).tolist() == [[1.0, 3.0]]


def test_first_losses_that_differ() -> None:
    runs = [run(WITH, 0, [1.0] * SMOOTH), run(WITHOUT, 0, [float(np.nextafter(1.0, 2.0))] * SMOOTH)]
    runs += [run(kernels, 1, level(2.0)) for kernels in (WITH, WITHOUT)]
    assert not compared(runs).first_losses_equal


def test_what_seeds_alone_would_give() -> None:
    """The median over many points of three and three draws of one normal distribution."""
    random, points = np.random.default_rng(0), 4000
    runs = [
        run(kernels, seed, np.repeat(random.normal(size=points), SMOOTH).tolist())
        for kernels in (WITH, WITHOUT)
        for seed in range(3)
    ]
    found = compared(runs)
    # a share of a half of 4,000 deviates by 0.008, a median by that over its density, which is near 0.6
    assert found.ratio_median == pytest.approx(found.chance_median, abs=4 * 0.008 / 0.6)


def test_shares_are_of_each_pass() -> None:
    runs = [
        run(WITH, 0, level(1.0), ways={"forward events": 3, "forward dense": 1, "weight_gradient dense": 2}),
        run(WITH, 1, level(1.0), ways={"forward dense": 4}),
        run(WITHOUT, 0, level(1.0), ways={"forward dense": 100}),
    ]
    got = shares(runs, WITH)
    assert got == {"forward dense": 5 / 8, "forward events": 3 / 8, "weight_gradient dense": 1.0}


def test_the_same_runs_draw_the_same_bytes(tmp_path: Path) -> None:
    runs = [run(kernels, seed, level(3.0 + seed, 2.0 - seed)) for kernels in (WITH, WITHOUT) for seed in range(2)]
    for name in ("a.svg", "b.svg"):
        save_svg(lambda: figure(runs), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
