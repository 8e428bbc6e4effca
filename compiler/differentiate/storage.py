"""Rewrites what the neurons of a training graph keep; the storage policies are its users."""

from __future__ import annotations

from dataclasses import replace

from compiler.differentiate.adjoints import lif_adjoint
from compiler.differentiate.steps import LifBackward, LifForward, Storage
from compiler.differentiate.training_graph import Format, TrainingGraph, TrainingNode, Value
from compiler.ir import DType


def with_storage(training: TrainingGraph, storage: Storage, policy: str) -> TrainingGraph:
    """The same training graph, its Lif nodes keeping what the storage says; spikes are bits unless it is dense."""
    spikes = Format.DENSE if storage is Storage.DENSE else Format.BIT
    nodes = tuple(_formatted(_rewritten(node, training, storage), spikes) for node in training.nodes)
    return replace(training, nodes=nodes, policy=policy)


def _rewritten(node: TrainingNode, training: TrainingGraph, storage: Storage) -> TrainingNode:
    match node.step:
        case LifForward(op=op) | LifBackward(op=op):
            rule = lif_adjoint(op, node.name, training.graph.types[node.name], storage)
        case _:
            return node
    if isinstance(node.step, LifForward):
        return replace(node, step=rule.forward, results=(node.results[0], *rule.saves))
    assert rule.backward is not None
    return replace(node, step=rule.backward, inputs=(node.inputs[0], *rule.backward_reads))


def _formatted(node: TrainingNode, spikes: Format) -> TrainingNode:
    return replace(node, results=tuple(_stored(value, spikes) for value in node.results))


def _stored(value: Value, spikes: Format) -> Value:
    is_binary = value.type.dtype is DType.SPIKE
    return replace(value, format=spikes) if is_binary else value
