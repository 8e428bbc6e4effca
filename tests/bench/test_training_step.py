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
from safetensors.torch import load_file
from torch import Tensor, nn

from compiler.fused.spikes.costs import SMALLEST, LayerCosts, Pass
from runtime.fused.spikes import measure
from runtime.fused.spikes.measure import BitLayer
from tests.bench.training_contenders import networks, vanilla
from tests.bench.training_contenders.child import Training
from tests.bench.training_contenders.densities import densities, open_share
from tests.bench.training_contenders.images import coded, fitted
from tests.bench.training_contenders.memory import MB, gradient_mb, saved_activation_mb
from tests.bench.training_contenders.names import CONTENDERS, OWN
from tests.bench.training_contenders.networks import Network
from tests.bench.training_contenders.rows import Row, comparisons
from tests.bench.training_contenders.setting import MissingContenderError, Setting
from tests.bench.training_contenders.trained import Recipe, samples_of, trained
from tests.bench.training_contenders.weights import Batch, load_facts, save_weights

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
NEURONS = ("EquationLIF", "StepLIF", "LIFNode", "Leaky", "LIFBoxCell")  # one class of each contender


@pytest.fixture(autouse=True)
def freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """`spikec.fuse` would keep it for the rest of this process, whose resident memory is looked at below."""
    monkeypatch.setenv("SPIKEC_KEEP_BUFFERS", "0")


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


