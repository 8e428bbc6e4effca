"""Each pass of a layer as a step runs it, the way chosen by measured costs, against the dense way alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from compiler.fused.spikes.costs import Pass, SpikeKernels, Way
from runtime.fused.layers import layer_forward, layer_grad_input, layer_grad_parameters
from runtime.fused.spikes.choices import choose, share_of_values
from runtime.fused.spikes.layer import SpikeLayer
from runtime.fused.spikes.words import count
from tests.bench.spike_kernels.clocks import Call, Clock, in_turn, median_interval
from tests.bench.spike_kernels.trial import Trial

CHOSEN, DENSE = "chosen", "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One pass of one layer.

    density: of spikes; of an input gradient, of open neurons. gradients: share of them that are not zero.
    ratio: time of the chosen way over the dense one's, median of the rounds' own; low and high bound it at 95 %.
    """

    layer: str
    layers: int  # of these sizes
    of: str
    density: float
    gradients: float
    way: str
    threads: int
    ms_chosen: float
    ms_dense: float
    ratio: float
    ratio_low: float
    ratio_high: float

    def record(self) -> dict[str, object]:
        """As JSON has it."""
        values = asdict(self)
        return {"pass" if name == "of" else name: value for name, value in values.items()}


def rows(
    layer: SpikeLayer, places: Sequence[str], densities: Sequence[float], rounds: int, clock: Clock
) -> Iterator[Row]:
    """Of all passes at all densities."""
    trial = Trial(layer)
    weight = trial.weight()
    for density in densities:
        spikes, mask = trial.spikes(density), trial.spikes(density)
        few = [1.0] if density == 1.0 else [1.0, density]
        for of in Pass:
            for share in few if of is Pass.INPUT_GRADIENT else [1.0]:
                case = _Case(trial, of, weight, spikes, mask, trial.gradient(share))
                seconds = in_turn({CHOSEN: case.chosen(), DENSE: case.dense()}, rounds, clock)
                ratios = [ours / theirs for ours, theirs in zip(seconds[CHOSEN], seconds[DENSE], strict=True)]
                low, high = median_interval(ratios)
                yield Row(
                    layer=places[0], layers=len(places), of=str(of), density=density, gradients=share,
                    way=str(case.way()), threads=torch.get_num_threads(),
                    ms_chosen=statistics.median(seconds[CHOSEN]) * 1e3,
                    ms_dense=statistics.median(seconds[DENSE]) * 1e3,
                    ratio=statistics.median(ratios), ratio_low=low, ratio_high=high,
                )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Case:
    """Of one pass. The dense way is given numbers and the others words: what makes either is in no time."""

    trial: Trial
    of: Pass
    weight: Tensor
    spikes: Tensor
    mask: Tensor
    grad: Tensor

    def way(self, words: Tensor | None = None) -> Way:
        """The choice, as a step makes it: it counts the bits of what it is given."""
        geometry, arena = self.trial.layer.geometry, self.trial.arena
        if words is None:
            words = self._words()
        share = count(words, self.trial.take("count")) / geometry.neurons
        shares: Mapping[Way, float] = {Way.EVENTS: share}
        if self.of is Pass.INPUT_GRADIENT:
            shares = {Way.EVENTS: share_of_values(self.grad), Way.MASKED: share}
        return choose(self.trial.layer, self.of, shares, SpikeKernels.MEASURED, ("bench", 0), arena)

    def dense(self) -> Call:
        """The dense way without a choice."""
        layer, x, grad, weight = self.trial.layer.layer, self.spikes, self.grad, self.weight
        match self.of:
            case Pass.FORWARD:
                return lambda: layer_forward(layer, x, weight, None)
            case Pass.WEIGHT_GRADIENT:
                return lambda: layer_grad_parameters(layer, grad, x, weight, need_weight=True, need_bias=False)
            case Pass.INPUT_GRADIENT:
                return lambda: layer_grad_input(layer, grad, x, weight)

    def chosen(self) -> Call:
        """A choice, then its way."""
        words, dense = self._words(), self.dense()

        def run() -> object:
            way = self.way(words)
            return dense() if way is Way.DENSE else self._by(way, words)

        return run

    def _by(self, way: Way, words: Tensor) -> Tensor:
        layer, take = self.trial.layer, self.trial.take(str(self.of))
        match self.of:
            case Pass.FORWARD:
                return layer.forward(way, words, self.weight, None, take)
            case Pass.WEIGHT_GRADIENT:
                return layer.grad_weight(way, words, self.grad, self.weight, take)
            case Pass.INPUT_GRADIENT:
                return layer.grad_input(way, self.grad, words, self.weight, take)

    def _words(self) -> Tensor:
        return self.trial.words(self.mask if self.of is Pass.INPUT_GRADIENT else self.spikes)
