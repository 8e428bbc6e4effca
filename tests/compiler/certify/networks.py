"""Small random networks with input sets small enough to list, for checks of bounds by enumeration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from compiler.certify.input_sets import Box, Chain, Flips, InputSet, L0Ball, LinfReal, Retiming
from compiler.evaluate import evaluate
from compiler.ir import Compare, DType, Encoding, Graph, Loc, Node, Number, Param, Reading, Reset, TensorType
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
    Site,
)

Doubles = npt.NDArray[np.float64]
CLASSES = 3
Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A network, and a set of inputs to it around one sample, which it gives that label."""

    graph: Graph
    inputs: InputSet
    label: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a random network may be; None: either, by the seed."""

    is_dyadic: bool | None = None  # all numbers on a grid of 1/8: exact ties occur
    is_image: bool | None = None  # feature maps and convolutions, else features and linear layers
    takes_reals: bool = False  # a direct code of real inputs, else spikes
    resets: tuple[Reset, ...] = tuple(Reset)
    thresholds: tuple[float, ...] = (0.25, 0.5, 0.75, 0.0, -0.25)
    decays: tuple[float, ...] = (0.25, 0.5, 0.9, 0.0, 1.0)
    extras: bool = True  # batch norms, scales, residual sums, pools, per-channel numbers, scales of inputs, leaks


def problem(seed: int, kind: Kind | None = None, *, bits: int = 7) -> Problem:
    """A network that follows from the seed alone, with a set of at most about 2^bits inputs (any number of reals)."""
    rng = np.random.default_rng([seed, 7])
    kind = kind or Kind()
    graph = _Builder(rng, kind).network()
    inputs = input_set(rng, graph, bits)
    clean = np.expand_dims(inputs.clean, graph.types[graph.input.name].axes.index("N"))
    label = int(evaluate(graph, torch.from_numpy(clean.copy())).output.argmax())
    return Problem(graph=graph, inputs=inputs, label=label)


def input_set(rng: np.random.Generator, graph: Graph, bits: int = 7) -> InputSet:
    """A random set of inputs to a network."""
    kind = graph.types[graph.input.name]
    shape = tuple(size for size, axis in zip(kind.shape, kind.axes, strict=True) if not isinstance(size, str))
    if kind.dtype is not DType.SPIKE:
        clean = (rng.integers(0, 9, shape) / 8).astype(np.float32)
        if rng.random() < 0.2:
            return L0Ball(clean=np.round(clean), k=1)  # a binary image
        return LinfReal(clean=clean, eps=float(rng.choice([0.0, 0.05, 0.125, 0.3])))
    clean = (rng.random(shape) < rng.choice([0.3, 0.6])).astype(np.float32)
    free = np.zeros(clean.size, bool)
    free[rng.permutation(clean.size)[:bits]] = True
    free = free.reshape(shape)
    match rng.integers(5):
        case 0:
            return Box(clean=clean, free=free)
        case 1:
            flips = Flips(rng.choice(list(Flips)))
            most = {Flips.BOTH: free, Flips.INSERT: free & (clean == 0), Flips.DELETE: free & (clean == 1)}[flips].sum()
            return L0Ball(clean=clean, k=int(rng.integers(min(most, 4) + 1)), mask=free, flips=flips)
        case 2:
            k = int(rng.integers(1 + min(2, free.reshape(len(free), -1).sum(1).max())))
            return L0Ball(clean=clean, k=k, mask=free, per_step=True)
        case 3:
            return Retiming(clean=clean, moved=1)
        case _:
            image = rng.random(shape[1:]).astype(np.float32)
            eps = 0.5
            while True:
                chain = Chain(image=image, eps=eps, draws=rng.random(shape, np.float32))
                if (chain.count or 0) <= 2**bits:
                    return chain
                eps /= 1.5


@dataclass(slots=True)
class _Builder:
    """A network under construction."""

    rng: np.random.Generator
    kind: Kind
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    is_dyadic: bool = True

    def network(self) -> Graph:
        kind = self.kind
        self.is_dyadic = bool(self.rng.random() < 0.5) if kind.is_dyadic is None else kind.is_dyadic
        is_image = bool(self.rng.random() < 0.4) if kind.is_image is None else kind.is_image
        self.start(is_image)
        if is_image:
            self.block(self.conv, has_pool=True)
            if self.chance():
                self.block(self.conv, has_pool=True)
            self.add(Flatten())
        if self.chance(not is_image) or not any(isinstance(node.op, Lif) for node in self.nodes):
            self.block(lambda: self.linear(int(self.rng.integers(2, 5))))
        self.end()
        return Graph("random", tuple(self.nodes), self.nodes[-1].name, self.arrays)

    def start(self, is_image: bool) -> None:
        timesteps = int(self.rng.integers(1, 5))
        shape = (int(self.rng.integers(1, 3)), 3, int(self.rng.integers(3, 5))) if is_image else (4,)
        axes = "NCHW" if is_image else "NC"
        if self.kind.takes_reals:
            self.add(Input(shape=("N", *shape), dtype=DType.F32, axes=axes))
            if self.chance():
                self.conv() if is_image else self.linear(4)
            self.add(Encode(kind=Encoding.DIRECT, timesteps=timesteps))
        else:
            self.add(Input(shape=(timesteps, "N", *shape), dtype=DType.SPIKE, axes="T" + axes))

    def block(self, layer: Callable[[], object], *, has_pool: bool = False) -> None:
        """A layer with weights, maybe a norm and a pool, neurons, and maybe a sum with other neurons' spikes."""
        layer()
        if self.chance(self.kind.extras):
            self.affine()
        if has_pool and self.chance(self.kind.extras):
            self.pool()
        source = self.nodes[-1].name
        self.lif()
        if self.chance(self.kind.extras) and self.chance():
            first = self.nodes[-1].name
            self.lif(source)
            self.add(Add(), first, self.nodes[-1].name)
            self.lif()
        if has_pool and self.chance(self.kind.extras):
            self.pool()

    def end(self) -> None:
        """One of the ways to class scores."""
        match self.rng.integers(5):
            case 0:
                self.block(lambda: self.linear(CLASSES))
                self.add(Readout(kind=Reading.RATE))
            case 1:
                self.linear(CLASSES)
                self.add(Readout(kind=self.pick(list(Reading))))
            case 2:
                self.add(Readout(kind=self.pick(list(Reading))))
                self.linear(CLASSES)
            case 3:
                self.linear(CLASSES)
                self.add(
                    Li(
                        decay=self.number("decay", self.pick(self.kind.decays)),
                        input_scale=self.pick([1.0, -0.5, 2.0]),
                        leak_bias=self.pick([0.0, 0.125]),
                        initial=self.pick([0.0, 0.25]),
                    )
                )
                self.add(Readout(kind=self.pick(list(Reading))))
            case _:
                self.linear(CLASSES)
                self.affine()
                self.lif()
                self.add(Readout(kind=Reading.RATE))

    def add(self, op: Op, *inputs: str) -> None:
        name = f"{type(op).__name__.lower()}{len(self.nodes)}"
        taken = inputs or ((self.nodes[-1].name,) if self.nodes else ())
        site = Site(name, Loc("random.py", len(self.nodes) + 1), self.arrays)
        self.types[name] = op.infer(tuple(self.types[i] for i in taken), site)
        self.nodes.append(Node(name, op, taken, site.loc))

    def pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, when: bool = True) -> bool:
        return when and bool(self.rng.random() < 0.5)

    @property
    def value(self) -> TensorType:
        return self.types[self.nodes[-1].name]

    def param(self, what: str, values: Doubles, grid: float = 8) -> Param:
        name = f"{len(self.nodes)}.{what}"
        self.arrays[name] = (np.round(values * grid) / grid if self.is_dyadic else values).astype(np.float32)
        return Param(name)

    def number(self, what: str, value: float) -> Number:
        """The number, or one for each channel around it."""
        if not self.chance(self.kind.extras) or self.chance():
            return value
        spread = value + self.rng.normal(0, 0.25, self.value.size("C"))
        return self.param(what, np.clip(spread, 0.0, 1.0) if what == "decay" else spread)

    def bias(self, size: int) -> Param | None:
        """Sometimes so large that a membrane stays above 0."""
        return self.param("bias", self.rng.normal(self.pick([0.0, 0.5]), 0.25, size)) if self.chance() else None

    def linear(self, size: int) -> None:
        fan_in = self.value.size("C")
        weight = self.param("weight", self.rng.normal(0.1, 0.4, (size, fan_in)))
        self.add(Linear(weight=weight, bias=self.bias(size)))

    def conv(self) -> None:
        channels = self.value.size("C")
        groups = channels if self.chance() else 1
        out = groups * int(self.rng.integers(1, 3))
        size = (int(self.rng.integers(1, 3)), int(self.rng.integers(1, 4)))
        size = (min(size[0], self.value.size("H")), min(size[1], self.value.size("W")))
        weight = self.param("weight", self.rng.normal(0.1, 0.4, (out, channels // groups, *size)))
        padding, stride = (int(self.rng.integers(2)), 1), (1, int(self.rng.integers(1, 3)))
        self.add(Conv2d(weight=weight, bias=self.bias(out), stride=stride, padding=padding, groups=groups))

    def affine(self) -> None:
        """A batch norm, gains of both signs, or a scale."""
        channels = self.value.size("C")
        if self.chance() and self.chance():
            self.add(Scale(factor=self.number("factor", self.pick([0.5, -1.0, 1.5]))))
            return
        var = self.pick([0.25, 1.0, 4.0]) * np.ones(channels) if self.is_dyadic else self.rng.uniform(0.2, 2, channels)
        self.add(
            BatchNorm(
                weight=self.param("bn.weight", self.rng.normal(0.5, 1.0, channels)),
                bias=self.param("bn.bias", self.rng.normal(0.2, 0.3, channels)),
                mean=self.param("bn.mean", self.rng.normal(0, 0.3, channels)),
                var=self.param("bn.var", var),
                eps=0.0 if self.is_dyadic else 1e-5,
            )
        )

    def pool(self) -> None:
        rows, columns = min(2, self.value.size("H")), min(self.pick([2, 2, 3]), self.value.size("W"))
        stride = (rows, columns) if self.chance() else (1, 2)
        padding = (1, 0) if rows > 1 and self.chance() else (0, 0)
        ceil_mode, counts = self.chance(), self.chance()
        if self.chance():
            self.add(MaxPool2d(kernel=(rows, columns), stride=stride, padding=padding, ceil_mode=ceil_mode))
            return
        self.add(
            AvgPool2d(
                kernel=(rows, columns), stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=counts
            )
        )

    def lif(self, *inputs: str) -> None:
        extras = self.kind.extras
        self.add(
            Lif(
                decay=self.number("decay", self.pick(self.kind.decays)),
                threshold=self.number("threshold", self.pick(self.kind.thresholds)),
                input_scale=self.number("input_scale", self.pick([1.0, 0.5, -1.0])) if self.chance(extras) else 1.0,
                leak_bias=self.number("leak_bias", 0.125) if self.chance(extras) else 0.0,
                reset=self.pick(self.kind.resets),
                reset_value=self.number("reset_value", self.pick([0.0, -0.25, 0.25])) if self.chance(extras) else 0.0,
                reset_delay=self.chance(extras),
                compare=self.pick(list(Compare)),
                initial=self.number("initial", self.pick([0.0, 0.25])) if self.chance(extras) else 0.0,
            ),
            *inputs,
        )
