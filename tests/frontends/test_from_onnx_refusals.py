"""ONNX files that are refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compiler.ir import CompileError
from frontends.from_onnx import load_onnx
from frontends.to_onnx import to_onnx
from tests.frontends.onnx_models import saved
from tests.frontends.onnx_mutations import T, network, unrolled
from tests.golden import Golden

Change = Callable[[ModelProto], None]


def cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def unknown_operator(model: ModelProto) -> None:
    model.graph.node[3].op_type = "Softmax"


def unknown_domain(model: ModelProto) -> None:
    model.graph.node[3].domain = "com.microsoft"


def huge_array(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def short_array(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def second_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("membrane", TensorProto.FLOAT, [2, 3]))


def second_output(model: ModelProto) -> None:
    model.graph.output.append(onnx.ValueInfoProto(name=model.graph.node[4].output[0]))


def old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 11


def loop(model: ModelProto) -> None:
    model.graph.node[3].op_type = "Loop"


def outside(model: ModelProto) -> None:
    array = model.graph.initializer[0]
    array.ClearField("raw_data")
    array.data_location = TensorProto.EXTERNAL
    array.external_data.add(key="location", value="../secret.bin")


def no_output(model: ModelProto) -> None:
    del model.graph.output[:]


def an_open_channel(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"


def a_double_output(model: ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


REFUSED: tuple[Change, ...] = (
    cycle,
    unknown_operator,
    unknown_domain,
    huge_array,
    short_array,
    second_input,
    second_output,
    old_opset,
    loop,
    outside,
    no_output,
    an_open_channel,
    a_double_output,
)


def test_refusals(tmp_path: Path, golden: Golden) -> None:
    base = onnx.load(str(unrolled(17, tmp_path)))
    texts = []
    for change in REFUSED:
        model = ModelProto()
        model.CopyFrom(base)
        change(model)
        with pytest.raises(CompileError) as refused:
            load_onnx(saved(model, tmp_path), timesteps=T)
        texts.append(f"{change.__name__}\n  {refused.value}")
    for content, timesteps in ((b"no model", T), (base.SerializeToString(), None)):
        (tmp_path / "net.onnx").write_bytes(content)
        with pytest.raises(CompileError) as refused:
            load_onnx(tmp_path / "net.onnx", timesteps=timesteps)
        texts.append(f"{content[:8]!r}\n  {refused.value}")
    to_onnx(network(), tmp_path / "own.onnx")
    with pytest.raises(CompileError) as refused:
        load_onnx(tmp_path / "own.onnx", timesteps=0)
    texts.append(str(refused.value))
    for place in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(CompileError) as refused:
            load_onnx(place)
        texts.append(str(refused.value))
    golden("from_onnx_refusals.txt", "\n".join(texts).replace(str(tmp_path), "FOLDER") + "\n")


def small(nodes: list[NodeProto], **arrays: np.ndarray) -> ModelProto:
    """x (2, 3) -> y through the nodes."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            small([helper.make_node("Greater", ["x", "x"], ["b"]), helper.make_node("Sub", ["x", "b"], ["y"])]),
            "Sub: takes numbers of one type, gets torch.bool, torch.float32",
        ),
        (
            small([helper.make_node("Gemm", ["x", "w"], ["y"])], w=np.array(1, np.float32)),
            "Gemm: its weight has 0 axes, must have 2",
        ),
        (
            small([helper.make_node("Conv", ["x", "w"], ["y"])], w=np.ones((1, 1), np.float32)),
            "Conv: has a window of 0 axes over 0",
        ),
        (
            small([helper.make_node("Unsqueeze", ["x", "a"], ["y"])], a=np.array([0, 0])),
            r"Unsqueeze: axes \(0, 0\) come twice",
        ),
        (
            small([helper.make_node("Clip", ["x", "a"], ["y"])], a=np.zeros(2, np.float32)),
            "Clip: its limits are not two numbers",
        ),
        (small([helper.make_node("Identity", [], ["y"])]), "Identity: lacks input 0"),
        (small([helper.make_node("Neg", ["x"], ["y"], name=f"lif_{'9' * 5000}/Neg")]), "not an operator of spiking"),
    ],
)
def test_operands_that_no_operator_takes(model: ModelProto, message: str, tmp_path: Path) -> None:
    """Found by damaging files."""
    with pytest.raises(CompileError, match=message):
        load_onnx(saved(model, tmp_path), timesteps=1)
