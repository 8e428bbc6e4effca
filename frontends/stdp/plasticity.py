"""Pair-based spike timing-dependent plasticity, summed over all pairs of a batch of presentations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStdp:
    """Every pair of an input spike at t' and a neuron's spike at t counts, weighted by the time between them.

    w[j, i] += rate * ((1 - w[j, i]) * P[j, i] - depression * w[j, i] * D[j, i]), kept in [0, 1]

    P[j, i] = sum over pairs with t' <= t of exp(-(t - t') / tau_plus)
    D[j, i] = sum over pairs with t' > t of exp(-(t' - t) / tau_minus)

    An input spike acts on the membrane potential in its own step, so t' = t counts as before. All pairs of a batch
    meet the weights that they began with.

    Shapes: pre (T, N, I) and post (T, N, J) in {0, 1}; weights (J, I).
    Units: tau_plus and tau_minus in steps.
    Source: additive pairs with soft bounds, as in Morrison, Diesmann and Gerstner, Biological Cybernetics 98 (2008).
    """

    tau_plus: float
    tau_minus: float
    depression: float

    def updated(self, weight: Tensor, pre: Tensor, post: Tensor, rate: float) -> Tensor:
        """The weights after a batch of presentations."""
        before, after = self.pairs(pre, post)
        change = (1 - weight) * before - self.depression * weight * after
        return (weight + rate * change).clamp_(0.0, 1.0)

    def pairs(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
        """P and D. Shapes: each (J, I)."""
        step, sample, neuron = post.nonzero(as_tuple=True)

        def summed(traces: Tensor) -> Tensor:
            total = traces.new_zeros(post.shape[2], pre.shape[2])
            return total.index_add_(0, neuron, traces[step, sample])

        return summed(traces_before(pre, self.tau_plus)), summed(traces_after(pre, self.tau_minus))


def traces_before(spikes: Tensor, tau: float) -> Tensor:
    """At each step, what the spikes up to it still count. Shapes: (T, ...) -> the same."""
    factor = math.exp(-1 / tau)
    traces = spikes.clone()
    for t in range(1, len(spikes)):
        traces[t].add_(traces[t - 1], alpha=factor)
    return traces


def traces_after(spikes: Tensor, tau: float) -> Tensor:
    """At each step, what the spikes after it will count. Shapes: (T, ...) -> the same."""
    factor = math.exp(-1 / tau)
    traces = torch.zeros_like(spikes)
    for t in reversed(range(len(spikes) - 1)):
        traces[t] = factor * (traces[t + 1] + spikes[t + 1])
    return traces
