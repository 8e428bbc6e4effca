"""The sets of inputs around a batch of samples that robust training bounds, and the samples themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.codes import bernoulli_draws
from compiler.ir import CompileError, DType, Encoding, Graph
from compiler.ir.ops import Encode
from frontends.robust.settings import FewFlips, Linf, PickedFlips, Threat
from frontends.robust.values import Budget, Interval
from hwmodel.errors import Loc

_PICKS, _WINDOW = 1, 2  # streams beside that of the Bernoulli codes, which is number 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """How samples become what a network takes, and the interval around each.

    Of images under a Bernoulli code, both are codes under the same draws: of equation 6.10 and algorithm 6. Recorded
    spikes that are longer than the training's steps are cut to as many, from a step drawn for each batch.
    """

    threat: Threat
    timesteps: int
    seed: int  # of Bernoulli draws; of recorded spikes, of what is drawn beside them
    is_coded: bool  # the samples are images, the network takes their Bernoulli codes
    is_sequence: bool  # the network takes spikes

    def around(self, x: Tensor, first: int, growth: float) -> tuple[Tensor, Interval]:
        """The clean inputs and their intervals. first: how many samples were presented before them.

        Shapes: x (N, C, ...) images or (T, N, C, ...) spikes -> as the network's input, of `timesteps` steps.
        """
        draws = None
        if self.is_coded:
            draws = torch.from_numpy(bernoulli_draws(self.seed, self.timesteps, x.shape, first)).to(x.dtype)
            clean = (draws < x).to(x.dtype)
        elif self.is_sequence:
            start = int(_stream(self.seed, _WINDOW, first).integers(len(x) - self.timesteps + 1))
            clean = x[start : start + self.timesteps]
        else:
            clean = x
        match self.threat:
            case Linf(eps=eps):
                _check_range(x)
                lower, upper = (x - growth * eps).clamp(0.0, 1.0), (x + growth * eps).clamp(0.0, 1.0)
                if draws is not None:
                    lower, upper = (draws < lower).to(x.dtype), (draws < upper).to(x.dtype)
                return clean, Interval(lower=lower, upper=upper)
            case FewFlips(k=k):
                if growth == 0.0:
                    return clean, Interval(lower=clean, upper=clean)
                budget = Budget(clean=clean, most=growth * k)
                return clean, Interval(lower=torch.zeros_like(clean), upper=torch.ones_like(clean), budget=budget)
            case PickedFlips(share=share):
                picked = self._picked(clean, first, growth * share)
                return clean, Interval(lower=clean.masked_fill(picked, 0.0), upper=clean.masked_fill(picked, 1.0))

    def _picked(self, clean: Tensor, first: int, share: float) -> Tensor:
        parts = [
            picked_elements(self.seed, first + n, (len(clean), *clean.shape[2:]), share) for n in range(clean.shape[1])
        ]
        return torch.from_numpy(np.stack(parts, 1))


def picked_elements(seed: int, sample: int, shape: tuple[int, ...], share: float) -> npt.NDArray[np.bool_]:
    """Elements of a sample that may flip, each with this probability. Shapes: as of one sample, (T, C, ...)."""
    return _stream(seed, _PICKS, sample).random(shape, np.float32) < share


def _stream(seed: int, number: int, sample: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, number, sample]))


def surroundings(graph: Graph, threat: Threat, timesteps: int) -> Surroundings:
    """For a network as users have it, with its encoding.

    Raises: CompileError if the threat is not one to what the network takes, or it has more flips than input elements.
    """
    kind = graph.types[graph.input.name]
    codes = [node.op for node in graph.consumers(graph.input.name) if isinstance(node.op, Encode)]
    bernoulli = next((op for op in codes if op.kind is Encoding.BERNOULLI), None)
    is_spikes = kind.dtype is DType.SPIKE
    loc = graph.input.loc
    if bernoulli is not None and bernoulli.mask is not None:
        raise CompileError("the draws of the encoding are fixed; robust training draws anew each time", loc)
    if isinstance(threat, Linf) and is_spikes:
        raise CompileError("linf surrounds images, the network takes spikes", loc, hint="give l0:k=4 or box:share=0.02")
    if not isinstance(threat, Linf) and not (is_spikes or bernoulli is not None):
        raise CompileError("flips are of spikes, the network takes real values", loc, hint="give linf:eps=0.05")
    if is_spikes and timesteps > kind.size("T"):
        raise CompileError(
            f"robust training of {timesteps} steps, the network's spikes have {kind.size('T')}",
            loc,
            hint="take as many or fewer (--robust-timesteps)",
        )
    elements = timesteps * math.prod(kind.size(axis) for axis in "CHW" if kind.has(axis))
    if isinstance(threat, FewFlips) and threat.k > elements:
        raise CompileError(f"{threat.k} flips of an input of {elements} elements", loc)
    return Surroundings(
        threat=threat,
        timesteps=timesteps,
        seed=(bernoulli.seed or 0) if bernoulli is not None else 0,
        is_coded=bernoulli is not None,
        is_sequence=is_spikes,
    )


def _check_range(images: Tensor) -> None:
    least, most = (float(end) for end in images.aminmax())
    if least < 0 or most > 1:
        raise CompileError(f"images have values from {least:g} to {most:g}, not in [0, 1]", Loc("training data"))
