"""A design's numbers against what they are made of, and against the simulated program."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.h2learn.compile import compile_inference
from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.facts import network_layers
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm
from hwmodel.area import chip_area
from hwmodel.config import H2LearnConfig, load_config
from hwmodel.energy import leakage_w
from hwmodel.estimate import Mode, estimate
from hwmodel.program import Phase
from hwmodel.timing.network import inference_cycles, training_time
from hwmodel.timing.passes import Setting
from hwmodel.timing.tiles import DenseTiles
from runtime.timing.energy import phase_energy
from runtime.timing.simulate import simulate
from spikec.models import load_model

PRESET = load_config("h2learn")
GRAPH = FoldBatchNorm()(load_model("zoo:digits-conv").graph)


def setting(config: H2LearnConfig) -> Setting:
    return Setting(config=config, timesteps=10, batch=config.sub_batch, tiles=DenseTiles(config))


def test_training_is_period_fill_and_descent() -> None:
    layers = network_layers(GRAPH, PRESET)
    found, time = estimate(layers, setting(PRESET), Mode.TRAIN, 5), training_time(layers, setting(PRESET))
    cycles = time.period_cycles + (time.fill_cycles + time.descent_cycles) / 5
    assert found.samples_per_second == pytest.approx(4 * 0.8e9 / cycles)
    assert found.period_cycles == time.period_cycles
    assert found.area_mm2 == chip_area(PRESET).total
    watts = sum(part.total for part in leakage_w(PRESET).values())
    assert found.leakage_j_per_sample == pytest.approx(watts * cycles / 0.8e9 / 4)
    assert found.power_w == pytest.approx(watts + found.dynamic_j_per_sample * found.samples_per_second)
    assert found.bound_by["forward layers.conv1"] == "be"  # the encoding layer
    assert set(found.bound_by) == {
        *(f"forward {layer.name}" for layer in layers),
        *(f"backward {layer.name}" for layer in layers),
        "backward loss",
    }


def test_inference_is_layer_after_layer() -> None:
    layers = network_layers(GRAPH, PRESET)
    found = estimate(layers, setting(PRESET), Mode.INFER, 1)
    cycles = sum(cost.cycles for cost in inference_cycles(layers, setting(PRESET)))
    assert found.samples_per_second == pytest.approx(4 * 0.8e9 / cycles)
    assert found == estimate(layers, setting(PRESET), Mode.INFER, 16)


def test_a_longer_group_shares_fill_and_descent() -> None:
    layers = network_layers(GRAPH, PRESET)
    short, long, steady = (estimate(layers, setting(PRESET), Mode.TRAIN, group) for group in (1, 100, 0))
    assert short.samples_per_second < long.samples_per_second < steady.samples_per_second
    assert short.dynamic_j_per_sample > long.dynamic_j_per_sample > steady.dynamic_j_per_sample


def test_twice_the_clock_is_twice_as_fast_with_half_the_leakage() -> None:
    layers, fast = network_layers(GRAPH, PRESET), replace(PRESET, clock_ghz=1.6)
    one, two = (estimate(layers, setting(config), Mode.TRAIN, 4) for config in (PRESET, fast))
    assert two.samples_per_second == pytest.approx(2 * one.samples_per_second)
    assert two.leakage_j_per_sample == pytest.approx(one.leakage_j_per_sample / 2)
    assert two.dynamic_j_per_sample == one.dynamic_j_per_sample


def test_dynamic_energy_of_the_simulated_programs() -> None:
    """5 %: the closed form charges transfers at the mean cost of an engine's buffers, the simulation at each one's."""
    layers = network_layers(GRAPH, PRESET)
    training = compile_training(GRAPH, PRESET, loss=Loss.MSE).program
    group = 16
    overlap, forward, backward, update = (
        phase_energy(simulate(training, phase), PRESET).dynamic_j
        for phase in (Phase.OVERLAP, Phase.FORWARD, Phase.BACKWARD, Phase.UPDATE)
    )
    assert forward + backward == pytest.approx(overlap, rel=1e-3)
    simulated = (forward + backward + update / group) / 4
    found = estimate(layers, setting(PRESET), Mode.TRAIN, group).dynamic_j_per_sample
    assert found == pytest.approx(simulated, rel=0.05)
    inference = compile_inference(GRAPH, PRESET).program
    simulated = phase_energy(simulate(inference, Phase.RUN), PRESET).dynamic_j / 4
    found = estimate(layers, setting(PRESET), Mode.INFER, 1).dynamic_j_per_sample
    assert found == pytest.approx(simulated, rel=0.05)
