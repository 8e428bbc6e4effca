"""Rate coding as randomised smoothing: how far an image may move until its most probable class may change.

A Bernoulli code of T steps draws T independent bits a pixel, each 1 with the pixel's intensity. Let p(v) be the
probability that the code of image v is told as the label, by any rule at all: no weight of the network is looked at.

(1) p(v') >= p(v) - (1 - prod_i (1 - |v'_i - v_i|)^T).
    Proof: draw both codes by the same uniform numbers; they are the same with at least that product's probability.
(2) p(v')^(1/T) >= p(v)^(1/T) - |v' - v|_1, while the right side is at least 2^(-1/T), that is, while p stays above 1/2.
    Proof: let h_u(q) be the largest |dq/du| of one pixel's probability q at intensity u. By the Neyman-Pearson lemma
    it is attained by rules that look at whether the number B of the pixel's T spikes is below a count, and h_u is
    concave; so by Jensen's inequality over all other pixels' bits |dp/dv_i| <= h_(v_i)(p). For q = P[B <= c] the
    slope is T P[Binomial(T - 1, u) = c], at most T q^((T-1)/T) if q >= 1/2: with equality for c = 0; for c = T - 1 it
    is T (1 - q)^((T-1)/T); for other c that probability is at most 1/2, since at the u that favours c most each
    neighbour's is at least half of it. Between counts the slope is linear in q and the limit concave; of the one
    piece that reaches below q = 1/2, the same three cases bound its value at 1/2. Increasing rules follow by swapping
    0 and 1. Along the segment from v to v' then |d p^(1/T)| <= |dv|_1.
    It is tight: of the rule "the T bits of one pixel are 0" equality holds.

With p >= p_low > 1/2 the class stays the most probable one within the l1 radius p_low^(1/T) - 2^(-1/T).
Draws are multiples of 2^-24, so a bit's probability is the intensity rounded up to one: radii are less by that for
each pixel.

Source: after Mukhoty et al., Certified adversarial robustness for rate encoded spiking neural networks, ICLR 2024, who
certify rate coding in l1 this way; the bounds here are derived anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from compiler.attack.goal import wins
from compiler.attack.victim import BLOCK, Victim
from compiler.certify.input_checks import Floats
from compiler.certify.statistics import check_coded, least_share, masks_of
from compiler.ir import CompileError, Graph, Loc

_LOC = Loc("smoothing")
_GRAIN = 2.0**-24  # of a draw
_ROUNDING = 1e-12  # of the radii's own arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedTrial:
    """What is counted: with the network and the image all that a count follows from.

    seed: of the draws, chosen when the network was fixed (`mask_seed`). sample: number of the image's own streams.
    """

    label: int
    draws: int
    seed: int
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedCount:
    """How many of the trial's codes the network tells as the label, it alone having the highest score.

    pixels, timesteps: of the code, which the radii follow from.
    """

    trial: SmoothedTrial
    hits: int
    pixels: int
    timesteps: int

    def l1_radius(self, delta: float) -> float:
        """With confidence 1 - delta: for every image nearer than that, more than half of all codes get the label."""
        share = least_share(self.hits, self.trial.draws, delta)
        return l1_radius(share, timesteps=self.timesteps, pixels=self.pixels)

    def linf_radius(self, delta: float) -> float:
        """The same with the largest change of a pixel as distance."""
        share = least_share(self.hits, self.trial.draws, delta)
        return linf_radius(share, timesteps=self.timesteps, pixels=self.pixels)


def count_codes(graph: Graph, image: Floats, trial: SmoothedTrial) -> SmoothedCount:
    """Count; the same trial gives the same count anywhere.

    Shapes: image (C, ...), as one sample of the network's input.
    Raises: CompileError for a network without a Bernoulli encoding or class scores, an image that does not fit, a
    label that is no class, and no draw.
    """
    check_coded(graph, image)
    victim = Victim(graph)
    if not 0 <= trial.label < victim.classes or trial.draws < 1:
        raise CompileError(
            f"label {trial.label} of {victim.classes} classes, {trial.draws} draws", _LOC, hint="draw at least once"
        )
    hits = 0
    for first in range(0, trial.draws, BLOCK):
        steps = range(first, min(first + BLOCK, trial.draws))
        codes = masks_of(graph, image, trial.seed, trial.sample, steps) < image
        scores = victim.scores(torch.from_numpy(np.moveaxis(codes, 0, 1).astype(np.float32)))
        hits += int(wins(scores, torch.full((len(steps),), trial.label)).sum())
    return SmoothedCount(trial=trial, hits=hits, pixels=image.size, timesteps=graph.timesteps)


def least_probability(share: float, l1: float, *, timesteps: int) -> float:
    """A lower bound of p(v') for p(v) >= share and |v' - v|_1 <= l1: the better of (1), for one pixel, and (2).

    (1) is least where a single pixel moves, the product being concave in logarithms. Units: probabilities.
    """
    coupled = share - 1 + max(0.0, 1 - l1) ** timesteps
    root = max(0.0, share ** (1 / timesteps) - l1)
    smooth = root**timesteps
    return max(0.0, coupled, smooth if smooth >= 0.5 else 0.0)


def l1_radius(share: float, *, timesteps: int, pixels: int) -> float:
    """share^(1/T) - 2^(-1/T), less what draws are rounded by; 0 where nothing is proved.

    share: a lower bound of p(v). No rule that knows only it and T can certify more. Units: as intensities.
    """
    if share <= 0.5:
        return 0.0
    return float(max(0.0, share ** (1 / timesteps) - 0.5 ** (1 / timesteps) - pixels * _GRAIN - _ROUNDING))


def linf_radius(share: float, *, timesteps: int, pixels: int) -> float:
    """The larger of what (1) gives where all pixels move, 1 - (3/2 - share)^(1/(T pixels)), and the l1 radius / pixels.

    Units: as intensities.
    """
    if share <= 0.5:
        return 0.0
    coupled = 1 - (1.5 - share) ** (1 / (timesteps * pixels)) - _GRAIN - _ROUNDING
    return float(max(0.0, coupled, l1_radius(share, timesteps=timesteps, pixels=pixels) / pixels))
