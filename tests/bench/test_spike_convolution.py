"""The contenders compute the same layer, and the benchmark of spike kernels reports what it ran."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from compiler.fused.spikes.costs import WAYS, Pass, Way
from tests.bench import spike_convolution
from tests.bench.spike_kernels.clocks import FEWEST_PAIRS, LEVEL, Clock, in_turn, median_interval
from tests.bench.spike_kernels.speed import SHAPES, geometry_of
from tests.bench.spike_kernels.trial import LAYOUTS, Dense, Inputs, Setting, Spiking, Trial
from tests.bench.spike_kernels.zoo_layers import zoo_layers

ROOT = Path(__file__).parents[2]
TINY = ["--shapes", "8-16@6", "--images", "2", "--rounds", "6", "--malloc", "default"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("of", list(Pass))
def test_contenders_compute_the_same(of: Pass, pack: bool) -> None:
    trial = Trial.of(geometry_of("40-24@7", images=2))
    inputs = Inputs.of(trial, spikes=0.2, window=0.4)
    results = [Dense(trial.layer.layer, inputs.laid_out(layout)).pass_(of)() for layout in LAYOUTS]
    spiking = Spiking.of(trial, inputs, Setting(pack=pack))
    results += [spiking.pass_(of, way)() for way in WAYS[of] if trial.layer.supports(of, way)]
    assert len(results) > len(LAYOUTS) + 1
    seen = inputs.mask if of is Pass.INPUT_GRADIENT else torch.ones(())
    wanted, *others = [result * seen for result in results if result is not None]
    assert len(others) == len(results) - 1
    for result in others:
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-4)


def test_steps_compute_the_same() -> None:
    trial = Trial.of(geometry_of("40-24@7", images=2))
    inputs = Inputs.of(trial, spikes=0.2, window=0.4)
    ways = {Pass.FORWARD: Way.EVENTS, Pass.WEIGHT_GRADIENT: Way.EVENTS, Pass.INPUT_GRADIENT: Way.MASKED}
    y, grad_weight, grad_x = Spiking.of(trial, inputs, Setting()).step(ways)
    wanted = Dense(trial.layer.layer, inputs.laid_out("contiguous")).step()
    torch.testing.assert_close((y, grad_weight), wanted[:2], rtol=1e-5, atol=1e-4)
    assert wanted[2] is not None
    torch.testing.assert_close(grad_x, wanted[2] * inputs.mask, rtol=1e-5, atol=1e-4)


def test_rows_of_kernels(one_thread: None) -> None:
    given = spike_convolution.parsed([*TINY, "--densities", "0.1,0.3", "--window", "0.25", "--clock", "cpu"])
    about, rows = spike_convolution.run(given)
    assert json.loads(json.dumps(about))["keep_buffers"] is False
    single = {(row["pass"], row["kernel"], row["density"]) for row in rows if row["pass"] != "step"}
    assert single == {
        *(("forward", kernel, density) for kernel in ("look-up", "events") for density in (0.1, 0.3)),
        *(("weight_gradient", kernel, density) for kernel in ("look-up", "events") for density in (0.1, 0.3)),
        *(("input_gradient", "events", density) for density in (0.1, 0.3)),
        ("input_gradient", "masked", 0.25),
    }
    assert [row["density"] for row in rows if row["pass"] == "step"] == [0.1, 0.3]
    for row in rows:
        assert (row["shape"], row["threads"]) == ("8-16@6", 1)
        assert row["dense_layout"] in LAYOUTS
        assert row["ms_median"] > 0  # type: ignore[operator]
        assert row["speedup"] == pytest.approx(row["ms_best_dense"] / row["ms_median"])  # type: ignore[operator]
        assert spike_convolution.line(row)


def test_only_what_is_asked_for(one_thread: None) -> None:
    given = spike_convolution.parsed(
        [*TINY, "--densities", "0.1", "--passes", "forward,step", "--kernels", "events", "--no-pack"]
    )
    about, (alone, step) = spike_convolution.run(given)
    assert about["pack"] is False
    assert (alone["pass"], alone["kernel"]) == ("forward", "events")
    assert set(str(step["kernel"]).split(" + ")) <= {"events", "dense"}


@pytest.fixture
def few_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are enough for a layer to count."""
    monkeypatch.setattr("tests.bench.spike_kernels.zoo_layers.SMALLEST", 1 << 22)


