"""Runs a program over many samples, sub-batch by sub-batch, and gathers what came out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwmodel.program import Program
from runtime.engines import Engines, fast, golden
from runtime.host import F32, check_inputs, encode_inputs, read_out
from runtime.machine import Machine
from runtime.traces import Traces


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Outputs in f32, and traces joined along the sample axis where they were asked for.

    Shapes: outputs (N, ...), with T in front where the network has no readout over time.
    """

    outputs: F32
    traces: Traces | None
    seconds: float


def engines_for(program: Program, *, use_golden: bool = False) -> Engines:
    """Functional engines with the array sizes of the program's configuration."""
    make = golden if use_golden else fast
    config = program.config
    return make(config.forward.rows, config.backward.rows, config.weight_update.rows)


def run_program(
    program: Program,
    x: F32,
    engines: Engines | None = None,
    *,
    trace: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RunResult:
    """Execute a program on any number of samples, on fast engines unless others are given.

    The memories take turns: each sub-batch starts from the same constants, so its result does not depend on
    the ones before. progress is told samples done and samples in all.

    Shapes: x (N, ...) or (T, N, ...) as the program's input says.
    Raises: CompileError for inputs that do not fit, and where a value leaves FP16.
    """
    start = time.perf_counter()
    check_inputs(program, x)
    axis = 1 if program.host.input_has_time else 0
    total = x.shape[axis]
    outputs: list[F32] = []
    kept: list[Traces] = []
    machine = Machine(program, engines if engines is not None else engines_for(program))
    for first in range(0, total, program.batch):
        part = x[:, first : first + program.batch] if axis else x[first : first + program.batch]
        size = part.shape[axis]
        traces = Traces.for_program(program) if trace else None
        output = machine.run(encode_inputs(program, part, first), traces)
        outputs.append(read_out(program, output, size))
        if traces is not None:
            kept.append(traces.of_samples(size))
        if progress is not None:
            progress(first + size, total)
    joined = np.concatenate(outputs, axis=1 if program.host.readout == "none" else 0)
    seconds = time.perf_counter() - start
    return RunResult(outputs=joined, traces=Traces.joined(kept) if trace else None, seconds=seconds)


def firing_rates(traces: Traces) -> dict[str, float]:
    """Spikes per neuron and step of each traced neuron node."""
    rates: dict[str, float] = {}
    for name, spikes in traces.spikes.items():
        computed: npt.NDArray[np.bool_] = spikes <= 1
        rates[name] = float(spikes[computed].mean()) if computed.any() else 0.0
    return rates
