"""`spikec compile`: a model becomes a program file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compiler.h2learn.compile import PASSES, Compiled, compile_inference
from compiler.h2learn.compile_training import PASSES as TRAINING_PASSES
from compiler.h2learn.compile_training import CompiledTraining, compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import Graph
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm
from compiler.passes.driver import pass_name
from hwmodel.config import H2LearnConfig, load_config
from hwmodel.errors import CompileError, Loc
from hwmodel.program import Phase
from hwmodel.program_file import save_program
from runtime.timing.step import StepCost, step_cost
from spikec.commands.balance import balanced_graph
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.models import load_model

SUFFIX = ".h2l"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRequest:
    """What a training program needs beside."""

    loss: Loss
    descent: Descent
    fold_batch_norm: bool
    balance: str = ""  # data whose masks order the channels
    balance_samples: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRequest:
    """The command's arguments."""

    model: str
    output: Path
    timesteps: int | None
    batch: int | None
    config: str
    input_shape: str
    print_after: str
    seed: int
    training: TrainingRequest | None = None


def run_compile(request: CompileRequest, *, as_json: bool) -> int:
    """Compile and save; the exit code."""
    start = time.perf_counter()
    _check_options(request)
    config = load_config(request.config)
    with progress_bar("importing") as bar:
        model = load_model(
            request.model,
            timesteps=request.timesteps,
            seed=request.seed,
            input_shape=request.input_shape,
            progress=bar.training,
        )
        compiled = _compiled(request, model.graph, config)
        if request.training is not None and request.training.balance:
            compiled = _balanced(request, request.training, model.graph, compiled, bar.samples)
    save_program(compiled.program, request.output)
    program, cost = compiled.program, step_cost(compiled.program)
    counts = {str(phase): sum(map(len, streams.values())) for phase, streams in program.phases.items()}
    result: dict[str, Json] = {
        "program": str(request.output),
        "layers": len(program.layers),
        "instructions": program.instructions,
        "instructions_by_phase": counts,
        "timesteps": program.timesteps,
        "batch": program.batch,
        "latency_cycles": forward_cycles(cost),
        "cycles_per_sample": cost.cycles_per_sample,
        "latency_us": forward_cycles(cost) / config.clock_ghz / 1000,
        "weights": compiled.weights,
        "weights_flushed_to_zero": compiled.flushed_weights,
        "file_bytes": request.output.stat().st_size,
        "pass_seconds": {report.name: report.seconds for report in compiled.passes},
        "seconds": time.perf_counter() - start,
    }
    if as_json:
        print_json(result)
    else:
        _show(f"{request.model} on {config.name}", compiled, cost, str(request.output), time.perf_counter() - start)
    return 0


def _balanced(
    request: CompileRequest,
    training: TrainingRequest,
    graph: Graph,
    compiled: Compiled | CompiledTraining,
    progress: Callable[[int, int], None],
) -> Compiled | CompiledTraining:
    """Compiled again with the channels in the order that the first program's masks ask for."""
    program = compiled.program
    folded = FoldBatchNorm()(graph) if training.fold_batch_norm else graph
    ordered = balanced_graph(folded, program, training.balance, training.balance_samples, progress)
    return _compiled(request, ordered, program.config)


def _compiled(request: CompileRequest, graph: Graph, config: H2LearnConfig) -> Compiled | CompiledTraining:
    training = request.training
    if training is None:
        return compile_inference(graph, config, batch=request.batch, print_after=request.print_after, show=_talk)
    return compile_training(
        FoldBatchNorm()(graph) if training.fold_batch_norm else graph,
        config,
        loss=training.loss,
        descent=training.descent,
        batch=request.batch,
        print_after=request.print_after,
        show=_talk,
    )


def forward_cycles(cost: StepCost) -> float:
    """Cycles of a sub-batch forwards."""
    return next(timing.elapsed_cycles for phase, timing in cost.phases.items() if phase in (Phase.RUN, Phase.FORWARD))


def _show(title: str, compiled: Compiled | CompiledTraining, cost: StepCost, output: str, seconds: float) -> None:
    program, cycles = compiled.program, forward_cycles(cost)
    is_inference = program.training is None
    what = "latency of a sub-batch" if is_inference else "forward pass of a sub-batch"
    per_sample = "cycles per sample" if is_inference else "cycles per sample of a training step, dense gradients"
    print_table(
        title,
        [
            ("program", output),
            ("layers", str(len(program.layers))),
            ("instructions", f"{program.instructions:,}"),
            ("time steps, samples of a sub-batch", f"{program.timesteps}, {program.batch}"),
            (what, f"{cycles:,.0f} cycles ({cycles / program.config.clock_ghz / 1000:,.1f} us)"),
            (per_sample, f"{cost.cycles_per_sample:,.0f}"),
            ("weights, flushed to zero in FP16", f"{compiled.weights:,}, {compiled.flushed_weights:,}"),
            ("compiled in", f"{seconds:.1f} s"),
        ],
    )


def _check_options(request: CompileRequest) -> None:
    """Refuse what can be told before the model is loaded, which may train it."""
    output, loc = request.output, Loc(str(request.output))
    if output.suffix != SUFFIX:
        raise CompileError(f"a program's file must end in {SUFFIX}", loc, hint="for example -o net.h2l")
    if output.is_dir():
        raise CompileError("is a folder, not a file", loc, hint="name a file inside it")
    if not output.parent.is_dir():
        raise CompileError(f"the folder {output.parent} does not exist", loc, hint="create it first")
    if request.batch is not None and request.batch < 1:
        raise CompileError(f"batch is {request.batch}, must be at least 1", Loc(request.model))
    passes = [pass_name(step) for step in (PASSES if request.training is None else TRAINING_PASSES)]
    if request.print_after and request.print_after not in passes:
        place = Loc(f"--print-after {request.print_after}")
        raise CompileError("is no pass of this target", place, hint=f"passes: {', '.join(passes)}")


def _talk(text: str) -> None:
    print(text, file=sys.stderr)
