"""`spikec run` of a training program: forward and backward passes over samples, without an update."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hwmodel.errors import CompileError, Loc
from hwmodel.program import Program
from runtime.host_loss import BatchTally
from runtime.session import engines_for
from runtime.timing.recorded_tiles import RecordedSession, Recorder
from spikec.commands.samples import HeldOut
from spikec.commands.talk import print_json, print_table, progress_bar
from spikec.report.analysis import analyse
from spikec.report.files import write_files

RECORDED_BATCHES = 8  # whose masks are timed; each keeps a few numbers for every instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The arguments of the command; html and trace are what the run costs, as a page and a timeline."""

    program: Path
    data: str
    samples: int
    use_golden: bool
    rates: bool
    html: Path | None = None
    trace: Path | None = None


def run_backward(program: Program, inputs: HeldOut, request: RunRequest, *, as_json: bool) -> int:
    """Print loss, accuracy, the sparsity of the backward pass and what these masks cost; the exit code.

    Raises: CompileError for samples without labels.
    """
    if inputs.labels is None:
        raise CompileError("has no labels, the backward pass begins at a loss", Loc(str(request.program)))
    start = time.perf_counter()
    recorder = Recorder(program)
    session = RecordedSession(program, engines_for(program, use_golden=request.use_golden), recorder=recorder)
    tally = _gradients(session, inputs)
    total = tally.samples
    seconds = time.perf_counter() - start
    cost = analyse(program, recorded=recorder.recorded)
    write_files(cost, (), "recorded in this run", html=request.html, trace=request.trace)
    sparsity = session.sparsity()
    if as_json:
        print_json(
            {
                "samples": total,
                "accuracy": tally.correct / total,
                "loss": tally.loss / total,
                "sparsity": [asdict(row) for row in sparsity],
                "cycles_per_sample": cost.cycles_per_sample,
                "energy_j_per_sample": cost.joules_per_sample,
                "instructions": program.instructions,
                "engine": "golden" if request.use_golden else "fast",
                "seconds": seconds,
            }
        )
        return 0
    rows = [
        ("samples", str(total)),
        ("accuracy", f"{tally.correct / total:.4f}"),
        ("loss", f"{tally.loss / total:.4f}"),
        ("cycles per sample of a training step, from these masks", f"{cost.cycles_per_sample:,.0f}"),
        ("energy per sample", f"{cost.joules_per_sample * 1e6:,.3g} uJ"),
    ]
    rows += [
        (f"zeros at {row.layer}: inputs, outputs", f"{row.input_sparsity:.2%}, {row.output_sparsity:.2%}")
        for row in sparsity
    ]
    print_table(
        f"{request.program} on {program.config.name}, forward and backward",
        [*rows, ("simulated in", f"{seconds:.2f} s")],
    )
    return 0


def _gradients(session: RecordedSession, inputs: HeldOut) -> BatchTally:
    """All samples forwards and backwards, batch by batch; the first batches are recorded."""
    program, labels = session.program, inputs.labels
    assert program.training is not None
    assert labels is not None
    size = program.batch * program.training.batch_group
    total, tally = len(labels), BatchTally()
    with progress_bar("running") as bar:
        for number, first in enumerate(range(0, total, size)):
            if number == RECORDED_BATCHES:
                session.stop_recording()
            part = slice(first, min(first + size, total))
            x = inputs.x[:, part] if program.host.input_has_time else inputs.x[part]
            found, _ = session.gradients(np.ascontiguousarray(x), labels[part])
            tally.loss += found.loss
            tally.correct += found.correct
            tally.samples += found.samples
            bar.samples(part.stop, total)
    return tally