@pytest.mark.usefixtures("few_multiplications")
def test_rows_of_choices(one_thread: None) -> None:
    options = ["--never-slower", "--networks", "digits-conv,digits-fc", "--densities", "0,1", "--rounds", "6"]
    about, rows = spike_convolution.run(spike_convolution.parsed([*options, "--malloc", "default"]))
    # 5.9 million multiplications of conv2 on 10 time steps and 2 samples; the others have at most 1.3 million
    assert (about["layers"], about["small_layers"], about["real_layers"]) == (1, 4, 2)
    assert {(row["pass"], row["density"], row["gradients"]) for row in rows} == {
        *((of, density, 1.0) for of in ("forward", "weight_gradient", "input_gradient") for density in (0.0, 1.0)),
        ("input_gradient", 0.0, 0.0),
    }
    for row in rows:
        assert row["layer"] == "digits-conv/layers.conv2"
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]  # type: ignore[operator]
        assert row["way"] in list(Way)
        assert spike_convolution.line(row)
    assert spike_convolution.summary(rows).startswith("7 rows, ")


@pytest.mark.usefixtures("few_multiplications")
def test_equal_layers_of_the_zoo_are_one() -> None:
    found = zoo_layers(["digits-conv", "digits-attack", "digits-events"], timesteps=10, batch=2)
    assert list(found.by_layer.values()) == [
        ["digits-conv/layers.conv2", "digits-attack/layers.conv2"],
        ["digits-events/layers.conv2"],
    ]


@pytest.mark.parametrize("text", ["e", "64-128", "64-128@32x32", ""])
def test_unknown_shapes(text: str) -> None:
    with pytest.raises(ValueError, match="is no shape"):
        geometry_of(text, images=1)


@pytest.mark.parametrize("name", SHAPES)
def test_known_shapes(name: str) -> None:
    geometry = geometry_of(name, images=40)
    assert f"{geometry.channels}-{geometry.out_channels}@{geometry.height}" == SHAPES[name]
    assert (geometry.out_height, geometry.out_width) == (geometry.height, geometry.width)


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, Clock.WALL)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(times[name]) for name in "ab"] == [3, 3]


@given(st.integers(FEWEST_PAIRS, 60), st.randoms(use_true_random=False))
def test_interval_of_a_median(count: int, random: object) -> None:
    values = list(range(count))
    random.shuffle(values)  # type: ignore[attr-defined]
    low, high = median_interval(values)
    assert low + high == count - 1
    assert missed(count, int(low)) <= 1 - LEVEL < missed(count, int(low) + 1)


def missed(count: int, left_out: int) -> float:
    """How often the median lies beyond the interval without so many values at each end."""
    return float(2 * binom.cdf(left_out, count, 0.5))


def test_too_few_values_bound_no_median() -> None:
    with pytest.raises(ValueError, match="5 values"):
        median_interval([1.0] * 5)


@pytest.mark.slow
def test_each_number_of_threads_has_a_process() -> None:
    command = [sys.executable, "-m", "tests.bench.spike_convolution", *TINY, "--densities", "0.1", "--threads", "1,2"]
    done = subprocess.run(
        [*command, "--passes", "forward", "--json"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    rows = json.loads(done.stdout)["rows"]
    assert [(row["threads"], row["kernel"]) for row in rows] == [
        (threads, kernel) for threads in (1, 2) for kernel in ("look-up", "events")
    ]
