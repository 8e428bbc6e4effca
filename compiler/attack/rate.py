"""The attack by firing rates: back-propagation through each neuron's rate instead of its potential."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compiler.attack import iterate
from compiler.attack.network import loss_gradient, output_with
from compiler.attack.settings import Case, Outcome, Settings
from compiler.attack.victim import Victim, penultimate, with_threshold
from compiler.evaluate import Execution, execute
from compiler.ir import Encoding, Graph, Node
from compiler.ir.ops import Lif

SUBTHRESHOLD_SLOPE = 0.2  # where a constant drive never fires a leaky neuron, a fluctuating one does
SATURATION = 2.0  # thresholds of mean drive at which a neuron is taken to fire at each step


def attack(victim: Victim, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """Algorithm 5 with rate gradients.

    Source: Bu et al., "Rate gradient approximation attack threats deep spiking neural networks", CVPR 2023, without
    its extension of time.
    Raises: CompileError for a case that does not fit the network.
    """
    return iterate.attack(RateVictim(victim), cases, settings)


def firing_rate(drive: Tensor, decay: Tensor) -> Tensor:
    """The rate that a neuron's slope is taken of: linear from 0 to the knee 1 - decay, from there to SATURATION.

    rate = 0.2 z for 0 <= z <= 1 - decay;   rate rises from there to 1 at z = 2;   0 below, 1 above

    z: mean over time of (input_scale * x + leak_bias) / threshold. From the knee on a constant drive fires the neuron.
    """
    knee = 1 - decay
    below = SUBTHRESHOLD_SLOPE * drive.clamp(min=0).minimum(knee)
    return below + _upper_slope(decay) * (drive - knee).clamp(min=0).minimum(SATURATION - knee)


def rate_slope(drive: Tensor, decay: Tensor) -> Tensor:
    """The derivative of `firing_rate` by the drive; at a corner the one of the left, and 0 at and below no drive.

    Source: Bu et al., CVPR 2023, with the numbers of its published code.
    """
    knee = 1 - decay
    below = SUBTHRESHOLD_SLOPE * ((drive > 0) & (drive <= knee))
    return below + _upper_slope(decay) * ((drive > knee) & (drive > 0) & (drive <= SATURATION))


def _upper_slope(decay: Tensor) -> Tensor:
    return (1 - SUBTHRESHOLD_SLOPE * (1 - decay)) / (SATURATION - (1 - decay))


@dataclass(frozen=True, eq=False)
class RateVictim:
    """A victim whose gradient goes through firing rates.

    Forward, the network spikes as it does, with the victim's threshold of the penultimate neurons. Backward, a
    neuron's rate depends on its mean drive alone, so that each of its T inputs has the gradient

    dL/dx[t] = input_scale / threshold * rate_slope(drive) * mean over s of dL/ds[s]

    Everything between neurons is differentiated as it is. The gradient by spikes is that of their rate, the same at
    each step. Resets, surrogates and starts play no part; neurons whose threshold is not positive pass nothing.
    """

    victim: Victim
    loud: Graph = field(init=False)  # what the gradient's forward pass runs

    def __post_init__(self) -> None:
        graph, threshold = self.victim.sequence, self.victim.threshold
        if threshold is not None:
            graph = with_threshold(graph, penultimate(graph).name, threshold)
        object.__setattr__(self, "loud", graph)

    @property
    def graph(self) -> Graph:
        """The network as it was given."""
        return self.victim.graph

    @property
    def encoding(self) -> Encoding | None:
        """As the victim's."""
        return self.victim.encoding

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.victim.classes

    @property
    def has_time(self) -> bool:
        """As the victim's."""
        return self.victim.has_time

    def scores(self, x: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """The victim's class scores."""
        return self.victim.scores(x, places)

    def gradient(self, x: Tensor, classes: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """The rate gradient of each sample's loss, over BLOCK.

        Shapes: x as the victim's sequence, classes (N,) -> as x.
        Raises: CompileError where it is not finite.
        """
        return loss_gradient(
            self.graph,
            lambda block: output_with(self.loud, block, self._fired),
            self.victim.loss,
            x,
            classes,
            places,
            int(self.has_time),
        )

    def _fired(self, op: Lif, x: Tensor, node: Node, run: Execution) -> Tensor:
        """Spikes, and behind them the slope of the rate, taken with the network's own threshold."""
        own = self.victim.sequence.node(node.name).op
        assert isinstance(own, Lif)
        numbers = (own.input_scale, own.leak_bias, own.threshold, own.decay)
        with torch.no_grad():
            spikes = execute(op, [x], node, run)
            scale, bias, threshold, decay = (run.number(number, x.ndim - 1) for number in numbers)
            drive = (scale * x.mean(0) + bias) / threshold
            slope = torch.where(threshold > 0, scale / threshold * rate_slope(drive, decay), 0.0)
        rate = slope * x.mean(0)
        return spikes + (rate - rate.detach())
