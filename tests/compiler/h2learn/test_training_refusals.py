"""What the accelerator cannot train is refused by name, with a hint that helps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import (
    CompileError,
    DType,
    Encoding,
    Graph,
    Loc,
    Node,
    Param,
    Reading,
    Reset,
    Surrogate,
    SurrogateKind,
)
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
)
from compiler.losses import Loss
from hwmodel.config import H2LearnConfig, TileConfig, load_config
from tests.golden import Golden

CONFIG = load_config("h2learn")
LIF = Lif(decay=0.5, threshold=1.0)
CONV = Conv2d(weight=Param("w"), padding=(1, 1))
POOL = AvgPool2d(kernel=(2, 2), stride=(2, 2))
RATE = Readout(kind=Reading.RATE)
NORM = BatchNorm(weight=Param("ones"), bias=Param("zeros"), mean=Param("zeros"), var=Param("ones"))
ARRAYS = {
    "w": np.full((2, 2, 3, 3), 0.25, np.float32),
    "w2": np.full((2, 2, 3, 3), 0.25, np.float32),
    "v": np.full((3, 72), 0.25, np.float32),
    "ones": np.ones(2, np.float32),
    "zeros": np.zeros(2, np.float32),
    "draws": np.zeros((2, 1, 2, 6, 6), np.float32),
}


def chain(*ops: Op, arrays: dict[str, np.ndarray] = ARRAYS, steps: int = 4) -> Graph:  # type: ignore[type-arg]
    nodes = [Node("x", Input(shape=(steps, "N", 2, 6, 6), dtype=DType.SPIKE, axes="TNCHW"), (), Loc("net.py", 1))]
    for line, op in enumerate(ops, 2):
        inputs = (nodes[-1].name,) if not isinstance(op, Add) else (nodes[-1].name, "x")
        nodes.append(Node(f"{type(op).__name__.lower()}{line}", op, inputs, Loc("net.py", line)))
    graph = Graph("net", tuple(nodes), nodes[-1].name, arrays)
    return graph.with_nodes(graph.nodes)


def classified(*ops: Op) -> Graph:
    """A convolution, what is given, and a classifier."""
    return chain(CONV, *ops, Flatten(), RATE)


def from_image(*ops: Op, seed: int | None = None, mask: Param | None = None) -> Graph:
    encode = Encode(kind=Encoding.BERNOULLI, timesteps=2, seed=seed, mask=mask)
    start = (
        Node("x", Input(shape=("N", 2, 6, 6), dtype=DType.F32, axes="NCHW"), (), Loc("net.py", 1)),
        Node("e", encode, ("x",), Loc("net.py", 2)),
    )
    rest = [Node(f"{type(op).__name__.lower()}{line}", op, (), Loc("net.py", line)) for line, op in enumerate(ops, 3)]
    nodes = list(start)
    for node in rest:
        nodes.append(replace(node, inputs=(nodes[-1].name,)))
    return Graph("net", tuple(nodes), nodes[-1].name, ARRAYS)


def surrogate(kind: SurrogateKind) -> Graph:
    return classified(replace(LIF, surrogate=Surrogate(kind=kind)))


GRAPHS = {
    "batch norm": classified(NORM, LIF),
    "scale": classified(Scale(factor=0.5), LIF),
    "residual sum": classified(LIF, CONV, Add(), LIF),
    "triangle": surrogate(SurrogateKind.TRIANGLE),
    "arc tangent": surrogate(SurrogateKind.ATAN),
    "overlapping average": classified(LIF, AvgPool2d(kernel=(3, 3), stride=(2, 2)), LIF),
    "overlapping maximum": classified(MaxPool2d(kernel=(2, 2), stride=(1, 1)), LIF),
    "windows with gaps": classified(LIF, AvgPool2d(kernel=(1, 1), stride=(2, 2)), LIF),
    "padded average": classified(LIF, AvgPool2d(kernel=(2, 2), stride=(2, 2), padding=(1, 1)), LIF),
    "maximum of a maximum of spikes": classified(
        LIF, MaxPool2d(kernel=(2, 2), stride=(2, 2)), MaxPool2d(kernel=(3, 3), stride=(3, 3))
    ),
    "no readout": chain(CONV, LIF, Flatten(), Linear(weight=Param("v")), LIF),
    "no weights": chain(LIF, Flatten(), RATE),
    "maps as scores": chain(CONV, LIF, RATE),
    "delayed soft reset": classified(Lif(decay=0.5, threshold=1.0, reset=Reset.SOFT, reset_delay=True)),
    "pooled spikes into a convolution": classified(LIF, POOL, CONV, LIF),
    "threshold lost in FP16": classified(Lif(decay=0.5, threshold=1e-9)),
    "weights overflow": chain(
        CONV, LIF, Flatten(), RATE, arrays=ARRAYS | {"w": np.full((2, 2, 3, 3), 1e6, np.float32)}
    ),
    "layer behind a maximum over time": chain(
        CONV, LIF, Flatten(), Readout(kind=Reading.MAX), Linear(weight=Param("v"))
    ),
    "a code without seed": from_image(CONV, LIF, Flatten(), RATE, mask=Param("draws")),
}

DESCENTS = {
    "learning rate 0": Descent(learning_rate=0.0),
    "learning rate below 0": Descent(learning_rate=-0.1),
    "learning rate infinite": Descent(learning_rate=math.inf),
    "learning rate no number": Descent(learning_rate=math.nan),
    "momentum 1": Descent(momentum=1.0),
    "momentum below 0": Descent(momentum=-0.5),
    "momentum no number": Descent(momentum=math.nan),
    "weight decay below 0": Descent(weight_decay=-1e-4),
    "weight decay infinite": Descent(weight_decay=math.inf),
    "weight decay no number": Descent(weight_decay=math.nan),
    "loss scale 0": Descent(loss_scale=0.0),
    "loss scale below 0": Descent(loss_scale=-1.0),
    "loss scale infinite": Descent(loss_scale=math.inf),
    "loss scale no number": Descent(loss_scale=math.nan),
    "batch group 0": Descent(batch_group=0),
    "batch group beyond its field": Descent(batch_group=1 << 16),
    "no machines": Descent(machines=0),
    "too many machines": Descent(machines=65),
}


def shrunk(part: str, **sizes_kb: float) -> H2LearnConfig:
    """The dissertation's accelerator with smaller buffers in one engine."""
    engine = getattr(CONFIG, part)
    return replace(CONFIG, **{part: replace(engine, buffers_kb=replace(engine.buffers_kb, **sizes_kb))})


