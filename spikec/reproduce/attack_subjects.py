"""The networks that chapter 5's attacks are repeated on: small ones trained here, or a user's own pair."""

from __future__ import annotations

from dataclasses import replace

import torch

from compiler.ir import CompileError, Encoding, Graph, Loc
from compiler.losses import Loss
from compiler.passes import PrependEncode
from frontends.cache import trained
from frontends.from_torch import from_torch
from frontends.recipe import recipe_for
from frontends.zoo import entry
from spikec.network_files import load_network_file
from spikec.reproduce.attack_study import BOTH, Subjects, check_subjects

NETWORK = "digits-attack"
DATA = "digits"
PER_CLASS = (5, 1)  # samples of a class, untargeted and targeted


def default_subjects() -> Subjects:
    """`NETWORK`, trained by both losses on first use."""
    networks = {loss: _trained(loss) for loss in BOTH}
    untargeted, targeted = PER_CLASS
    return Subjects(networks=networks, name=f"zoo:{NETWORK}", data=DATA, untargeted=untargeted, targeted=targeted)


def own_subjects(files: str, data: str, per_class: str = "") -> Subjects:
    """A user's networks: `MSE.spk,CE.spk`, the one trained by MSE first.

    per_class: samples of a class, untargeted and targeted, as `5,1`.
    Raises: CompileError unless both can be read and are attacked as images behind a Bernoulli code.
    """
    names = files.split(",")
    if len(names) != len(BOTH):
        raise CompileError(f"{files!r} is not of the form MSE.spk,CE.spk", Loc("--networks"))
    counts = per_class.split(",") if per_class else [str(count) for count in PER_CLASS]
    if len(counts) != len(PER_CLASS) or not all(word.isdecimal() and int(word) for word in counts):
        raise CompileError(f"{per_class!r} is not of the form {PER_CLASS[0]},{PER_CLASS[1]}", Loc("--per-class"))
    networks = {loss: load_network_file(name).graph for loss, name in zip(BOTH, names, strict=True)}
    untargeted, targeted = map(int, counts)
    subjects = Subjects(networks=networks, name=files, data=data, untargeted=untargeted, targeted=targeted)
    check_subjects(subjects)
    return subjects


def _trained(loss: Loss) -> Graph:
    network = entry(NETWORK)
    recipe = replace(recipe_for(NETWORK), loss=loss)
    module, _ = trained(NETWORK, DATA, timesteps=network.timesteps, recipe=recipe)
    graph = from_torch(module, torch.zeros(network.example_shape(2, network.timesteps)), network.timesteps)
    return PrependEncode(Encoding.BERNOULLI, 0)(graph)
