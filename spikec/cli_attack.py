"""The command that attacks networks: `spikec attack`."""

from __future__ import annotations

from collections.abc import Set
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hwmodel.errors import CompileError, Loc
from spikec.cli_options import DATA_HELP, JsonOption
from spikec.commands.target import given_options

_REPLAY = {"model", "data", "replay", "json"}


class MethodOption(StrEnum):
    """How examples are looked for."""

    BIM = "bim"
    FGSM = "fgsm"
    RGA = "rga"
    SPARSE = "sparse"
    GREEDY = "greedy"
    RETIME = "retime"
    ANN = "ann"
    BOUNDARY = "boundary"
    RANDOM = "random"
    TRIAL_SPIKES = "trial-spikes"
    TRIAL_PIXELS = "trial-pixels"


class RefineOption(StrEnum):
    """What is done with examples of spikes to have fewer flips."""

    NONE = "none"
    REDUCE = "reduce"
    GREEDY = "greedy"


class AttackLoss(StrEnum):
    """Whose gradient the attacker takes."""

    MSE = "mse"
    CROSS_ENTROPY = "cross_entropy"


class SurrogateOption(StrEnum):
    """What stands for the derivative of the fire function."""

    OWN = "own"
    RECTANGLE = "rectangle"
    TRIANGLE = "triangle"
    ATAN = "atan"
    SIGMOID = "sigmoid"
    FAST_SIGMOID = "fast_sigmoid"
    SUPERSPIKE = "superspike"
    EXPONENTIAL = "exponential"
    POTENTIAL = "potential"
    ADAPTIVE = "adaptive"


def attack_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="zoo:NAME, zoo:NAME@DATA, FILE.spk, FILE.onnx, FILE.nir or module:function")
    ] = "",
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "",
    method: Annotated[MethodOption, typer.Option(help="how examples are looked for")] = MethodOption.BIM,
    target: Annotated[str, typer.Option(help="none, all other classes, the next class, or a class's number")] = "none",
    samples: Annotated[int, typer.Option(help="how many test samples, the first ones")] = 50,
    per_class: Annotated[bool, typer.Option("--per-class", help="so many samples of each class")] = False,
    eps: Annotated[float | None, typer.Option(help="give up beyond that mean square perturbation")] = None,
    l0: Annotated[float | None, typer.Option(help="change at most so many elements")] = None,
    l2: Annotated[float | None, typer.Option(help="keep within that l2 distance")] = None,
    linf: Annotated[float | None, typer.Option(help="change no element by more")] = None,
    iterations: Annotated[int, typer.Option(help="updates of a case at most")] = 25,
    gamma: Annotated[float, typer.Option(help="share of elements that change where the gradient is zero")] = 0.05,
    step: Annotated[float | None, typer.Option(help="size of an update; 1 of Bernoulli codes, 0.02 of direct")] = None,
    pull: Annotated[float, typer.Option(help="back to the clean image, c of equation 5.9")] = 0.0,
    sampling: Annotated[bool, typer.Option(help="spikes change by chance, as large as the gradient")] = True,
    flipping: Annotated[bool, typer.Option(help="change at random where the gradient is zero")] = True,
    threshold: Annotated[
        float | None, typer.Option(help="of the penultimate neurons while gradients are taken")
    ] = None,
    surrogate: Annotated[SurrogateOption, typer.Option(help="of all neurons for the gradient")] = SurrogateOption.OWN,
    loss: Annotated[AttackLoss, typer.Option(help="whose gradient is taken")] = AttackLoss.CROSS_ENTROPY,
    restarts: Annotated[int, typer.Option(help="how often a case without success begins again")] = 0,
    draws: Annotated[int, typer.Option(help="Bernoulli codes that an update is averaged over")] = 1,
    fresh: Annotated[int, typer.Option(min=1, metavar="K", help="Bernoulli codes that a success is judged by")] = 100,
    refine: Annotated[RefineOption, typer.Option(help="take back flips of spikes")] = RefineOption.NONE,
    moved: Annotated[int | None, typer.Option(help="retime: move at most so many spikes")] = None,
    shift: Annotated[int | None, typer.Option(help="retime: by at most so many steps")] = None,
    total_shift: Annotated[int | None, typer.Option(help="retime: by so many steps together")] = None,
    seed: Annotated[int, typer.Option(help="seed of the attack's draws")] = 0,
    model_seed: Annotated[int, typer.Option(help="seed of initial weights, training and encodings")] = 0,
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, or the file's own")] = None,
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="results, .jsonl; an unfinished file goes on")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|FOLDER", help="draw examples, and success by perturbation")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 1,
    cluster: Annotated[str, typer.Option(metavar="ADDRESS", help="Dask scheduler, or local for one of its own")] = "",
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="recompute all verdicts of a results file instead")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Look for adversarial examples: inputs that differ little and are classified wrongly.

    With --replay, MODEL and --data take the place of those that the file names.
    """
    check_attack_options(given_options(context), is_replay=replay is not None)
    if replay is not None:
        from spikec.commands.attack_replay import ReplayRequest, run_replay

        raise typer.Exit(run_replay(ReplayRequest(file=replay, model=model, data=data), as_json=json))
    from spikec.attack.cases import Choice
    from spikec.attack.request import Options
    from spikec.attack.results import Source
    from spikec.commands.attack import AttackRequest, run_attack_command

    options = Options(
        method=method.value,
        refine=refine.value,
        loss=loss.value,
        threshold=threshold,
        surrogate=surrogate.value,
        iterations=iterations,
        gamma=gamma,
        step=step,
        pull=pull,
        sampling=sampling,
        flipping=flipping,
        restarts=restarts,
        draws=draws,
        eps=eps,
        l0=l0,
        l2=l2,
        linf=linf,
        moved=moved,
        shift=shift,
        total_shift=total_shift,
        fresh=fresh,
        seed=seed,
    )
    source = Source(model=model, timesteps=timesteps, input_shape=input_shape, model_seed=model_seed, data=data)
    choice = Choice(samples=samples, per_class=per_class, target=target)
    request = AttackRequest(
        source=source, choice=choice, options=options, output=output, figure=figure, jobs=jobs, cluster=cluster
    )
    raise typer.Exit(run_attack_command(request, as_json=json))


def check_attack_options(given: Set[str], *, is_replay: bool) -> None:
    """Refuse options that mean nothing with a replay, and an attack without model or data.

    Raises: CompileError naming each of them.
    """
    if is_replay:
        foreign = given - _REPLAY
        if foreign:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
            raise CompileError("meaningless with --replay", Loc(options), hint="the file says how it was attacked")
        return
    for name, place in (("model", "MODEL"), ("data", "--data")):
        if name not in given:
            raise CompileError(
                "is missing", Loc(place), hint="such as: spikec attack zoo:digits-conv@digits --data digits"
            )
