"""What a report is about: a program from a file, or a model compiled for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.h2learn.compile import compile_inference
from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.ir import Graph
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm
from hwmodel.checker import check
from hwmodel.config import H2LearnConfig, load_config
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Queue
from hwmodel.program import Phase, Program, Streams
from hwmodel.program_file import load_program
from spikec.explore.densities import DENSE, by_number, default_densities, load_densities
from spikec.models import load_model
from spikec.report.whatif import Masks

SUFFIX = ".h2l"
DEFAULT_CONFIG = "h2learn"
INFER, TRAIN = "infer", "train"
_MOMENTUM, _LOSS_SCALE = 0.9, 64.0  # as `spikec compile`


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The command's arguments that say what to report on; None or "" where not given."""

    name: str
    mode: str | None = None
    timesteps: int | None = None
    batch: int | None = None
    config: str | None = None
    densities: str = ""
    input_shape: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checked program, and what is known of the zeros of its backward pass."""

    program: Program
    masks: Masks
    densities: str  # where that comes from; "" for inference


def load_subject(source: Source, stage: Callable[[str], None] = lambda _title: None) -> Subject:
    """The program of a file or a model; a model's batch normalisation is folded, as an inference always does.

    Raises: CompileError for what is neither, cannot be compiled, or options that a program file has settled.
    """
    is_file = source.name.endswith(SUFFIX)
    if is_file:
        _refuse_settled(source)
        stage("loading")
        program = load_program(Path(source.name))
        check(program)
        _check_mode(source, program)
    else:
        stage("importing")
        if source.batch is not None and source.batch < 1:
            raise CompileError(f"batch is {source.batch}, must be at least 1", Loc(source.name))
        config = load_config(source.config or DEFAULT_CONFIG)
        model = load_model(
            source.name, timesteps=source.timesteps, seed=source.seed, input_shape=source.input_shape
        )  # fmt: skip
        stage("compiling")
        program = _compiled(source, model.graph, config)
    program = _in_order(program)
    if program.training is None:
        if source.densities:
            raise CompileError("an inference has no backward pass", _loc(source), hint="leave it out, or --mode train")
        return Subject(program=program, masks=Masks(None), densities="")
    text = source.densities or (DENSE if is_file else default_densities(source.name))
    found = load_densities(text, program.layers)
    masks = Masks(None if found is None else by_number(found, program.layers), source.seed)
    return Subject(program=program, masks=masks, densities=text)


def _in_order(program: Program) -> Program:
    """With the queues of each phase in their own order, which decides between events at the same time."""
    training = program.training
    if training is None:
        return replace(program, streams=_sorted(program.streams))
    phases = {phase: _sorted(training.phases[phase]) for phase in Phase if phase in training.phases}
    return replace(program, training=replace(training, phases=phases))


def _sorted(streams: Streams) -> Streams:
    return {queue: streams[queue] for queue in Queue if queue in streams}


def _compiled(source: Source, graph: Graph, config: H2LearnConfig) -> Program:
    if source.mode != TRAIN:
        return compile_inference(graph, config, batch=source.batch).program
    descent = Descent(
        momentum=_MOMENTUM, loss_scale=_LOSS_SCALE, batch_group=config.timing.batch_group
    )  # fmt: skip
    folded = FoldBatchNorm()(graph)
    return compile_training(folded, config, loss=Loss.CROSS_ENTROPY, descent=descent, batch=source.batch).program


def _refuse_settled(source: Source) -> None:
    """What a program file was compiled with cannot be chosen again."""
    given = {
        "--timesteps": source.timesteps,
        "--batch": source.batch,
        "--config": source.config,
        "--input-shape": source.input_shape or None,
    }
    settled = [name for name, value in given.items() if value is not None]
    if settled:
        raise CompileError(
            f"{' and '.join(settled)} cannot be changed in a program",
            Loc(source.name),
            hint="report on the model instead",
        )


def _check_mode(source: Source, program: Program) -> None:
    mode = INFER if program.training is None else TRAIN
    if source.mode not in (None, mode):
        what = "an inference" if mode == INFER else "a training program"
        raise CompileError(f"is {what}", Loc(source.name), hint=f"leave --mode out, or --mode {mode}")


def _loc(source: Source) -> Loc:
    return Loc(f"--densities {source.densities}")
