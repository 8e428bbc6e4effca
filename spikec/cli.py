"""The command line: one verb per thing that a user wants; results on stdout, talk on stderr."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hwmodel.errors import CompileError
from spikec.cli_attack import attack_command
from spikec.cli_certify import certify_command
from spikec.cli_exchange import export_network, import_network
from spikec.cli_options import DATA_HELP, ConfigOption, JsonOption, LossOption, ModelArgument, SeedOption
from spikec.cli_train import train_network
from spikec.commands.target import Target, check_target, given_options

app = typer.Typer(
    name="spikec",
    help="Hardware-software co-design compiler for spiking neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BAD_INPUT = 2


class Mode(StrEnum):
    """What to compile."""

    INFER = "infer"
    TRAIN = "train"


class Engine(StrEnum):
    """Which functional engines run the program."""

    FAST = "fast"
    GOLDEN = "golden"


@app.command()
def demo(
    json: JsonOption = False,
    seed: SeedOption = 0,
    golden_samples: Annotated[int, typer.Option(min=1, help="samples that the golden engine runs too")] = 8,
) -> None:
    """Train a network on digits, compile it, run it on the machine, compare with PyTorch."""
    from spikec.commands.demo import run_demo

    raise typer.Exit(run_demo(as_json=json, seed=seed, golden_samples=golden_samples))


@app.command("compile")
def compile_command(
    context: typer.Context,
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="program file, .h2l; cuda: a folder")],
    target: Annotated[Target, typer.Option(help="what to compile for")] = Target.H2LEARN,
    mode: Annotated[Mode, typer.Option(help="what to compile")] = Mode.INFER,
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, or the file's own")] = None,
    batch: Annotated[int | None, typer.Option(help="samples of a sub-batch; 4 in the preset; cuda: 32")] = None,
    arch: Annotated[str, typer.Option(help="cuda: sm_80, sm_90 and so on")] = "sm_80",
    config: ConfigOption = "h2learn",
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    print_after: Annotated[str, typer.Option(metavar="PASS", help="print the graph after a pass")] = "",
    seed: SeedOption = 0,
    loss: Annotated[LossOption, typer.Option(help="train: what the host computes")] = LossOption.CROSS_ENTROPY,
    loss_scale: Annotated[float, typer.Option(help="train: factor of the loss before FP16")] = 64.0,
    learning_rate: Annotated[float, typer.Option(help="train: of the update")] = 0.01,
    momentum: Annotated[float, typer.Option(help="train: of the update")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="train: of the update")] = 0.0,
    batch_group: Annotated[int, typer.Option(help="train: sub-batches between updates")] = 4,
    machines: Annotated[int, typer.Option(help="train: accelerators that share a batch")] = 1,
    master_weights: Annotated[bool, typer.Option("--master-weights", help="train: f32 weights on the host")] = False,
    fold_batch_norm: Annotated[bool, typer.Option("--fold-batch-norm", help="train: into the weights")] = False,
    balance: Annotated[str, typer.Option(metavar="DATA", help="train: order channels by the masks of samples")] = "",
    balance_samples: Annotated[int, typer.Option(min=1, help="train: how many of them")] = 32,
    json: JsonOption = False,
) -> None:
    """Compile a network to a program for the accelerator, or its fused training kernels to CUDA."""
    check_target(target, given_options(context))
    if target is Target.CUDA:
        from spikec.commands.compile_cuda import CudaRequest, run_compile_cuda

        cuda = CudaRequest(
            model=model,
            output=output,
            arch=arch,
            batch=32 if batch is None else batch,
            timesteps=timesteps,
            input_shape=input_shape,
            seed=seed,
        )
        raise typer.Exit(run_compile_cuda(cuda, as_json=json))
    from compiler.h2learn.emit_sgd import Descent
    from compiler.losses import Loss
    from spikec.commands.compile import CompileRequest, TrainingRequest, run_compile

    training = None
    if mode is Mode.TRAIN:
        descent = Descent(
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            loss_scale=loss_scale,
            batch_group=batch_group,
            machines=machines,
            master_weights=master_weights,
        )
        training = TrainingRequest(
            loss=Loss(loss.value),
            descent=descent,
            fold_batch_norm=fold_batch_norm,
            balance=balance,
            balance_samples=balance_samples,
        )

    request = CompileRequest(
        model=model,
        output=output,
        timesteps=timesteps,
        batch=batch,
        config=config,
        input_shape=input_shape,
        print_after=print_after,
        seed=seed,
        training=training,
    )
    raise typer.Exit(run_compile(request, as_json=json))


@app.command()
def run(
    program: Annotated[Path, typer.Argument(help="program file, .h2l")],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    samples: Annotated[int, typer.Option(help="how many test samples; 0 for all")] = 0,
    engine: Annotated[Engine, typer.Option(help="functional engines; both give the same bits")] = Engine.FAST,
    rates: Annotated[bool, typer.Option("--rates", help="measure each neuron layer's firing rate")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write what it costs as one page, .html")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="write a trace for the Perfetto UI, .json")] = None,
    json: JsonOption = False,
) -> None:
    """Execute a program on the simulated machine."""
    from spikec.commands.run import run_on_machine
    from spikec.commands.run_training import RunRequest

    request = RunRequest(
        program=program,
        data=data,
        samples=samples,
        use_golden=engine is Engine.GOLDEN,
        rates=rates,
        html=html,
        trace=trace,
    )
    raise typer.Exit(run_on_machine(request, as_json=json))


app.command("train")(train_network)
app.command("import")(import_network)
app.command("export")(export_network)
app.command("attack")(attack_command)
app.command("certify")(certify_command)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="FILE.spk or FILE.h2l")],
    full: Annotated[bool, typer.Option("--full", help="list every instruction")] = False,
    json: JsonOption = False,
) -> None:
    """Show a graph's text or a program's layers, tensors and instructions."""
    from spikec.commands.inspect import run_inspect

    raise typer.Exit(run_inspect(file, full=full, as_json=json))


@app.command()
def reproduce(
    item: Annotated[
        str, typer.Argument(help="a chapter (chapter-5), a table, a figure or one of its numbers; all by default")
    ] = "",
    config: ConfigOption = "h2learn",
    simulated: Annotated[
        bool, typer.Option(help="simulate training programs, measure fused training, and attack: several minutes")
    ] = True,
    networks: Annotated[
        str, typer.Option(metavar="MSE.spk,CE.spk", help="chapter 5: attack these, trained by the two losses")
    ] = "",
    data: Annotated[str, typer.Option(help="chapter 5: what these were trained on, for example mnist")] = "",
    per_class: Annotated[
        str, typer.Option(metavar="N,M", help="chapter 5: samples of a class, untargeted and targeted; 5,1")
    ] = "",
    figures: Annotated[Path | None, typer.Option(metavar="FOLDER", help="draw the figures, SVG")] = None,
    json: JsonOption = False,
) -> None:
    """Put every published number of the dissertation's chapters 3 to 6 beside ours, with what it rests on."""
    from spikec.commands.reproduce import ReproduceRequest, run_reproduce

    request = ReproduceRequest(
        item=item,
        config=config,
        simulated=simulated,
        networks=networks,
        data=data,
        per_class=per_class,
        figures=figures,
    )
    raise typer.Exit(run_reproduce(request, as_json=json))


