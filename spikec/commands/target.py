"""What `spikec compile` compiles for, and which of its options mean something there."""

from __future__ import annotations

from collections.abc import Set
from enum import StrEnum

import typer

from hwmodel.errors import CompileError, Loc


class Target(StrEnum):
    """What to compile for."""

    H2LEARN = "h2learn"
    CUDA = "cuda"


COMMON = {"model", "output", "target", "timesteps", "batch", "input_shape", "seed", "json"}
CUDA_ONLY = {"arch"}  # all others are h2learn's
_SAID = "COMMANDLINE"  # name of the source of a parameter that the user gave


def given_options(context: typer.Context) -> Set[str]:
    """Names of the parameters that the user gave."""
    return {name for name in context.params if _source(context, name) == _SAID}


def check_target(target: Target, given: Set[str]) -> None:
    """Refuse options that mean nothing for the target.

    Raises: CompileError naming each of them.
    """
    if target is Target.CUDA:
        foreign, other = given - COMMON - CUDA_ONLY, Target.H2LEARN
    else:
        foreign, other = given & CUDA_ONLY, Target.CUDA
    if foreign:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        raise CompileError(
            f"meaningless with --target {target}", Loc(options), hint=f"leave out, or take --target {other}"
        )


def _source(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return "" if source is None else source.name
