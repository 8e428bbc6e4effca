"""The fused kernels' layers in torch, in any float type, and a bound on the error of membrane potentials in f32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.fused.population import Norm, Population
from compiler.ir.values import Compare, Reset
from compiler.surrogate import surrogate_gradient
from frontends.nn import LIF

U = 2.0**-24  # unit roundoff of f32
NUMBERS = ("decay", "threshold", "input_scale", "leak_bias", "reset_value", "initial")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A population on data: x, grad_y, per-channel numbers and what the batch norm needs, all f32 values.

    Shapes: x (T, N, H, W, C), or (N, H, W, C) if repeated; grad_y (T, N, H', W', C); all else (C,).
    """

    population: Population
    x: Tensor
    grad_y: Tensor
    rows: dict[str, Tensor]
    weight: Tensor
    bias: Tensor
    mean: Tensor  # running
    var: Tensor
    eps: float = 1e-5

    def number(self, name: str, dtype: torch.dtype) -> Tensor:
        """A number of the neurons as the kernels know it, rounded to f32."""
        value = getattr(self.population, name)
        given = self.rows[name] if value is None else torch.tensor([value], dtype=torch.float32)
        return given.to(dtype).expand(self.x.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a training step of the layer yields."""

    y: Tensor
    grad_x: Tensor
    grad_weight: Tensor | None = None
    grad_bias: Tensor | None = None


def normalised(case: Case, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch norm over (T, N, H, W), or with running statistics."""
    if case.population.norm is Norm.NONE:
        return x
    steps = x.movedim(-1, 1)  # channels where torch expects them
    mean, var = case.mean.to(x.dtype), case.var.to(x.dtype)
    return nn.functional.batch_norm(
        steps, mean.clone(), var.clone(), weight, bias, case.population.norm is Norm.BATCH, 0.0, case.eps
    ).movedim(1, -1)


def pooled(case: Case, spikes: Tensor) -> Tensor:
    """The window's result; partial windows are kept if grad_y has room for them."""
    window = case.population.window
    if window is None:
        return spikes
    flat = spikes.movedim(-1, 2).flatten(0, 1)
    pool = nn.functional.avg_pool2d if window.average else nn.functional.max_pool2d
    extents = zip(case.grad_y.shape[2:4], window.kernel, spikes.shape[2:4], strict=True)
    kept = any(out * kernel > size for out, kernel, size in extents)
    return pool(flat, window.kernel, ceil_mode=kept).unflatten(0, spikes.shape[:2]).movedim(2, -1)


def neuron(case: Case, dtype: torch.dtype) -> LIF:
    """The population's neurons as the torch module."""
    population = case.population
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LIF(
            **{name: case.number(name, dtype).clone() for name in NUMBERS},
            reset=population.reset,
            reset_delay=population.reset_delay,
            compare=population.compare,
            detach_reset=population.detach_reset,
            surrogate=population.surrogate,
        )
    finally:
        torch.set_default_dtype(default)


def autograd(case: Case, dtype: torch.dtype) -> Result:
    """The layer by torch's own operators and autograd."""
    x, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in (case.x, case.weight, case.bias))
    sequence = _over_time(case, normalised(case, x, weight, bias))
    spikes = neuron(case, dtype)(sequence.movedim(-1, 2)).movedim(2, -1)
    y = pooled(case, spikes)
    (y * case.grad_y.to(dtype)).sum().backward()
    assert x.grad is not None
    return Result(y=y.detach(), grad_x=x.grad, grad_weight=weight.grad, grad_bias=bias.grad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membranes:
    """Exact membrane potentials and the spikes they make, with a bound on the error of those in f32.

    Shapes: all (T, N, H, W, C).
    """

    m: Tensor
    spikes: Tensor
    error: Tensor


def membranes(case: Case) -> Membranes:
    """Membrane potentials in f64, and a bound on what the f32 kernels may err as long as the spikes agree.

    Let u = 2^-24 and hats denote computed values. The kernels compute, with or without fused multiply-adds,
        d = (x - shift) * gain + offset,    m = decay * v + d [- reset_by],    v = m | m - threshold | reset_value.
    Every operation errs by at most u times its result; a fused one leaves one of those errors out. First order:
    1. Rows of the table are f64 numbers rounded once: |e_shift| <= u |mean|, |e_gain| <= u |gain|,
       |e_offset| <= u |offset|. The f64 statistics come from f32 sums over at most T values of x - x[0] and of its
       square: with S = mean |x - x[0]|, Q = mean (x - x[0])^2, each sum errs by at most (T + 2) u of its absolute
       sum, so |e_mean| <= (T + 2) u S and |e_var| <= (T + 2) u (Q + 2 S |mean - x[0]|) and
       |e_gain| <= |gain| e_var / (2 (var + eps)).
    2. x - shift errs by e_shift + u |x - mean|; times gain: e_gain |x - mean| and u |product| more; d: u |d| more.
    3. m errs by decay e_v + e_d + u (|decay v| + |m| + |m + reset_by|), v by e_m + u |v| (soft reset subtracts) and by
       nothing where a hard reset replaces it.
    The sum is taken with a factor 2, for the second order and for bf16 never being rounded in between.

    A spike may differ only where |m - threshold| is within the bound; later steps of such a neuron are not compared.
    """
    double = torch.float64
    number = {name: case.number(name, double) for name in NUMBERS}
    drive, error = _drive(case, number)
    drive, error = _over_time(case, drive), _over_time(case, error)
    population, threshold = case.population, number["threshold"]
    v, v_error = number["initial"].expand(drive.shape[1:]), torch.zeros(drive.shape[1:], dtype=double)
    reset_by = torch.zeros_like(v)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for d, e in zip(drive, error, strict=True):
        charged = number["decay"] * v + d
        m = charged - reset_by
        m_error = number["decay"] * v_error + e + U * ((number["decay"] * v).abs() + charged.abs() + m.abs())
        fired = m >= threshold if population.compare is Compare.GE else m > threshold
        kept.append((m, fired.to(double), 2 * m_error))
        v, v_error = m, m_error
        if population.reset is Reset.HARD:
            v, v_error = torch.where(fired, number["reset_value"], m), torch.where(fired, 0.0, m_error)
        elif population.delayed:
            reset_by = fired * threshold
        elif population.reset is Reset.SOFT:
            v = m - threshold * fired
            v_error = m_error + U * v.abs()
    m, spikes, bound = (torch.stack(part) for part in zip(*kept, strict=True))
    return Membranes(m=m, spikes=spikes, error=bound)


def near_edge(case: Case, found: Membranes) -> Tensor:
    """Where rounding may move m over the threshold, or over a step of the surrogate."""
    u = found.m - case.number("threshold", torch.float64) - case.population.surrogate.offset
    step = surrogate_gradient(case.population.surrogate, u.sign() * (u.abs() + 2 * found.error + 1e-300))
    step = step - surrogate_gradient(case.population.surrogate, u.sign() * (u.abs() - 2 * found.error).clamp(min=0))
    jumps = step.abs() > 0.5 * case.population.surrogate.scale
    return undecided(case, found) | jumps


def undecided(case: Case, found: Membranes) -> Tensor:
    """Where rounding may decide about the spike, now or since."""
    near = (found.m - case.number("threshold", torch.float64)).abs() <= found.error
    return near.cumsum(0) > 0


def _drive(case: Case, number: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """input_scale * norm(x) + leak_bias in f64 and the bound of points 1 and 2."""
    x = case.x.double()
    if case.population.norm is Norm.NONE:
        drive = number["input_scale"] * x + number["leak_bias"]
        return drive, U * ((number["input_scale"] * x).abs() + drive.abs())
    over = tuple(range(x.ndim - 1))
    mean, var = case.mean.double(), case.var.double()
    mean_error = var_error = torch.zeros_like(mean)
    if case.population.norm is Norm.BATCH:
        mean, var = x.mean(over), x.var(over, correction=0)
        pivot = x.flatten(0, -2)[0]
        absolute, square = (x - pivot).abs().mean(over), (x - pivot).square().mean(over)
        terms = (1 if case.population.repeated else case.population.timesteps) + 2
        mean_error = terms * U * absolute
        var_error = terms * U * (square + 2 * absolute * (mean - pivot).abs())
    gain = case.weight.double() / (var + case.eps).sqrt() * number["input_scale"]
    offset = case.bias.double() * number["input_scale"] + number["leak_bias"]
    gain_error = gain.abs() * (U + var_error / (2 * (var + case.eps)))
    product = (x - mean) * gain
    drive = product + offset
    error = gain.abs() * (mean_error + U * mean.abs() + U * (x - mean).abs()) + gain_error * (x - mean).abs()
    return drive, error + U * (product.abs() + drive.abs() + offset.abs())


def _over_time(case: Case, values: Tensor) -> Tensor:
    return values.expand(case.population.timesteps, *values.shape) if case.population.repeated else values
