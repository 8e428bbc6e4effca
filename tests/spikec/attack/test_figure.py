"""What the figures show; how they look is for the eye."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.attack.settings import Case, Status
from hwmodel.errors import CompileError
from spikec.attack.figure import SHOWN, Picture, _pixels, check_place, curve
from tests.spikec.attack.test_summary import RECORDS, record


def test_a_curve_is_of_successes_alone() -> None:
    """A failure's last values may lie anywhere."""
    assert curve(RECORDS, "linf") == [0.25, 0.5, 0.75]
    assert curve([record(0, Status.FAILURE, change=0.1)], "linf") == []


def test_the_first_successes_are_shown() -> None:
    x = np.zeros(4, np.float32)
    statuses = [Status.FAILURE, Status.SUCCESS] * (SHOWN + 2)
    records = [replace(record(at, status), example=x + 1) for at, status in enumerate(statuses)]
    cases = [Case(sample=at, x=x, label=0) for at in range(len(records))]
    shown = Picture(title="", records=records, cases=cases, is_spikes=False).shown
    assert [case.sample for case, _, _ in shown] == list(range(1, 2 * SHOWN, 2))


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((1, 8, 9), (8, 9)), ((3, 8, 9), (8, 9, 3)), ((2, 8, 9), (8, 9)), ((5, 3, 8, 9), (8, 9, 3)), ((7,), (1, 7))],
)
def test_images_of_every_form(shape: tuple[int, ...], shown: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    assert _pixels(x).shape == shown


def test_other_kinds_of_pictures_are_no_folders(tmp_path: Path) -> None:
    check_place(tmp_path / "figures")
    check_place(tmp_path / "run.2")
    with pytest.raises(CompileError, match=r"f\.PNG: error: is no folder, and does not end in \.svg"):
        check_place(tmp_path / "f.PNG")
    (tmp_path / "f.png").mkdir()
    check_place(tmp_path / "f.png")
