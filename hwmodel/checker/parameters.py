"""Checks the table of what a training program trains: tensors that hold a parameter, its gradient and momentum."""

from __future__ import annotations

from math import prod

from hwmodel.isa import SgdStep, most
from hwmodel.program import Program, Role, Tensor, Trained, Training

MOST_MACHINES = 64  # the host holds their memories


def parameter_faults(program: Program) -> list[str]:
    """Parameters whose shape is not that of their tensors, and counts that no host or instruction could hold."""
    training = program.training
    if training is None:
        return []
    named = {tensor.name: tensor for tensor in program.tensors if not tensor.view_of}
    faults = [fault for trained in training.parameters if (fault := _fault(trained, named, len(program.layers)))]
    names = [trained.parameter for trained in training.parameters]
    gradients = [trained.gradient for trained in training.parameters]
    for what, found in (("parameter", names), ("gradient", gradients)):
        faults += [f"{what} {name} is listed twice" for name in sorted({n for n in found if found.count(n) > 1})]
    return faults + _count_faults(training)


def _count_faults(training: Training) -> list[str]:
    counts = (
        ("machines", training.machines, MOST_MACHINES),
        ("sub-batches between updates", training.batch_group, most(SgdStep, "batch_group")),
    )
    return [
        f"the program is for more or fewer {what} than 1 to {largest}"
        for what, count, largest in counts
        if not 1 <= count <= largest
    ]


def _fault(trained: Trained, named: dict[str, Tensor], layers: int) -> str:
    tensor, gradient = named.get(trained.tensor), named.get(trained.gradient)
    role = Role.NEURON if trained.is_bias else Role.WEIGHT
    if tensor is None or tensor.role is not role:
        return f"parameter {trained.parameter}: {trained.tensor} is no tensor of {role} values"
    if gradient is None or gradient.role is not Role.WEIGHT_GRADIENT:
        return f"parameter {trained.parameter}: {trained.gradient} is no tensor of weight gradients"
    momentum = named.get(trained.momentum)
    if trained.momentum and (momentum is None or (momentum.role, momentum.shape) != (Role.MOMENTUM, gradient.shape)):
        return f"parameter {trained.parameter}: {trained.momentum} is no momentum of its gradient"
    if not _fits(trained, tensor, gradient) or trained.layer >= layers:
        return f"parameter {trained.parameter} {trained.shape} does not fit {tensor.name} {tensor.shape}"
    return ""


def _fits(trained: Trained, tensor: Tensor, gradient: Tensor) -> bool:
    """Whether the graph's shape is that of the tensor: a row of channels, or (outputs, inputs[, kernel])."""
    positions, inputs, outputs = tensor.shape[2:]
    if trained.is_bias:
        return (gradient.shape, trained.shape, trained.positions) == ((1, 1, 1, 1, outputs), (outputs,), 1)
    if gradient.shape != tensor.shape or len(trained.shape) < 2 or trained.shape[0] != outputs:
        return False
    window = prod(trained.shape[2:])
    return trained.shape[1] == inputs and window == positions and inputs % trained.positions == 0
