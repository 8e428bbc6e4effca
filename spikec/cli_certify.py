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
_FLIPS = {"near", "methods", "certificates", "check", "work"}  # what means nothing with --least-flips
_SECONDS_OF_FLIPS = 30.0


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
    least_flips: Annotated[
        bool,
        typer.Option(
            "--least-flips",
            help="instead of --set: how many flipped spikes each sample stands, by bounds, exactly, and under attack; "
            f"--seconds of each: {_SECONDS_OF_FLIPS:g} unless given",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Decide whether any input near a sample is told wrongly: ROBUST is proved, a COUNTEREXAMPLE is shown.

    With --check, MODEL and --data take the place of those that the file names.
    """
    check_certify_options(given_options(context), is_check=check is not None, is_flips=least_flips)
    if check is not None:
        from spikec.commands.certify_check import CheckRequest, run_check

        raise typer.Exit(run_check(CheckRequest(file=check, model=model, data=data), as_json=json))
    from compiler.certify.cascade import Cascade
    from spikec.attack.results import Source
    from spikec.certify.cases import Choice
    from spikec.certify.results import Quantisation

    source = Source(model=model, timesteps=timesteps, input_shape=input_shape, model_seed=model_seed, data=data)
    choice, quantisation = (
        Choice(samples=samples, first=first),
        Quantisation(fraction_bits=quantise, decay_bits=decay_bits),
    )
    if least_flips:
        from compiler.certify.exact import Effort
        from spikec.commands.certify_flips import FlipsRequest, run_flips_command
        from spikec.workers import Workers

        flips_request = FlipsRequest(
            source=source,
            choice=choice,
            quantisation=quantisation,
            effort=Effort(seconds=_SECONDS_OF_FLIPS if seconds is None else seconds),
            seed=seed,
            output=output,
            workers=Workers(jobs=jobs, cluster=cluster),
        )
        raise typer.Exit(run_flips_command(flips_request, as_json=json))
    from spikec.commands.certify import CertifyRequest, methods_named, run_certify_command

    cascade = Cascade(
        methods=methods_named(methods), seconds=math.inf if seconds is None else seconds, work=work, seed=seed
    )
    request = CertifyRequest(
        source=source,
        choice=choice,
        quantisation=quantisation,
        spec=near,
        cascade=cascade,
        output=output,
        certificates=certificates,
        jobs=jobs,
        cluster=cluster,
    )
    raise typer.Exit(run_certify_command(request, as_json=json))


def check_certify_options(given: Set[str], *, is_check: bool, is_flips: bool = False) -> None:
    """Refuse options that mean nothing with a check or with least flips, and a run without model, data or set.

    Raises: CompileError naming each of them.
    """
    if is_flips:
        foreign = given & _FLIPS
        if foreign:
            raise CompileError("meaningless with --least-flips", Loc(_options(foreign)), hint="leave it out")
    elif is_check:
        foreign = given - _CHECK
        if foreign:
            raise CompileError(
                "meaningless with --check", Loc(_options(foreign)), hint="the file says what was certified"
            )
        return
    for name, place in (("model", "MODEL"), ("data", "--data"), ("near", "--set")):
        if name not in given and not (is_flips and name == "near"):
            raise CompileError(
                "is missing",
                Loc(place),
                hint="such as: spikec certify zoo:digits-conv@digits --data digits --set linf:eps=0.01",
            )
    if "decay_bits" in given and "quantise" not in given:
        raise CompileError("is given without --quantise", Loc("--decay-bits"), hint="nothing is rounded without it")


def _options(names: Set[str]) -> str:
    return ", ".join(f"--{'set' if name == 'near' else name.replace('_', '-')}" for name in sorted(names))
