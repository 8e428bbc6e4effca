"""`spikec run`: a program file is executed on the simulated machine."""

from __future__ import annotations

import numpy as np

from hwmodel.checker import check
from hwmodel.program_file import load_program
from runtime.session import engines_for, firing_rates, run_program
from spikec.commands.run_training import RunRequest, run_backward
from spikec.commands.samples import held_out
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.report.analysis import analyse
from spikec.report.files import check_outputs, write_files


def run_on_machine(request: RunRequest, *, as_json: bool) -> int:
    """Check the program, execute it on test samples, print what came out and what it costs; the exit code.

    Raises: CompileError for files that cannot be read or written.
    """
    path, use_golden, rates = request.program, request.use_golden, request.rates
    check_outputs(request.html, request.trace)
    program = load_program(path)
    check(program)
    inputs = held_out(request.data, request.samples)
    if program.training is not None:
        return run_backward(program, inputs, request, as_json=as_json)
    engines = engines_for(program, use_golden=use_golden)
    with progress_bar("running") as bar:
        result = run_program(program, inputs.x, engines, trace=rates, progress=bar.samples)
    cost = analyse(program)
    write_files(cost, (), "not needed forwards", html=request.html, trace=request.trace)
    scores = result.outputs if program.host.readout != "none" else result.outputs.mean(0)
    predictions = scores.reshape(len(scores), -1).argmax(1)
    accuracy = None if inputs.labels is None else float(np.mean(predictions == inputs.labels))
    measured = firing_rates(result.traces) if result.traces is not None else {}
    if as_json:
        report: dict[str, Json] = {
            "samples": len(predictions),
            "accuracy": accuracy,
            "predictions": predictions.tolist(),
            "instructions": program.instructions,
            "latency_cycles": cost.cycles,
            "cycles_per_sample": cost.cycles_per_sample,
            "energy_j_per_sample": cost.joules_per_sample,
            "engine": "golden" if use_golden else "fast",
            "seconds": result.seconds,
        }
        if rates:
            report["firing_rates"] = measured
        print_json(report)
        return 0
    rows = [
        ("samples", str(len(predictions))),
        ("accuracy", "no labels" if accuracy is None else f"{accuracy:.4f}"),
        ("predictions of the first samples", " ".join(map(str, predictions[:10]))),
        ("cycles per sample", f"{cost.cycles_per_sample:,.0f}"),
        ("energy per sample", f"{cost.joules_per_sample * 1e6:,.3g} uJ"),
        ("simulated in", f"{result.seconds:.2f} s"),
    ]
    rows += [(f"firing rate of {name}", f"{rate:.3f}") for name, rate in measured.items()]
    print_table(f"{path} on {program.config.name}", rows)
    return 0
