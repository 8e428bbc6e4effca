"""The demo, which trains its network on first use."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from frontends.cache import TrainedInfo
from spikec.commands import demo, samples
from spikec.models import Model, load_model
from tests.spikec.command import result, spikec


def test_demo_on_held_out_digits() -> None:
    first = result("demo")
    assert set(first) == {field.name for field in fields(demo.DemoReport)}
    assert (first["network"], first["timesteps"], first["sub_batch"]) == ("digits-conv", 10, 4)
    assert first["samples"] >= 297
    assert 0.95 <= first["accuracy_torch"] <= 1
    # the bound that the two accuracies are promised to keep
    assert abs(first["accuracy_machine"] - first["accuracy_torch"]) <= 0.01
    assert 0.99 <= first["predictions_agree"] <= 1
    assert 0.99 <= first["spikes_agree"] <= 1
    assert first["bit_exact_vs_golden"] is True
    assert first["golden_samples"] == 8
    assert first["trained_now"] is True
    assert 0 < first["seconds_training"] < first["seconds"]
    assert 0 < first["seconds_machine"] < first["seconds"]
    # four samples share weights and set-up: cheaper each than one alone, and no faster together
    assert first["cycles_per_sample"] < first["latency_cycles_batch1"] <= 4 * first["cycles_per_sample"]
    assert isinstance(first["instructions"], int)

    table = spikec("demo", "--golden-samples", "2")
    assert (table.code, table.err) == (0, "")
    assert "from the cache" in table.out
    assert f"{first['samples']} held-out digits" in table.out
    for key in ("accuracy_torch", "accuracy_machine", "predictions_agree"):
        assert f"{first[key]:.4f}" in table.out
    assert "golden engine, 2 samples" in table.out


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on six samples, with an untrained network that poses as a trained one."""
    monkeypatch.setattr(demo, "load_model", _untrained)
    monkeypatch.setattr(demo, "held_out", _six)


def _untrained(model: str, *, seed: int, progress: object) -> Model:
    info = TrainedInfo(
        name="digits-conv",
        data="digits",
        seed=seed,
        timesteps=10,
        fingerprint="",
        weights_sha256="",
        accuracy_test=0.0,
        accuracy_train=0.0,
        seconds=1.0,
        path="",
        from_cache=True,
    )
    return replace(load_model(model.partition("@")[0], seed=seed), trained=info)


def _six(data: str, _: int) -> samples.HeldOut:
    return samples.held_out(data, 6)


@pytest.mark.usefixtures("short_demo")
def test_bits_that_differ_exit_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    assert result("demo", "--golden-samples", "2")["bit_exact_vs_golden"] is True
    monkeypatch.setattr(demo, "same_bits", lambda *_: False)
    outcome = spikec("demo", "--golden-samples", "2", "--json")
    assert outcome.code == 1
    assert outcome.json["bit_exact_vs_golden"] is False
    table = spikec("demo", "--golden-samples", "2")
    assert table.code == 1
    assert "NO" in table.out


@pytest.mark.usefixtures("short_demo")
def test_the_golden_engine_runs_no_more_samples_than_there_are() -> None:
    assert result("demo", "--golden-samples", "50")["golden_samples"] == 6
