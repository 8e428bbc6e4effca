"""ONNX import beside the exporters' own networks: changed files of spikec, scans, opsets, and what is refused."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from hypothesis import given, settings
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from compiler.evaluate import evaluate
from compiler.ir import Compare, CompileError, Encoding, Graph, Loc, Reset
from compiler.ir.ops import AvgPool2d, Lif, MaxPool2d
from compiler.ir.text import print_graph
from compiler.passes.retime import Retime
from frontends.findings import Ground
from frontends.from_onnx import load_onnx
from frontends.onnx_export.model import onnx_model
from frontends.onnx_import.files import to_tensor
from frontends.to_onnx import to_onnx
from tests.frontends.onnx_models import chain, output_of, saved
from tests.frontends.onnx_mutations import T, Unrolled, network, unrolled
from tests.strategies import RandomNetwork, networks


def drive(*shape: int) -> Tensor:
    """Multiples of 1/8."""
    return torch.randint(-4, 9, shape, generator=torch.Generator().manual_seed(0)) / 8


@settings(max_examples=8)
@given(
    random=networks(
        encodings=[Encoding.DIRECT], free_neurons=True, residual=True, max_size=7, max_channels=5, max_timesteps=4
    )
)
def test_without_its_text_a_file_is_read_by_its_nodes(
    random: RandomNetwork, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The functions are proved by their bodies: numbers, reset, comparison and surrogate come back."""
    graph, x = random.graph, torch.from_numpy(random.example)
    model = onnx_model(graph)
    del model.metadata_props[:]
    again = load_onnx(saved(model, tmp_path_factory.mktemp("onnx")), timesteps=graph.timesteps).graph
    assert torch.equal(evaluate(again, x).output, evaluate(graph, x).output)
    neurons = [[node.op for node in g.nodes if isinstance(node.op, Lif)] for g in (graph, again)]
    for before, after in zip(*neurons, strict=True):
        assert (after.reset, after.compare, after.surrogate) == (before.reset, before.compare, before.surrogate)
        assert (after.detach_reset, after.reset_delay) == (before.detach_reset, before.reset_delay)


def test_new_weights_are_data(tmp_path: Path) -> None:
    """Trained elsewhere: the same nodes with other arrays are still spikec's own."""
    model = onnx_model(network())
    weight = next(array for array in model.graph.initializer if array.name == "fc.weight")
    weight.raw_data = (numpy_helper.to_array(weight) * 2).tobytes()
    imported = load_onnx(saved(model, tmp_path))
    assert print_graph(imported.graph) == print_graph(network())
    np.testing.assert_array_equal(imported.graph.parameters["fc.weight"], network().parameters["fc.weight"] * 2)
    assert imported.findings[0].text == "written by spikec, read back as it was"


def test_another_number_of_time_steps(tmp_path: Path) -> None:
    """Of spikec's own network: as for a .spk file."""
    to_onnx(network(), tmp_path / "net.onnx")
    assert load_onnx(tmp_path / "net.onnx", timesteps=7).graph == Retime(7)(network())


def test_a_changed_function_is_another_one(tmp_path: Path) -> None:
    """What the nodes do counts, not what the text or the name says."""
    model = onnx_model(network())
    for function in model.functions:
        body = next(a.g for node in function.node for a in node.attribute if a.name == "body")
        for node in body.node:
            if node.op_type == "GreaterOrEqual":
                node.op_type = "Greater"
    path = saved(model, tmp_path)
    imported = load_onnx(path)
    lifs = [node.op for node in imported.graph.nodes if isinstance(node.op, Lif)]
    assert [lif.compare for lif in lifs] == [Compare.GT, Compare.GT]
    assert [lif.reset for lif in lifs] == [Reset.HARD, Reset.SOFT]
    assert any("does not describe its nodes" in finding.text for finding in imported.findings)
    assert any(finding.ground is Ground.ASSUMED and "surrogate" in finding.text for finding in imported.findings)
    x = drive(64, 1, 4, 4)
    assert torch.equal(evaluate(imported.graph, x).output, output_of(path, x))
    assert not torch.equal(evaluate(imported.graph, x).output, evaluate(network(), x).output)


def test_functions_written_out(tmp_path: Path) -> None:
    """Tools that put functions in place of their calls leave scans."""
    model = onnx.inliner.inline_local_functions(onnx_model(network()))
    assert not model.functions
    assert {"Scan"} < {node.op_type for node in model.graph.node}
    path, x = saved(model, tmp_path), drive(64, 1, 4, 4)
    assert torch.equal(evaluate(load_onnx(path).graph, x).output, evaluate(network(), x).output)


