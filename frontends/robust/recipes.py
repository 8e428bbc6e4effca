"""Recipes of robust training for the networks of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from compiler.losses import Loss
from frontends.descent import DescentRecipe, Optimiser, Schedule
from frontends.zoo import entry

# The rate stays up: the sets are at their full size in the last part of a run only.
_DEFAULT = DescentRecipe(
    epochs=30,
    batch=32,
    learning_rate=4e-3,
    optimiser=Optimiser.ADAM,
    loss=Loss.CROSS_ENTROPY,
    schedule=Schedule.CONSTANT,
    warmup=0.02,
    threads=1,
)
_RECIPES: Mapping[str, DescentRecipe] = MappingProxyType(
    {
        "certify-small": replace(_DEFAULT, epochs=20, batch=128),
        "certify-fc": replace(_DEFAULT, epochs=4, learning_rate=1e-3),
        "certify-conv": replace(_DEFAULT, epochs=3, learning_rate=1e-3),
        "certify-conv-direct": replace(_DEFAULT, epochs=3, learning_rate=1e-3),
    }
)


def robust_recipe(name: str) -> DescentRecipe:
    """The recipe of a zoo network; its batch norms are folded, since certificates are of the folded network.

    Raises: CompileError for an unknown name.
    """
    return replace(_RECIPES.get(name, _DEFAULT), fold_batch_norm=entry(name).batch_norm)


def default_robust_recipe() -> DescentRecipe:
    """The recipe of a network that is none of the zoo."""
    return _DEFAULT
