"""What MODEL may be, above all a user's own module, and what is said of code that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from compiler.ir import CompileError, DType, Encoding
from compiler.ir.file import save_graph
from compiler.ir.ops import Encode, Input
from spikec.models import DEFAULT_TIMESTEPS, load_model
from tests.golden import Golden
from tests.spikec.command import refusal, result, spikec
from tests.spikec.conftest import WriteModule
from tests.spikec.graphs import STEPS, saved, small_graph

NETWORK = '''
import torch
from torch import nn
from spikec.nn import LIF


class Network(nn.Module):
    """Two convolutions and a linear layer; `skip` adds the first one's spikes, `pool` averages them."""

    def __init__(self, timesteps=10, threshold=0.5, middle=None, skip=False, pool=False):
        super().__init__()
        self.timesteps, self.skip = timesteps, skip
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3, padding=1), LIF(threshold=threshold)
        self.middle = middle or (nn.AvgPool2d(2) if pool else nn.Identity())
        self.conv2, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), LIF()
        self.fc, self.lif3 = nn.Linear(64 if pool else 256, 10), LIF()

    def merged(self, layer, x):
        return layer(x.flatten(0, 1)).unflatten(0, (self.timesteps, -1))

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.timesteps, 1, 1, 1, 1)
        s = self.merged(self.middle, self.lif1(self.merged(self.conv1, x)))
        y = self.merged(self.conv2, s)
        y = self.lif2(y + s if self.skip else y)
        return self.lif3(self.fc(y.flatten(2))).mean(0)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(20, 10), LIF()

    def forward(self, x):
        return self.lif(self.fc(x.flatten(2))).mean(0)


def changed(parameter, value):
    network = Network()
    network.state_dict()[parameter].view(-1)[7] = value
    return network
