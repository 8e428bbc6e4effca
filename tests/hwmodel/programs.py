"""Small compiled programs for the tests: many tiles, time in chunks, both engines, membranes through memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from compiler.h2learn.compile import compile_inference
from compiler.ir import DType, Encoding, Graph, Loc, Node, Param, Reset
from compiler.ir.ops import Array, AvgPool2d, Conv2d, Encode, Flatten, Input, Lif, Linear, MaxPool2d, Op
from hwmodel.config import ForwardBuffers, H2LearnConfig, TileConfig, load_config
from hwmodel.isa import Instruction, Queue
from hwmodel.program import Program

STEPS, BATCH = 12, 2
IMAGE = (2, 6, 6)


def small_config() -> H2LearnConfig:
    """Few PEs and tight buffers, so that a small network takes several tiles, row blocks and chunks of time."""
    preset = load_config("h2learn")
    buffers = ForwardBuffers(s_in=1.0, w=1.5, psum=2.0, s_out=0.25, mask=0.3, neuron=0.3, state=0.5)
    return replace(
        preset,
        tile=TileConfig(h=4, w=4),
        forward=replace(preset.forward, rows=8, cols=4, buffers_kb=buffers),
        backward=replace(preset.backward, rows=4, cols=8, buffers_kb=replace(preset.backward.buffers_kb, psum=5.0)),
    )


@functools.cache
def deep_program() -> Program:
    """Direct encoding, conv-LIF-avgpool-LIF, conv-LIF, max pooling from memory, linear-LIF."""
    ops: tuple[tuple[str, Op], ...] = (
        ("x", Input(shape=("N", *IMAGE), dtype=DType.F32, axes="NCHW")),
        ("encode", Encode(kind=Encoding.DIRECT, timesteps=STEPS)),
        ("conv1", Conv2d(weight=Param("w1"), bias=Param("b1"), padding=(1, 1))),
        ("lif1", Lif(decay=0.5, threshold=0.5)),
        ("pool1", AvgPool2d(kernel=(2, 2), stride=(2, 2))),
        ("lif2", Lif(decay=0.5, threshold=0.25)),
        ("conv2", Conv2d(weight=Param("w2"), padding=(2, 2))),
        ("lif3", Lif(decay=0.25, threshold=0.5, reset=Reset.SOFT)),
        ("pool2", MaxPool2d(kernel=(3, 3), stride=(1, 1))),
        ("flatten", Flatten()),
        ("linear", Linear(weight=Param("w3"), bias=Param("b3"))),
        ("lif4", Lif(decay=0.5, threshold=0.25)),
    )
    shapes = {"w1": (10, 2, 3, 3), "b1": (10,), "w2": (5, 10, 3, 3), "w3": (6, 45), "b3": (6,)}
    return _compiled(ops, shapes)


@functools.cache
def linear_program() -> Program:
    """The smallest program with two layers: spikes, linear-LIF, linear-LIF."""
    ops: tuple[tuple[str, Op], ...] = (
        ("x", Input(shape=(3, "N", 5), dtype=DType.SPIKE, axes="TNC")),
        ("linear1", Linear(weight=Param("w1"))),
        ("lif1", Lif(decay=0.5, threshold=0.25)),
        ("linear2", Linear(weight=Param("w2"))),
        ("lif2", Lif(decay=0.5, threshold=0.25)),
    )
    return _compiled(ops, {"w1": (6, 5), "w2": (2, 6)})


def with_stream(program: Program, queue: Queue, stream: tuple[Instruction, ...]) -> Program:
    """The program with another stream in one queue."""
    return replace(program, streams={**program.streams, queue: stream})


def _compiled(ops: tuple[tuple[str, Op], ...], shapes: Mapping[str, tuple[int, ...]]) -> Program:
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {
        name: (np.round(4 * rng.normal(0, 1, shape)) / 16).astype(np.float32) for name, shape in shapes.items()
    }
    names = [name for name, _ in ops]
    nodes = tuple(
        Node(name, op, (names[i - 1],) if i else (), Loc("programs.py", i + 1)) for i, (name, op) in enumerate(ops)
    )
    return compile_inference(Graph("small", nodes, names[-1], arrays), small_config(), batch=BATCH).program
