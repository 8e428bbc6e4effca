"""`spikec run`: a program file is executed on the simulated machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from hwmodel.checker import check
from hwmodel.program import Program
from hwmodel.program_file import load_program
from runtime.session import RunResult, engines_for, firing_rates, run_program
from spikec.commands.run_training import RunRequest, run_backward
from spikec.commands.samples import HeldOut, held_out
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.report.analysis import Analysis, analyse
from spikec.report.files import check_outputs, write_files


def run_on_machine(request: RunRequest, *, as_json: bool) -> int:
    """Check the program, execute it on test samples, print what came out and what it costs; the exit code.

    Raises: CompileError for files that cannot be read or written.
    """
    check_outputs(request.html, request.trace)
    program = load_program(request.program)
    check(program)
    inputs = held_out(request.data, request.samples)
    if program.training is not None:
        return run_backward(program, inputs, request, as_json=as_json)
    engines = engines_for(program, use_golden=request.use_golden)
    with progress_bar("running") as bar:
        result = run_program(program, inputs.x, engines, trace=request.rates, progress=bar.samples)
    cost = analyse(program)
    write_files(cost, (), "not needed forwards", html=request.html, trace=request.trace)
    report = _report(program, request, inputs, result, cost)
    if as_json:
        print_json(report)
    else:
        print_table(f"{request.program} on {program.config.name}", _rows(report))
    return 0


def _report(
    program: Program, request: RunRequest, inputs: HeldOut, result: RunResult, cost: Analysis
) -> dict[str, Json]:
    scores = result.outputs if program.host.readout != "none" else result.outputs.mean(0)
    predictions = scores.reshape(len(scores), -1).argmax(1)
    report: dict[str, Json] = {
        "samples": len(predictions),
        "accuracy": None if inputs.labels is None else float(np.mean(predictions == inputs.labels)),
        "predictions": predictions.tolist(),
        "instructions": program.instructions,
        "latency_cycles": cost.cycles,
        "cycles_per_sample": cost.cycles_per_sample,
        "energy_j_per_sample": cost.joules_per_sample,
        "engine": "golden" if request.use_golden else "fast",
        "seconds": result.seconds,
    }
    if result.traces is not None:
        report["firing_rates"] = firing_rates(result.traces)
    return report


def _rows(report: Mapping[str, Json]) -> list[tuple[str, str]]:
    accuracy, predictions, rates = report["accuracy"], report["predictions"], report.get("firing_rates", {})
    assert isinstance(predictions, list)
    assert isinstance(rates, dict)
    return [
        ("samples", str(report["samples"])),
        ("accuracy", "no labels" if accuracy is None else f"{accuracy:.4f}"),
        ("predictions of the first samples", " ".join(map(str, predictions[:10]))),
        ("cycles per sample", f"{report['cycles_per_sample']:,.0f}"),
        ("energy per sample", f"{cast(float, report['energy_j_per_sample']) * 1e6:,.3g} uJ"),
        ("simulated in", f"{report['seconds']:.2f} s"),
        *((f"firing rate of {name}", f"{rate:.3f}") for name, rate in rates.items()),
    ]
