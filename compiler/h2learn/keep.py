"""What a layer's forward pass keeps for its backward pass: table 3.3, neuron by neuron."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.h2learn.layers import NetworkLayer
from compiler.ir import Node, Reset
from compiler.ir.ops import Lif, MaxPool2d


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNeuron:
    """One neuron stage: the gradient mask always, spikes for a hard reset, membranes for one that is not detached."""

    stage: int  # 0 or 1, as the Soma counts
    spikes: bool
    membrane: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One layer."""

    neurons: tuple[KeptNeuron, ...]  # those that fire
    first_spikes: bool  # spikes of the first neuron, where they are not the layer's output
    winners: bool  # one bit per convolution result: it won its max pooling

    def neuron(self, stage: int) -> KeptNeuron | None:
        """What is kept of a stage."""
        return next((neuron for neuron in self.neurons if neuron.stage == stage), None)


NOTHING = Kept(neurons=(), first_spikes=False, winners=False)


def kept_of(layer: NetworkLayer) -> Kept:
    """What equations 2.4 and 2.5 read of the forward pass, for this layer's neurons and pools.

    The spike gradient of a neuron outside the surrogate's window is multiplied by 0, so its membrane potential is
    of no use there (`KeepCompressed`).
    """
    stages = [(0, layer.neuron1), (1, layer.neuron2)]
    neurons = tuple(_neuron(stage, node) for stage, node in stages if node is not None and isinstance(node.op, Lif))
    hard_first = any(neuron.stage == 0 and neuron.spikes for neuron in neurons)
    is_last = layer.pool2 is None and layer.neuron2 is None
    max_over_spikes = layer.pool2 is not None and isinstance(layer.pool2.op, MaxPool2d)
    return Kept(
        neurons=neurons,
        first_spikes=not is_last and (hard_first or max_over_spikes),
        winners=layer.pool1 is not None and isinstance(layer.pool1.op, MaxPool2d),
    )


def _neuron(stage: int, node: Node) -> KeptNeuron:
    op = node.op
    assert isinstance(op, Lif)
    hard = op.reset is Reset.HARD
    return KeptNeuron(stage=stage, spikes=hard, membrane=hard and not op.detach_reset)
