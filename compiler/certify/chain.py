"""All codes that fixed Bernoulli draws give to the images around one: for each pixel a chain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.certify.input_checks import (
    LOC,
    Bools,
    Doubles,
    Floats,
    check_form,
    fill,
    finite,
    is_spikes,
    real_interval,
    tensor,
    total,
)
from hwmodel.errors import CompileError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """The Bernoulli codes, under fixed draws, of all images within eps of one.

    {(draws < v) : v in [image - eps, image + eps], v in [0, 1]}

    As v grows, the bits of a pixel switch on in ascending order of their draws: of its 2^T codes only the prefixes of
    that order occur, and of those only whole groups of equal draws. So min of a.x is, for each pixel, the least of at
    most T + 1 sums; the hull is the set of equation 6.10, never smaller.

    eps: half the width of the interval of a pixel (equation 6.10's epsilon is the width). v is f32.
    Shapes: image (C, ...), draws (T, C, ...) uniform in [0, 1), as of one sample of the encoding.
    Raises: CompileError if eps is negative, the image not in [0, 1], or the shapes differ.
    """

    image: Floats
    eps: float
    draws: Floats
    clean: Floats = field(init=False)
    lower: Doubles = field(init=False)
    upper: Doubles = field(init=False)
    least: Floats = field(init=False)  # v's interval
    most: Floats = field(init=False)

    def __post_init__(self) -> None:
        image, draws = finite(self.image, "image"), finite(self.draws, "draws")
        if draws.shape[1:] != image.shape:
            raise CompileError(f"the draws {draws.shape} are not those of an image {image.shape}", LOC)
        if image.min() < 0 or image.max() > 1:
            raise CompileError(f"the image has values from {image.min():g} to {image.max():g}, not in [0, 1]", LOC)
        least, most = real_interval(image, self.eps, (0.0, 1.0))
        fill(self, image=image, draws=draws, least=least, most=most, clean=(draws < image).astype(np.float32))
        fill(self, lower=(draws < least).astype(np.float64), upper=(draws < most).astype(np.float64))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.draws.shape

    @property
    def step_flips(self) -> int | None:
        return None

    @property
    def is_binary(self) -> bool:
        return True

    def support(self, a: Tensor) -> Tensor:
        check_form(a, self.shape)
        axis = a.ndim - len(self.shape)
        order, reachable = self._prefixes()
        index = tensor(order).expand(a.shape)
        sums = a.gather(axis, index).cumsum(axis)
        sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], axis)
        sums = sums.masked_fill(~tensor(reachable), math.inf)
        return total(sums.amin(axis), self.image.shape)

    def contains(self, x: npt.ArrayLike) -> bool:
        given = np.asarray(x)
        if not is_spikes(given, self.shape):
            return False
        order, reachable = self._prefixes()
        bits = np.take_along_axis(given, order, 0)
        counts = given.sum(0).astype(np.int64)
        is_prefix = bool(np.all(bits[:-1] >= bits[1:]))
        return is_prefix and bool(np.take_along_axis(reachable, counts[None], 0).all())

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        wide = generator.uniform(self.least, self.most, (count, *self.image.shape)).astype(np.float32)
        images = np.clip(wide, self.least, self.most)
        return (self.draws < images[:, None]).astype(np.float32)

    def members(self) -> Iterator[Floats]:
        order, reachable = self._prefixes()
        rank = np.argsort(order, 0).reshape(len(order), -1)
        lengths = [np.flatnonzero(column) for column in reachable.reshape(len(reachable), -1).T]
        for chosen in product(*lengths):
            yield (rank < np.array(chosen, int)).astype(np.float32).reshape(self.shape)

    @property
    def count(self) -> int | None:
        return math.prod(int(states) for states in self._prefixes()[1].sum(0).flat)

    def image_of(self, x: npt.ArrayLike) -> Floats:
        """An image of the interval with that code, each pixel as near to its clean value as can be.

        Raises: CompileError if x is no member.
        """
        if not self.contains(x):
            raise CompileError("the spikes are the code of no image of the set", LOC)
        is_on = np.asarray(x) > 0
        above = np.nextafter(np.where(is_on, self.draws, -1).max(0), np.float32(2), dtype=np.float32)
        until = np.where(is_on, 2, self.draws).min(0)  # v <= each draw whose bit is off
        return np.clip(self.image, np.maximum(self.least, above), np.minimum(self.most, until)).astype(np.float32)

    def _prefixes(self) -> tuple[npt.NDArray[np.int64], Bools]:
        """Steps in ascending order of draws, and whether a prefix of each length from 0 to T is some v's code."""
        order = np.argsort(self.draws, 0, kind="stable")
        ranked = np.take_along_axis(self.draws, order, 0)
        length = np.arange(len(ranked) + 1).reshape(-1, *(1,) * self.image.ndim)
        is_group_end = np.ones((len(ranked) + 1, *self.image.shape), bool)
        is_group_end[1:-1] = ranked[:-1] < ranked[1:]
        within = (length >= self.lower.sum(0)) & (length <= self.upper.sum(0))
        return order, within & is_group_end