'''
IMAGE = ("--input-shape", "1x8x8")
OUTPUT = ("-o", "out/n.h2l")


def nets(**functions: str) -> str:
    """The module's text, with functions that return these expressions."""
    return NETWORK + "".join(f"\n\ndef {name}():\n    return {body}\n" for name, body in functions.items())


def test_a_module_whose_shape_is_given(write_module: WriteModule) -> None:
    write_module("nets", nets(small="Network()"))
    assert result("compile", "nets:small", *OUTPUT, *IMAGE)["layers"] == 3
    assert result("run", "out/n.h2l", "--data", "digits", "--samples", "3")["samples"] == 3


def test_a_module_with_its_example(write_module: WriteModule) -> None:
    write_module("nets", nets(small="Network(timesteps=3), torch.zeros(2, 1, 8, 8)"))
    assert result("compile", "nets:small", *OUTPUT, "--timesteps", "3")["timesteps"] == 3


def test_a_module_that_takes_sequences(write_module: WriteModule) -> None:
    write_module("nets", nets(events="Sequence()"))
    assert result("compile", "nets:events", *OUTPUT, "--timesteps", "6", "--input-shape", "6x5x2x2")["timesteps"] == 6
    assert result("run", "out/n.h2l", "--data", "synthetic:6x5x2x2", "--samples", "5")["samples"] == 5


def test_a_class_serves_as_function(write_module: WriteModule) -> None:
    write_module("nets", nets())
    assert load_model("nets:Network", input_shape="1x8x8").graph.name == "Network"


def test_fresh_weights_of_a_module_follow_the_seed(write_module: WriteModule) -> None:
    write_module("nets", nets(small="Network()"))
    state = torch.random.get_rng_state()
    first, again, other = (load_model("nets:small", seed=seed, input_shape="1x8x8").graph for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_module_in_a_package_imports_its_neighbours(write_module: WriteModule, workplace: Path) -> None:
    (workplace / "own").mkdir()
    write_module("neighbour", "WIDTH = 20\n")
    text = NETWORK.replace("(20, 10)", "(neighbour.WIDTH, 10)") + "\n\ndef late():\n    import neighbour\n"
    write_module("own/deep", text + "    globals()['neighbour'] = neighbour\n    return Sequence()\n")
    before = list(sys.path)
    graph = load_model("own.deep:late", input_shape="10x5x2x2").graph
    assert graph.types["fc"].size("C") == 10
    assert sys.path == before


def test_what_a_module_prints_goes_to_stderr(write_module: WriteModule) -> None:
    write_module("nets", "print('imported')\n" + nets(small="print('built') or Network()"))
    outcome = spikec("compile", "nets:small", *OUTPUT, *IMAGE, "--json")
    assert outcome.json["program"] == "out/n.h2l"
    assert outcome.err == "imported\nbuilt\n"


def test_networks_that_are_refused(write_module: WriteModule, golden: Golden, workplace: Path) -> None:
    functions = {
        "relu": "Network(middle=nn.ReLU())",
        "gru": "nn.GRU(4, 4), torch.zeros(10, 2, 4)",
        "residual": "Network(skip=True)",
        "pooled": "Network(pool=True)",
        "zero": "Network(threshold=0.0)",
        "nan": "changed('conv2.weight', float('nan'))",
        "infinite": "changed('fc.bias', float('inf'))",
        "large": "changed('fc.weight', 1e6)",
        "steps": "Network(timesteps=4)",
        "decay": "LIF(decay=2.0)",
    }
    write_module("nets", nets(**functions))
    lines = [f"{name}:\n{refusal('compile', f'nets:{name}', *OUTPUT, *IMAGE)}" for name in functions]
    golden("networks.txt", "\n".join(lines).replace(str(workplace), "FOLDER"))
    assert list(Path("out").iterdir()) == []


def test_a_network_that_fails_in_torch(write_module: WriteModule) -> None:
    """The reason is in torch's words."""
    write_module("nets", nets(small="Network()", double="Network().double()"))
    for model, shape in (("nets:small", "1x9x9"), ("nets:small", "2x8x8"), ("nets:double", "1x8x8")):
        message = refusal("compile", model, *OUTPUT, "--input-shape", shape)
        assert ": error: torch.export cannot trace the network: RuntimeError: " in message


def test_functions_that_are_refused(write_module: WriteModule, golden: Golden, workplace: Path) -> None:
    write_module(
        "nets", nets(number="3", triple="Network(), 1, 2", text="Network(), 'x'", fails="undefined", small="0")
    )
    write_module("takes", "def argument(x):\n    return x\n\n\nvalue = 3\n")
    write_module("unparsable", "def f(:\n    pass\n")
    write_module("incomplete", "import a_module_that_is_not_there\n")
    write_module("raises", "x = {}\n\n\nx['key']\n")
    models = [
        *(f"nets:{name}" for name in ("number", "triple", "text", "fails", "absent", "torch")),
        *("takes:argument", "takes:value", "unparsable:f", "incomplete:f", "raises:f", "absent:f"),
        *("nets.py:small", "own/nets:small", ".nets:small", "nets:", ":small", "nets:small:small"),
    ]
    lines = [f"{model}\n{refusal('compile', model, *OUTPUT, *IMAGE)}" for model in models]
    golden("functions.txt", "\n".join(lines).replace(str(workplace), "FOLDER"))
    assert list(Path("out").iterdir()) == []


def test_input_shapes_that_are_refused(write_module: WriteModule, golden: Golden) -> None:
    write_module("nets", nets(small="Network()"))
    shapes = ("", "8by8", "1x0x8", "1x8x8x", "5x1x8x8", "1x1x1x1x1")
    lines = [f"{shape!r}\n{refusal('compile', 'nets:small', *OUTPUT, '--input-shape', shape)}" for shape in shapes]
    golden("shapes.txt", "\n".join(lines))


def test_a_file_is_read_as_it_was_saved(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.spk")
    assert load_model(str(path)).graph == small_graph()
    assert load_model(str(path), timesteps=STEPS).graph == small_graph()
    assert load_model(str(path), timesteps=7).graph.timesteps == 7


def test_zoo_networks_by_name() -> None:
    model = load_model("zoo:digits-fc")
    assert model.graph.timesteps == DEFAULT_TIMESTEPS
    assert model.trained is None
    assert load_model("zoo:digits-fc", timesteps=3).graph.timesteps == 3
    assert load_model("zoo:digits-fc", seed=1).graph != model.graph


def test_coded_networks_take_images_and_keep_the_seed() -> None:
    graph = load_model("zoo:certify-fc", seed=5).graph
    assert isinstance(graph.input.op, Input)
    assert graph.input.op.dtype is DType.F32
    encodings = [node.op for node in graph.nodes if isinstance(node.op, Encode)]
    assert [(op.kind, op.seed) for op in encodings] == [(Encoding.BERNOULLI, 5)]


def test_a_zoo_network_survives_its_file(tmp_path: Path) -> None:
    graph = load_model("zoo:certify-fc").graph
    save_graph(graph, tmp_path / "c.spk")
    assert load_model(str(tmp_path / "c.spk")).graph == graph


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(CompileError, match="seed is"):
        load_model("zoo:digits-fc", seed=seed)
