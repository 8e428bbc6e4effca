"""Random networks for the property tests of every part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from compiler.ir import (
    Compare,
    DType,
    Encoding,
    Graph,
    Loc,
    Node,
    Number,
    Param,
    Reading,
    Reset,
    Surrogate,
    SurrogateKind,
    TensorType,
)
from compiler.ir.ops import (
    Add,
    Array,
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

Floats = npt.NDArray[np.floating]
GRID = 16  # dyadic values are multiples of 1 / GRID


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomNetwork:
    """A verified graph, and an input that makes its neurons fire.

    Shapes: example as the graph's input, N any.
    """

    graph: Graph
    example: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a random network may hold."""

    dyadic: bool = True  # weights, thresholds and images are multiples of 1/16: f32 sums of x are exact
    image_input: bool | None = None  # None: either
    encodings: Sequence[Encoding] = (Encoding.DIRECT,)  # of an image
    late_encode: bool = False  # a direct encoding may stand behind the first convolution
    residual: bool = False  # ends in a residual block
    affine: bool = True  # batch norms and scales, where they can be folded
    pools: bool = True
    groups: bool = True
    per_channel: bool = True  # neuron numbers may be one per channel
    input_scale: bool = True  # of neurons, and leak_bias
    free_neurons: bool = False  # what H2Learn's Soma has not: reset none, reset_delay
    trainable: bool = False  # only what H2Learn trains: see `refuse_training`; then there is a readout over time
    blocks: tuple[int, int] = (0, 3)  # of convolutions, fewest and most
    max_size: int = 17  # rows and columns of the input
    max_channels: int = 20
    max_timesteps: int = 12
    max_batch: int = 5


@st.composite
def networks(draw: st.DrawFn, /, **limits: object) -> RandomNetwork:
    """Convolution blocks, then linear layers, then a reading over time or none.

    Every weighted layer but the first takes spikes, as H2Learn needs. The arguments are the fields of `Limits`.
    """
    return _Builder(draw, Limits(**limits)).network()  # type: ignore[arg-type]  # named by Limits


def grid(values: Floats) -> Array:
    """The nearest multiples of 1/16."""
    return (np.round(values * GRID) / GRID).astype(np.float32)


