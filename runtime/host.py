"""The host's part of a run: encodes inputs for the machine and reads its output out over time."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from compiler.codes import bernoulli_draws, latency_code
from compiler.ir import Encoding, Reading
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import FP16_OVERFLOW
from hwmodel.program import Format, Program
from runtime.memory import Values

F32 = npt.NDArray[np.float32]


def check_inputs(program: Program, x: F32) -> None:
    """Refuse samples that the program cannot take.

    Shapes: x (N, C, H, W), (N, C), or with T in front.
    Raises: CompileError for a wrong shape, no samples, values that are not finite, leave FP16, or are not binary.
    """
    host, loc = program.host, Loc(program.name)
    lead = x.shape[: 2 if host.input_has_time else 1]
    fits = x.shape[len(lead) :] == host.input_shape and (not host.input_has_time or lead[:1] == (program.timesteps,))
    if not fits:
        want = (*([program.timesteps] if host.input_has_time else []), "N", *host.input_shape)
        raise CompileError(f"input has shape {x.shape}, the program takes ({', '.join(map(str, want))})", loc)
    if lead[-1] == 0:
        raise CompileError(f"input of shape {x.shape} has no samples", loc)
    if not np.isfinite(x).all():
        raise CompileError("input holds a NaN or infinite value", loc)
    takes_spikes = program.tensors[program.input_index].format is Format.S1
    if takes_spikes and host.input_has_time and not np.isin(x, (0.0, 1.0)).all():
        raise CompileError("input is not binary, the program takes spikes", loc, hint="encode it first")
    if not takes_spikes and np.abs(x).max() >= FP16_OVERFLOW:
        worst = x.flat[np.abs(x).argmax()]
        raise CompileError(f"input {worst:g} overflows FP16 (largest 65504)", loc, hint="scale the input down")


def encode_inputs(program: Program, x: F32, first_sample: int) -> Values:
    """One sub-batch as the machine's input tensor; missing samples are zero.

    Needs: inputs that check_inputs passes. Shapes: x as there, the result (t, n, y, x, c).
    """
    want = program.host.input_shape
    sequence = _encoded(program, x, first_sample)
    padded = np.zeros((sequence.shape[0], program.batch, *sequence.shape[2:]), np.float32)
    padded[:, : sequence.shape[1]] = sequence
    maps = padded.reshape(*padded.shape[:2], *want, *(1,) * (3 - len(want)))
    is_spikes = program.tensors[program.input_index].format is Format.S1
    dtype = np.uint8 if is_spikes else np.float16
    return cast(Values, np.ascontiguousarray(maps.transpose(0, 1, 3, 4, 2).astype(dtype)))


def _encoded(program: Program, x: F32, first_sample: int) -> F32:
    """Shapes: (t, n, ...), t = 1 where the machine holds its input."""
    host, steps = program.host, program.timesteps
    if host.input_has_time:
        return x
    match host.encoding:
        case Encoding.BERNOULLI:
            return (bernoulli_draws(host.seed, steps, x.shape, first_sample) < x).astype(np.float32)
        case Encoding.LATENCY:
            return latency_code(x, steps)
    repeats = program.tensors[program.input_index].shape[0]
    return np.broadcast_to(x, (repeats, *x.shape))


def read_out(program: Program, output: Values, samples: int) -> F32:
    """The network's output in f32 from the machine's output tensor.

    Shapes: (t, n, y, x, c) -> (N, C) or (N, C, H, W), with T in front where the network has no readout.
    """
    sequence = output[:, :samples].astype(np.float32).transpose(0, 1, 4, 2, 3)
    if program.host.output_is_flat:
        sequence = sequence.reshape(*sequence.shape[:2], -1)
    match program.host.readout:
        case Reading.RATE:
            return np.asarray(sequence.mean(0, dtype=np.float32))
        case Reading.LAST:
            return np.asarray(sequence[-1])
        case Reading.MAX:
            return np.asarray(sequence.max(0))
    return np.ascontiguousarray(sequence)
