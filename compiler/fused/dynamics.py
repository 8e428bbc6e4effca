"""The neuron's equations as expressions of TensorIR: the one description behind every schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from compiler.fused.emit import Expr, T, f32, select
from compiler.fused.population import Norm, Population
from compiler.ir.values import Compare, Reset, Surrogate, SurrogateKind

Number = Callable[[str], Expr]  # a row of the table for the neuron at hand


@dataclass(frozen=True, slots=True)
class Dynamics:
    """Equations 4.1 and 4.2 forward, 2.4 to 2.6 backward, for one neuron whose per-channel numbers `row` gives."""

    population: Population
    row: Number

    def number(self, name: str) -> Expr:
        """A number of the neuron."""
        value = getattr(self.population, name)
        return self.row(name) if value is None else f32(value)

    def initial(self) -> Expr:
        """v[-1]."""
        return self.number("initial")

    def centred(self, x: Expr) -> Expr:
        """x - mean, to which the gradient of the batch norm's weight is proportional."""
        return x - self.row("shift")

    def drive(self, x: Expr) -> Expr:
        """What the input adds to the membrane potential; factors of 1 and terms of 0 are left out."""
        if self.population.norm is not Norm.NONE:
            return self.centred(x) * self.row("gain") + self.row("offset")
        scaled = x if self.population.input_scale == 1.0 else x * self.number("input_scale")
        return scaled if self.population.leak_bias == 0.0 else scaled + self.number("leak_bias")

    def charge(self, v: Expr, x: Expr, reset_by: Expr | None) -> Expr:
        """m[t]; `reset_by`: what a delayed reset subtracts."""
        m = self.number("decay") * v + self.drive(x)
        return m if reset_by is None else m - reset_by

    def fires(self, m: Expr) -> Expr:
        """Whether m makes a spike."""
        threshold = self.number("threshold")
        return m >= threshold if self.population.compare is Compare.GE else m > threshold

    def after(self, m: Expr) -> Expr:
        """v[t]."""
        match self.population.reset:
            case Reset.HARD:
                return select(self.fires(m), self.number("reset_value"), m)
            case Reset.SOFT if not self.population.reset_delay:
                return select(self.fires(m), m - self.number("threshold"), m)
            case _:
                return m

    def surrogate(self, m: Expr) -> Expr:
        """ds/dm."""
        u = m - self.number("threshold")
        offset = self.population.surrogate.offset
        return surrogate_expression(self.population.surrogate, u if offset == 0.0 else u - f32(offset))

    def grad_m(self, m: Expr, grad_s: Expr, grad_next: Expr) -> Expr:
        """dL/dm[t] from dL/ds[t] less what s[t] does to later steps, and dL/dm[t+1]."""
        surrogate = self.surrogate(m)
        return grad_next * self.carry(m, surrogate) + surrogate * grad_s

    def carry(self, m: Expr, surrogate: Expr) -> Expr:
        """dm[t+1]/dm[t], the path through the reset among it: of m alone, so that the chain over t is short."""
        decay, reset = self.number("decay"), self.population.reset
        kept = not self.population.detach_reset
        if reset is Reset.HARD:
            passed = select(self.fires(m), f32(0.0), f32(1.0))
            return decay * (passed + surrogate * (self.number("reset_value") - m) if kept else passed)
        if reset is Reset.NONE or not kept:
            return decay
        if self.population.reset_delay:
            return decay - surrogate * self.number("threshold")
        return decay * (f32(1.0) - surrogate * self.number("threshold"))

    def grad_x(self, x: Expr, grad_m: Expr) -> Expr:
        """dL/dx[t] from dL/dm[t]; with batch statistics the paths through mean and variance are subtracted.

        Source: equation 4.3.
        """
        match self.population.norm:
            case Norm.NONE:
                return grad_m if self.population.input_scale == 1.0 else self.number("input_scale") * grad_m
            case Norm.RUNNING:
                return self.row("gain") * grad_m
            case Norm.BATCH:
                rest = grad_m - self.row("mean_grad") - self.centred(x) * self.row("mean_grad_x")
                return self.row("gain") * rest


def surrogate_expression(surrogate: Surrogate, u: Expr) -> Expr:
    """The surrogate's value at u = m - threshold - offset.

    Source: the formulas in the docstring of `Surrogate`.
    """
    width, scale = surrogate.width, f32(surrogate.scale)
    magnitude = T.fabs(u)
    match surrogate.kind:
        case SurrogateKind.RECTANGLE:
            return select(magnitude < f32(width), scale, f32(0.0))
        case SurrogateKind.TRIANGLE:
            return scale * T.max(f32(1.0) - magnitude * f32(1 / width), f32(0.0))
        case SurrogateKind.ATAN:
            scaled = u * f32(math.pi / 2 / width)
            return scale / (f32(1.0) + scaled * scaled)
        case SurrogateKind.SIGMOID:
            # sigma (1 - sigma) is even in u; the exponent is never positive, so nothing overflows
            decayed = exponential(magnitude * f32(-1 / width))
            below = f32(1.0) + decayed
            return scale * f32(4.0) * decayed / (below * below)
        case SurrogateKind.FAST_SIGMOID | SurrogateKind.SUPERSPIKE:
            below = f32(1.0) + magnitude * f32(1 / width)
            return scale / (below * below)
        case SurrogateKind.EXPONENTIAL:
            return scale * exponential(magnitude * f32(-1 / width))


def exponential(a: Expr) -> Expr:
    """exp(a) within 2 ulp for a <= 0; 0 below the normal numbers. A library's function is not vectorised.

    exp(a) = 2^n exp(r), n the integer nearest to a / ln 2, so |r| <= ln 2 / 2, where a polynomial of degree 6 with
    Chebyshev-fitted coefficients errs by 8e-9.
    """
    bounded = T.max(a, f32(_EXP_LEAST))
    n = T.nearbyint(bounded * f32(1 / math.log(2)))
    r = bounded - n * f32(_LN2_HIGH) - n * f32(math.log(2) - _LN2_HIGH)  # n * _LN2_HIGH is exact
    rest = f32(_EXP_TERMS[-1])
    for term in reversed(_EXP_TERMS[:-1]):
        rest = rest * r + f32(term)
    power = T.reinterpret("float32", T.shift_left(T.cast(n, "int32") + T.int32(127), T.int32(23)))
    return select(a < f32(_EXP_LEAST), f32(0.0), (rest * r * r + r + f32(1.0)) * power)


_EXP_LEAST = -87.0  # exp of it is a normal number
_LN2_HIGH = 0.693145751953125  # 22713 / 2^15, near ln 2
# of (exp(r) - 1 - r) / r^2
_EXP_TERMS = (0.5, 0.16666576266288757, 0.04166646674275398, 0.008363181725144386, 0.0013933652080595493)