@dataclass(slots=True)
class _Builder:
    """A network under construction; `head` is the last value, `power` an estimate of its mean square."""

    draw: st.DrawFn
    limits: Limits
    rng: np.random.Generator = field(init=False)
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    head: str = ""
    power: float = 1.0
    pending: bool = False  # a weighted layer waits for its neurons

    def network(self) -> RandomNetwork:
        self.rng = np.random.default_rng(self.integer(0, 2**16))
        example = self.start()
        for _ in range(self.integer(*self.limits.blocks)):
            self.conv_block()
        if self.limits.residual:
            self.residual_block()
        self.classifier()
        graph = Graph("random", tuple(self.nodes), self.head, self.arrays)
        return RandomNetwork(graph=graph, example=example)

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, max(low, high)))

    def pair(self, low: int, high_rows: int, high_columns: int) -> tuple[int, int]:
        return self.integer(low, high_rows), self.integer(low, high_columns)

    def chance(self, when: bool = True) -> bool:
        return when and self.draw(st.booleans())

    @property
    def value(self) -> TensorType:
        return self.types[self.head]

    def add(self, op: Op, *inputs: str) -> str:
        """Append a node that takes the last value, or the named ones."""
        name = f"{type(op).__name__.lower()}{len(self.nodes)}"
        taken = inputs or ((self.head,) if self.nodes else ())
        site = Site(name, Loc("random.py", len(self.nodes) + 1), self.arrays)
        self.types[name] = op.infer(tuple(self.types[i] for i in taken), site)
        self.nodes.append(Node(name, op, taken, site.loc))
        self.head = name
        return name

    def param(self, what: str, values: Floats) -> Param:
        name = f"{len(self.nodes)}.{what}"
        self.arrays[name] = grid(values) if self.limits.dyadic else values.astype(np.float32)
        return Param(name)

    def start(self) -> Array:
        """Input and encoding; returns the example."""
        limits, draw = self.limits, self.draw
        timesteps, batch = self.integer(1, limits.max_timesteps), self.integer(1, limits.max_batch)
        channels = self.integer(1, min(4, limits.max_channels))
        shape = (channels, self.integer(3, limits.max_size), self.integer(3, limits.max_size))
        is_image = draw(st.booleans()) if limits.image_input is None else limits.image_input
        if not is_image:
            rate = draw(st.sampled_from([0.25, 0.1, 0.5]))
            self.add(Input(shape=(timesteps, "N", *shape), dtype=DType.SPIKE, axes="TNCHW"))
            self.power = rate
            return (self.rng.random((timesteps, batch, *shape)) < rate).astype(np.float32)
        self.add(Input(shape=("N", *shape), dtype=DType.F32, axes="NCHW"))
        self.power = 1 / 3
        encode = Encode(kind=draw(st.sampled_from(list(limits.encodings))), timesteps=timesteps)
        if encode.kind is Encoding.BERNOULLI:
            encode = Encode(kind=encode.kind, timesteps=timesteps, seed=self.integer(0, 2**16))
        if encode.kind is Encoding.DIRECT and self.chance(limits.late_encode):
            self.conv()
        self.add(encode)
        if encode.kind is Encoding.LATENCY:
            self.power = 1 / timesteps
        image = self.rng.random((batch, *shape), np.float32)
        return grid(image) if limits.dyadic else image

    def conv_block(self) -> None:
        """conv-LIF, conv-pool-LIF, conv-LIF-pool-LIF or conv-LIF-maxpool, with an affine node or none."""
        if not self.pending:
            self.conv()
        form = self.draw(st.sampled_from(["lif", "pool-lif", "lif-pool-lif", "lif-maxpool"]))
        if not self.limits.pools:
            form = "lif"
        if form == "pool-lif":
            is_affine_first = self.draw(st.booleans())
            self.affine(is_affine_first)
            self.pool()
            self.affine(not is_affine_first)
        else:
            self.affine()
        self.lif()
        if form == "lif-pool-lif":
            self.pool()
            self.lif()
        if form == "lif-maxpool":
            self.pool(only_max=True)

    def residual_block(self) -> None:
        """Two convolutions that keep the shape, with the block's input added before the last neurons."""
        if self.value.dtype is not DType.SPIKE:
            self.conv_block()
        skip, channels = self.head, self.value.size("C")
        for is_last in (False, True):
            self.weighted((channels, channels, 3, 3), lambda w, b: Conv2d(weight=w, bias=b, padding=(1, 1)))
            self.affine()
            if not is_last:
                self.lif()
        self.add(Add(), self.head, skip)
        self.lif()

    def conv(self) -> None:
        """A convolution whose window fits the feature maps."""
        x, limits = self.value, self.limits
        channels = x.size("C")
        divisors = [g for g in range(1, channels + 1) if channels % g == 0]
        groups = self.draw(st.sampled_from(divisors)) if self.chance(limits.groups) else 1
        out = groups * self.integer(1, limits.max_channels // groups)
        padding = self.pair(0, 3, 3)
        rows = self.integer(1, min(7, x.size("H") + 2 * padding[0]))
        columns = self.integer(1, min(7, x.size("W") + 2 * padding[1]))
        stride = self.pair(1, 3, 3)
        self.weighted(
            (out, channels // groups, rows, columns),
            lambda w, b: Conv2d(weight=w, bias=b, stride=stride, padding=padding, groups=groups),
        )

    def linear(self) -> None:
        shape = (self.integer(1, self.limits.max_channels), self.value.size("C"))
        self.weighted(shape, lambda w, b: Linear(weight=w, bias=b))

    def weighted(self, shape: tuple[int, ...], layer: Callable[[Param, Param | None], Op]) -> None:
        """A layer with random weights, a little more excitatory than inhibitory."""
        fan_in, sigma = math.prod(shape[1:]), 0.25
        weight = self.rng.normal(0.5 * sigma / math.sqrt(fan_in), sigma, shape)
        bias = self.param("bias", self.rng.normal(0, sigma, shape[0])) if self.chance() else None
        self.add(layer(self.param("weight", weight), bias))
        self.power = max(fan_in * self.power, 1.0) * sigma**2
        self.pending = True

    def affine(self, is_here: bool = True) -> None:
        """Sometimes a batch norm or a scale."""
        if not self.chance(self.limits.affine and is_here and not self.limits.trainable):
            return
        channels, deviation = self.value.size("C"), math.sqrt(self.power)
        if self.draw(st.integers(0, 3)) == 3:
            factor = self.draw(st.sampled_from([0.5, 2.0]))
            self.add(Scale(factor=self.number("factor", factor)))
            self.power *= factor**2
            return
        # In the dyadic case 1 / sqrt(var + eps) is a power of two.
        var = (
            np.full(channels, 4.0 ** round(math.log(deviation, 2)))
            if self.limits.dyadic
            else (self.power * self.rng.uniform(0.5, 2, channels))
        )
        self.add(
            BatchNorm(
                weight=self.param("bn.weight", self.rng.uniform(0.5, 1.5, channels)),
                bias=self.param("bn.bias", self.rng.normal(0, 0.25, channels)),
                mean=self.param("bn.mean", self.rng.normal(0, deviation / 4, channels)),
                var=self.param("bn.var", np.maximum(var, 1 / GRID)),
                eps=0.0 if self.limits.dyadic else 1e-5,
            )
        )
        self.power = 1.0

    def pool(self, *, only_max: bool = False) -> None:
        """Mostly windows side by side, sometimes overlapping, padded or with a partial last window."""
        x = self.value
        trainable = self.limits.trainable
        is_plain = trainable or self.integer(0, 3) < 3
        kernel = self.pair(1, min(3, x.size("H")), min(3, x.size("W")))
        stride = kernel if is_plain else self.pair(1, 3, 3)
        padding = (0, 0) if is_plain else self.pair(0, kernel[0] // 2, kernel[1] // 2)
        ceil_mode = self.chance(trainable or not is_plain)
        if only_max or self.chance():
            self.add(MaxPool2d(kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode))
            return
        counts = self.chance(trainable or not is_plain)
        self.add(
            AvgPool2d(kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=counts)
        )
        self.power /= math.prod(kernel)

    def number(self, what: str, value: float, spread: float = 0.25) -> Number:
        """The number, or one per channel around it (never below a sixteenth, decays never above 1)."""
        if not self.chance(self.limits.per_channel and self.integer(0, 2) == 2):
            return value
        values = value * self.rng.uniform(1 - spread, 1 + spread, self.value.size("C"))
        return self.param(what, np.clip(values, 1 / GRID, 1.0 if what == "decay" else None))

    def lif(self) -> None:
        """Neurons whose threshold suits the estimated power of their input."""
        draw, limits = self.draw, self.limits
        scale = 0.5 if self.chance(limits.input_scale) else 1.0
        level = draw(st.sampled_from([0.75, 1.0, 0.5, 1.5])) * scale * math.sqrt(self.power)
        threshold = max(1, round(level * GRID)) / GRID if limits.dyadic else max(level, 0.01)
        decay = draw(st.sampled_from([0.25, 0.5, 0.75, 0.0, 1.0] if limits.dyadic else [0.25, 0.6, 0.9]))
        has_none = limits.free_neurons or limits.trainable
        resets = [Reset.HARD, Reset.SOFT, Reset.NONE] if has_none else [Reset.HARD, Reset.SOFT]
        self.add(
            Lif(
                decay=self.number("decay", decay),
                threshold=self.number("threshold", threshold),
                input_scale=self.number("input_scale", scale) if scale != 1.0 else 1.0,
                leak_bias=self.number("leak_bias", 0.125) if scale != 1.0 and self.chance() else 0.0,
                reset=draw(st.sampled_from(resets)),
                reset_value=draw(st.sampled_from([0.0, -0.25, 0.125])),
                reset_delay=self.chance(limits.free_neurons),
                compare=draw(st.sampled_from(Compare)),
                detach_reset=self.chance(),
                initial=draw(st.sampled_from([0.0, 0.25])),
                surrogate=self.surrogate(),
            )
        )
        self.power, self.pending = 0.25, False

    def surrogate(self) -> Surrogate:
        kinds = [SurrogateKind.RECTANGLE] if self.limits.trainable else list(SurrogateKind)
        kind = self.draw(st.sampled_from(kinds))
        width = self.draw(st.sampled_from([0.5, 0.25, 1.0]))
        scales = [1.0, 0.5] if self.limits.dyadic or not self.limits.trainable else [1.0, 0.5, 0.7]
        return Surrogate(kind=kind, width=width, scale=self.draw(st.sampled_from(scales)))

    def classifier(self) -> None:
        """Flatten, linear layers, and one of the ways to read them out."""
        if self.pending:
            self.lif()
        trainable = self.limits.trainable
        ends = ["spikes", "rate", "li", "mean-last"]
        if trainable:
            has_weights = any(isinstance(node.op, Conv2d) for node in self.nodes)
            ends = [*ends[1:], "maps"] if has_weights else ends[1:]
        end = self.draw(st.sampled_from(ends))
        if end == "maps" and isinstance(self.nodes[-1].op, Lif) and self.chance(self.limits.pools):
            self.pool()
        self.add(Flatten())
        if end == "mean-last" and self.value.dtype is not DType.SPIKE:
            end = "rate"  # a mean over an image is no mean over spikes
        layers = 0 if end == "maps" else self.integer(0, 1) + (end in ("spikes", "rate"))
        for _ in range(layers):
            self.linear()
            self.affine()
            self.lif()
        match end:
            case "rate" | "maps":
                self.add(Readout(kind=self.draw(st.sampled_from(Reading)) if trainable else Reading.RATE))
            case "li":
                self.linear()
                decay = self.draw(st.sampled_from([0.5, 1.0, 0.75]))
                self.add(Li(decay=self.number("decay", decay)))
                self.add(Readout(kind=self.draw(st.sampled_from([Reading.LAST, Reading.MAX, Reading.RATE]))))
            case "mean-last":
                self.add(Readout(kind=Reading.RATE))
                self.linear()