@app.command()
def explore(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="results, .jsonl; an unfinished file goes on")],
    mode: Annotated[Mode, typer.Option(help="what the chip does with the network")] = Mode.TRAIN,
    space: Annotated[str, typer.Option(metavar="FILE.toml", help="a list of values at each field; has a default")] = "",
    points: Annotated[int, typer.Option(min=0, help="designs drawn from the space; 0 for all of it")] = 500,
    seed: SeedOption = 0,
    config: ConfigOption = "h2learn",
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, or the file's own")] = None,
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    batch_group: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="train: sub-batches of the base between updates; its own")
    ] = None,
    densities: Annotated[
        str, typer.Option(help="train: FILE.toml, dense or published:NAME; default: table 3.2 or dense")
    ] = "",
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; one a core")] = None,
    cluster: Annotated[str, typer.Option(metavar="ADDRESS", help="Dask scheduler, or local for one of its own")] = "",
    figure: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="draw the space and the front")] = None,
    json: JsonOption = False,
) -> None:
    """Explore designs for a network: the Pareto front of throughput, energy and area."""
    from hwmodel.estimate import Mode as EstimateMode
    from spikec.commands.explore import ExploreRequest, run_explore

    request = ExploreRequest(
        model=model,
        mode=EstimateMode(mode.value),
        space=space,
        points=points,
        seed=seed,
        config=config,
        timesteps=timesteps,
        input_shape=input_shape,
        batch_group=batch_group,
        densities=densities,
        output=output,
        jobs=jobs,
        cluster=cluster,
        figure=figure,
    )
    raise typer.Exit(run_explore(request, as_json=json))


@app.command()
def report(
    program: Annotated[
        str, typer.Argument(help="FILE.h2l, or a model: zoo:NAME, FILE.spk, FILE.onnx, FILE.nir, module:function")
    ],
    mode: Annotated[Mode | None, typer.Option(help="of a model; infer by default")] = None,
    timesteps: Annotated[int | None, typer.Option(help="of a model; 10, or the file's own")] = None,
    batch: Annotated[int | None, typer.Option(help="of a model: samples of a sub-batch; 4 in the preset")] = None,
    config: Annotated[str | None, typer.Option(help="of a model: preset name or FILE.toml; h2learn")] = None,
    densities: Annotated[
        str, typer.Option(help="train: FILE.toml, dense or published:NAME; default: table 3.2 or dense")
    ] = "",
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="write a page")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write a trace for ui.perfetto.dev")] = None,
    what_if: Annotated[bool, typer.Option(help="simulate what one change would buy")] = True,
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Show where time, energy and area of a program go, and what would change them."""
    from spikec.commands.report import ReportRequest, run_report
    from spikec.report.source import Source

    source = Source(
        name=program,
        mode=mode.value if mode is not None else None,
        timesteps=timesteps,
        batch=batch,
        config=config,
        densities=densities,
        input_shape=input_shape,
        seed=seed,
    )
    raise typer.Exit(run_report(ReportRequest(source=source, html=html, trace=trace, changes=what_if), as_json=json))


def main() -> None:
    """The console script: a fault of the user's is two lines on stderr and exit code 2."""
    try:
        app()
    except CompileError as fault:
        print(fault, file=sys.stderr)
        sys.exit(BAD_INPUT)
    except OSError as fault:  # a name that the file system does not take, wherever it is first looked at
        if fault.filename is None:
            raise
        print(f"{fault.filename}: error: {fault.strerror}", file=sys.stderr)
        sys.exit(BAD_INPUT)
