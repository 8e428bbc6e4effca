"""The recipes reach their accuracy, in torch and on the simulated accelerator."""

from __future__ import annotations

import pytest

from tests.spikec.command import result

DIGITS = ("--data", "digits", "--seed")


@pytest.mark.slow
@pytest.mark.parametrize("seed", "01234")
@pytest.mark.parametrize(("name", "floor"), [("digits-conv", 0.94), ("digits-fc", 0.94)])
def test_in_torch(name: str, floor: float, seed: str) -> None:
    assert result("train", f"zoo:{name}", *DIGITS, seed)["accuracy_test"] >= floor


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-conv", "digits-fc"])
def test_on_the_accelerator(name: str) -> None:
    report = result("train", f"zoo:{name}", *DIGITS, "0", "--backend", "h2learn")
    assert report["bit_exact_vs_golden"] is True
    assert report["accuracy_test"] >= 0.93
    assert abs(report["accuracy_test"] - report["accuracy_test_torch"]) <= 0.03
    assert report["losses"] == sorted(report["losses"], reverse=True)
