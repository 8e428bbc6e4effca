"""The command that certifies networks: `spikec certify`."""

from __future__ import annotations

import math
from collections.abc import Set
from pathlib import Path
from typing import Annotated

import typer

from hwmodel.errors import CompileError, Loc
from spikec.cli_options import DATA_HELP, JsonOption
from spikec.commands.target import given_options

_CHECK = {"model", "data", "check", "json"}


def certify_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="zoo:NAME, zoo:NAME@DATA, FILE.spk, FILE.onnx, FILE.nir or module:function")
    ] = "",
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "",
    near: Annotated[
        str,
        typer.Option(
            "--set",
            metavar="SPEC",
            help="inputs that count as near: l0:k=3[,insert|delete][,per-step], linf:eps=0.02, linf:width=0.04, "
            "box:share=0.05[,seed=0], retime:moved=2",
        ),
    ] = "",
    samples: Annotated[int, typer.Option(help="how many test samples")] = 50,
    first: Annotated[int, typer.Option(help="the first of them")] = 0,
    methods: Annotated[str, typer.Option(help="some of ibp,search,hull,backward,slopes,exact; all unless given")] = "",
    quantise: Annotated[
        int | None, typer.Option(metavar="BITS", help="round all numbers to so many bits behind the point first")
    ] = None,
    decay_bits: Annotated[int, typer.Option(help="with --quantise: bits behind the point of decays")] = 2,
    seconds: Annotated[
        float | None, typer.Option(help="of a sample's bounds and exact verdict; past them it is UNKNOWN")
    ] = None,
    work: Annotated[
        float, typer.Option(help="CP-SAT's deterministic time of a sample: the same verdicts on every machine")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="seed of the search's draws")] = 0,
    model_seed: Annotated[int, typer.Option(help="seed of initial weights, training and encodings")] = 0,
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, or the file's own")] = None,
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="results, .jsonl; an unfinished file goes on")
    ] = None,
    certificates: Annotated[bool, typer.Option(help="keep in the results what --check proves verdicts by")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 1,
    cluster: Annotated[str, typer.Option(metavar="ADDRESS", help="Dask scheduler, or local for one of its own")] = "",
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="check all verdicts of a results file instead")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Decide whether any input near a sample is told wrongly: ROBUST is proved, a COUNTEREXAMPLE is shown.

    With --check, MODEL and --data take the place of those that the file names.
    """
    check_certify_options(given_options(context), is_check=check is not None)
    if check is not None:
        from spikec.commands.certify_check import CheckRequest, run_check

        raise typer.Exit(run_check(CheckRequest(file=check, model=model, data=data), as_json=json))
    from compiler.certify.cascade import Cascade
    from spikec.attack.results import Source
    from spikec.certify.cases import Choice
    from spikec.certify.results import Quantisation
    from spikec.commands.certify import CertifyRequest, methods_named, run_certify_command

    cascade = Cascade(
        methods=methods_named(methods), seconds=math.inf if seconds is None else seconds, work=work, seed=seed
    )
    request = CertifyRequest(
        source=Source(model=model, timesteps=timesteps, input_shape=input_shape, model_seed=model_seed, data=data),
        choice=Choice(samples=samples, first=first),
        quantisation=Quantisation(fraction_bits=quantise, decay_bits=decay_bits),
        spec=near,
        cascade=cascade,
        output=output,
        certificates=certificates,
        jobs=jobs,
        cluster=cluster,
    )
    raise typer.Exit(run_certify_command(request, as_json=json))


def check_certify_options(given: Set[str], *, is_check: bool) -> None:
    """Refuse options that mean nothing with a check, and a certification without model, data or set.

    Raises: CompileError naming each of them.
    """
    if is_check:
        foreign = given - _CHECK
        if foreign:
            options = ", ".join(f"--{'set' if name == 'near' else name.replace('_', '-')}" for name in sorted(foreign))
            raise CompileError("meaningless with --check", Loc(options), hint="the file says what was certified")
        return
    for name, place in (("model", "MODEL"), ("data", "--data"), ("near", "--set")):
        if name not in given:
            raise CompileError(
                "is missing",
                Loc(place),
                hint="such as: spikec certify zoo:digits-conv@digits --data digits --set linf:eps=0.01",
            )
    if "decay_bits" in given and "quantise" not in given:
        raise CompileError("is given without --quantise", Loc("--decay-bits"), hint="nothing is rounded without it")
