"""What one family of fused kernels computes: neurons with the batch norm before and the pooling behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Flag, StrEnum, auto

from compiler.ir.values import Compare, Reset, Surrogate, SurrogateKind

PER_CHANNEL = None  # of a neuron's number: its values stand in the table


class Norm(StrEnum):
    """The batch norm before the neurons."""

    NONE = "none"
    BATCH = "batch"  # statistics of the batch over T, N, H and W: training
    RUNNING = "running"  # running statistics: evaluation


class Activation(StrEnum):
    """Element type of the values that kernels read and write; they compute in f32."""

    F32 = "float32"
    BF16 = "bfloat16"


class Results(Flag):
    """What a kernel that writes results writes of them, one argument each and in this order.

    Y      the results themselves
    WORDS  spikes as bits: u32 words (T, N, H', W', ceil(C / 32)), bit b of word w is the spike of channel 32 * w + b
    MASK   bits in the same places: 0 where the result's gradient counts for nothing, since ds/dm is 0 at each m that
           it would go to; whatever finite number stands there, all gradients stay the same but for signs of zeros

    Bits of absent channels are 0. Kernels take words as parts of as many bits as their vectors have lanes, signed
    integers in the order of a little-endian CPU.
    """

    NONE = 0
    Y = auto()
    WORDS = auto()
    MASK = auto()

    @property
    def has_bits(self) -> bool:
        """Whether bits are among them."""
        return bool(self & (Results.WORDS | Results.MASK))


class KernelName(StrEnum):
    """The kernels of a population and their arguments, in this order; [..] where the population calls for them.

    statistics      X, P: sums of x - x[0] and of its square, x[0] being each channel's first value
    forward         X, [table], Y, [words], [mask]                      algorithm 1
    gradient_sums   X, table, grad_Y, P, Y: sums of dL/dm and of dL/dm * (x - shift)      algorithm 2
    gradient_input  X, table, grad                                      algorithm 3
    gradient        X, [table], grad, [P], Y: both in one, without statistics of the batch

    Y is written again in the backward pass for the weight gradient of the layer behind; which arrays of `Results` stand
    in its place, the caller says. `grad` is one array, grad_Y
    before and grad_X after, if the population is `in_place`; else the two arrays grad_Y, grad_X.
    """

    STATISTICS = "statistics"
    FORWARD = "forward"
    GRADIENT_SUMS = "gradient_sums"
    GRADIENT_INPUT = "gradient_input"
    GRADIENT = "gradient"

    @property
    def backward(self) -> bool:
        """Whether it reads the result's gradient."""
        return self in (KernelName.GRADIENT_SUMS, KernelName.GRADIENT_INPUT, KernelName.GRADIENT)

    @property
    def writes_y(self) -> bool:
        """Whether it writes the result."""
        return self in (KernelName.FORWARD, KernelName.GRADIENT_SUMS, KernelName.GRADIENT)

    @property
    def writes_grad_x(self) -> bool:
        """Whether it writes the input's gradient."""
        return self in (KernelName.GRADIENT_INPUT, KernelName.GRADIENT)

    def writes_sums(self, norm: Norm) -> bool:
        """Whether it writes partial sums."""
        sums = self in (KernelName.STATISTICS, KernelName.GRADIENT_SUMS)
        return sums or (self is KernelName.GRADIENT and norm is Norm.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Pooling over windows side by side: stride = kernel, no padding.

    `exact`: height and width are multiples of the kernel. Otherwise `ceil` keeps the partial windows at the lower and
    right edge, averaged over their valid elements, and without it they are dropped.
    """

    kernel: tuple[int, int]
    average: bool  # else the maximum
    exact: bool = True
    ceil: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Neurons over T steps with the meaning of `compiler.ir.ops.Lif`, batch norm before, pooling behind.

    y[t] = weight * (x[t] - mean) / sqrt(var + eps) + bias      (unless norm is none)
    m[t] = decay * v[t-1] + input_scale * y[t] + leak_bias,  s[t] = fire(m[t]),  v[t] = reset(m[t], s[t])

    Shapes: x (T, N, H, W, C), or (N, H, W, C) with `repeated`, the same at each step; result (T, N, H', W', C).
    Source: equations 4.1 to 4.6, algorithms 1 to 3.
    """

    timesteps: int
    decay: float | None
    threshold: float | None
    input_scale: float | None = 1.0
    leak_bias: float | None = 0.0
    reset: Reset = Reset.HARD
    reset_value: float | None = 0.0
    reset_delay: bool = False
    compare: Compare = Compare.GE
    detach_reset: bool = False
    initial: float | None = 0.0
    surrogate: Surrogate = field(default_factory=Surrogate)
    norm: Norm = Norm.NONE
    window: Window | None = None
    repeated: bool = False
    activation: Activation = Activation.F32

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise ValueError(f"timesteps is {self.timesteps}, must be at least 1")
        if not 0 < self.surrogate.width < math.inf:
            raise ValueError(f"surrogate width is {self.surrogate.width}, must be positive and finite")

    @property
    def delayed(self) -> bool:
        """Whether a soft reset acts one step later."""
        return self.reset is Reset.SOFT and self.reset_delay

    @property
    def in_place(self) -> bool:
        """Whether the gradient of the input takes the place of the result's."""
        return self.window is None and not self.repeated

    @property
    def binary(self) -> bool:
        """Whether results are spikes, not averages of some."""
        return self.window is None or not self.window.average

    @property
    def masked(self) -> bool:
        """Whether ds/dm is exactly 0 far from the threshold, so that a mask of results says something."""
        return self.surrogate.kind in (SurrogateKind.RECTANGLE, SurrogateKind.TRIANGLE)

    @property
    def kernels(self) -> tuple[KernelName, ...]:
        """Its kernels, in the order in which a training step launches them."""
        if self.norm is Norm.BATCH:
            return KernelName.STATISTICS, KernelName.FORWARD, KernelName.GRADIENT_SUMS, KernelName.GRADIENT_INPUT
        return KernelName.FORWARD, KernelName.GRADIENT

    @property
    def rows(self) -> tuple[str, ...]:
        """Rows of the table (R, C) that the kernels read, one number for each channel.

        With a norm: shift, gain and offset of the input, m = decay * v + gain * (x - shift) + offset. Then the
        neuron's numbers that differ by channel. Then, of batch statistics, what gradient_input subtracts:
        dx = gain * (dm - mean_grad - (x - shift) * mean_grad_x).
        """
        rows: list[str] = []
        numbers = ["decay", "threshold", "reset_value", "initial"]
        if self.norm is Norm.NONE:
            numbers += ["input_scale", "leak_bias"]
        else:
            rows += ["shift", "gain", "offset"]
        rows += [name for name in numbers if getattr(self, name) is PER_CHANNEL]
        if self.norm is Norm.BATCH:
            rows += ["mean_grad", "mean_grad_x"]
        return tuple(rows)
