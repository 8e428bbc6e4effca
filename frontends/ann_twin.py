"""Trains the ANN of a spiking network's structure: what spiking networks are compared with (section 5.4.7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from compiler.attack.ann import Activation, activated, last_neurons, one_step
from compiler.ir import Graph, Param
from compiler.ir.ops import BatchNorm, Conv2d, Lif, Linear
from compiler.losses import RATE_SCALE, Loss
from frontends.datasets import Samples
from frontends.recipe import ProgressCallback, TrainingResult, train
from frontends.to_torch import GraphModule, graph_with

Arrays = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTwin:
    """A network whose parameters are an ANN's: `AnnTwin(graph, activation)` is that ANN.

    The graph has the spiking network's nodes, so that it is saved as one; what it does as a spiking network nobody
    has trained.
    """

    graph: Graph
    activation: Activation
    training: TrainingResult


def train_ann_twin(
    graph: Graph,
    data: Samples,
    held_out: Samples,
    *,
    epochs: int = 5,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    shift: int = 0,
    activation: Activation = Activation.RELU,
    loss: Loss = Loss.CROSS_ENTROPY,
    threads: int | None = 1,
    progress: ProgressCallback | None = None,
) -> TrainedTwin:
    """Train an ANN of the network's structure on images, from weights of its own.

    Adam, its rate on a cosine from `lr` to zero; cross entropy unless another loss is given, as section 5.4.7 has it.
    Weights begin as normal numbers for activations of equal size in each layer (He et al., 2015), biases at zero,
    batch norms as identities; thresholds and input scales stay as they are. The same seed gives the same bits on the
    same number of threads.

    Shapes: images as the network takes them.
    Raises: CompileError for a network that takes spikes or a sequence, for samples that cannot be trained on, where
    loss or weights stop being finite.
    """
    still = one_step(graph)
    module = GraphModule(still.with_nodes(still.nodes, parameters={**still.parameters, **_fresh(still, seed)}))
    _activate(module, still, last_neurons(graph), activation)
    training = train(
        module,
        data,
        held_out,
        epochs=epochs,
        batch=batch,
        lr=lr,
        seed=seed,
        shift=shift,
        loss=loss,
        threads=threads,
        progress=progress,
    )
    trained = graph_with(module, still).parameters
    made = graph.with_nodes(graph.nodes, parameters={**graph.parameters, **trained})
    return TrainedTwin(graph=made, activation=activation, training=training)


class _Activation(nn.Module):
    """(input_scale * x + leak_bias) / threshold, then the activation if there is one."""

    def __init__(self, op: Lif, module: GraphModule, activation: Activation | None) -> None:
        super().__init__()
        self._numbers = (op.input_scale, op.leak_bias, op.threshold)
        self._array, self._activation = module.array, activation

    def forward(self, x: Tensor) -> Tensor:
        scale, bias, threshold = (
            self._array(number).reshape(-1, *(1,) * (x.ndim - 3)) if isinstance(number, Param) else number
            for number in self._numbers
        )
        z: Tensor = (scale * x + bias) / threshold
        return z if self._activation is None else activated(z, self._activation)


def _activate(module: GraphModule, graph: Graph, last: frozenset[str], activation: Activation) -> None:
    """Put activations in the neurons' places."""
    names = {child: name for name, child in module.neurons.named_children()}
    for node in graph.nodes:
        if isinstance(node.op, Lif):
            own = _Activation(node.op, module, None if node.name in last else activation)
            module.neurons.add_module(names[module.neuron(node.name)], own)


def _fresh(graph: Graph, seed: int) -> Arrays:
    """Weights, biases and batch norms before training."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    sizes: dict[str, float] = {}  # of each node's values, roughly
    final = [node.name for node in graph.nodes if isinstance(node.op, Conv2d | Linear)][-1:]
    for node in graph.nodes:
        size = max((sizes[name] for name in node.inputs), default=1.0)
        match node.op:
            case Conv2d() | Linear() as op:
                shape = graph.parameters[op.weight.name].shape
                # the last layer begins small, so that no score is sure
                deviation = (2 / np.prod(shape[1:])) ** 0.5 / size / (RATE_SCALE if node.name in final else 1.0)
                arrays[op.weight.name] = (deviation * rng.standard_normal(shape)).astype(np.float32)
                if op.bias is not None:
                    arrays[op.bias.name] = np.zeros_like(graph.parameters[op.bias.name])
                size = 1.0
            case BatchNorm() as op:
                for param, value in ((op.mean, 0.0), (op.var, 1.0), (op.weight, 1.0), (op.bias, 0.0)):
                    arrays[param.name] = np.full_like(graph.parameters[param.name], value)
                size = 1.0
            case Lif() as op:
                scale, threshold = (_mean(graph, number) for number in (op.input_scale, op.threshold))
                size *= abs(scale / threshold) if threshold and scale else 1.0
        sizes[node.name] = size
    return arrays


def _mean(graph: Graph, number: float | Param) -> float:
    return float(graph.parameters[number.name].mean()) if isinstance(number, Param) else number
