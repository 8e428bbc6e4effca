"""Guarantees over the draws of a Bernoulli code: the share of masks under which all images around one are told rightly.

A mask is one set of uniform draws; under it an image has one code. What is proved for a whole ball of images under a
mask holds even for an attacker who sees the mask. Masks are counted that were drawn for this alone, and an exact
binomial bound turns the count into a guarantee for the masks to come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch

from compiler.attack.randomness import Purpose, uniform_draws
from compiler.certify.input_checks import Bools, Doubles, Floats
from compiler.certify.input_sets import Box, Chain, InputSet
from compiler.certify.interval import interval
from compiler.certify.last_layer import is_robust, margins
from compiler.certify.linear import margins as linear_margins
from compiler.ir import CompileError, Encoding, Graph, Loc
from compiler.ir.ops import Encode
from compiler.passes import DropEncode

BLOCK = 16  # masks that are bounded together, always as many: how sums round depends on it
_LOC = Loc("statistics")
_DOWN = 1 - 1e-9  # far more than the library's quantiles and tails are off


class Surround(StrEnum):
    """What is proved about under one mask."""

    CHAIN = "chain"  # the codes of all images of the ball
    BOX = "box"  # their hull: any subset of the bits that some image changes (equation 6.10)


class Proof(StrEnum):
    """What proves it."""

    INTERVAL = "interval"  # S-IBP
    LINEAR = "linear"  # linear forms where S-IBP decides nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskTrial:
    """What is counted: with the network and the image all that a count follows from.

    eps: half the width of a pixel's interval. seed: of the masks, chosen when the network was fixed (`mask_seed`).
    sample: number of the image's own streams.
    Raises: CompileError for a number out of range.
    """

    label: int
    eps: float
    masks: int
    seed: int
    sample: int
    surround: Surround = Surround.CHAIN
    proof: Proof = Proof.INTERVAL

    def __post_init__(self) -> None:
        for name, least in (("masks", 1), ("seed", 0), ("sample", 0)):
            if getattr(self, name) < least:
                raise CompileError(f"{name} is {getattr(self, name)}, must be at least {least}", _LOC)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskCount:
    """Under how many of the trial's masks the whole ball is proved to be told as the label."""

    trial: MaskTrial
    certified: int

    def least_share(self, delta: float) -> float:
        """A lower bound of P_mask[every image of the ball gets the label], with confidence 1 - delta."""
        return least_share(self.certified, self.trial.masks, delta)

    def p_value(self, share: float) -> float:
        """How probable so many or more are if the probability is only `share`."""
        from scipy.stats import binom

        return float(binom.sf(self.certified - 1, self.trial.masks, share)) / _DOWN


def mask_seed(graph: Graph, nonce: int) -> int:
    """A seed that follows from the network's own numbers: whoever made the network did not know its masks."""
    text = f"{graph.digest()} {nonce}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def count_masks(graph: Graph, image: Floats, trial: MaskTrial) -> MaskCount:
    """Count the masks; the same trial gives the same count anywhere, which is how a count is checked.

    Shapes: image (C, ...), as one sample of the network's input.
    Raises: CompileError for a network without a Bernoulli encoding, an image or label that does not fit.
    """
    return MaskCount(trial=trial, certified=int(certified_masks(graph, image, trial).sum()))


def certified_masks(graph: Graph, image: Floats, trial: MaskTrial) -> Bools:
    """Of each of the trial's masks, whether the ball is proved to be told as the label. Shapes: -> (masks,)."""
    check_coded(graph, image)
    sequence, found = DropEncode()(graph), []
    for first in range(0, trial.masks, BLOCK):
        steps = [min(mask, trial.masks - 1) for mask in range(first, first + BLOCK)]
        draws = masks_of(graph, image, trial.seed, trial.sample, steps)
        sets = [_around(image, mask, trial) for mask in draws]
        found.append(_proved(sequence, sets, trial)[: trial.masks - first])
    return np.concatenate(found)


def masks_of(graph: Graph, image: Floats, seed: int, sample: int, steps: Sequence[int]) -> Floats:
    """The masks of these numbers. Shapes: -> (len(steps), T, C, ...), in [0, 1)."""
    shape = (graph.timesteps, *image.shape)
    draws = uniform_draws(seed, Purpose.MASK, [sample] * len(steps), steps, shape)
    return np.moveaxis(draws.numpy(), 1, 0)


