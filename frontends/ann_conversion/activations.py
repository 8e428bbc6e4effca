"""What a network with ReLU computes on samples: the activations that thresholds are balanced against."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compiler.evaluate import Execution, execute
from compiler.ir import CompileError, Graph, Loc
from compiler.ir.ops import Input, Lif
from frontends.ann_conversion.relu_import import ReluNetwork
from frontends.datasets import Samples

_BATCH = 64
_KEPT = 1 << 22  # activations of a population, for a percentile
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # far above f32 rounding, far below what a wrong reading of an operator gives

Activations = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Kept:
    """Positive activations of one population: the largest, and evenly spaced ones of all."""

    stride: int
    largest: float = 0.0
    parts: list[Activations] = field(default_factory=list)

    def add(self, values: Tensor) -> None:
        self.largest = max(self.largest, float(values.max()))
        part = values.flatten()[:: self.stride].numpy()
        self.parts.append(part[part > 0])

    def percentile(self, percentile: float) -> float:
        """0 where nothing was ever active."""
        if percentile == 100.0:
            return self.largest
        values = np.concatenate(self.parts)
        return float(np.percentile(values, percentile)) if values.size else 0.0


def balanced_levels(network: ReluNetwork, module: nn.Module, samples: Samples, percentile: float) -> dict[str, float]:
    """By population, the percentile of its positive activations over samples; 0 where it is never active.

    The maximum is exact; a lower percentile is that of at most 4 million evenly spaced activations. On the way the
    graph's scores are compared with the module's own.

    Raises: CompileError if they differ by more than rounding, or are not finite.
    """
    graph, reference = network.graph, copy.deepcopy(module).eval()
    kept = {name: _Kept(stride=_stride(graph, name, len(samples))) for name in network.caps}
    for x in batches(samples):
        values = relu_values(network, x)
        scores = network.tail(values[graph.output][0])
        _check_same(scores, _called(reference, x, graph), graph)
        for name, levels in kept.items():
            levels.add(values[name])
    return {name: levels.percentile(percentile) for name, levels in kept.items()}


def relu_values(network: ReluNetwork, x: Tensor) -> dict[str, Tensor]:
    """The values of a graph whose populations are ReLUs. Shapes: x (N, ...) -> (1, N, ...)."""
    graph = network.graph
    run = Execution(graph, traced=network.caps.keys())
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if isinstance(node.op, Input):
                values[node.name] = x.unsqueeze(0)
                continue
            values[node.name] = execute(node.op, [values[name] for name in node.inputs], node, run)
            if isinstance(node.op, Lif):
                # after one step from 0 without a leak, the potential is what the ReLU gets
                values[node.name] = run.membranes[node.name].clamp(0.0, network.caps[node.name])
    return values


def batches(samples: Samples) -> Iterator[Tensor]:
    """The samples in parts. Shapes: (N, ...)."""
    for first in range(0, len(samples), _BATCH):
        yield torch.from_numpy(samples.x[first : first + _BATCH])


def _stride(graph: Graph, name: str, samples: int) -> int:
    values = samples * int(np.prod([int(size) for size in graph.types[name].shape if not isinstance(size, str)]))
    return -(-values // _KEPT)


def _called(module: nn.Module, x: Tensor, graph: Graph) -> object:
    try:
        with torch.no_grad():
            return module(x)
    except Exception as fault:  # the user's forward runs here and may raise anything
        reason = f"{type(fault).__name__}: {str(fault).strip().split(chr(10))[0]}"
        hint = "its forward must take any number of samples"
        raise CompileError(f"the network fails for {len(x)} samples: {reason}", Loc(graph.name), hint=hint) from fault


def _check_same(ours: Tensor, theirs: object, graph: Graph) -> None:
    loc = Loc(graph.name)
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
        raise CompileError("the network gives another shape for another number of samples", loc)
    if not bool(torch.isfinite(theirs).all()):
        raise CompileError("the network's scores are not finite", loc, hint="look at its weights and at the samples")
    difference = float((ours - theirs).abs().max())
    if difference > _RELATIVE * float(theirs.abs().max()) + _ABSOLUTE:
        raise CompileError(
            f"the network gives other scores than what was traced of it, by up to {difference:.3g}",
            loc,
            hint="its forward must do the same for every input",
        )
