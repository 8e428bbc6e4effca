"""Geometries at the edge: halo alone, pooling larger than a tile or a buffer, flattened neurons, late batch norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.evaluate import evaluate
from compiler.h2learn.compile import compile_inference
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Surrogate
from compiler.ir.ops import (
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
    Scale,
)
from hwmodel.config import config_from_mapping, load_config
from runtime.engines import fast, golden
from runtime.host import F32
from runtime.session import run_program

CONFIG = load_config("h2learn")
RNG_SEED = 11


def grid(*shape: int) -> F32:
    """Weights that FP16 and f32 sum exactly."""
    return (np.random.default_rng(RNG_SEED).integers(-4, 9, shape) / 16).astype(np.float32)


def spikes(*shape: int) -> F32:
    return (np.random.default_rng(RNG_SEED).random(shape) < 0.4).astype(np.float32)


def chain(x: F32, ops: list[Op], parameters: dict[str, F32], *, is_sequence: bool = True) -> Graph:
    """A chain on inputs like x: (T, N, C, H, W), or images (N, C, H, W)."""
    shape: tuple[int | str, ...] = (x.shape[0], "N", *x.shape[2:]) if is_sequence else ("N", *x.shape[1:])
    kind = DType.SPIKE if is_sequence else DType.F32
    loc = Loc("net.py", 1)
    nodes = [Node("x", Input(shape=shape, dtype=kind, axes="TNCHW" if is_sequence else "NCHW"), (), loc)]
    for number, op in enumerate(ops):
        nodes.append(Node(f"n{number}", op, (nodes[-1].name,), loc))
    return Graph("net", tuple(nodes), nodes[-1].name, parameters)


def assert_runs(graph: Graph, x: F32) -> None:
    """Golden equals fast, and both equal f32: weights on a grid and decays of 0 keep FP16 exact."""
    program = compile_inference(graph, CONFIG, batch=2).program
    got = run_program(program, x)
    assert np.array_equal(got.outputs, run_program(program, x, golden()).outputs)
    want = evaluate(graph, torch.from_numpy(x)).output.numpy()
    assert np.array_equal(got.outputs.reshape(want.shape), want)


LIF = Lif(decay=0.0, threshold=0.25)


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "height"), [(1, 2, 1, 5), (1, 3, 1, 4), (2, 3, 1, 4), (1, 2, 2, 13)]
)
def test_tiles_of_nothing_but_padding(kernel: int, padding: int, stride: int, height: int) -> None:
    x = spikes(3, 3, 2, height, 5)
    conv = Conv2d(weight=Param("w"), padding=(padding, padding), stride=(stride, stride))
    assert_runs(chain(x, [conv, LIF], {"w": grid(4, 2, kernel, kernel)}), x)


@pytest.mark.parametrize(
    ("kernel", "channels"), [(5, 21), (5, 22), (5, 43), (5, 64), (7, 11), (7, 32), (9, 20), (11, 23)]
)
def test_channels_that_two_row_blocks_share(kernel: int, channels: int) -> None:
    """A channel has 3, 6, 9 or 14 pieces of nine taps, so blocks of 64 rows end inside a channel."""
    x = spikes(2, 3, channels, 5, 6)
    conv = Conv2d(weight=Param("w"), padding=(kernel // 2, kernel // 2))
    weights = np.random.default_rng(RNG_SEED).integers(-4, 5, (18, channels, kernel, kernel)) / 16  # sums near 0
    assert_runs(chain(x, [conv, LIF], {"w": weights.astype(np.float32)}), x)


@pytest.mark.parametrize("size", [16, 18, 28, 60])
def test_average_over_a_whole_map(size: int) -> None:
    x = spikes(1, 2, 2, size, size)
    ops = [Conv2d(weight=Param("w"), padding=(1, 1)), AvgPool2d(kernel=(size, size), stride=(size, size)), LIF]
    assert_runs(chain(x, ops, {"w": grid(16, 2, 3, 3)}), x)


@pytest.mark.parametrize(
    ("kernel", "stride", "pools"), [(2, 3, [2, 2]), (3, 2, [8]), (7, 4, [4]), (7, 3, [2, 3]), (11, 4, [2, 2])]
)
def test_encoding_with_stride_and_pools(kernel: int, stride: int, pools: list[int]) -> None:
    """A pooling window of such a layer needs more input than a PE's tile holds."""
    x = (np.random.default_rng(1).integers(0, 3, (2, 3, 70, 70)) / 2).astype(np.float32)
    ops: list[Op] = [Encode(kind=Encoding.DIRECT, timesteps=2)]
    ops += [Conv2d(weight=Param("w"), stride=(stride, stride)), Lif(decay=0.0, threshold=1.0)]
    for pool in pools:
        ops += [AvgPool2d(kernel=(pool, pool), stride=(pool, pool)), Lif(decay=0.0, threshold=0.5)]
    assert_runs(chain(x, ops, {"w": grid(8, 3, kernel, kernel)}, is_sequence=False), x)


