"""How each op of the network goes forward and backward in training: one rule per op."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

from compiler.differentiate.steps import (
    AddBackward,
    AvgPoolBackward,
    BatchNormBackward,
    BatchNormForward,
    BatchNormUpdate,
    ConvBackward,
    ConvUpdate,
    FlattenBackward,
    Forward,
    LastBackward,
    LiBackward,
    LifBackward,
    LifForward,
    LiForward,
    LinearBackward,
    LinearUpdate,
    MaxPoolBackward,
    MaxPoolForward,
    MaxReadoutBackward,
    MaxReadoutForward,
    RateBackward,
    RepeatBackward,
    RunningNormBackward,
    RunningNormUpdate,
    ScaleBackward,
    Step,
    Storage,
)
from compiler.differentiate.steps.neuron import backward_reads, extra_results
from compiler.differentiate.training_graph import BatchStatistics, Format, Value
from compiler.ir import CompileError, DType, Encoding, Node, Param, Reading, TensorType
from compiler.ir.ops import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Encode,
    Flatten,
    Input,
    Li,
    Lif,
    Linear,
    MaxPool2d,
    Op,
    Readout,
    Scale,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an op stands in the network."""

    node: Node
    sources: tuple[TensorType, ...]  # of the inputs
    type: TensorType  # of the output
    statistics: BatchStatistics

    @property
    def source(self) -> TensorType:
        """Type of the one input."""
        return self.sources[0]

    def named(self, suffix: str) -> str:
        """A further value of the node."""
        return f"{self.node.name}{suffix}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjoint:
    """The steps of one op. Backward and update steps read the output's gradient, then the named values."""

    forward: Step
    saves: tuple[Value, ...] = ()  # what the forward step makes besides the output
    backward: Step | None = None  # None: no gradient goes on to the inputs
    backward_reads: tuple[str, ...] = ()
    backward_reads_update: bool = False  # also what the update step makes
    update: Step | None = None
    update_reads: tuple[str, ...] = ()
    trains: tuple[Param, ...] = ()  # the parameters whose gradients the update step makes, in order


@singledispatch
def adjoint(op: Op, place: Place) -> Adjoint:
    """The steps of an op.

    Raises: CompileError if there is no rule for the op.
    """
    raise CompileError(f"{place.node.name}: no rule to differentiate {type(op).__name__}", place.node.loc)


@adjoint.register
def _(op: Input, place: Place) -> Adjoint:
    return Adjoint(forward=Forward(op=op))


@adjoint.register
def _(op: Encode, place: Place) -> Adjoint:
    backward = RepeatBackward() if op.kind is Encoding.DIRECT else None
    return Adjoint(forward=Forward(op=op), backward=backward)


@adjoint.register
def _(op: Conv2d, place: Place) -> Adjoint:
    return Adjoint(
        forward=Forward(op=op),
        backward=ConvBackward(op=op, source=place.source),
        update=ConvUpdate(op=op),
        update_reads=place.node.inputs,
        trains=_weight_and_bias(op),
    )


@adjoint.register
def _(op: Linear, place: Place) -> Adjoint:
    return Adjoint(
        forward=Forward(op=op),
        backward=LinearBackward(op=op),
        update=LinearUpdate(op=op),
        update_reads=place.node.inputs,
        trains=_weight_and_bias(op),
    )


@adjoint.register
def _(op: BatchNorm, place: Place) -> Adjoint:
    if place.statistics is BatchStatistics.RUNNING:
        return Adjoint(
            forward=Forward(op=op),
            backward=RunningNormBackward(op=op, source=place.source),
            update=RunningNormUpdate(op=op, source=place.source),
            update_reads=place.node.inputs,
            trains=(op.weight, op.bias),
        )
    statistics = (place.named(".mean"), place.named(".var"))
    return Adjoint(
        forward=BatchNormForward(op=op, source=place.source),
        saves=tuple(Value(name, _channels(place.source)) for name in statistics),
        backward=BatchNormBackward(op=op, source=place.source),
        backward_reads=(*place.node.inputs, *statistics),
        backward_reads_update=True,
        update=BatchNormUpdate(op=op, source=place.source),
        update_reads=(*place.node.inputs, *statistics),
        trains=(op.weight, op.bias),
    )


@adjoint.register
def _(op: AvgPool2d, place: Place) -> Adjoint:
    return Adjoint(forward=Forward(op=op), backward=AvgPoolBackward(op=op, source=place.source))


@adjoint.register
def _(op: MaxPool2d, place: Place) -> Adjoint:
    winners = Value(place.named(".winners"), place.type.of(DType.F32), Format.INDEX)
    return Adjoint(
        forward=MaxPoolForward(op=op),
        saves=(winners,),
        backward=MaxPoolBackward(source=place.source),
        backward_reads=(winners.name,),
    )


@adjoint.register
def _(op: Flatten, place: Place) -> Adjoint:
    return Adjoint(forward=Forward(op=op), backward=FlattenBackward(source=place.source))


@adjoint.register
def _(op: Add, place: Place) -> Adjoint:
    return Adjoint(forward=Forward(op=op), backward=AddBackward())


@adjoint.register
def _(op: Scale, place: Place) -> Adjoint:
    return Adjoint(forward=Forward(op=op), backward=ScaleBackward(op=op))


@adjoint.register
def _(op: Lif, place: Place) -> Adjoint:
    return lif_adjoint(op, place.node.name, place.type, Storage.DENSE)


@adjoint.register
def _(op: Li, place: Place) -> Adjoint:
    return Adjoint(forward=LiForward(op=op), backward=LiBackward(op=op))


@adjoint.register
def _(op: Readout, place: Place) -> Adjoint:
    timesteps = place.source.size("T")
    match op.kind:
        case Reading.RATE:
            return Adjoint(forward=Forward(op=op), backward=RateBackward(timesteps=timesteps))
        case Reading.LAST:
            return Adjoint(forward=Forward(op=op), backward=LastBackward(timesteps=timesteps))
        case Reading.MAX:
            winners = Value(place.named(".winners"), place.source.of(DType.SPIKE))
            return Adjoint(
                forward=MaxReadoutForward(),
                saves=(winners,),
                backward=MaxReadoutBackward(),
                backward_reads=(winners.name,),
            )


def lif_adjoint(op: Lif, name: str, kind: TensorType, storage: Storage) -> Adjoint:
    """The steps of a Lif node, by what is kept of its membrane potentials."""
    is_dense = storage is Storage.DENSE
    values = {
        ".mask": Value(f"{name}.mask", kind.of(DType.SPIKE), Format.BIT),
        ".membrane": Value(f"{name}.membrane", kind.of(DType.F32), Format.DENSE if is_dense else Format.COMPRESSED),
    }
    return Adjoint(
        forward=LifForward(op=op, storage=storage),
        saves=tuple(values[saved] for saved in extra_results(op, storage)),
        backward=LifBackward(op=op, storage=storage),
        backward_reads=tuple(f"{name}{saved}" for saved in backward_reads(op, storage)),
    )


def _weight_and_bias(op: Conv2d | Linear) -> tuple[Param, ...]:
    return (op.weight,) if op.bias is None else (op.weight, op.bias)


def _channels(source: TensorType) -> TensorType:
    """The type of one number per channel."""
    return TensorType((source.size("C"),), DType.F32, "C")
