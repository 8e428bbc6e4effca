"""What conversion of a network with ReLU refuses, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.ir import CompileError
from frontends.ann import convert_ann
from tests.frontends.test_ann import Calls, convert, images


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.sigmoid, "sigmoid"),
        (torch.tanh, "tanh"),
        (functional.gelu, "gelu"),
        (functional.silu, "silu"),
        (functional.leaky_relu, "leaky_relu"),
        (functional.elu, "elu"),
        (functional.softplus, "softplus"),
        (functional.hardtanh, "hardtanh"),
        (lambda x: x.clamp(-1, 1), "clamp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_activations_are_refused_by_name(function: Callable[[Tensor], Tensor], name: str) -> None:
    with pytest.raises(CompileError, match=f"the activation {name} has no spiking counterpart") as caught:
        convert(Calls(function), images(4, 5))
    assert "ReLU" in caught.value.hint


def test_softmax_inside_the_network() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.Softmax(1), nn.ReLU())
    with pytest.raises(CompileError, match="stands inside the network"):
        convert(network, images(4, 5))


def test_weights_that_are_not_finite() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    nn.init.constant_(network[0].weight, math.nan)
    with pytest.raises(CompileError, match=r"0\.weight holds a NaN or infinite value"):
        convert(network, images(4, 5))


def test_a_network_without_relu() -> None:
    with pytest.raises(CompileError, match="has no ReLU to convert"):
        convert(nn.Sequential(nn.Linear(5, 4)), images(4, 5))


def test_a_network_that_spikes_already() -> None:
    from frontends.nn import LIF

    with pytest.raises(CompileError, match="has spiking neurons already"):
        convert(nn.Sequential(nn.Linear(5, 4), LIF(timesteps=1)), images(4, 5))


def test_a_forward_that_depends_on_the_number_of_samples() -> None:
    network = Calls(lambda x: x.relu() if len(x) == 2 else 3 * x.relu())
    with pytest.raises(CompileError, match="gives other scores than what was traced"):
        convert(network, images(5, 5))


def test_a_forward_that_takes_one_number_of_samples() -> None:
    with pytest.raises(CompileError, match="the network fails for 5 samples: RuntimeError"):
        convert(Calls(lambda x: x.view(2, 4).relu()), images(5, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": 0}, "timesteps is 0, must be at least 1"),
        ({"measured": (4, -1)}, "timesteps is -1"),
        ({"percentile": 0.0}, "percentile is 0, must be above 0"),
        ({"percentile": 101.0}, "percentile is 101"),
        ({"percentile": math.nan}, "percentile is nan"),
        ({"example": torch.zeros(2, 6)}, r"samples are \(N, 5\), the example is \(2, 6\)"),
        ({"example": torch.zeros(2, 5, dtype=torch.float64)}, "the example is torch.float64"),
        ({"held_out": replace(images(4, 5), y=np.array([0, 1, 2, 9]))}, "a label is 9, the network has 3 classes"),
        ({"held_out": replace(images(4, 5), labelled=False)}, "has no labels"),
        ({"samples": images(0, 5)}, "has no samples"),
        ({"samples": replace(images(4, 5), x=np.zeros((4, 2, 1, 5, 5), np.float32))}, "has a time axis"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    arguments: dict[str, object] = {"example": torch.zeros(2, 5), "samples": images(4, 5), "timesteps": 4, **change}
    with pytest.raises(CompileError, match=message):
        convert_ann(network, **arguments)  # type: ignore[arg-type]
