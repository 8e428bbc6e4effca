"""The host's part of a run: encodes inputs for the machine and reads its output out over time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compiler.draws import bernoulli_draws
from compiler.ir import Encoding, Reading
from hwmodel.errors import CompileError, Loc
from hwmodel.program import Format, Program
from runtime.memory import Values

F32 = npt.NDArray[np.float32]


def encode_inputs(program: Program, x: F32, first_sample: int) -> Values:
    """One sub-batch as the machine's input tensor; missing samples are zero.

    Shapes: x (N, C, H, W), (N, C), or with T in front; the result (t, n, y, x, c).
    Raises: CompileError for a wrong shape, values that are not finite, leave FP16, or are not binary.
    """
    host = program.host
    loc = Loc(program.name)
    want = host.input_shape
    shape = x.shape[2:] if host.input_has_time else x.shape[1:]
    steps_fit = not host.input_has_time or x.shape[0] == program.timesteps
    if tuple(shape) != want or not steps_fit or x.ndim != len(want) + 1 + host.input_has_time:
        lead = f"({program.timesteps}, N)" if host.input_has_time else "(N)"
        raise CompileError(f"input has shape {x.shape}, the program takes {lead} + {want}", loc)
    if not np.isfinite(x).all():
        raise CompileError("input holds a NaN or infinite value", loc)
    sequence = _encoded(program, x, first_sample)
    batch = program.batch
    padded = np.zeros((sequence.shape[0], batch, *sequence.shape[2:]), np.float32)
    padded[:, : sequence.shape[1]] = sequence
    maps = padded.reshape(*padded.shape[:2], *want, *(1,) * (3 - len(want)))
    tensor = program.tensors[program.input_index]
    last = maps.transpose(0, 1, 3, 4, 2)
    if tensor.format is Format.S1:
        if not np.isin(last, (0.0, 1.0)).all():
            raise CompileError("input is not binary, the program takes spikes", loc, hint="encode it first")
        return np.ascontiguousarray(last.astype(np.uint8))
    if np.abs(last).max(initial=0.0) >= 65520.0:
        raise CompileError("input overflows FP16 (largest 65504)", loc, hint="scale the input down")
    return np.ascontiguousarray(last.astype(np.float16))


def _encoded(program: Program, x: F32, first_sample: int) -> F32:
    """Shapes: (t, n, ...), t = 1 where the machine holds its input."""
    host, steps = program.host, program.timesteps
    if host.input_has_time:
        return x
    match host.encoding:
        case Encoding.BERNOULLI:
            return (bernoulli_draws(host.seed, steps, x.shape, first_sample) < x).astype(np.float32)
        case Encoding.LATENCY:
            step = np.arange(steps).reshape(-1, *(1,) * x.ndim)
            return np.asarray((step == np.round((1 - x) * (steps - 1))) & (x > 0), np.float32)
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
