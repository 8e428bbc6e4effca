"""Small compiled training programs for the tests: every instruction, split time, both kinds of update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from hypothesis import assume

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import DType, Encoding, Graph, Loc, Node, Param, Reading, Reset
from compiler.ir.ops import (
    Array,
    AvgPool2d,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
)
from compiler.losses import Loss
from hwmodel.config import BackwardBuffers, ForwardBuffers, H2LearnConfig, TileConfig, WeightUpdateBuffers, load_config
from hwmodel.errors import CompileError
from hwmodel.isa import Instruction, Queue
from hwmodel.program import Phase, Program

BATCH = 2
Made = TypeVar("Made")
Ops = tuple[tuple[str, Op], ...]


def training_config() -> H2LearnConfig:
    """Few PEs and tight buffers, so that a small network takes several tiles, row groups and chunks of time."""
    preset = load_config("h2learn")
    forward = ForwardBuffers(s_in=1.0, w=3.0, psum=4.0, s_out=0.5, mask=1.0, neuron=0.5, state=1.0)
    backward = BackwardBuffers(gm_in=4.0, w=2.0, psum=4.0, s_out=0.5, mask=1.0, m=4.0, neuron=0.5, state=1.0, grad=0.25)
    update = WeightUpdateBuffers(gm=2.0, s_in=0.5, gw_psum=2.0, grad=0.25, weight=0.25, momentum=0.25)
    return replace(
        preset,
        tile=TileConfig(h=4, w=4),
        forward=replace(preset.forward, rows=8, cols=4, buffers_kb=forward),
        backward=replace(preset.backward, rows=4, cols=4, buffers_kb=backward),
        weight_update=replace(preset.weight_update, rows=3, cols=4, buffers_kb=update),
    )


def digits_graph() -> Graph:
    """Like digits-conv: direct encoding, conv-LIF, conv-LIF-avgpool-LIF, linear-LIF, linear-LIF; SGD with momentum."""
    ops: Ops = (
        ("x", Input(shape=("N", 1, 6, 6), dtype=DType.F32, axes="NCHW")),
        ("encode", Encode(kind=Encoding.DIRECT, timesteps=3)),
        ("conv1", Conv2d(weight=Param("w1"), bias=Param("b1"), padding=(1, 1))),
        ("lif1", Lif(decay=0.5, threshold=0.5)),
        ("conv2", Conv2d(weight=Param("w2"), bias=Param("b2"), padding=(1, 1))),
        ("lif2", Lif(decay=0.25, threshold=0.5)),
        ("pool", AvgPool2d(kernel=(2, 2), stride=(2, 2))),
        ("lif3", Lif(decay=0.5, threshold=0.25)),
        ("flatten", Flatten()),
        ("linear1", Linear(weight=Param("w3"), bias=Param("b3"))),
        ("lif4", Lif(decay=0.5, threshold=0.25)),
        ("linear2", Linear(weight=Param("w4"))),
        ("lif5", Lif(decay=0.5, threshold=0.25)),
        ("rate", Readout(kind=Reading.RATE)),
    )
    shapes = {
        **{"w1": (4, 1, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,)},
        **{"w3": (6, 36), "b3": (6,), "w4": (3, 6)},
    }
    return chain(ops, shapes)


def pooled_graph() -> Graph:
    """Spikes in; max pooling before and behind neurons, groups, stride 2, an integrator."""
    ops: Ops = (
        ("x", Input(shape=(4, "N", 2, 9, 9), dtype=DType.SPIKE, axes="TNCHW")),
        ("conv1", Conv2d(weight=Param("w1"), bias=Param("b1"), padding=(1, 1))),
        ("winners", MaxPool2d(kernel=(2, 2), stride=(2, 2))),
        ("lif1", Lif(decay=0.5, threshold=0.5, detach_reset=True)),
        ("conv2", Conv2d(weight=Param("w2"), padding=(2, 2), stride=(1, 2), groups=2)),
        ("lif2", Lif(decay=0.25, threshold=0.5, reset=Reset.SOFT)),
        ("or", MaxPool2d(kernel=(2, 1), stride=(2, 1))),
        ("conv3", Conv2d(weight=Param("w3"))),
        ("lif3", Lif(decay=0.5, threshold=0.25)),
        ("flatten", Flatten()),
        ("linear", Linear(weight=Param("w4"))),
        ("li", Li(decay=0.5)),
        ("last", Readout(kind=Reading.LAST)),
    )
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (6, 2, 5, 5), "w3": (3, 6, 1, 2), "w4": (3, 6)}
    return chain(ops, shapes)


def split_graph() -> Graph:
    """Time in chunks both ways, with the membranes and their gradients through memory; weights on the host."""
    ops: Ops = (
        ("x", Input(shape=("N", 2, 6, 6), dtype=DType.F32, axes="NCHW")),
        ("encode", Encode(kind=Encoding.DIRECT, timesteps=7)),
        ("conv1", Conv2d(weight=Param("w1"), bias=Param("b1"), padding=(1, 1))),
        ("lif1", Lif(decay=0.5, threshold=0.5)),
        ("pool1", MaxPool2d(kernel=(2, 2), stride=(2, 2))),
        ("lif2", Lif(decay=0.5, threshold=0.5)),
        ("conv2", Conv2d(weight=Param("w2"))),
        ("lif3", Lif(decay=0.25, threshold=0.5, reset=Reset.NONE)),
        ("flatten", Flatten()),
        ("linear", Linear(weight=Param("w3"), bias=Param("b3"))),
        ("rate", Readout(kind=Reading.RATE)),
    )
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (3, 4, 3, 3), "w3": (2, 3), "b3": (2,)}
    return chain(ops, shapes)


def chain(ops: Ops, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """A network of ops that each take the one before."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {
        name: (np.round(4 * rng.normal(0, 1, shape)) / 16).astype(np.float32) for name, shape in shapes.items()
    }
    names = [name for name, _ in ops]
    nodes = tuple(
        Node(name, op, (names[i - 1],) if i else (), Loc("net.py", i + 1)) for i, (name, op) in enumerate(ops)
    )
    return Graph("small", nodes, names[-1], arrays)


