"""What a user writes about the inputs that count as near: SPEC, and the input set of each sample that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from compiler.attack.randomness import Purpose, stream_of
from compiler.certify.input_sets import Box, Chain, Flips, InputSet, L0Ball, LinfReal, Retiming
from hwmodel.errors import CompileError, Loc
from spikec.certify.subject import Floats, Subject

LOC = Loc("--set")
FORMS = "l0:k=3[,insert|delete][,per-step], linf:eps=0.02, linf:width=0.04, box:share=0.05[,seed=0], retime:moved=2"
_SEEDS = 1 << 63  # what the random generators take


class SetSpec(Protocol):
    """A kind of input set with its numbers."""

    @property
    def text(self) -> str:
        """As a user would write it, the same text for the same sets."""

    def check(self, subject: Subject) -> None:
        """Raises: CompileError for a network that has no such sets."""

    def inputs(self, subject: Subject, x: Floats, sample: int) -> InputSet:
        """The set around one sample of the data. Shapes: x as `Subject.shape`.

        Raises: CompileError for a sample that has none.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class L0Spec:
    """At most k flips of spikes, or of the elements of a binary image; where fewer may flip, all of those."""

    k: int
    flips: Flips
    per_step: bool

    @property
    def text(self) -> str:
        words = [f"k={self.k}"]
        words += [str(self.flips)] if self.flips is not Flips.BOTH else []
        return "l0:" + ",".join([*words, *(["per-step"] if self.per_step else [])])

    def check(self, subject: Subject) -> None:
        shape = subject.network_shape
        if self.per_step and not subject.takes_spikes:
            raise CompileError(f"{self.text}: the network takes an input without steps", LOC, hint="leave per-step out")
        most = math.prod(shape[1:] if self.per_step else shape)
        if self.k > most:
            where = "a step of the input" if self.per_step else "the input"
            raise CompileError(f"{self.text}: {where} has only {most} elements", LOC, hint=f"take a k from 0 to {most}")

    def inputs(self, subject: Subject, x: Floats, sample: int) -> InputSet:
        clean = _binary(self.text, subject.seen(x, sample), sample)
        is_free = np.ones(clean.shape, bool)
        if self.flips is not Flips.BOTH:
            is_free = clean == (0.0 if self.flips is Flips.INSERT else 1.0)
        groups = is_free.reshape(len(clean), -1).sum(1) if self.per_step else is_free.sum(keepdims=True)
        return L0Ball(clean=clean, k=min(self.k, int(groups.max())), flips=self.flips, per_step=self.per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinfSpec:
    """Intensities within eps of the clean ones and in [0, 1]: reals of a direct code, or all their Bernoulli codes
    under the sample's own draws.
    """

    eps: float

    @property
    def text(self) -> str:
        return f"linf:eps={self.eps!r}"

    def check(self, subject: Subject) -> None:
        if subject.takes_spikes and subject.encode is None:
            raise CompileError(
                f"{self.text}: the network takes spikes, which have no intensities",
                LOC,
                hint="take l0, box or retime",
            )

    def inputs(self, subject: Subject, x: Floats, sample: int) -> InputSet:
        if subject.encode is None:
            return LinfReal(clean=x, eps=self.eps)
        return Chain(image=x, eps=self.eps, draws=subject.mask(sample))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSpec:
    """Any number of flips of the elements that are picked at random, each with probability `share` (equation 6.9)."""

    share: float
    seed: int

    @property
    def text(self) -> str:
        return f"box:share={self.share!r},seed={self.seed}"

    def check(self, subject: Subject) -> None:
        """Every network has such sets, if its samples are binary."""

    def inputs(self, subject: Subject, x: Floats, sample: int) -> InputSet:
        clean = _binary(self.text, subject.seen(x, sample), sample)
        picked = stream_of(self.seed, Purpose.PICK, sample).random(clean.shape) < self.share
        return Box(clean=clean, free=picked)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetimeSpec:
    """At most so many spikes at another step of their train; of samples with fewer, all of them."""

    moved: int

    @property
    def text(self) -> str:
        return f"retime:moved={self.moved}"

    def check(self, subject: Subject) -> None:
        if not subject.takes_spikes:
            raise CompileError(
                f"{self.text}: the network takes intensities, which have no steps", LOC, hint="take linf"
            )
        most = math.prod(subject.network_shape)
        if self.moved > most:
            raise CompileError(f"{self.text}: the input has only {most} elements", LOC)

    def inputs(self, subject: Subject, x: Floats, sample: int) -> InputSet:
        return Retiming(clean=subject.seen(x, sample), moved=self.moved)


def set_named(text: str) -> SetSpec:
    """What SPEC stands for.

    Raises: CompileError for any other text, and numbers outside their ranges.
    """
    kind, _, rest = text.partition(":")
    parse = _PARSERS.get(kind)
    if parse is None:
        raise CompileError(f"{text!r} is no input set", LOC, hint=f"known: {FORMS}")
    words = [word.strip() for word in rest.split(",")] if rest else []
    pairs = [word.partition("=") for word in words]
    given = {name: value for name, _, value in pairs}
    if len(given) < len(words):
        raise CompileError(f"{text!r} says something twice", LOC, hint=f"known: {FORMS}")
    found = parse(_Words(text=text, given=given))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """The options of one SPEC; each is to be taken."""

    text: str
    given: dict[str, str]

    def only(self, *names: str) -> None:
        foreign = [name for name in self.given if name not in names]
        if foreign:
            raise CompileError(f"{self.text!r} has no option {foreign[0]!r}", LOC, hint=f"known: {FORMS}")

    def flag(self, name: str) -> bool:
        if self.given.get(name, "") != "":
            raise CompileError(f"{self.text!r}: {name} takes no value", LOC, hint=f"known: {FORMS}")
        return name in self.given

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._value(name, None if default is None else str(default))
        if not value.isdecimal():
            raise CompileError(f"{self.text!r}: {name} is {value!r}, not a whole number from 0 on", LOC)
        if int(value) >= _SEEDS:
            raise CompileError(f"{self.text!r}: {name} is {value}, must be below {_SEEDS}", LOC)
        return int(value)

    def number(self, name: str, most: float) -> float:
        value = self._value(name, None)
        try:
            number = float(value)
        except ValueError:
            raise CompileError(f"{self.text!r}: {name} is {value!r}, not a number", LOC) from None
        if not 0.0 <= number <= most:
            raise CompileError(f"{self.text!r}: {name} is {value}, must be from 0 to {most:g}", LOC)
        return number + 0.0  # of a negative zero, zero

    def _value(self, name: str, default: str | None) -> str:
        value = self.given.get(name, default)
        if value is None:
            raise CompileError(f"{self.text!r} does not say {name}", LOC, hint=f"known: {FORMS}")
        return value


def _l0(words: _Words) -> SetSpec:
    words.only("k", "insert", "delete", "per-step")
    kinds = [flips for flips in (Flips.INSERT, Flips.DELETE) if words.flag(str(flips))]
    flips = kinds[0] if len(kinds) == 1 else Flips.BOTH  # both named are both allowed
    return L0Spec(k=words.whole("k"), flips=flips, per_step=words.flag("per-step"))


def _linf(words: _Words) -> SetSpec:
    words.only("eps", "width")
    if len(words.given) > 1:
        raise CompileError(f"{words.text!r}: eps is half the width, so that one of them says all", LOC)
    eps = words.number("width", 2.0) / 2 if "width" in words.given else words.number("eps", 1.0)
    return LinfSpec(eps=eps)


def _box(words: _Words) -> SetSpec:
    words.only("share", "seed")
    return BoxSpec(share=words.number("share", 1.0), seed=words.whole("seed", 0))


def _retime(words: _Words) -> SetSpec:
    words.only("moved")
    return RetimeSpec(moved=words.whole("moved"))


_PARSERS: Mapping[str, Callable[[_Words], SetSpec]] = MappingProxyType(
    {"l0": _l0, "linf": _linf, "box": _box, "retime": _retime}
)


def _binary(text: str, clean: Floats, sample: int) -> Floats:
    """Raises: CompileError for a sample of intensities between 0 and 1."""
    if not np.isin(clean, (0, 1)).all():
        raise CompileError(
            f"{text}: sample {sample} has other values than 0 and 1, which do not flip", LOC, hint="take linf"
        )
    return clean
