"""Models run by onnxruntime, and what else the tests of the ONNX front end share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

from compiler.codes import bernoulli_draws
from compiler.ir import DType, Graph, Loc, Node
from compiler.ir.ops import Encode, Input, Op


def run(model: ModelProto | Path, *inputs: Tensor) -> dict[str, Tensor]:
    """All outputs of a model by name, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds: Mapping[str, np.ndarray] = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    outputs = [value.name for value in session.get_outputs()]
    return {name: torch.from_numpy(y) for name, y in zip(outputs, session.run(outputs, feeds), strict=True)}


def output_of(model: ModelProto | Path, *inputs: Tensor) -> Tensor:
    """The one output of a model."""
    (result,) = run(model, *inputs).values()
    return result


def draws_of(graph: Graph, x: Tensor) -> list[Tensor]:
    """The draws of the encodings with a seed, as the model's further inputs."""
    return [
        torch.from_numpy(bernoulli_draws(node.op.seed, node.op.timesteps, tuple(x.shape), 0))
        for node in graph.nodes
        if isinstance(node.op, Encode) and node.op.seed is not None
    ]


def with_all_values(model: ModelProto) -> ModelProto:
    """The model with every value of its graph as an output."""
    whole = ModelProto()
    whole.CopyFrom(model)
    shown = {value.name for value in whole.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name not in shown:
                whole.graph.output.append(onnx.ValueInfoProto(name=name))
    return whole


def saved(model: ModelProto, folder: Path) -> Path:
    """The model as net.onnx in the folder."""
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def chain(*ops: Op, shape: tuple[int | str, ...], parameters: dict[str, np.ndarray] | None = None) -> Graph:
    """Ops one after the other behind an input named x."""
    axes = {2: "NC", 3: "TNC", 4: "NCHW", 5: "TNCHW"}[len(shape)]
    nodes = [Node("x", Input(shape=shape, dtype=DType.F32, axes=axes), (), Loc("net.py", 1))]
    for index, op in enumerate(ops):
        nodes.append(Node(f"n{index}", op, (nodes[-1].name,), Loc("net.py", index + 2)))
    return Graph("net", tuple(nodes), nodes[-1].name, parameters or {})


def exported(net: nn.Module, x: Tensor, path: Path, *, dynamo: bool) -> None:
    """Write a network with one of PyTorch's two exporters."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(net, (x,), dynamo=True, verbose=False, external_data=False)
            assert program is not None
            program.save(str(path))
            return
        content = io.BytesIO()
        torch.onnx.export(net, (x,), content, dynamo=False, opset_version=17)
        path.write_bytes(content.getvalue())
