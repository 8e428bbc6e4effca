"""The training part of a program file's header: to JSON and back, and what must fit the tensor table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from typing import cast

from hwmodel.errors import CompileError, Loc
from hwmodel.header_fields import choice, count, flag, integer, number, only_fields, text
from hwmodel.isa import Instruction, Queue
from hwmodel.program import LayerMasks, Phase, Program, Role, Trained, Training

TRAINING_PHASES = (Phase.FORWARD, Phase.OVERLAP, Phase.BACKWARD, Phase.UPDATE)


def training_header(training: Training) -> dict[str, object]:
    """All but the streams, which the file holds as arrays."""
    header = {name: getattr(training, name) for name in _NUMBERS}
    return {
        **header,
        "parameters": [asdict(trained) for trained in training.parameters],
        "masks": [asdict(masks) for masks in training.masks],
    }


def training_from(
    header: Mapping[str, object], phases: Mapping[Phase, Mapping[Queue, tuple[Instruction, ...]]]
) -> Training:
    """The training part of a program."""
    unknown = set(header) - set(_NUMBERS) - {"parameters", "masks"}
    if unknown:
        raise ValueError(f"Training has no fields {sorted(unknown)}")
    return Training(
        phases={phase: phases.get(phase, {}) for phase in TRAINING_PHASES},
        loss=choice(header["loss"], ("mse", "cross_entropy")),
        loss_scale=number(header["loss_scale"]),
        batch_group=count(header["batch_group"]),
        machines=count(header["machines"]),
        learning_rate=number(header["learning_rate"]),
        momentum=number(header["momentum"]),
        weight_decay=number(header["weight_decay"]),
        master_weights=flag(header["master_weights"]),
        parameters=tuple(_trained(item) for item in _tables(header["parameters"])),
        masks=tuple(_masks(item) for item in _tables(header["masks"])),
    )


_NUMBERS = (
    "loss",
    "loss_scale",
    "batch_group",
    "machines",
    "learning_rate",
    "momentum",
    "weight_decay",
    "master_weights",
)


def _items(value: object) -> list[object]:
    """A list; an empty text or table would pass for one without items."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _tables(value: object) -> list[dict[str, object]]:
    return cast(list[dict[str, object]], _items(value))


def _trained(item: Mapping[str, object]) -> Trained:
    only_fields(Trained, item)
    return Trained(
        parameter=text(item["parameter"]),
        shape=tuple(count(size) for size in _items(item["shape"])),
        positions=count(item["positions"]),
        tensor=text(item["tensor"]),
        gradient=text(item["gradient"]),
        momentum=text(item["momentum"]),
        is_bias=flag(item["is_bias"]),
        layer=integer(item["layer"]),
    )


def _masks(item: Mapping[str, object]) -> LayerMasks:
    only_fields(LayerMasks, item)
    return LayerMasks(
        layer=text(item["layer"]),
        kind=choice(item["kind"], ("conv", "fc")),
        inputs=text(item["inputs"]),
        outputs=text(item["outputs"]),
    )


def check_training(program: Program, loc: Loc) -> None:
    """Refuse names and sizes that the tensor table does not have.

    Raises: CompileError.
    """
    training = program.training
    assert training is not None
    if not training.loss_scale > 0.0:
        raise CompileError(f"the loss scale is {training.loss_scale:g}, must be positive", loc)
    named = {tensor.name: tensor for tensor in program.tensors}
    for trained in training.parameters:
        wanted = {trained.tensor: None, trained.gradient: Role.WEIGHT_GRADIENT}
        if trained.momentum:
            wanted[trained.momentum] = Role.MOMENTUM
        for name, role in wanted.items():
            if name not in named or role not in (None, named[name].role):
                raise CompileError(f"{trained.parameter}: {name!r} is no tensor of the program for it", loc)
        size, held = prod(trained.shape), prod(named[trained.gradient].shape)
        fits = (
            held <= prod(named[trained.tensor].shape) if trained.is_bias else held == prod(named[trained.tensor].shape)
        )
        if size != held or not fits or trained.layer >= len(program.layers) or size % trained.positions:
            raise CompileError(f"{trained.parameter} {trained.shape} does not fit its tensors", loc)
    for masks in training.masks:
        for name in (masks.inputs, masks.outputs):
            if name and name not in named:
                raise CompileError(f"{masks.layer}: {name!r} is no tensor of the program", loc)
