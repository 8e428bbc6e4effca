from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from frontends import zoo
from frontends.nn import LIF, set_timesteps
from frontends.notation import Conv, Dense, parse
from frontends.spiking_network import spiking_network
from hwmodel.errors import CompileError

CHAINS = [name for name in zoo.names() if name != "resnet34"]
SMALL = ["digits-conv", "digits-fc", "fpga", "loihi", "certify-fc", "certify-conv"]


def stimulus(entry: zoo.ZooEntry, batch: int, timesteps: int, seed: int = 0) -> Tensor:
    shape = entry.example_shape(batch, timesteps)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (x < 0.2).float() if entry.input_kind is zoo.InputKind.SPIKES else x


def spikes_of(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Spikes (T * N, ...) of each neuron module."""
    seen: dict[str, Tensor] = {}
    for name, part in network.named_modules():
        if isinstance(part, LIF):
            part.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output))
    with torch.no_grad():
        network(x)
    return seen


@pytest.mark.parametrize("name", CHAINS)
def test_modules_follow_the_notation(name: str) -> None:
    entry = zoo.entry(name)
    network = zoo.build(name, timesteps=2).to("meta")
    weights = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    printed = [layer for layer in parse(entry.notation).layers if isinstance(layer, Conv | Dense)]
    assert len(weights) == len(printed)
    for part, layer in zip(weights, printed, strict=True):
        match layer:
            case Conv():
                assert isinstance(part, nn.Conv2d)
                shape = (part.out_channels, part.kernel_size, part.stride)
                assert shape == (layer.channels, (layer.kernel,) * 2, (layer.stride,) * 2)
            case Dense():
                assert isinstance(part, nn.Linear)
                assert part.out_features == layer.features
    example = torch.empty(entry.example_shape(1, 2), device="meta")
    assert network(example).shape == (1, printed[-1].features if isinstance(printed[-1], Dense) else 0)


def test_table_3_4_cifar10_layer_by_layer() -> None:
    network = zoo.build("cifar10", timesteps=3)
    kinds = [type(part).__name__ for part in network.get_submodule("layers").children()]
    conv, pool = ["Conv2d", "LIF"], ["AvgPool2d", "LIF"]
    assert kinds == [*conv * 2, *pool, *conv * 2, *pool, *conv * 2, "Flatten", *["Linear", "LIF"] * 3]
    assert network.get_submodule("layers.fc9").get_parameter("weight").shape == (512, 512 * 8 * 8)


def test_loihi_pools_with_ceil_over_valid_elements() -> None:
    network = zoo.build("loihi", timesteps=2)
    sizes = [
        spikes.shape[-1]
        for name, spikes in spikes_of(network, stimulus(zoo.entry("loihi"), 1, 2)).items()
        if name in ("layers.lif2", "layers.lif4", "layers.lif6")
    ]
    assert sizes == [17, 9, 5]
    pool = network.get_submodule("layers.pool2")
    torch.testing.assert_close(pool(torch.ones(1, 1, 9, 9)), torch.ones(1, 1, 5, 5), rtol=0, atol=0)


def test_pooling_of_currents_needs_no_neuron_before_the_pool() -> None:
    entry = replace(zoo.entry("fpga"), pooling=zoo.Pooling.CURRENTS)
    kinds = [type(part).__name__ for part in spiking_network(entry, seed=0, timesteps=2).layers]
    assert kinds == [*["Conv2d", "AvgPool2d", "LIF"] * 2, "Flatten", *["Linear", "LIF"] * 2]


def test_cifar_medium_has_the_printed_feature_map_size() -> None:
    # s, m, x and y of every neuron and of the input, 4 bytes each, at batch 16: 71.13 MB (2**20) in print
    entry = zoo.entry("cifar-medium")
    values = math.prod(entry.input_shape)
    height = entry.input_shape[1]
    for layer in parse(entry.notation).layers:
        match layer:
            case Conv(channels=channels, stride=stride):
                height //= stride
                values += channels * height * height
            case Dense(features=features):
                values += features
    assert round(values * 4 * 4 * 16 / 2**20, 2) == 71.13


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(2))
def test_fresh_networks_fire(name: str, seed: int) -> None:
    entry = zoo.entry(name)
    spikes = spikes_of(zoo.build(name, seed=seed, timesteps=6), stimulus(entry, 4, 6, seed))
    for layer, values in spikes.items():
        assert torch.equal(values, (values > 0).float())
        # ten last neurons are too few for a rate
        if values[0].numel() > 16:
            assert 0.03 < values.mean() < 0.4, layer


def test_same_seed_same_weights_and_global_state_untouched() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (zoo.build("digits-conv", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    for (key, value), again in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, again), key
    assert not torch.equal(first.get_parameter("layers.conv1.weight"), other.get_parameter("layers.conv1.weight"))


def test_image_is_shown_at_each_step_and_batch_stays_apart() -> None:
    network = zoo.build("digits-conv", timesteps=4)
    x = stimulus(zoo.entry("digits-conv"), 3, 4)
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(x[i : i + 1]) for i in range(3)])
    # rates are counts over four steps, so equal unless the two batch sizes round a potential across threshold
    assert torch.equal(together, alone)
    assert torch.equal(together * 4, (together * 4).round())


def test_spikes_are_taken_time_first() -> None:
    network = zoo.build("certify-fc", timesteps=4)
    x = stimulus(zoo.entry("certify-fc"), 3, 4)
    with torch.no_grad():
        assert torch.equal(network(x)[1:2], network(x[:, 1:2]))
    with pytest.raises(CompileError, match="input has 3 time steps, the network 4"):
        network(x.transpose(0, 1))


def test_set_timesteps_reaches_the_whole_network() -> None:
    network = zoo.build("digits-conv", timesteps=10)
    set_timesteps(network, 3)
    x = stimulus(zoo.entry("digits-conv"), 2, 3)
    with torch.no_grad():
        assert torch.equal(network(x), zoo.build("digits-conv", timesteps=3)(x))


def test_resnet34_blocks() -> None:
    network = zoo.build("resnet34", timesteps=2)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    shortcuts = [part for part in convolutions if part.kernel_size == (1, 1)]
    assert len(convolutions) - len(shortcuts) == 33
    assert len(shortcuts) == 4
    assert network.to("meta")(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


def test_dropout_acts_in_training_only() -> None:
    network = zoo.build("attack-image-mnist", timesteps=2)
    dropouts = {name: part.p for name, part in network.named_modules() if isinstance(part, nn.Dropout)}
    assert dropouts["layers.dropout6"] == 0.5
    assert sorted(dropouts.values()) == [0.25] * 6 + [0.5]
    assert not any(part.training for part in network.modules())


def test_faults() -> None:
    with pytest.raises(CompileError, match=r"zoo:cifar11: error: is no network of the zoo\n.*cifar10"):
        zoo.build("cifar11")
    with pytest.raises(CompileError, match="timesteps is 0"):
        zoo.build("cifar10", timesteps=0)
