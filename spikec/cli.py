"""The command line: one verb per thing that a user wants; results on stdout, talk on stderr."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hwmodel.errors import CompileError

app = typer.Typer(
    name="spikec",
    help="Hardware-software co-design compiler for spiking neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BAD_INPUT = 2

ModelArgument = Annotated[str, typer.Argument(help="zoo:NAME, zoo:NAME@DATA, FILE.spk or module:function")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]
SeedOption = Annotated[int, typer.Option(help="seed of initial weights, training and encodings")]
ConfigOption = Annotated[str, typer.Option(help="preset name or FILE.toml")]


class Target(StrEnum):
    """What to compile for."""

    H2LEARN = "h2learn"


class Mode(StrEnum):
    """What to compile."""

    INFER = "infer"


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
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="program file, .h2l")],
    target: Annotated[Target, typer.Option(help="what to compile for")] = Target.H2LEARN,
    mode: Annotated[Mode, typer.Option(help="what to compile")] = Mode.INFER,
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, or the file's own")] = None,
    batch: Annotated[int | None, typer.Option(help="samples of a sub-batch; 4 in the preset")] = None,
    config: ConfigOption = "h2learn",
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    print_after: Annotated[str, typer.Option(metavar="PASS", help="print the graph after a pass")] = "",
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Compile a network to a program for the accelerator."""
    from spikec.commands.compile import CompileRequest, run_compile

    request = CompileRequest(
        model=model,
        output=output,
        timesteps=timesteps,
        batch=batch,
        config=config,
        input_shape=input_shape,
        print_after=print_after,
        seed=seed,
    )
    assert (target, mode) == (Target.H2LEARN, Mode.INFER)
    raise typer.Exit(run_compile(request, as_json=json))


@app.command()
def run(
    program: Annotated[Path, typer.Argument(help="program file, .h2l")],
    data: Annotated[str, typer.Option(help="digits, mnist5k, mnist, fashion, FILE.npz or synthetic:SHAPE")],
    samples: Annotated[int, typer.Option(help="how many test samples; 0 for all")] = 0,
    engine: Annotated[Engine, typer.Option(help="functional engines; both give the same bits")] = Engine.FAST,
    rates: Annotated[bool, typer.Option("--rates", help="measure each neuron layer's firing rate")] = False,
    json: JsonOption = False,
) -> None:
    """Execute a program on the simulated machine."""
    from spikec.commands.run import run_on_machine

    raise typer.Exit(
        run_on_machine(program, data, samples=samples, use_golden=engine is Engine.GOLDEN, rates=rates, as_json=json)
    )


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="FILE.spk or FILE.h2l")],
    full: Annotated[bool, typer.Option("--full", help="list every instruction")] = False,
    json: JsonOption = False,
) -> None:
    """Show a graph's text or a program's layers, tensors and instructions."""
    from spikec.commands.inspect import run_inspect

    raise typer.Exit(run_inspect(file, full=full, as_json=json))


def main() -> None:
    """The console script: a fault of the user's is two lines on stderr and exit code 2."""
    try:
        app()
    except CompileError as fault:
        print(fault, file=sys.stderr)
        sys.exit(BAD_INPUT)
