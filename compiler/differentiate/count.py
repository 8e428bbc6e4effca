"""What a training step keeps and computes, in bytes and multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from compiler.differentiate.steps import (
    ConvBackward,
    ConvUpdate,
    Forward,
    LinearBackward,
    LinearUpdate,
    MaxPoolForward,
)
from compiler.differentiate.training_graph import Format, Stage, TrainingGraph, TrainingNode, Value, extents
from compiler.ir.ops import Conv2d, Linear

_ALL_INSIDE: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one node computes for a batch, zeros not skipped."""

    makes: str  # the node's first value
    stage: Stage
    multiply_adds: int  # of convolutions and matrix products, cells in the padding included
    elements: int  # of all results


def kept_bytes(
    training: TrainingGraph, batch: int, *, number_bits: int = 32, inside: Mapping[str, float] = _ALL_INSIDE
) -> Mapping[str, int]:
    """By kept value, what it takes for a batch; each value starts at a byte.

    inside: by Lif node, the fraction of its membrane potentials inside the window; 1, the upper bound, by default.
    A compressed value is counted without its mask, which is a kept value of its own.
    """
    return {value.name: -(-_bits(training, value, batch, number_bits, inside) // 8) for value in training.kept}


def work(training: TrainingGraph, batch: int) -> tuple[Work, ...]:
    """What each node behind the outputs computes, in order."""
    return tuple(_work(training, node, batch) for node in training.needed(training.outputs))


def _bits(training: TrainingGraph, value: Value, batch: int, number_bits: int, inside: Mapping[str, float]) -> int:
    elements = math.prod(extents(value.type, batch))
    maker = training.makers[value.name]
    match value.format:
        case Format.DENSE:
            return elements * number_bits
        case Format.BIT:
            return elements
        case Format.COMPRESSED:
            return math.ceil(elements * inside.get(maker.name, 1.0)) * number_bits
        case Format.INDEX:
            assert isinstance(maker.step, MaxPoolForward)
            return elements * maker.step.winner_bits


def _work(training: TrainingGraph, node: TrainingNode, batch: int) -> Work:
    return Work(
        makes=node.results[0].name,
        stage=node.stage,
        multiply_adds=_multiply_adds(training, node, batch),
        elements=sum(math.prod(extents(value.type, batch)) for value in node.results),
    )


def _multiply_adds(training: TrainingGraph, node: TrainingNode, batch: int) -> int:
    """One for each weight and output position; the three stages of a layer have the same number."""
    match node.step:
        case Forward(op=Conv2d() | Linear() as op) | ConvBackward(op=op) | LinearBackward(op=op):
            pass
        case ConvUpdate(op=op) | LinearUpdate(op=op):
            pass
        case _:
            return 0
    shape = training.graph.parameters[op.weight.name].shape
    return math.prod(extents(training.graph.types[node.name], batch)) * math.prod(shape[1:])
