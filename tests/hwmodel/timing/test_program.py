"""Cycles: sums over instructions against closed forms, and both against numbers computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile import compile_inference
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param
from compiler.ir.ops import Conv2d, Encode, Flatten, Input, Lif, Linear
from hwmodel.config import load_config
from hwmodel.isa import ConvTile, FcTile, Instruction, LutMode, LutProgram, Queue
from hwmodel.program import Layer, Program
from hwmodel.timing import (
    encoding_conv_cycles,
    forward_conv_cycles,
    forward_linear_cycles,
    instruction_work,
    memory_bytes,
    program_timing,
)
from hwmodel.timing.tiles import DenseTiles

CONFIG = load_config("h2learn")


def facts(**values: object) -> Layer:
    base: dict[str, object] = {
        "name": "layer",
        "engine": Queue.FE,
        "kind": "conv",
        "nodes": (),
        "neurons": (),
        "c_in": 256,
        "c_out": 256,
        "kernel": (3, 3),
        "stride": (1, 1),
        "out_h": 56,
        "out_w": 56,
        "groups": 1,
        "hold": False,
    }
    return Layer(**(base | values))  # type: ignore[arg-type]  # fields of Layer


def conv_tile(**values: object) -> ConvTile:
    base: dict[str, object] = dict.fromkeys(ConvTile.__dataclass_fields__, 0) | {
        "accumulate": False,
        "kernel_h": 3,
        "kernel_w": 3,
        "tap_rows": 3,
        "h": 8,
        "w": 8,
        "nt": 10,
        "nn": 4,
        "rows": 64,
        "cols": 16,
    }
    return ConvTile(**(base | values))  # type: ignore[arg-type]  # fields of ConvTile


def cycles(instruction: Instruction, queue: Queue) -> float:
    return instruction_work(instruction, CONFIG, queue, DenseTiles(CONFIG)).cycles


def test_one_grid_iteration_takes_650_cycles() -> None:
    """4 samples are 4 lanes: 10 steps x 64 positions, and 10 cycles to program the LUTs."""
    program = LutProgram(
        layer=0, w_bank=0, mode=LutMode.CONV, rows=64, groups=0, cols=16, taps=9, inputs=64, first_piece=0
    )
    total = cycles(program, Queue.FE) + cycles(conv_tile(), Queue.FE)
    assert total == 10 * 64 + 10


def test_the_dissertations_layer() -> None:
    """256 -> 256 channels at 56 x 56: 4 row blocks x 16 column blocks x 49 tiles x 650 = 2,038,400 cycles."""
    assert forward_conv_cycles(facts(), CONFIG, 10, 4) == 4 * 16 * 49 * 650 == 2_038_400


def test_larger_kernels_take_more_rows() -> None:
    """5 x 5 has 25 taps, so three PEs: ceil(64 * 3 / 64) = 3 row blocks."""
    layer = facts(c_in=64, c_out=16, kernel=(5, 5), out_h=8, out_w=8)
    assert forward_conv_cycles(layer, CONFIG, 10, 1) == 3 * 650


def test_dense_tile_of_the_backward_engine() -> None:
    """64 outputs over 4 PEs are 16 each, 9 taps, 4 cycles of pipeline: 148, for 10 steps of 4 samples."""
    assert cycles(conv_tile(), Queue.BE) == 40 * (16 * 9 + 4)


def test_linear_layer_of_the_forward_engine() -> None:
    """512 inputs are 3 groups of 192; 32 column blocks; 10 steps."""
    assert forward_linear_cycles(facts(kind="fc", c_in=512, c_out=512), CONFIG, 10, 4) == 32 * 3 * 10
    tile = FcTile(
        layer=0, src_bank=0, w_bank=0, dst_bank=0, accumulate=False, groups=3, inputs=512,
        rows=64, cols=16, nt=10, nn=4, hold=False,
    )  # fmt: skip
    assert cycles(tile, Queue.FE) == 30


def network(*, channels: int, outs: int, kernel: int, stride: int, size: int, timesteps: int, encoded: bool) -> Graph:
    import numpy as np

    loc = Loc("net.py")
    if encoded:
        first = Node("x", Input(shape=("N", channels, size, size), dtype=DType.F32, axes="NCHW"), (), loc)
        start = (first, Node("e", Encode(kind=Encoding.DIRECT, timesteps=timesteps), ("x",), loc))
    else:
        shape = (timesteps, "N", channels, size, size)
        start = (Node("e", Input(shape=shape, dtype=DType.SPIKE, axes="TNCHW"), (), loc),)
    pad = kernel // 2
    nodes = (
        *start,
        Node("c", Conv2d(weight=Param("w"), stride=(stride, stride), padding=(pad, pad)), ("e",), loc),
        Node("s", Lif(decay=0.5, threshold=1.0), ("c",), loc),
        Node("f", Flatten(), ("s",), loc),
        Node("fc", Linear(weight=Param("v")), ("f",), loc),
        Node("s2", Lif(decay=0.5, threshold=1.0), ("fc",), loc),
    )
    out = (size + 2 * pad - kernel) // stride + 1
    arrays = {"w": np.ones((outs, channels, kernel, kernel)), "v": np.ones((12, outs * out * out))}
    return Graph("net", nodes, "s2", arrays)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    channels=st.integers(1, 70),
    outs=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 5]),
    size=st.integers(5, 20),
    timesteps=st.integers(1, 10),
    batch=st.integers(1, 4),
)
def test_forward_instructions_sum_to_the_closed_forms(
    channels: int, outs: int, kernel: int, size: int, timesteps: int, batch: int
) -> None:
    graph = network(
        channels=channels, outs=outs, kernel=kernel, stride=1, size=size, timesteps=timesteps, encoded=False
    )
    program = compile_inference(graph, CONFIG, batch=batch).program
    conv, linear = program_timing(program).layers
    assert conv.compute_cycles == forward_conv_cycles(program.layers[0], CONFIG, timesteps, batch)
    assert linear.compute_cycles == forward_linear_cycles(program.layers[1], CONFIG, timesteps, batch)
    for row in (conv, linear):
        assert row.latency_cycles == max(row.compute_cycles, -(-row.memory_bytes // 160))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    channels=st.integers(1, 4),
    outs=st.integers(1, 70),
    size=st.integers(3, 20),
    timesteps=st.integers(1, 10),
    batch=st.integers(1, 4),
)
def test_encoding_instructions_sum_to_the_closed_form(
    channels: int, outs: int, size: int, timesteps: int, batch: int
) -> None:
    """3 x 3, stride 1: a tile with its halo fits a PE's buffer, so no tile is cut."""
    graph = network(channels=channels, outs=outs, kernel=3, stride=1, size=size, timesteps=timesteps, encoded=True)
    program = compile_inference(graph, CONFIG, batch=batch).program
    assert program.layers[0].engine is Queue.BE
    computed = program_timing(program).layers[0].compute_cycles
    assert computed == encoding_conv_cycles(program.layers[0], CONFIG, timesteps, batch, CONFIG.tile)


