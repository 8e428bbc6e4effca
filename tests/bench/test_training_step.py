"""The contenders compute the same network, and the benchmark of their training step reports what it ran."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.bench.training_contenders import vanilla
from tests.bench.training_contenders.memory import MB, gradient_mb, peak_rss_rise_mb, saved_activation_mb
from tests.bench.training_contenders.setting import Setting

ROOT = Path(__file__).parents[2]
TINY = Setting(contender="", network="tiny", timesteps=3, input="fresh", layout="contiguous", threads=1)
SETTINGS = [
    TINY,
    replace(TINY, input="repeated"),
    replace(TINY, layout="channels_last"),
    replace(TINY, input="repeated", layout="channels_last", timesteps=1),
]
# The rates are multiples of 1 / T: a rounding that turned one spike would show as a difference of 1 / T.
RATE_TOLERANCE = 1e-6


def rates(contender: str, setting: Setting) -> Tensor:
    model, x = replace(setting, contender=contender).build()
    result: Tensor = model(x)
    return result.detach()


def with_statistics(setting: Setting) -> dict[str, Tensor]:
    """The state of the plain network, its running statistics those of the batch."""
    model = vanilla.time_merged(setting)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        model(setting.merged())
    return model.state_dict()


def gradients(make: Callable[[Setting], nn.Module], x: Tensor, setting: Setting) -> list[Tensor]:
    """Gradients with fixed statistics, with which the order of layers and steps makes no difference."""
    model = make(setting)
    model.load_state_dict(with_statistics(setting))
    loss = nn.functional.cross_entropy(model.eval()(x), setting.labels())
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("contender", "reference", "package"),
    [
        ("vanilla checkpoint", "vanilla time-merged", "torch"),
        ("spikingjelly", "vanilla time-merged", "spikingjelly"),
        ("spikingjelly memopt", "vanilla time-merged", "spikingjelly"),
        ("snntorch", "vanilla time-outer", "snntorch"),  # their batch statistics are those of a step
        ("norse", "vanilla time-outer", "norse"),
    ],
)
def test_contenders_fire_alike(contender: str, reference: str, package: str, setting: Setting) -> None:
    pytest.importorskip(package)
    wanted = rates(reference, setting)
    assert 0 < wanted.mean() < 1
    torch.testing.assert_close(rates(contender, setting), wanted, rtol=0, atol=RATE_TOLERANCE)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_orders_of_plain_torch_have_the_same_gradients(setting: Setting) -> None:
    wanted = gradients(vanilla.time_merged, setting.merged(), setting)
    assert all(want.count_nonzero() > 0 for want in wanted)
    others = [(vanilla.checkpointed, setting.merged()), (vanilla.plain, setting.merged())]
    for make, x in [*others, (vanilla.time_outer, setting.sequence())]:
        for got, want in zip(gradients(make, x, setting), wanted, strict=True):
            # f32 sums over time and batch in another order
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6, check_stride=False)


@pytest.mark.parametrize("network", ["tiny", "small", "cifar"])
def test_a_fraction_of_the_neurons_fires_at_each_depth(network: str) -> None:
    model = vanilla.time_merged(replace(TINY, network=network, timesteps=2))
    shares: list[float] = []
    for part in model.modules():
        if isinstance(part, vanilla.EquationLIF):
            part.register_forward_hook(lambda _module, _given, spikes: shares.append(spikes.mean().item()))
    with torch.no_grad():
        model(replace(TINY, network=network, timesteps=2).merged())
    assert all(0.05 < share < 0.5 for share in shares), shares


def test_saved_activations_of_checkpointing_are_the_input_and_the_layer_results() -> None:
    model = vanilla.checkpointed(TINY)
    x = TINY.merged()
    rows, per_row = len(x), 8 * 8 * 8 + 16 + 10  # the convolution's result, then those of two linear layers
    wanted = (x.numel() + rows * per_row) * 4 / MB
    assert saved_activation_mb(model, lambda: model(x)) == pytest.approx(wanted, rel=1e-12)


def test_saved_activations_leave_out_parameters_and_what_autograd_dropped() -> None:
    layer, x = nn.Linear(256, 256), torch.ones(1024, 256)

    def forward() -> Tensor:
        layer(x + 1).sum()  # a graph that is gone when the forward pass ends
        result: Tensor = layer(x)
        return result

    assert saved_activation_mb(layer, forward) == 1024 * 256 * 4 / MB
    assert gradient_mb(layer) == (256 * 256 + 256) * 4 / MB


def test_peak_rise_sees_what_a_step_holds_for_a_while() -> None:
    rise = peak_rss_rise_mb(lambda: torch.ones(64 * MB // 4), 2)
    assert 62 < rise < 80  # 64 MB, pages of the allocator and of code first run here


def test_bench_prints_rows_and_leaves_out_what_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "norse.py").write_text("raise ModuleNotFoundError(name='norse')\n")
    options = "--json --networks tiny --timesteps 2 --inputs repeated --mallocs kept --layouts channels_last"
    options += " --rounds 2 --steps 1 --threads 1 --contenders norse"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.training_step", *options.split(), "vanilla time-merged"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = json.loads(done.stdout)["rows"]
    assert "norse: left out, no module norse" in done.stderr
    wanted = {"contender": "vanilla time-merged", "network": "tiny", "timesteps": 2, "input": "repeated"}
    wanted |= {"malloc": "kept", "layout": "channels_last", "threads": 1, "batch": 2, "steps": 2}
    assert {name: row[name] for name in wanted} == wanted
    assert 0 < row["step_s_min"] <= row["step_s_quartiles"][0] <= row["step_s_median"] <= row["step_s_max"]
    parameters = (3 * 9 + 1) * 8 + 2 * 8 + (8 * 4 * 4 + 1) * 16 + (16 + 1) * 10
    assert row["parameter_gradient_mb"] == parameters * 4 / MB
    assert row["saved_activation_mb"] > 0
    assert row["peak_rss_rise_less_gradients_mb"] == row["peak_rss_rise_mb"] - row["parameter_gradient_mb"]