SMALL = classified(LIF)
DEEP = classified(LIF, replace(CONV, weight=Param("w2")), LIF)
CONFIGS = {
    "membranes": (SMALL, shrunk("backward", m=0.003)),
    "masks": (SMALL, shrunk("backward", mask=0.0001)),
    "gradients that arrive": (DEEP, shrunk("backward", gm_in=0.001)),
    "weights backwards": (DEEP, shrunk("backward", w=0.01)),
    "gradients of the sums": (SMALL, shrunk("weight_update", gm=0.003)),
    "spikes": (SMALL, shrunk("weight_update", s_in=0.001)),
    "weight gradients": (SMALL, shrunk("weight_update", gw_psum=0.02)),
    "adder": (SMALL, shrunk("weight_update", grad=0.02)),
    "masks forwards": (SMALL, shrunk("forward", mask=0.0001)),
    "memory": (SMALL, replace(CONFIG, memory=replace(CONFIG.memory, capacity_bytes=1000))),
    "a maximum larger than a tile": (
        classified(LIF, MaxPool2d(kernel=(6, 6), stride=(6, 6))),
        replace(CONFIG, tile=TileConfig(h=4, w=4)),
    ),
}


def refusal(graph: Graph, config: H2LearnConfig = CONFIG, descent: Descent | None = None, batch: int = 4) -> str:
    with pytest.raises(CompileError) as caught:
        compile_training(graph, config, loss=Loss.MSE, descent=descent, batch=batch, show=lambda _: None)
    return str(caught.value)


def test_messages(golden: Golden) -> None:
    lines = [f"{name}:\n{refusal(graph)}\n" for name, graph in GRAPHS.items()]
    lines += [f"{name}:\n{refusal(SMALL, descent=descent)}\n" for name, descent in DESCENTS.items()]
    lines += [f"too small, {name}:\n{refusal(graph, config)}\n" for name, (graph, config) in CONFIGS.items()]
    lines += [f"batch {batch}:\n{refusal(SMALL, batch=batch)}\n" for batch in (0, 5000)]
    lines.append(f"too many steps:\n{refusal(chain(CONV, LIF, Flatten(), RATE, steps=70000))}\n")
    golden("training_refusals.txt", "\n".join(lines))


def test_what_is_refused_compiles_once_it_is_changed() -> None:
    """Each graph with the part that is at fault replaced: it is this part that is refused."""
    for graph in (
        classified(LIF),
        classified(LIF, POOL, LIF),
        classified(MaxPool2d(kernel=(2, 2), stride=(2, 2)), LIF),
        chain(CONV, LIF, Flatten(), Linear(weight=Param("v")), LIF, RATE),
        chain(CONV, LIF, Flatten(), RATE, Linear(weight=Param("v"))),
        from_image(CONV, LIF, Flatten(), RATE, seed=1),
        classified(Lif(decay=0.5, threshold=1.0, reset=Reset.SOFT)),
    ):
        compile_training(graph, CONFIG, loss=Loss.MSE, show=lambda _: None)


def test_the_ends_of_each_range_are_taken() -> None:
    for descent in (
        Descent(learning_rate=1e-30, momentum=0.0, weight_decay=0.0, loss_scale=1e-30, batch_group=1, machines=1),
        Descent(momentum=0.999, weight_decay=1.0, loss_scale=2.0**24, batch_group=65535, machines=64),
    ):
        compile_training(SMALL, CONFIG, loss=Loss.MSE, descent=descent, show=lambda _: None)