@pytest.mark.parametrize("pooled", [False, True])
def test_neurons_behind_a_flatten(pooled: bool) -> None:
    x = spikes(3, 3, 2, 6, 6)
    pooling: list[Op] = [LIF, AvgPool2d(kernel=(2, 2), stride=(2, 2))] if pooled else []
    assert_runs(chain(x, [Conv2d(weight=Param("w")), *pooling, Flatten(), LIF], {"w": grid(4, 2, 3, 3)}), x)


def test_neurons_behind_a_flatten_with_a_number_for_each_feature() -> None:
    x = spikes(3, 3, 2, 6, 6)
    ops: list[Op] = [Conv2d(weight=Param("w")), Flatten(), Lif(decay=0.0, threshold=Param("t"))]
    graph = chain(x, ops, {"w": grid(4, 2, 3, 3), "t": np.full(64, 0.25, np.float32)})
    with pytest.raises(CompileError, match=r"n2: stands behind a flatten of .* and has a number for each feature"):
        compile_inference(graph, CONFIG)


def test_scale_behind_the_last_linear_layer_on_mean_spikes() -> None:
    x = spikes(4, 3, 2, 4, 4)
    ops: list[Op] = [Conv2d(weight=Param("w")), LIF, Flatten(), Readout(kind=Reading.RATE)]
    ops += [Linear(weight=Param("v")), Scale(factor=2.0)]
    assert_runs(chain(x, ops, {"w": grid(4, 2, 3, 3), "v": grid(5, 16)}), x)


def test_surrogate_window_wider_than_fp16() -> None:
    x = spikes(3, 2, 2, 6, 6)
    neuron = Lif(decay=0.0, threshold=1.0, surrogate=Surrogate(width=1e6))
    assert_runs(chain(x, [Conv2d(weight=Param("w")), neuron], {"w": grid(4, 2, 3, 3)}), x)


def test_overflow_that_a_maximum_drops_is_found() -> None:
    """Channel 19 sums to -60000 where a spike arrives, at step 2; its bias takes it below -65504."""
    weights = np.zeros((20, 1, 1, 1), np.float32)
    weights[19] = -60000
    x = np.zeros((3, 2, 1, 4, 4), np.float32)
    x[2, 1, 0, 1, 1] = 1
    ops: list[Op] = [Conv2d(weight=Param("w"), bias=Param("b")), MaxPool2d(kernel=(2, 2), stride=(2, 2)), LIF]
    graph = chain(x, ops, {"w": weights, "b": weights[:, 0, 0, 0]})
    with pytest.raises(CompileError, match="n0: a partial sum overflows FP16 at step 2, channel 19, sample 1 of"):
        run_program(compile_inference(graph, CONFIG, batch=2).program, x)


def test_engines_of_other_sizes_are_refused() -> None:
    table = CONFIG.as_mapping()
    forward = table["forward"]
    assert isinstance(forward, dict)
    forward["rows"] = 32
    x = spikes(2, 2, 2, 6, 6)
    graph = chain(x, [Conv2d(weight=Param("w")), LIF], {"w": grid(4, 2, 3, 3)})
    program = compile_inference(graph, config_from_mapping(table, Loc("small"))).program
    with pytest.raises(CompileError, match="the engines have 64 and 16 rows, the program was compiled for 32 and 16"):
        run_program(program, x, fast())
    assert run_program(program, x).outputs.shape == (2, 2, 4, 4, 4)


@pytest.mark.parametrize("inputs", [1, 60, 200])
def test_linear_layer_whose_inputs_exceed_the_spike_buffer(inputs: int) -> None:
    """A bank of 5 bytes holds 40 spikes: fewer inputs at a time, the PE rows beyond them silent."""
    table = CONFIG.as_mapping()
    forward = table["forward"]
    assert isinstance(forward, dict)
    forward |= {"rows": 16, "cols": 4}
    forward["buffers_kb"] |= {"s_in": 0.036}
    config = config_from_mapping(table, Loc("small"))
    x = spikes(1, 1, inputs, 1, 1)
    graph = chain(x, [Flatten(), Linear(weight=Param("w")), LIF], {"w": grid(6, inputs)})
    program = compile_inference(graph, config, batch=1).program
    got = run_program(program, x)
    assert np.array_equal(got.outputs, run_program(program, x, golden(16, 16)).outputs)
    assert np.array_equal(got.outputs.reshape(1, 1, 6), evaluate(graph, torch.from_numpy(x)).output.numpy())
