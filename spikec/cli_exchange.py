"""The commands that take networks from other programs and give them back: `spikec import` and `spikec export`."""

from __future__ import annotations

from collections.abc import Set
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hwmodel.errors import CompileError, Loc
from spikec.cli_options import JsonOption, ModelArgument, SeedOption
from spikec.commands.target import given_options

_ANN_ONLY = {"percentile", "samples", "figure"}
_ANN = {"model", "output", "timesteps", "seed", "ann", "json"} | _ANN_ONLY


class ResetOption(StrEnum):
    """What a spike does to the membrane potential."""

    HARD = "hard"
    SOFT = "soft"
    NONE = "none"


class CompareOption(StrEnum):
    """Whether a membrane potential equal to the threshold fires."""

    GE = "ge"
    GT = "gt"


class WriterOption(StrEnum):
    """Which program wrote a NIR file."""

    SPIKEC = "spikec"
    SPIKINGJELLY = "spikingjelly"
    SNNTORCH = "snntorch"
    NORSE = "norse"
    SINABS = "sinabs"
    OTHER = "other"


def import_network(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="FILE.onnx, FILE.nir, FILE.spk or module:function")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="network, .spk; only told of without")] = None,
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, or the file's own")] = None,
    input_shape: Annotated[
        str, typer.Option(help="for module:function, and NIR files that do not say it: 3x32x32")
    ] = "",
    take: Annotated[
        str, typer.Option(metavar="OUTPUT", help="which output: of a module its number, of an ONNX file its name")
    ] = "",
    repeat_input: Annotated[
        bool, typer.Option("--repeat-input", help="module:function of one step: the same image at each step")
    ] = False,
    dt: Annotated[float | None, typer.Option(metavar="SECONDS", help="NIR: of a time step; the writer's own")] = None,
    writer: Annotated[WriterOption | None, typer.Option(help="NIR: which program wrote it; guessed")] = None,
    reset: Annotated[ResetOption | None, typer.Option(help="NIR: kind of reset; the writer's default")] = None,
    reset_delay: Annotated[
        bool | None, typer.Option("--reset-delay/--no-reset-delay", help="NIR: a soft reset acts one step later")
    ] = None,
    compare: Annotated[CompareOption | None, typer.Option(help="NIR: fire at the threshold; as the writer")] = None,
    norm_input: Annotated[
        bool | None, typer.Option("--norm-input/--no-norm-input", help="NIR of sinabs: scales inputs by 1 - decay")
    ] = None,
    seed: SeedOption = 0,
    ann: Annotated[
        str, typer.Option(metavar="DATA", help="the model is a trained network with ReLU; balance it on DATA")
    ] = "",
    percentile: Annotated[float | None, typer.Option(help="ann: of activations, that becomes a threshold")] = None,
    samples: Annotated[int, typer.Option(min=0, help="ann: training samples that balance it; 0 for all")] = 1000,
    figure: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="ann: draw accuracy over time")] = None,
    json: JsonOption = False,
) -> None:
    """Import a network of another program: what was read, what was assumed, and what is refused."""
    check_import_options(given_options(context), is_ann=bool(ann))
    if ann:
        from frontends.ann import PERCENTILE
        from spikec.commands.convert_ann import ConvertRequest, run_convert_ann

        conversion = ConvertRequest(
            model=model,
            data=ann,
            output=output,
            timesteps=timesteps,
            percentile=PERCENTILE if percentile is None else percentile,
            samples=samples,
            seed=seed,
            figure=figure,
        )
        raise typer.Exit(run_convert_ann(conversion, as_json=json))
    from compiler.ir import Compare, Reset
    from spikec.commands.import_ import ImportRequest, run_import
    from spikec.models import StepOptions
    from spikec.network_files import NirOptions

    request = ImportRequest(
        model=model,
        output=output,
        timesteps=timesteps,
        input_shape=input_shape,
        seed=seed,
        nir=NirOptions(
            writer=writer.value if writer is not None else None,
            dt=dt,
            reset=Reset(reset.value) if reset is not None else None,
            compare=Compare(compare.value) if compare is not None else None,
            reset_delay=reset_delay,
            norm_input=norm_input,
        ),
        steps=StepOptions(output=take, repeat_input=repeat_input),
    )
    raise typer.Exit(run_import(request, as_json=json))


def export_network(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="network, .onnx or .nir")],
    dt: Annotated[float | None, typer.Option(metavar="SECONDS", help="NIR: of a time step; 0.0001")] = None,
    fold_batch_norm: Annotated[bool, typer.Option("--fold-batch-norm", help="into the weights, first")] = False,
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, or the file's own")] = None,
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Write a network as ONNX or NIR, and say what other readers of the file will not see."""
    from spikec.commands.export import ExportRequest, run_export

    request = ExportRequest(
        model=model,
        output=output,
        timesteps=timesteps,
        input_shape=input_shape,
        seed=seed,
        dt=dt,
        fold_batch_norm=fold_batch_norm,
    )
    raise typer.Exit(run_export(request, as_json=json))


def check_import_options(given: Set[str], *, is_ann: bool) -> None:
    """Refuse options that mean nothing with, or without, `--ann`.

    Raises: CompileError naming each of them.
    """
    foreign = given - _ANN if is_ann else given & _ANN_ONLY
    if foreign:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        raise CompileError(f"meaningless {'with' if is_ann else 'without'} --ann", Loc(options), hint="leave out")
