"""`spikec run` of a training program: forward and backward passes over samples, without an update."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np

from hwmodel.errors import CompileError, Loc
from hwmodel.program import Program
from runtime.host_loss import BatchTally
from runtime.session import engines_for
from runtime.timing.recorded_tiles import RecordedSession, Recorder
from runtime.timing.step import step_cost
from spikec.commands.samples import HeldOut
from spikec.commands.talk import print_json, print_table, progress_bar

RECORDED_BATCHES = 8  # whose masks are timed; each keeps a few numbers for every instruction


def run_backward(program: Program, inputs: HeldOut, title: str, *, use_golden: bool, as_json: bool) -> int:
    """Print loss, accuracy and the sparsity of the backward pass; the exit code.

    Raises: CompileError for samples without labels.
    """
    if inputs.labels is None:
        raise CompileError("has no labels, the backward pass begins at a loss", Loc(title))
    start = time.perf_counter()
    recorder = Recorder(program)
    session = RecordedSession(program, engines_for(program, use_golden=use_golden), recorder=recorder)
    assert program.training is not None
    size = program.batch * program.training.batch_group
    total, tally = len(inputs.labels), BatchTally()
    with progress_bar("running") as bar:
        for number, first in enumerate(range(0, total, size)):
            if number == RECORDED_BATCHES:
                session.stop_recording()
            part = slice(first, min(first + size, total))
            x = inputs.x[:, part] if program.host.input_has_time else inputs.x[part]
            found, _ = session.gradients(np.ascontiguousarray(x), inputs.labels[part])
            tally.loss += found.loss
            tally.correct += found.correct
            tally.samples += found.samples
            bar.samples(part.stop, total)
    seconds = time.perf_counter() - start
    cost = step_cost(program, recorder.recorded)
    if as_json:
        print_json(
            {
                "samples": total,
                "accuracy": tally.correct / total,
                "loss": tally.loss / total,
                "sparsity": [asdict(row) for row in session.sparsity()],
                "cycles_per_sample": cost.cycles_per_sample,
                "energy_j_per_sample": cost.joules_per_sample,
                "instructions": program.instructions,
                "engine": "golden" if use_golden else "fast",
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
        for row in session.sparsity()
    ]
    print_table(
        f"{title} on {program.config.name}, forward and backward", [*rows, ("simulated in", f"{seconds:.2f} s")]
    )
    return 0