class Scanned(nn.Module):
    """A loop that the exporter keeps, as `Scan`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        with torch.no_grad():
            self.conv.weight.copy_(drive(2, 1, 3, 3))
            self.conv.bias.fill_(0.25)  # type: ignore[union-attr]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        def step(m: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
            m = 0.5 * m + current
            fired = (m >= 1.0).float()
            return m * (1 - fired), fired

        maps = self.conv(x.flatten(0, 1)).unflatten(0, (T, -1))
        spikes: Tensor = scan(step, torch.zeros_like(maps[0]), maps)[1]
        return spikes


@pytest.mark.slow
def test_a_scan_shows_its_time_steps(tmp_path: Path) -> None:
    net, x, path = Scanned().eval(), drive(T, 2, 1, 5, 5), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(net, (x,), dynamo=True, verbose=False, external_data=False)
    assert program is not None
    program.save(str(path))
    assert "Scan" in [node.op_type for node in onnx.load(str(path)).graph.node]
    imported = load_onnx(path)
    assert torch.equal(evaluate(imported.graph, x).output, net(x).detach())
    assert imported.findings[0].text == "3 time steps, as the model's scans or the copies of its neurons"


@pytest.mark.parametrize("opset", range(13, 24))
def test_opsets(opset: int, tmp_path: Path) -> None:
    x = drive(2, 1, 4, 4)
    path = unrolled(opset, tmp_path)
    assert [entry.version for entry in onnx.load(str(path)).opset_import] == [opset]
    graph = load_onnx(path, timesteps=T).graph
    want = Unrolled().eval()(x).detach()
    assert torch.equal(evaluate(graph, x).output, want)
    assert 0 < want.sum() < want.numel()


def test_external_data(tmp_path: Path) -> None:
    """Beside the model it is read; through a link that leads elsewhere it is not."""
    model = onnx.load(str(unrolled(17, tmp_path)))
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(model, str(folder / "net.onnx"), save_as_external_data=True, location="data.bin", size_threshold=0)
    x = drive(2, 1, 4, 4)
    graph = load_onnx(folder / "net.onnx", timesteps=T).graph
    assert torch.equal(evaluate(graph, x).output, Unrolled().eval()(x).detach())
    shutil.move(folder / "data.bin", tmp_path / "data.bin")
    (folder / "data.bin").symlink_to(tmp_path / "data.bin")
    with pytest.raises(CompileError, match="outside the model's folder"):
        load_onnx(folder / "net.onnx", timesteps=T)


@pytest.mark.parametrize("kind", ["same", "global", "lines", "matmul"])
def test_layers_as_other_exporters_write_them(kind: str, tmp_path: Path) -> None:
    """Padding by name, global pooling, one-dimensional layers, products with a bias added behind."""
    rng = np.random.default_rng(0)

    def array(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((rng.integers(-8, 9, shape) / 8).astype(np.float32), name)

    node = helper.make_node
    nodes: list[NodeProto]
    match kind:
        case "same":
            shape, arrays = [2, 3, 5, 4], [array("w", 2, 3, 3, 3)]
            nodes = [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")]
        case "global":
            shape, arrays = [2, 3, 4, 2], [array("w", 2, 3, 1, 1)]
            nodes = [node("GlobalAveragePool", ["x"], ["p"]), node("Conv", ["p", "w"], ["y"])]
        case "lines":
            shape, arrays = [2, 3, 8], [array("w", 2, 3, 3), array("b", 2)]
            nodes = [
                node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1]),
                node("MaxPool", ["c"], ["m"], kernel_shape=[2], strides=[2]),
                node("AveragePool", ["m"], ["y"], kernel_shape=[2], strides=[2]),
            ]
        case _:
            shape, arrays = [2, 5], [array("w", 5, 3), array("b", 3)]
            nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["b", "p"], ["y"])]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            arrays,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    x = drive(*shape)
    graph = load_onnx(saved(model, tmp_path), timesteps=1).graph
    want = output_of(model, x)
    assert torch.equal(evaluate(graph, lined(graph, x)).output.reshape(want.shape), want)


def lined(graph: Graph, x: Tensor) -> Tensor:
    """Lines of features stand as maps of one row."""
    ndim = len(graph.types[graph.input.name].shape)
    return x.reshape(*x.shape[:2], 1, *x.shape[2:]) if ndim > x.ndim else x


def test_a_constant_that_widens_a_value_is_no_factor(tmp_path: Path) -> None:
    """One number repeated over channels that the value does not have."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Mul", ["x", "c"], ["y"])],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.full((1, 3), 0.5, np.float32), "c")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(CompileError, match="Mul"):
        load_onnx(saved(model, tmp_path), timesteps=1)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("op", [AvgPool2d, MaxPool2d])