@pytest.fixture(scope="module")
def trained_tiny(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Other weights and statistics than any network starts with, and images that are no random numbers."""
    torch.manual_seed(1)
    model = vanilla.time_merged(TINY)
    model.load_state_dict(with_statistics(TINY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.rand_like(parameter))
    images = fitted(torch.rand(2, 1, 4, 4), TINY.shape.input_shape)
    path = tmp_path_factory.mktemp("bench") / "tiny.safetensors"
    save_weights(path, model, Batch(images, torch.tensor([3, 7])), "{}")
    return replace(TINY, trained=str(path))


@pytest.mark.parametrize("contender", CONTENDERS)
def test_contenders_get_the_weights_and_statistics_of_the_file(contender: str, trained_tiny: Setting) -> None:
    stored = load_file(trained_tiny.trained)
    try:
        model, x = replace(trained_tiny, contender=contender, input="repeated").build()
    except MissingContenderError as missing:
        pytest.skip(str(missing))
    parameters = [stored[name] for name in sorted(stored) if name.startswith("parameter")]
    for parameter, wanted in zip(model.parameters(), parameters, strict=True):
        assert torch.equal(parameter, wanted)
    assert len(stored) == len(parameters) + 4
    (norm,) = (part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    statistics = dict(norm.named_buffers())
    assert torch.equal(statistics["running_mean"], stored["mean.000"])
    assert torch.equal(statistics["running_var"], stored["variance.000"])
    assert stored["mean.000"].any()
    assert torch.equal(x, stored["images"])


def spikes_by_layer(contender: str, setting: Setting) -> list[int]:
    """In training mode, counted in what each module of neurons returns; several modules of a layer's are one."""
    model, x = replace(setting, contender=contender).build()
    counts: dict[str, int] = {}

    def look(name: str) -> Callable[[nn.Module, object, object], None]:
        def count(_module: nn.Module, _given: object, result: object) -> None:
            spikes = result[0] if isinstance(result, tuple) else result
            assert isinstance(spikes, Tensor)
            counts[name] = counts.get(name, 0) + int(spikes.count_nonzero())

        return count

    for name, part in model.named_modules():
        if type(part).__name__ in NEURONS:
            part.register_forward_hook(look(name))
    with torch.no_grad():
        model(x)
    return list(counts.values())


@pytest.mark.parametrize(
    ("contender", "reference", "package"),
    [
        ("vanilla checkpoint", "vanilla time-merged", "torch"),
        ("spikingjelly", "vanilla time-merged", "spikingjelly"),
        ("snntorch", "vanilla time-outer", "snntorch"),
        ("norse", "vanilla time-outer", "norse"),
    ],
)
@pytest.mark.parametrize("kind", ["fresh", "repeated"])
def test_trained_contenders_spike_alike_in_each_layer(
    contender: str, reference: str, package: str, kind: str, trained_tiny: Setting
) -> None:
    pytest.importorskip(package)
    setting = replace(trained_tiny, input=kind)
    wanted = spikes_by_layer(reference, setting)
    assert len(wanted) == len(setting.shape.layer_names)
    assert all(wanted)
    assert spikes_by_layer(contender, setting) == wanted


@pytest.mark.parametrize("contender", OWN)
@pytest.mark.parametrize("kind", ["fresh", "repeated"])
def test_own_contenders_fire_alike_in_training(contender: str, kind: str, trained_tiny: Setting) -> None:
    """Forward hooks of parts are not called in fused stages, so the last layer's rates stand for all."""
    setting = replace(trained_tiny, input=kind)
    wanted = rates("vanilla time-merged", setting)
    assert wanted.any()
    torch.testing.assert_close(rates(contender, setting), wanted, rtol=0, atol=RATE_TOLERANCE)


@pytest.mark.parametrize("contender", CONTENDERS)
def test_trained_contenders_give_the_same_spikes_in_evaluation(contender: str, trained_tiny: Setting) -> None:
    try:
        training = Training(replace(trained_tiny, contender=contender))
    except MissingContenderError as missing:
        pytest.skip(str(missing))
    wanted = Training(replace(trained_tiny, contender="vanilla time-merged")).output_spikes()
    assert 0 < wanted < 3 * 2 * 10
    assert training.output_spikes() == wanted
    assert training.model.training


@pytest.mark.parametrize("contender", ["spikec", "spikec_kept", "spikec_dense", "snntorch"])
def test_a_step_leaves_trained_weights_as_they_are(contender: str, trained_tiny: Setting) -> None:
    training = Training(replace(trained_tiny, contender=contender))
    before = [parameter.clone() for parameter in training.model.parameters()]
    training.step()
    for parameter, was in zip(training.model.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter, was)
    assert training.labels.tolist() == [3, 7]


def test_densities_are_the_shares_that_the_neurons_show(trained_tiny: Setting) -> None:
    found = densities(trained_tiny)
    neurons = [3 * 2 * count for count in (8 * 8 * 8, 16, 10)]
    counts = spikes_by_layer("vanilla time-merged", trained_tiny)
    assert [density.layer for density in found] == ["8C3", "16FC", "10FC"]
    for density, spikes, of in zip(found, counts, neurons, strict=True):
        assert density.spikes == pytest.approx(spikes / of, rel=1e-6)


def test_open_windows_by_hand() -> None:
    # two neurons, three steps: potentials 0.2, 0.65 (spike), 0.5 (spike); and 1.5 (spike), -0.1, 0.875 (spike)
    drive = torch.tensor([[0.2, 1.5], [0.6, -0.1], [0.5, 0.9]])
    spikes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert open_share(drive, spikes, 3) == 4 / 6  # all of the first, the last of the second


def test_open_windows_are_where_gradients_pass() -> None:
    drive = torch.randn(4, 50).requires_grad_()
    neurons = vanilla.EquationLIF(1)  # a single step: no gradient comes from later ones
    spikes = neurons(drive)
    (grad,) = torch.autograd.grad(spikes.sum(), drive)
    assert open_share(drive.detach(), spikes.detach(), 1) == grad.count_nonzero().item() / grad.numel()


def test_images_are_padded_or_enlarged_and_repeated_over_channels() -> None:
    image = torch.rand(2, 1, 28, 28)
    padded = fitted(image, (3, 32, 32))
    assert padded.shape == (2, 3, 32, 32)
    assert all(torch.equal(padded[:, channel, 2:30, 2:30], image[:, 0]) for channel in range(3))
    assert padded.sum().item() == pytest.approx(3 * image.sum().item())
    enlarged = fitted(torch.rand(2, 1, 8, 8), (3, 32, 32))
    assert enlarged[:, :, :2].amax() > 0.1  # no border
    averaged = fitted(image, (3, 8, 8))
    torch.testing.assert_close(averaged.mean((2, 3))[:, 0], image.mean((2, 3))[:, 0], rtol=0, atol=0.1)


def test_code_has_the_pixels_as_rates() -> None:
    images = torch.tensor([0.0, 0.25, 1.0]).reshape(3, 1, 1, 1)
    spikes = coded(images, 4000, torch.Generator().manual_seed(0))
    assert set(spikes.flatten().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.view(4000, 3).mean(0), images.flatten(), rtol=0, atol=0.03)  # four deviations


def test_costs_of_kernels_are_measured_in_warm_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIKEC_CACHE", str(tmp_path))
    monkeypatch.setattr(measure, "_FOUND", {})
    # its second layer is just large enough for costs to be measured
    middle = Network(notation="32C3-64C3-AP2-10FC", input_shape=(1, 32, 32), batch=4, train_epochs=1)
    monkeypatch.setitem(networks.NETWORKS, "middle", middle)
    measured: list[tuple[BitLayer, Pass]] = []
    real = measure.measure

    def watched(layer: BitLayer, of: Pass) -> LayerCosts:
        measured.append((layer, of))
        return real(layer, of)

    monkeypatch.setattr(measure, "measure", watched)
    training = Training(replace(TINY, contender="spikec", network="middle", timesteps=2))
    assert SMALLEST < 4 * 2 * 32 * 32 * (32 * 64 * 9)
    training.warm_up()
    assert measured
    in_warm_up, kernels = len(measured), set(training.kernels)
    assert kernels
    training.timed(2)
    assert len(measured) == in_warm_up


def test_steps_that_take_a_kernel_for_the_first_time_are_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(replace(TINY, contender="vanilla time-merged"))
    news = iter([False, True, False, False, False, False])
    monkeypatch.setattr(training, "has_new_kernels", lambda: next(news))
    assert len(training.timed(2)) == 2
    assert len(list(news)) == 2


def test_network_is_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIKEC_CACHE", str(tmp_path))
    recipe = Recipe(network="tiny", timesteps=2, input="fresh", data="digits", samples=64, epochs=1, threads=1)
    path, facts = trained(recipe)
    assert (facts.samples, facts.test_samples, facts.data) == (64, 352, "digits")
    made = path.stat().st_mtime_ns
    assert trained(recipe) == (path, facts)
    assert path.stat().st_mtime_ns == made
    others = (replace(recipe, epochs=2), replace(recipe, samples=80), replace(recipe, timesteps=3))
    keys = {one.key(*samples_of(one)) for one in (recipe, replace(recipe, threads=2), *others)}
    assert len(keys) == 4
    path.write_bytes(path.read_bytes()[:100])
    assert trained(recipe)[0] == path
    assert load_facts(path)


def measured_row(contender: str, step_s: float, saved: float | None) -> Row:
    return Row(
        contender=contender, network="tiny", timesteps=2, input="fresh", malloc="kept", layout="contiguous", threads=1,
        batch=2, trained=True, output_spikes=7, steps=1, step_s_median=step_s, step_s_min=step_s, step_s_max=step_s,
        step_s_quartiles=(step_s, step_s), step_s_median_by_layout={}, others_cpu_share=0.0, saved_activation_mb=saved,
        peak_rss_rise_mb=10.0, parameter_gradient_mb=2.0, peak_rss_rise_less_gradients_mb=8.0,
    )  # fmt: skip


def test_the_fastest_other_is_of_another_framework() -> None:
    others = [measured_row("snntorch", 3.0, None), measured_row("vanilla time-merged", 4.0, 8.0)]
    own = [measured_row("spikec_dense", 1.5, 4.0), measured_row("spikec", 2.0, 2.0)]
    dense, whole = comparisons([*others, *own])
    assert (dense.contender, dense.fastest_other, dense.ratio, dense.saved_of_vanilla) == (
        "spikec_dense", "snntorch", 2.0, 0.5
    )  # fmt: skip
    assert (whole.contender, whole.fastest_other, whole.ratio, whole.saved_of_vanilla) == (
        "spikec", "snntorch", 1.5, 0.25
    )  # fmt: skip
    assert not list(comparisons(own))


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
    """In a fresh process: another's allocator may have kept that much memory."""
    program = (
        "import torch; from tests.bench.training_contenders.memory import MB, peak_rss_rise_mb; "
        "print(peak_rss_rise_mb(lambda: torch.ones(64 * MB // 4), 2))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    rise = float(done.stdout)
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


@pytest.mark.slow
def test_bench_trains_first_and_tells_densities(tmp_path: Path) -> None:
    options = "--json --networks tiny --timesteps 2 --mallocs kept --layouts channels_last --rounds 1 --steps 1"
    options += " --threads 1 --trained --data digits --train-samples 32 --train-epochs 1 --contenders spikec snntorch"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.training_step", *options.split(), "vanilla time-merged"],
        cwd=ROOT,
        env=os.environ | {"SPIKEC_CACHE": str(tmp_path), "SPIKEC_KEEP_BUFFERS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    rows = {row["contender"]: row for row in result["rows"]}
    assert all(row["trained"] for row in rows.values())
    assert len({row["output_spikes"] for row in rows.values()}) == 1
    (network,) = result["trained"]
    assert network["facts"]["samples"] == 32
    assert 0 <= network["facts"]["test_accuracy"] <= 1
    assert [layer["layer"] for layer in network["densities"]] == ["8C3", "16FC", "10FC"]
    assert all(0 < layer["spikes"] < 1 for layer in network["densities"][:-1])
    (comparison,) = result["comparisons"]
    wanted = rows["spikec"]["saved_activation_mb"] / rows["vanilla time-merged"]["saved_activation_mb"]
    assert comparison["saved_of_vanilla"] == wanted < 1


def test_bench_says_what_data_is_missing(tmp_path: Path) -> None:
    options = f"--networks tiny --trained --data mnist:{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.training_step", *options.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "data mnist: error: is not on this machine" in done.stderr
    assert "Traceback" not in done.stderr
