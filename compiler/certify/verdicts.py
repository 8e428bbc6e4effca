"""What certification says of a sample and all inputs of its set, and in which arithmetic it holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch

from compiler.attack.goal import wins
from compiler.certify.exact import Answer, Means
from compiler.certify.integer_network import IntegerNetwork, lower
from compiler.certify.integers import inexact_in_f32, is_alone_highest, scores
from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Graph

Floats = npt.NDArray[np.float32]

__all__ = ["Answer", "Arithmetic", "Means", "Method", "Replay", "Verdict"]


class Arithmetic(StrEnum):
    """What computes the scores that a verdict is about."""

    F32 = "f32"  # `evaluate`: sums in any order, with or without fused multiply-add
    INTEGERS = "integers of the quantised graph"  # exact


class Method(StrEnum):
    """What decides about a sample, from the cheapest on."""

    CLEAN = "clean"  # the clean input is told wrongly
    IBP = "ibp"  # S-IBP
    SEARCH = "search"  # for a counterexample: members of the set that gradients favour, and random ones
    HULL = "hull"  # linear bounds on S-IBP's ranges: those of S-CROWN, and the joint hull of fire and reset
    BACKWARD = "backward"  # linear bounds on ranges that linear bounds have narrowed
    SLOPES = "slopes"  # the same with optimised slopes
    EXACT = "exact"  # member by member, or CP-SAT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What is known about one sample's set.

    ROBUST: on every member the label alone has the highest score; that is proved, never sampled.
    COUNTEREXAMPLE: on `counterexample`, a member, it has not: replayed in the verdict's arithmetic. A tie is one.
    UNKNOWN: neither was found within the effort.

    method: what decided; of UNKNOWN, what was tried last; None where nothing was.
    margin: a lower bound of the least score[label] - score[j] over the set and all other classes, the best that linear
        bounds and S-IBP gave; None where none was asked. Above 0 wherever one of them decided.
    means: how `Method.EXACT` decided.
    timed_out: of UNKNOWN, whether the time limit ended it.

    Shapes: counterexample as the set. Units: margin as the scores.
    """

    answer: Answer
    method: Method | None
    arithmetic: Arithmetic
    margin: float | None = None
    counterexample: Floats | None = None
    means: Means | None = None
    timed_out: bool = False

    @property
    def is_clean_error(self) -> bool:
        """Whether the counterexample is the clean input itself."""
        return self.method is Method.CLEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Judges single inputs in an arithmetic; in f32 by `evaluate` of that one sample.

    network: the graph in integers, where exact verdicts hold in this arithmetic; None where they do not.
    """

    graph: Graph
    arithmetic: Arithmetic
    network: IntegerNetwork | None

    @classmethod
    def of(cls, graph: Graph, arithmetic: Arithmetic) -> Replay:
        """Raises: CompileError if integers are asked for and the graph's numbers or inputs are on no dyadic grid."""
        if arithmetic is Arithmetic.INTEGERS:
            if graph.types[graph.input.name].dtype is not DType.SPIKE:
                raise graph.site(graph.input).fail(
                    "real inputs are on no grid, which integers need", "take f32, or a network that takes spikes"
                )
            return cls(graph=graph, arithmetic=arithmetic, network=lower(graph))
        return cls(graph=graph, arithmetic=arithmetic, network=_exact_in_f32(graph))

    def is_right(self, x: Floats, label: int) -> bool:
        """Whether the label alone has the highest score on one input. Shapes: one sample's, without N."""
        axis = self.graph.types[self.graph.input.name].axes.index("N")
        batch = np.expand_dims(x, axis)
        if self.arithmetic is Arithmetic.F32:
            found = evaluate(self.graph, torch.from_numpy(batch.copy())).output
            return bool(wins(found, torch.tensor([label]))[0])
        assert self.network is not None
        return bool(is_alone_highest(scores(self.network, batch), label)[0])


def _exact_in_f32(graph: Graph) -> IntegerNetwork | None:
    """The graph in integers where f32 computes just the same of spikes, as of networks on a coarse dyadic grid."""
    if graph.types[graph.input.name].dtype is not DType.SPIKE:
        return None
    try:
        network = lower(graph)
    except CompileError:  # numbers on no dyadic grid, as of most networks
        return None
    return None if inexact_in_f32(network) else network
