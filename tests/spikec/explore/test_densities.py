"""Densities of the gradients' masks: of table 3.2, of a file, and for layers that a tile cuts otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.h2learn.facts import network_layers
from hwmodel.config import load_config
from hwmodel.errors import CompileError
from hwmodel.timing.sampled_tiles import Density
from spikec.explore.densities import by_number, default_densities, load_densities
from spikec.models import load_model

LAYERS = network_layers(load_model("zoo:nmnist").graph, load_config("h2learn"))
OWN = """
[layers.conv2]
inputs = 0.1
outputs = 0.2
["layers.conv4"]
inputs = 0
outputs = 1
[layers.conv5]
inputs = 0.5
outputs = 0.25
"""


def written(folder: Path, text: str) -> str:
    path = folder / "densities.toml"
    path.write_text(text)
    return str(path)


def test_table_3_2() -> None:
    found = load_densities("published:nmnist", LAYERS)
    assert found is not None
    # sparsities of the outputs 59.89, 86.13, 92.95 %, of the inputs 97.24, 97.36, 99.26 %
    assert [round(100 - 100 * density.outputs, 2) for density in found.values()] == [59.89, 86.13, 92.95]
    assert [round(100 - 100 * density.inputs, 2) for density in found.values()] == [97.24, 97.36, 99.26]
    assert list(by_number(found, LAYERS)) == [0, 1, 2]  # the layers in front of the convolutions behind the first


def test_a_file_names_convolutions(tmp_path: Path) -> None:
    found = load_densities(written(tmp_path, OWN), LAYERS)
    assert found is not None
    assert by_number(found, LAYERS) == {
        0: Density(inputs=0.1, outputs=0.2),
        1: Density(inputs=0, outputs=1),
        2: Density(inputs=0.5, outputs=0.25),
    }


def test_dense() -> None:
    assert load_densities("dense", LAYERS) is None


@pytest.mark.parametrize(
    ("model", "densities"),
    [
        ("zoo:cifar10", "published:cifar10"),
        ("zoo:mnist@digits", "published:mnist"),
        ("zoo:digits-conv", "dense"),
        ("cifar10.spk", "dense"),
    ],
)
def test_default(model: str, densities: str) -> None:
    assert default_densities(model) == densities


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("0.25", "1.5"), "layers.conv5.outputs is 1.5, must be from 0 to 1"),
        (OWN.replace("0.25", "'x'"), "layers.conv5.outputs is 'x', must be a number"),
        (OWN.replace("0.25", "nan"), "layers.conv5.outputs is nan, must be from 0 to 1"),
        (OWN.replace("outputs = 0.25", ""), "layers.conv5.outputs is missing"),
        (
            OWN.replace("conv5", "conv1"),
            "layers.conv1 is no convolution behind the first layer; layers.conv5 is missing",
        ),
        (OWN + "rate = 1", "layers.conv5.rate is not a field"),
        ("x = 1\n" + OWN, "x is no table of a layer"),
        ("[", "cannot read the densities: "),
    ],
)
def test_a_faulty_file_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(CompileError) as fault:
        load_densities(path, LAYERS)
    assert str(fault.value).startswith(f"{path}: error: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("published:lenet", "is not in table 3.2"),
        ("published:cifar10", "table 3.2 has 5 convolutions of cifar10 behind the first layer, the network has 3"),
        ("half", "is not known"),
    ],
)
def test_unknown_densities(text: str, message: str) -> None:
    with pytest.raises(CompileError) as fault:
        load_densities(text, LAYERS)
    assert str(fault.value).startswith(f"--densities {text}: error: {message}\n  hint: ")


def test_a_layer_without_densities() -> None:
    with pytest.raises(CompileError, match=r"layers\.conv4, layers\.conv5 has no densities"):
        by_number({"layers.conv2": Density(inputs=1, outputs=1)}, LAYERS)