GRAPHS = {"digits": digits_graph, "pooled": pooled_graph, "split": split_graph}
DESCENTS = {
    "digits": Descent(momentum=0.5, weight_decay=0.125),
    "pooled": Descent(),
    "split": Descent(master_weights=True, momentum=0.5),
}


def _compiled(name: str) -> Program:
    return compile_training(
        GRAPHS[name](), training_config(), loss=Loss.MSE, descent=DESCENTS[name], batch=BATCH, show=lambda _: None
    ).program


@functools.cache
def digits_program() -> Program:
    """SGD with momentum and weight decay on the accelerator."""
    return _compiled("digits")


@functools.cache
def pooled_program() -> Program:
    """Plain SGD on the accelerator."""
    return _compiled("pooled")


@functools.cache
def split_program() -> Program:
    """The update by the host."""
    return _compiled("split")


PROGRAMS: tuple[Callable[[], Program], ...] = (digits_program, pooled_program, split_program)


def made_if_trainable(make: Callable[[], Made]) -> Made:
    """What is made; no example of a property where a maximum of spikes and its neuron do not fit one tile."""
    try:
        return make()
    except CompileError as fault:
        assume("a maximum of spikes is trained in one tile" not in fault.message)
        raise


def with_phase_stream(program: Program, phase: Phase, queue: Queue, stream: tuple[Instruction, ...]) -> Program:
    """The program with another stream in one queue of one phase."""
    assert program.training is not None
    streams = {**program.phases[phase], queue: stream}
    return replace(program, training=replace(program.training, phases={**program.phases, phase: streams}))
