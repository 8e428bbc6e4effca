"""What a network is trained against, and how much of the loss that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwmodel.errors import CompileError, Loc

_LOC = Loc("--robust")
_KNOWN = "known: linf:eps=0.05 (half the width), linf:width=0.1, l0:k=4, box:share=0.02"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linf:
    """Images within eps of one, pixel by pixel; eps is half the interval's width."""

    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FewFlips:
    """Spike sequences with at most k flips."""

    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedFlips:
    """Spike sequences of which any number of picked elements may flip; each is picked with this probability.

    Source: equation 6.9 and algorithm 6.
    """

    share: float


Threat = Linf | FewFlips | PickedFlips


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustSettings:
    """How a robust training run goes; g rises linearly from 0 to 1 over the share `warmup` of all presentations.

    The set of inputs grows with g: eps, k or share times g. The loss is
    (1 - g weight) natural + g weight cross entropy of the least margins,
    and a least margin is (1 - kappa) S-IBP's + kappa S-CROWN's.

    Source: CROWN-IBP (Zhang et al. 2020) for the mixtures; section 6.3.1 for a set that grows over 5/6 of the epochs.
    """

    threat: Threat
    timesteps: int | None = None  # T' of algorithms 6 and 7, in training only; None: the network's own
    warmup: float = 5 / 6
    weight: float = 0.6
    kappa: float = 0.0

    def verify(self) -> None:
        """Refuse numbers out of range.

        Raises: CompileError naming the option.
        """
        if self.timesteps is not None and self.timesteps < 1:
            raise _fault("timesteps", f"is {self.timesteps}, must be at least 1")
        for name in ("warmup", "weight", "kappa"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise _fault(name, f"is {value:g}, must be from 0 to 1")

    def growth(self, done: float) -> float:
        """g after this share of all presentations."""
        return 1.0 if done >= self.warmup else done / self.warmup


def parse_threat(text: str) -> Threat:
    """The threat that a word of the command line names.

    Raises: CompileError for an unknown one, or a number out of range.
    """
    match text.partition(":")[0], text.partition(":")[2].partition("="):
        case "linf", ("eps" | "width" as what, "=", number):
            eps = _number(text, number) / (2 if what == "width" else 1)
            if not 0.0 < eps <= 1.0:
                raise CompileError(f"{text}: half the width is {eps:g}, must be above 0 and at most 1", _LOC)
            return Linf(eps=eps)
        case "l0", ("k", "=", number):
            flips = _number(text, number)
            if flips < 1 or flips != int(flips):
                raise CompileError(f"{text}: k is {number}, must be a whole number of at least 1", _LOC)
            return FewFlips(k=int(flips))
        case "box", ("share", "=", number):
            share = _number(text, number)
            if not 0.0 < share <= 1.0:
                raise CompileError(f"{text}: the share is {share:g}, must be above 0 and at most 1", _LOC)
            return PickedFlips(share=share)
    raise CompileError(f"{text!r} is no set of inputs to train against", _LOC, hint=_KNOWN)


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError as fault:
        raise CompileError(f"{text}: {number!r} is no number", _LOC, hint=_KNOWN) from fault
    if not math.isfinite(value):
        raise CompileError(f"{text}: {number} is not finite", _LOC)
    return value


def _fault(option: str, message: str) -> CompileError:
    return CompileError(message, Loc(f"--robust-{option}"))