def check_coded(graph: Graph, image: Floats) -> None:
    """Raises: CompileError unless the network takes images of that shape in [0, 1] by a Bernoulli code."""
    node = graph.input
    codes = [reader.op for reader in graph.consumers(node.name) if isinstance(reader.op, Encode)]
    if not any(op.kind is Encoding.BERNOULLI for op in codes):
        raise CompileError(f"{node.name}: no Bernoulli code, so there are no draws to count over", node.loc)
    kind = graph.types[node.name]
    want = tuple(kind.size(axis) for axis in kind.axes if axis != "N")
    if image.shape != want or image.min() < 0 or image.max() > 1:
        raise CompileError(
            f"{node.name}: an image {image.shape} from {image.min():g} to {image.max():g} is given, "
            f"the network takes {want} in [0, 1]",
            node.loc,
        )


def least_share(successes: int, trials: int, delta: float) -> float:
    """The probability for which so many successes or more have probability delta: an exact one-sided lower bound.

    P[bound <= true probability] >= 1 - delta.
    Raises: CompileError for a delta outside (0, 1), or counts that are none.
    Source: Clopper and Pearson 1934.
    """
    check_delta(delta)
    if not 0 <= successes <= trials or trials < 1:
        raise CompileError(f"{successes} of {trials} is no count of successes", _LOC)
    if successes == 0:
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(delta, successes, trials - successes + 1)) * _DOWN


def least_shares(counts: Sequence[MaskCount], delta: float) -> Doubles:
    """Lower bounds that hold all together with confidence 1 - delta, however the counts depend on each other.

    Each is at delta / len(counts). Source: Bonferroni.
    """
    check_delta(delta)
    return np.array([count.least_share(delta / len(counts)) for count in counts], np.float64)


def shares_reach(counts: Sequence[MaskCount], share: float, delta: float) -> Bools:
    """Of each count, whether its probability is at least `share`; all claims hold together with confidence 1 - delta.

    Holm's procedure, which claims all that Bonferroni's does, and more. Fix the share before the masks are drawn.
    """
    return holm(np.array([count.p_value(share) for count in counts], np.float64), delta)


def holm(p_values: Doubles, delta: float) -> Bools:
    """Which hypotheses are rejected: P[any true one is] <= delta, however they depend on each other.

    In ascending order the i-th is rejected while it is at most delta / (how many are left).
    Source: Holm 1979.
    """
    check_delta(delta)
    order = np.argsort(p_values, kind="stable")
    is_small = p_values[order] <= delta / np.arange(len(p_values), 0, -1)
    rejected = np.zeros(len(p_values), bool)
    rejected[order] = np.logical_and.accumulate(is_small)
    return rejected


def majority(share: float, votes: int) -> float:
    """A lower bound of the probability that more than half of so many fresh masks are certified.

    Then the class that more than half of the masks give is the label, for every image of the ball, even of an
    attacker who sees the masks. share: a lower bound of one mask's probability; its confidence is this bound's too.

    P[B > votes / 2], B ~ Binomial(votes, share); it grows with share.
    """
    if votes < 1:
        raise CompileError(f"votes is {votes}, must be at least 1", _LOC)
    from scipy.stats import binom

    return float(binom.sf(votes // 2, votes, share)) * _DOWN


def check_delta(delta: float) -> None:
    """Raises: CompileError for an error probability outside (0, 1)."""
    if not 0.0 < delta < 1.0:
        raise CompileError(f"delta is {delta:g}, must be above 0 and below 1", _LOC)


def _around(image: Floats, mask: Floats, trial: MaskTrial) -> InputSet:
    chain = Chain(image=image, eps=trial.eps, draws=mask)
    if trial.surround is Surround.CHAIN:
        return chain
    return Box(clean=chain.clean, free=chain.lower < chain.upper)


def _proved(sequence: Graph, sets: Sequence[InputSet], trial: MaskTrial) -> Bools:
    """Shapes: -> (len(sets),)."""
    labels = [trial.label] * len(sets)
    proved = is_robust(margins(sequence, interval(sequence, sets), labels))
    rest = torch.nonzero(~proved)[:, 0].tolist() if trial.proof is Proof.LINEAR else []
    if rest:
        forms = linear_margins(sequence, [sets[at] for at in rest], [trial.label] * len(rest))
        proved[rest] = is_robust(forms)
    result: npt.NDArray[np.bool_] = proved.numpy()
    return result
