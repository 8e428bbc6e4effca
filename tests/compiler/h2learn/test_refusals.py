"""What the accelerator cannot run is refused by name, with a hint that helps."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.h2learn.compile import compile_inference
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import Add, AvgPool2d, Conv2d, Encode, Flatten, Input, Lif, Linear, Op, Readout
from hwmodel.config import config_from_mapping, load_config
from tests.golden import Golden

CONFIG = load_config("h2learn")
LIF = Lif(decay=0.5, threshold=1.0)
CONV = Conv2d(weight=Param("w"), padding=(1, 1))
WEIGHTS = {"w": np.full((2, 2, 3, 3), 0.25), "v": np.full((3, 72), 0.25), "v18": np.full((3, 18), 0.25)}


def chain(*ops: Op, weights: dict[str, np.ndarray] | None = None) -> Graph:  # type: ignore[type-arg]
    shape = (4, "N", 2, 6, 6)
    nodes = [Node("x", Input(shape=shape, dtype=DType.SPIKE, axes="TNCHW"), (), Loc("net.py", 1))]
    for line, op in enumerate(ops, 2):
        inputs = (nodes[-1].name,) if not isinstance(op, Add) else (nodes[-1].name, "x")
        nodes.append(Node(f"{type(op).__name__.lower()}{line}", op, inputs, Loc("net.py", line)))
    arrays = WEIGHTS if weights is None else weights
    graph = Graph("net", tuple(nodes), nodes[-1].name, arrays)
    return graph.with_nodes(graph.nodes)


def encoded_inside() -> Graph:
    nodes = (
        Node("x", Input(shape=("N", 2, 6, 6), dtype=DType.F32, axes="NCHW"), (), Loc("net.py", 1)),
        Node("conv", CONV, ("x",), Loc("net.py", 2)),
        Node("e", Encode(kind=Encoding.BERNOULLI, timesteps=2, seed=0), ("conv",), Loc("net.py", 3)),
        Node("lif", LIF, ("e",), Loc("net.py", 4)),
    )
    return Graph("net", nodes, "lif", {"w": WEIGHTS["w"]})


POOL = AvgPool2d(kernel=(2, 2), stride=(2, 2))
CASES = {
    "residual": chain(CONV, LIF, CONV, Add(), LIF),
    "pooled spikes into a convolution": chain(CONV, LIF, POOL, CONV, LIF),
    "no neuron between two convolutions": chain(CONV, CONV, LIF),
    "average of spikes without neuron": chain(CONV, LIF, POOL, Flatten(), Linear(weight=Param("v18"))),
    "reset delay": chain(CONV, Lif(decay=0.5, threshold=1.0, reset=Reset.SOFT, reset_delay=True)),
    "threshold zero": chain(CONV, Lif(decay=0.5, threshold=0.0)),
    "threshold lost in FP16": chain(CONV, Lif(decay=0.5, threshold=1e-9)),
    "weight overflow": chain(CONV, LIF, weights={"w": np.full((2, 2, 3, 3), 1e6)}),
    "lut overflow": chain(CONV, LIF, weights={"w": np.full((2, 2, 3, 3), 30000.0)}),
    "layer behind the readout": chain(
        CONV, LIF, Flatten(), Readout(kind=Reading.LAST), Linear(weight=Param("v")),
    ),
    "encoding inside": encoded_inside(),
}  # fmt: skip


def test_messages(golden: Golden) -> None:
    lines = []
    for name, graph in CASES.items():
        with pytest.raises(CompileError) as caught:
            compile_inference(graph, CONFIG)
        lines.append(f"{name}:\n{caught.value}\n")
    golden("refusals.txt", "\n".join(lines))


def test_a_layer_that_no_buffer_can_hold() -> None:
    table = CONFIG.as_mapping()
    forward = table["forward"]
    assert isinstance(forward, dict)
    forward["buffers_kb"] |= {"s_out": 0.3, "psum": 4.1, "state": 4.1, "s_in": 0.2}
    config = config_from_mapping(table, Loc("tiny.toml"))
    big = Conv2d(weight=Param("w"), padding=(20, 20))
    graph = chain(big, LIF, weights={"w": np.full((2, 2, 41, 41), 0.001)})
    with pytest.raises(CompileError, match=r"one output of one sample at one step exceeds s_in: \d+ of 102 bytes"):
        compile_inference(graph, config)
