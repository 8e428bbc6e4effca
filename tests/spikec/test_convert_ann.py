"""`spikec import --ann`: the report of a converted network, its files and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compiler.evaluate import evaluate
from compiler.ir.file import load_graph
from frontends.datasets import train_and_test
from tests.spikec.command import refusal, result, spikec
from tests.spikec.conftest import WriteModule
from tests.spikec.training import few_digits

NETWORK = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))

class Talking(nn.Sequential):
    def forward(self, x):
        print("hello")
        return super().forward(x)

def talking():
    return Talking(*network())

def broken():
    made = network()
    nn.init.constant_(made[0].weight, float("nan"))
    return made

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4))

def larger():
    return network(), torch.zeros(2, 1, 9, 9)

def smooth():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Sigmoid())
"""


@pytest.fixture(autouse=True)
def files(workplace: Path, write_module: WriteModule) -> None:
    few_digits(workplace / "few.npz")
    write_module("nets", NETWORK)


CONVERT = ("import", "nets:network", "--ann", "few.npz", "--timesteps", "16")


def test_report_and_file_agree(workplace: Path) -> None:
    found = result(*CONVERT, "-o", "out/net.spk", "--samples", "20", "--percentile", "99")
    assert (found["timesteps"], found["percentile"], found["calibration_samples"]) == (16, 99.0, 20)
    assert list(found["accuracy_by_timesteps"]) == ["4", "8", "16", "32", "64", "128"]
    assert found["accuracy_snn"] == found["accuracy_by_timesteps"]["16"]
    assert list(found["thresholds"]) == ["1"]
    assert set(found["findings"][0]) == {"place", "ground", "text"}
    graph = load_graph(Path("out/net.spk"))
    _, test = train_and_test("few.npz")
    classes = evaluate(graph, torch.from_numpy(test.x)).output.argmax(1).numpy()
    assert found["accuracy_snn"] == pytest.approx(np.mean(classes == test.y), abs=1e-12)
    assert found["parameters"] == sum(array.size for array in graph.parameters.values()) == 4 * 10 + 37 * 10


def test_table_and_figure(workplace: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = []
    for _ in range(2):
        outcome = spikec(*CONVERT, "--figure", "out/steps.svg")
        assert (outcome.code, outcome.err) == (0, "")
        drawn.append(Path("out/steps.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert b"</svg>" in drawn[0]
    for text in ("accuracy with ReLU", "accuracy with spikes, T = 128", "every time step", "out/steps.svg"):
        assert text in outcome.out


def test_same_seed_same_bytes(workplace: Path) -> None:
    def converted(seed: str) -> bytes:
        result(*CONVERT, "-o", "out/net.spk", "--seed", seed)
        return Path("out/net.spk").read_bytes()

    assert converted("0") == converted("0") != converted("1")


def test_the_converted_network_runs_on_the_machine(workplace: Path) -> None:
    result(*CONVERT, "-o", "out/net.spk")
    assert spikec("compile", "out/net.spk", "-o", "out/net.h2l").code == 0
    assert result("run", "out/net.h2l", "--data", "few.npz", "--samples", "4")["samples"] == 4


def test_what_a_network_prints_is_no_result(workplace: Path) -> None:
    outcome = spikec("import", "nets:talking", "--ann", "few.npz", "--json")
    assert outcome.json["timesteps"] == 10
    assert "hello" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nets:smooth",), "the activation sigmoid has no spiking counterpart"),
        (("nets:none",), "nets has no function 'none'"),
        (("nets:broken",), "holds a NaN or infinite value"),
        (("nets:small",), "a label is 9, the network has 4 classes"),
        (("nets:larger",), "samples are (N, 1, 8, 8), the example is (2, 1, 9, 9)"),
        (("zoo:digits-conv",), "is no network with ReLU"),
        (("net.spk",), "is no network with ReLU"),
        (("nets:network", "--timesteps", "0"), "--timesteps: error: is 0, must be at least 1"),
        (("nets:network", "--percentile", "0"), "--percentile: error: is 0"),
        (("nets:network", "-o", "out/net.nir"), "a network's file must end in .spk"),
        (("nets:network", "-o", "nowhere/net.spk"), "the folder nowhere does not exist"),
        (("nets:network", "--figure", "out/a.txt"), "a figure's file must end in .svg"),
        (("nets:network", "--ann", "nothing"), "is no data set"),
        (("nets:network", "--ann", "synthetic:1x8x8"), "has no labels"),
    ],
)
def test_refusals(workplace: Path, arguments: tuple[str, ...], message: str) -> None:
    data = () if "--ann" in arguments else ("--ann", "few.npz")
    assert message in refusal("import", *arguments, *data)
    assert not any(Path("out").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("fixed", [True, False], ids=["one sample", "any number"])
def test_an_onnx_file(workplace: Path, fixed: bool) -> None:
    """Of the same weights: the same thresholds and accuracies, by onnxruntime's scores too."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from spikec.models import load_module

    module, example = load_module("nets:network", seed=0, input_shape="1x8x8")
    open_axes = {} if fixed else {"x": {0: "samples"}}
    torch.onnx.export(module, (example[:1],), "net.onnx", dynamo=False, input_names=["x"], dynamic_axes=open_axes)
    convert = ("--ann", "few.npz", "--timesteps", "16")
    found, want = (result("import", name, *convert) for name in ("net.onnx", "nets:network"))
    assert found["accuracy_by_timesteps"] == want["accuracy_by_timesteps"]
    np.testing.assert_allclose(list(found["thresholds"].values()), list(want["thresholds"].values()), rtol=1e-6)
    session = onnxruntime.InferenceSession("net.onnx")
    _, test = train_and_test("few.npz")
    classes = [int(session.run(None, {"x": test.x[n : n + 1]})[0].argmax()) for n in range(len(test))]
    assert found["accuracy_ann"] == pytest.approx(np.mean(classes == test.y), abs=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_files_that_do_not_fit(workplace: Path) -> None:
    pytest.importorskip("onnx")
    from spikec.models import load_module

    module, _ = load_module("nets:larger", input_shape="1x9x9")
    torch.onnx.export(module, (torch.zeros(1, 1, 8, 8),), "net.onnx", dynamo=False)
    np.savez("other.npz", x=np.zeros((20, 1, 9, 9), np.float32), y=np.arange(20) % 10)
    message = "net.onnx: error: its input is (1, 1, 8, 8), samples are (N, 1, 9, 9)"
    assert message in refusal("import", "net.onnx", "--ann", "other.npz")
    assert "no such file" in refusal("import", "none.onnx", "--ann", "few.npz").lower()