def test_windows_come_back(op: type[AvgPool2d | MaxPool2d], ceil_mode: bool, tmp_path: Path) -> None:
    pool = op(kernel=(3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=ceil_mode)
    model = onnx_model(chain(pool, shape=("N", 2, 6, 5)))
    del model.metadata_props[:]
    graph = load_onnx(saved(model, tmp_path), timesteps=1).graph
    assert graph.nodes[-1].op == pool


def test_functions_of_other_programs(tmp_path: Path) -> None:
    """Put in place of their calls, attributes and defaults filled in."""
    node, opset = helper.make_node, helper.make_opsetid("", 17)
    half = helper.make_node("Constant", [], ["factor"])
    half.attribute.append(
        onnx.AttributeProto(name="value_float", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    )
    function = helper.make_function(
        "other",
        "Scaled",
        ["v"],
        ["w"],
        [half, node("Mul", ["v", "factor"], ["w"])],
        [opset],
        attributes=["factor"],
    )
    model = helper.make_model(
        helper.make_graph(
            [
                node("Scaled", ["x"], ["a"], domain="other", factor=0.5),
                node("Scaled", ["a"], ["y"], domain="other", factor=0.25),
            ],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        ),
        opset_imports=[opset, helper.make_opsetid("other", 1)],
        functions=[function],
        ir_version=8,
    )
    graph = load_onnx(saved(model, tmp_path), timesteps=1).graph
    assert torch.equal(evaluate(graph, torch.ones(2, 3)).output, torch.full((2, 3), 0.125))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"])
def test_arrays_of_every_type(dtype: str, raw: bool) -> None:
    values = np.array([[0, 1, 1], [3, 5, 0]]).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    content = values.tobytes() if raw else values.reshape(-1)
    proto = helper.make_tensor("a", kind, values.shape, content, raw=raw)
    np.testing.assert_array_equal(to_tensor(proto, Path(), Loc("net.onnx")).numpy(), values)
    assert to_tensor(proto, Path(), Loc("net.onnx")).numpy().dtype == values.dtype


@pytest.mark.parametrize("timesteps", [T, None])
def test_an_open_batch(timesteps: int | None, tmp_path: Path) -> None:
    """Time is not shown by neurons that are written out in one module."""
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Unrolled().eval(),
            (torch.zeros(2, 1, 4, 4),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )
    if timesteps is None:
        with pytest.raises(CompileError, match="does not show how many time steps it has"):
            load_onnx(path)
        return
    x = drive(64, 1, 4, 4)
    assert torch.equal(evaluate(load_onnx(path, timesteps=timesteps).graph, x).output, output_of(path, x))


@dataclass(frozen=True, slots=True)
class Extents:
    """Of a model's input, and what they are read as."""

    dims: list[int | str]
    timesteps: int | None
    shape: tuple[int | str, ...]


@pytest.mark.parametrize(
    "extents",
    [
        Extents([2, 3], 1, ("N", 3)),
        Extents(["N", 3], 1, ("N", 3)),
        Extents(["T", "N", 3], 4, (4, "N", 3)),
        Extents([4, "N", 3], 4, (4, "N", 3)),
    ],
)
def test_open_extents(extents: Extents, tmp_path: Path) -> None:
    """Where time is an axis, the network takes its mean, so that no other reading fits."""
    mean = helper.make_node("ReduceMean" if len(extents.dims) == 3 else "Identity", ["h"], ["y"])
    if len(extents.dims) == 3:
        mean.attribute.extend([helper.make_attribute("axes", [0]), helper.make_attribute("keepdims", 0)])
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Mul", ["x", "half"], ["h"]), mean],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, extents.dims)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array(0.5, np.float32), "half")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    graph = load_onnx(saved(model, tmp_path), timesteps=extents.timesteps).graph
    assert graph.types[graph.input.name].shape == extents.shape


def test_a_file_of_another_name_keeps_the_graphs_name(tmp_path: Path) -> None:
    """Of spikec's own; a foreign graph is named after its file, or as told."""
    to_onnx(network(), tmp_path / "other.onnx")
    assert load_onnx(tmp_path / "other.onnx").graph.name == "net"
    path = unrolled(17, tmp_path)
    assert load_onnx(path, timesteps=T).graph.name == "net"
    assert load_onnx(path, timesteps=T, name="mine").graph.name == "mine"
