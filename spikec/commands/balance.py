"""Channels in the order that the Backward Engine likes, learnt from the masks of a run on the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from compiler.h2learn.order_channels import ChannelDensity, OrderChannels, balanced_orders
from compiler.ir import Graph
from frontends.datasets import Split
from hwmodel.errors import CompileError, Loc
from hwmodel.program import Program
from runtime.training_session import TrainingSession
from spikec.commands.samples import HeldOut, samples_of

Floats = npt.NDArray[np.floating]


def balanced_graph(
    graph: Graph, program: Program, data: str, samples: int, progress: Callable[[int, int], None]
) -> Graph:
    """The network with its channels permuted; `program` is its training program, run on so many training samples.

    Ensures: the same function up to the order of sums.
    Raises: CompileError for samples without labels, and where no convolution has masks to learn from.
    """
    inputs = samples_of(data, samples, Split.TRAIN)
    if inputs.labels is None:
        raise CompileError("has no labels, the backward pass begins at a loss", Loc(data))
    densities = _densities(program, inputs, progress)
    orders = balanced_orders(graph, densities, program.config)
    if not orders:
        raise CompileError("no convolution to order: none has the gradient of another behind it", Loc(graph.name))
    return OrderChannels(orders)(graph)


def _densities(program: Program, inputs: HeldOut, progress: Callable[[int, int], None]) -> Mapping[str, ChannelDensity]:
    """Ones by channel over elements, summed over whole sub-batches."""
    assert inputs.labels is not None
    session = TrainingSession(program)
    has_time = program.host.input_has_time
    total = len(inputs.labels)
    sums: dict[str, list[Floats]] = {}
    inputs_of = {layer.name: layer.c_in for layer in program.layers}
    used = 0
    for first in range(0, total, program.batch):
        part = slice(first, min(first + program.batch, total))
        x = inputs.x[:, part] if has_time else inputs.x[part]
        session.gradients(np.ascontiguousarray(x), inputs.labels[part])
        size = part.stop - part.start
        used += size
        for name, (arrived, wanted) in session.last_masks().items():
            all_wanted = np.full(inputs_of[name], float(size))
            found = [_ones(arrived[:, :size]), all_wanted if wanted is None else _ones(wanted[:, :size])]
            known = sums.get(name, [np.zeros_like(one) for one in found])
            sums[name] = [before + more for before, more in zip(known, found, strict=True)]
        progress(part.stop, total)
    channels = {name: (rows / used, columns / used) for name, (rows, columns) in sums.items()}
    return {name: ChannelDensity(inputs=rows, outputs=columns) for name, (rows, columns) in channels.items()}


def _ones(mask: npt.NDArray[np.generic]) -> Floats:
    """Ones of each channel over elements, times samples, so that they add up. Shapes: (T, N, H, W, C) -> (C,)."""
    found: Floats = (mask != 0).mean(axis=(0, 1, 2, 3)) * mask.shape[1]
    return found
