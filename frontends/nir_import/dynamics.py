"""What tau, r and v_leak of a NIR neuron mean in time steps, for each writer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.ir import CompileError, Loc
from frontends.nir_import.numbers import Float64, Floats, written
from frontends.nir_import.reading import Reading
from frontends.nir_import.writer import Writer

_CLOSE = 8  # roundings of the file's width


@dataclass(frozen=True, slots=True)
class Dynamics:
    """m[t] = decay * v[t-1] + gain * x[t] + leak * v_leak."""

    decay: Float64
    gain: Float64
    leak: Float64


def leaky(tau: Floats, r: Floats, reading: Reading, loc: Loc) -> Dynamics:
    """A neuron with a leak, LIF or LI.

    spikingjelly, spikec, other  leak = dt / tau, the Euler step of tau v' = v_leak - v + r x
    snntorch                     the same; it computes in f32 and writes gain 1
    norse                        leak = dt^2 / tau, since it writes dt * tau for tau
    sinabs                       decay = exp(-1 / tau), tau in steps; gain 1 - decay with norm_input, or 1
    gain = r * leak otherwise.

    Raises: CompileError where no dt > 0 makes sense of them: decay outside [0, 1], or an r that the writer cannot
    have written.
    Source: the export functions of SpikingJelly 2.0, snnTorch 1.0, norse 1.1 and sinabs 3.1.
    """
    with np.errstate(all="ignore"):
        decay, leak = _decay(tau, reading)
        _check_decay(decay, tau, reading, loc)
        if reading.writer is Writer.SINABS:
            _check_r(np.asarray(r == 1.0), "1", reading, loc)
            return Dynamics(decay, leak if reading.norm_input else np.ones_like(leak), leak)
        ratio = r.astype(np.float64) * reading.dt / tau.astype(np.float64)
        is_one = np.isclose(ratio, 1.0, rtol=_tolerance(r), atol=0.0) | (np.isinf(r) & np.isinf(tau))
        gain = np.where(r == 1.0, leak, np.where(is_one, 1.0, r.astype(np.float64) * leak))
    if reading.writer is Writer.SNNTORCH:
        _check_r(is_one, "tau / dt", reading, loc)
    if reading.writer is Writer.NORSE:
        _check_r(np.asarray(r == 1.0), "1", reading, loc)
    if reading.writer is Writer.SPIKINGJELLY:
        _check_r(is_one | (r == 1.0), "1 or tau / dt", reading, loc)
    if not np.isfinite(gain).all():
        raise CompileError(f"r is {np.max(r):g}, which gives an infinite input scale", loc)
    return Dynamics(decay, gain, leak)


def perfect(r: Floats, reading: Reading, loc: Loc) -> Dynamics:
    """A neuron without a leak, IF or I: gain = r * dt; norse and sinabs write r = 1 and mean it as the gain.

    Raises: CompileError for an r that the writer cannot have written.
    """
    if reading.writer in (Writer.NORSE, Writer.SINABS):
        _check_r(np.asarray(r == 1.0), "1", reading, loc)
        gain = np.ones(r.shape)
    else:
        gain = r.astype(np.float64) * reading.dt
        is_one = np.asarray(np.isclose(gain, 1.0, rtol=_tolerance(r), atol=0.0))
        if reading.writer is Writer.SPIKINGJELLY:
            _check_r(is_one, "1 / dt", reading, loc)
        gain = np.where(is_one, 1.0, gain)
    if not np.isfinite(gain).all():
        raise CompileError("r is infinite", loc)
    return Dynamics(np.ones(()), gain, np.zeros(()))


def _decay(tau: Floats, reading: Reading) -> tuple[Float64, Float64]:
    """decay and leak, as the writer had them before they were written as tau."""
    kind, dt = tau.dtype.type, reading.dt
    match reading.writer:
        case Writer.SINABS:
            decay = np.exp(-1.0 / tau.astype(np.float32)).astype(np.float64)
            return decay, np.asarray(1.0 - decay.astype(np.float32), np.float64)
        case Writer.NORSE:
            inverse = written(tau, dt / tau.astype(np.float64), lambda c: kind(dt) * (kind(1.0) / c))
            leak = np.asarray(dt * inverse)
            return 1.0 - leak, leak
        case Writer.SPIKINGJELLY:
            steps = written(tau, tau.astype(np.float64) / dt, lambda c: c * dt)
            return 1.0 - 1.0 / steps, 1.0 / steps
    raw = 1.0 - dt / tau.astype(np.float64)
    decay = np.where(np.isinf(tau), 1.0, written(tau, raw, lambda c: kind(dt) / (kind(1.0) - c)))
    if reading.writer is Writer.SNNTORCH:
        return decay, 1.0 - decay
    steps = written(tau, tau.astype(np.float64) / dt, lambda c: c * kind(dt))
    # what a person wrote, a decay or a time constant, is the shorter of both
    is_tau = np.reshape([_digits(s) < _digits(d) for s, d in zip(steps.flat, decay.flat, strict=True)], steps.shape)
    return np.where(is_tau, 1.0 - 1.0 / steps, decay), np.where(is_tau, 1.0 / steps, 1.0 - decay)


def _digits(value: float) -> int:
    """How many significant decimal digits a number has."""
    return len(repr(float(value)).split("e")[0].replace(".", "").strip("0"))


def _tolerance(stored: Floats) -> float:
    return _CLOSE * float(np.finfo(stored.dtype).eps)


def _check_decay(decay: Float64, tau: Floats, reading: Reading, loc: Loc) -> None:
    bad = ~((decay >= 0.0) & (decay <= 1.0))
    if not bad.any():
        return
    at = int(np.argmax(bad.reshape(-1)))
    value, stored = decay.reshape(-1)[at], np.broadcast_to(tau, decay.shape).reshape(-1)[at]
    raise CompileError(
        f"tau is {stored:g}, which gives decay {value:g} with dt {reading.dt:g}, not inside [0, 1]",
        loc,
        hint=f"state dt in seconds (--dt), or who wrote the file (--writer); it is read {reading.writer.manner}",
    )


def _check_r(fits: npt.NDArray[np.bool_], words: str, reading: Reading, loc: Loc) -> None:
    if not fits.all():
        raise CompileError(
            f"r is not {words}, as {reading.writer} writes it for dt {reading.dt:g}",
            loc,
            hint="state dt in seconds (--dt), or who wrote the file (--writer other for NIR's own equations)",
        )