def test_bytes_of_a_small_layer() -> None:
    """Every load and store of one tile, counted by hand."""
    graph = network(channels=1, outs=2, kernel=3, stride=1, size=4, timesteps=2, encoded=False)
    program: Program = compile_inference(graph, CONFIG, batch=1).program
    own = [i for stream in program.streams.values() for i in stream if i.layer == 0]
    spikes_in = 2 * 4 * 4 * 1  # two steps of 4 x 4 bits; the halo is not in memory
    weights = 1 * 9 * 2 * 16
    neuron = 9 * 2 * 16
    spikes_out = 2 * 4 * 4 * 2
    assert memory_bytes(program, own) == -(-(spikes_in + weights + neuron + spikes_out) // 8)


def test_bytes_of_channels_that_two_row_blocks_share() -> None:
    """5 x 5 takes 3 PEs: 23 channels are 69 rows, so 64 and 5; channel 21 begins in the first and ends in the second.

    Each block loads exactly 25 taps of its 22 and 2 channels.
    """
    graph = network(channels=23, outs=2, kernel=5, stride=1, size=4, timesteps=2, encoded=False)
    program: Program = compile_inference(graph, CONFIG, batch=1).program
    own = [i for stream in program.streams.values() for i in stream if i.layer == 0]
    spikes_in = 2 * 4 * 4 * (22 + 2)
    weights = 25 * (22 + 2) * 2 * 16
    neuron = 9 * 2 * 16
    spikes_out = 2 * 4 * 4 * 2
    assert memory_bytes(program, own) == -(-(spikes_in + weights + neuron + spikes_out) // 8)
    blocks = [(i.rows, i.inputs, i.first_piece) for i in own if isinstance(i, LutProgram)]
    assert blocks == [(64, 22, 0), (5, 2, 1)]


def test_bytes_of_a_linear_layer() -> None:
    """2 x 4 x 4 inputs and 12 outputs: as many weights, not a multiple of what the PEs hold."""
    graph = network(channels=1, outs=2, kernel=3, stride=1, size=4, timesteps=2, encoded=False)
    program: Program = compile_inference(graph, CONFIG, batch=1).program
    own = [i for stream in program.streams.values() for i in stream if i.layer == 1]
    spikes_in, spikes_out = 2 * 32, 2 * 12
    weights, neuron = 32 * 12 * 16, 9 * 12 * 16
    assert memory_bytes(program, own) == -(-(spikes_in + weights + neuron + spikes_out) // 8)


def test_zero_batch_is_refused() -> None:
    graph = network(channels=1, outs=2, kernel=3, stride=1, size=4, timesteps=2, encoded=False)
    with pytest.raises(CompileError, match="batch is 0"):
        compile_inference(graph, CONFIG, batch=0)
