"""Runs the passes of a training step on one machine, and keeps what every sub-batch leaves in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwmodel.isa import (
    GradConvTile,
    GradFcTile,
    Instruction,
    OuterTile,
    Queue,
    UpdateFcTile,
    UpdateTile,
)
from hwmodel.program import Phase, Program, Trained
from runtime.engines import Engines
from runtime.host import F32, encode_inputs
from runtime.host_loss import Labels, LossHost
from runtime.machine import Machine
from runtime.memory import Values

FAR = 1  # the memory of the sub-batch that went backward
WINDOWS = 8  # neighbouring windows that one look-up of the Weight Update Engine adds


@dataclass(frozen=True, slots=True, kw_only=True)
class SubBatch:
    """All maps of one sub-batch as its backward pass left them, by tensor name."""

    maps: Mapping[str, Values]  # (t, n, y, x, c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One machine's forward and backward passes, without the update."""

    sub_batches: tuple[SubBatch, ...]
    gradients: Mapping[str, Tensor]  # sums of the machine in f64, as it scales them, in the graph's order, by parameter
    loss: float  # mean


def run_step(program: Program, engines: Engines, x: F32, labels: Labels) -> Step:
    """The phases of figure 3.9 on one machine, sub-batch after sub-batch."""
    assert program.training is not None
    machine, groups = Machine(program, engines), -(-len(labels) // program.batch)
    parts = [labels[i * program.batch : (i + 1) * program.batch] for i in range(groups)]
    host = LossHost(program=program, factor=groups * program.batch / len(labels), labels=list(parts))
    seen = []
    for turn in range(groups + 1):
        swapped = turn % 2 == 1
        if turn < groups:
            part = slice(turn * program.batch, (turn + 1) * program.batch)
            given = x[:, part] if program.host.input_has_time else x[part]
            machine.memory.swapped = swapped
            machine.memory.array(program.input_index)[...] = encode_inputs(program, given, turn * program.batch)
            machine.memory.changed(program.input_index)
        phase = Phase.FORWARD if turn == 0 else Phase.BACKWARD if turn == groups else Phase.OVERLAP
        machine.launch(phase, swapped=swapped, host=host)
        if turn:
            seen.append(_snapshot(program, machine))
    gradients = {
        trained.parameter: graph_order(program, trained, machine.memory.array(program.index_of(trained.gradient))[0, 0])
        for trained in program.training.parameters
    }
    return Step(sub_batches=tuple(seen), gradients=gradients, loss=host.tally.loss / host.tally.samples)


def _snapshot(program: Program, machine: Machine) -> SubBatch:
    return SubBatch(
        maps={
            tensor.name: machine.memory.array(index, FAR).copy()
            for index, tensor in enumerate(program.tensors)
            if not tensor.view_of and not tensor.mirrored and tensor.memory <= FAR
        }
    )


def graph_order(program: Program, trained: Trained, values: Values) -> Tensor:
    """A parameter's values from memory's order to that of the graph, in f64.

    Shapes: a convolution's (kernel position, input, output), a linear layer's (1, position x channel, output), a
    bias's (1, 1, output).
    """
    array = torch.from_numpy(values.astype(np.float64))
    if trained.is_bias:
        return array.reshape(trained.shape)
    outputs = array.shape[2]
    if len(trained.shape) == 4:
        return array.permute(2, 1, 0).reshape(trained.shape)
    return array.reshape(trained.positions, -1, outputs).permute(2, 1, 0).reshape(outputs, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Longest chains of additions of a layer, from the documented order and the layer's own grid iterations."""

    input_gradient: int  # of the layer's output: taps, rows of the tree, row groups
    weight_gradient: int
    bias_gradient: int


def order_of(program: Program, number: int) -> Order:
    """Counts a layer's additions.

    The input gradient adds the taps that may meet an output, a tree over the rows of channels, then row groups, the
    first of each to +0, which is exact. The weight gradients add 4 gradients in a sub-LUT, 2 sub-LUTs, a tree over
    time steps, then samples, rows and groups of 8 columns; of a linear layer sample pairs, the tree, and pairs in
    turn; on real inputs the positions of a tile, then steps and samples.
    """
    stream = program.phases[Phase.BACKWARD]
    tiles = [i for q in (Queue.BE, Queue.WUE) for i in stream.get(q, ()) if getattr(i, "layer", -1) == number]
    back = [tile for tile in tiles if isinstance(tile, GradConvTile | GradFcTile)]
    updates = [tile for tile in tiles if isinstance(tile, UpdateTile | UpdateFcTile | OuterTile)]
    blocks = max(1, sum(not tile.accumulate for tile in updates))
    update = 0
    if updates:
        update = max(_inside(tile) for tile in updates) + sum(_partial_sums(tile) for tile in updates) // blocks - 1
    return Order(input_gradient=_back_chain(back) if back else 0, weight_gradient=update, bias_gradient=update)


def _back_chain(tiles: list[GradConvTile | GradFcTile]) -> int:
    first, row_groups = tiles[0], len(tiles) // sum(not tile.accumulate for tile in tiles)
    taps = 1
    if isinstance(first, GradConvTile):
        taps = -(-first.kernel_h // first.stride_h) * -(-first.kernel_w // first.stride_w)
    return taps - 1 + _levels(max(tile.rows for tile in tiles)) + row_groups - 1


def _inside(tile: Instruction) -> int:
    """Additions of a chain before a partial sum takes its result."""
    match tile:
        case UpdateTile():
            return 3 + 1 + _levels(tile.nt)
        case UpdateFcTile():
            return 1 + _levels(tile.nt)
        case OuterTile():
            return tile.h * tile.w - 1
    raise AssertionError


def _partial_sums(tile: Instruction) -> int:
    match tile:
        case UpdateTile():
            return tile.nn * tile.h * -(-tile.w // WINDOWS)
        case UpdateFcTile():
            return -(-tile.nn // 2)
        case OuterTile():
            return tile.nt * tile.nn
    raise AssertionError


def _levels(leaves: int) -> int:
    return (leaves - 1).bit_length()
