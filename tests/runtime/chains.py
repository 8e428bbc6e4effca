"""Networks made by hand for the training tests: a chain of layers over a direct encoding, with weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import DType, Encoding, Graph, Loc, Node, Param, Reading
from compiler.ir.ops import (
    Array,
    AvgPool2d,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Site,
)
from compiler.losses import Loss
from hwmodel.config import H2LearnConfig, config_from_mapping, load_config
from hwmodel.program import Program

CONFIG = load_config("h2learn")
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def smaller(**changes: object) -> H2LearnConfig:
    """The preset with other sizes; tables are merged."""

    def merged(base: object, change: object) -> object:
        if not isinstance(base, dict) or not isinstance(change, dict):
            return change
        return {key: merged(value, change[key]) if key in change else value for key, value in base.items()}

    table = merged(CONFIG.as_mapping(), changes)
    assert isinstance(table, dict)
    return config_from_mapping(table, Loc("smaller"))


SPLIT = smaller(  # time and samples are split, weight gradients leave in slices
    forward={"buffers_kb": {"psum": 5.0, "s_in": 2.0, "state": 5.0}},
    backward={"buffers_kb": {"gm_in": 12.0, "psum": 16.0, "state": 16.0, "m": 12.0, "grad": 2.0}},
    weight_update={
        "buffers_kb": {"gm": 10.0, "s_in": 1.0, "gw_psum": 20.0, "grad": 2.0, "weight": 1.0, "momentum": 1.0}
    },
)
TINIEST = smaller(  # channels, rows and tiles are split too; three steps a tree of the Weight Update Engine
    tile={"h": 4, "w": 4},
    forward={"rows": 16, "cols": 4, "buffers_kb": {"psum": 0.5, "state": 0.5, "s_in": 0.25, "w": 2.5}},
    backward={
        "rows": 4,
        "cols": 4,
        "buffers_kb": {
            "gm_in": 1.0,
            "w": 2.0,
            "psum": 0.5,
            "state": 0.5,
            "m": 0.5,
            "mask": 0.25,
            "s_out": 0.125,
            "neuron": 0.5,
            "grad": 0.25,
        },
    },
    weight_update={
        "rows": 3,
        "cols": 5,
        "buffers_kb": {"gm": 0.5, "s_in": 0.125, "gw_psum": 1.0, "grad": 0.25, "weight": 0.125, "momentum": 0.125},
    },
)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of the size that the fan-in asks for, a little more excitatory than inhibitory."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 16
    return rng.normal(0.3, 1.0, shape) / np.sqrt(fan_in)


def halves(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """-1, -1/2, 0, 1/2 or 1: sums of few of them are exact in FP16."""
    return rng.integers(-2, 3, shape) / 2


@dataclass(slots=True)
class Chain:
    """A network under construction; each call appends a node, and weights take the last value's channels."""

    shape: tuple[int, ...]  # of a sample, (C, H, W) or (C,)
    timesteps: int
    draw: Draw = normal
    encode: Encode | None = None  # a direct encoding by default
    seed: int = 1
    nodes: list[Node] = field(default_factory=list)
    parameters: dict[str, Array] = field(default_factory=dict)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.add("x", Input(shape=("N", *self.shape), dtype=DType.F32, axes="NCHW"[: len(self.shape) + 1]))
        self.add("encode", self.encode or Encode(kind=Encoding.DIRECT, timesteps=self.timesteps))

    def add(self, name: str, op: Op) -> Chain:
        inputs = (self.nodes[-1].name,) if self.nodes else ()
        self.nodes.append(Node(name, op, inputs, Loc("chain.py", len(self.nodes) + 1)))
        return self

    def conv(
        self, name: str, outputs: int, kernel: int = 3, *, padding: int = 1, stride: int = 1, groups: int = 1
    ) -> Chain:
        shape = (outputs, self._channels() // groups, kernel, kernel)
        weight, bias = self._parameter(f"{name}.weight", shape), self._parameter(f"{name}.bias", (outputs,))
        sides = {"padding": (padding, padding), "stride": (stride, stride)}
        return self.add(name, Conv2d(weight=weight, bias=bias, groups=groups, **sides))  # type: ignore[arg-type]

    def linear(self, name: str, outputs: int, *, bias: bool = True) -> Chain:
        weight = self._parameter(f"{name}.weight", (outputs, self._channels()))
        return self.add(name, Linear(weight=weight, bias=self._parameter(f"{name}.bias", (outputs,)) if bias else None))

    def lif(self, name: str, **numbers: object) -> Chain:
        return self.add(name, Lif(**{"decay": 0.5, "threshold": 0.5, **numbers}))  # type: ignore[arg-type]

    def average(self, name: str, kernel: int = 2) -> Chain:
        return self.add(name, AvgPool2d(kernel=(kernel, kernel), stride=(kernel, kernel)))

    def maximum(self, name: str, kernel: int = 2) -> Chain:
        return self.add(name, MaxPool2d(kernel=(kernel, kernel), stride=(kernel, kernel)))

    def flatten(self) -> Chain:
        return self.add("flatten", Flatten())

    def readout(self, kind: Reading = Reading.RATE) -> Graph:
        """The whole network."""
        self.add("readout", Readout(kind=kind))
        return Graph("chain", tuple(self.nodes), "readout", self.parameters)

    def _channels(self) -> int:
        kinds = {}
        for node in self.nodes:
            site = Site(node.name, node.loc, self.parameters)
            kinds[node.name] = node.op.infer(tuple(kinds[name] for name in node.inputs), site)
        return kinds[self.nodes[-1].name].size("C")

    def _parameter(self, name: str, shape: tuple[int, ...]) -> Param:
        self.parameters[name] = self.draw(self._rng, shape).astype(np.float32)
        return Param(name)


def training_program(
    graph: Graph,
    *,
    batch: int = 4,
    config: H2LearnConfig = CONFIG,
    loss: Loss = Loss.CROSS_ENTROPY,
    **descent: float,
) -> Program:
    """The training program of a network, which must have no pass to go through."""
    options = Descent(**descent)  # type: ignore[arg-type]
    return compile_training(graph, config, loss=loss, batch=batch, descent=options).program
