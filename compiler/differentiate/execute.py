"""Reference execution of a training graph in torch, without autograd."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from compiler.differentiate.steps import Arrays, LifBackward, LifForward, Slope, Storage
from compiler.differentiate.training_graph import (
    LABELS,
    LOSS,
    Format,
    TrainingGraph,
    TrainingNode,
    extents,
    gradient_of,
)
from compiler.ir import CompileError

_PARAMETER = "@"
_SHOWN = 8  # names in an error message
_NOTHING: Mapping[str, Tensor] = MappingProxyType({})
_NO_SLOPES: Mapping[str, Slope] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What one training step computed."""

    loss: float | None  # None where no labels are given
    scores: Tensor | None  # the network's output, where the training graph's outputs have it
    gradients: Mapping[str, Tensor]  # by parameter name
    values: Mapping[str, Tensor]  # the training graph's outputs and what was asked for, by value name


def run_training(
    training: TrainingGraph,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    given: Mapping[str, Tensor] = _NOTHING,
    want: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
    first_sample: int = 0,
    slopes: Mapping[str, Slope] = _NO_SLOPES,
) -> TrainingRun:
    """Execute what the training graph's outputs and the wanted values need.

    given: by value name, what to use in place of computing it; `@PARAM` stands for a parameter. A node of whose
        results no other is needed is not executed. Given spikes of a Lif also reset its membrane potentials,
        where these are computed.
    want: values to return besides the outputs, as "d.conv1" or "lif1.membrane".
    first_sample: index of the batch's first sample; Bernoulli draws depend on seed and sample index only.
    slopes: by Lif node, ds/dm as a function of u = m - threshold - offset in place of its surrogate, whose window
        no longer counts.

    Shapes: x as the input node says, labels (N,) of class indices; values are (T, N, C, ...), and so are u and ds/dm.
    Raises: CompileError for an input, label or given value that does not fit, or a name that is not there; for a slope
        of what is no Lif with a backward step, or of one whose membrane potentials are kept inside the window alone.
    """
    _check_input(training, x)
    values = {training.graph.input.name: x.to(dtype), **_given(training, x, given, dtype)}
    if labels is not None:
        values[LABELS] = _checked_labels(training, x, labels)
    wanted = [name for name in training.outputs if name != LOSS or labels is not None]
    for name in want:
        if name not in training.values and name not in values:
            raise _fault(training, f"%{name} is no value of the training graph", _some(training))
        wanted.append(name)
    arrays = Arrays(
        parameters=training.graph.parameters,
        given={name[1:]: value.detach().to(dtype) for name, value in given.items() if name.startswith(_PARAMETER)},
        dtype=dtype,
        first_sample=first_sample,
    )
    nodes = training.needed(wanted, values)
    _check_complete(training, nodes, values)
    _check_slopes(training, slopes)
    with torch.no_grad():
        _execute(nodes, values, set(wanted), arrays, slopes)
    return TrainingRun(
        loss=float(values[LOSS]) if LOSS in wanted else None,
        scores=values[training.graph.output] if training.graph.output in wanted else None,
        gradients={name: values[value] for name, value in training.gradients.items() if value in wanted},
        values={name: values[name] for name in wanted},
    )


def _execute(
    nodes: list[TrainingNode],
    values: dict[str, Tensor],
    wanted: set[str],
    arrays: Arrays,
    slopes: Mapping[str, Slope],
) -> None:
    """Run the nodes in order; a value is dropped after its last reader."""
    last_reader = {name: node for node in nodes for name in node.inputs}
    for node in nodes:
        inputs = [values[name] for name in node.inputs]
        spikes = node.results[0].name
        if isinstance(node.step, LifForward) and spikes in values:
            inputs.append(values[spikes])
        own = replace(arrays, slope=slopes.get(node.name)) if isinstance(node.step, LifBackward) else arrays
        for value, result in zip(node.results, node.step.run(inputs, own), strict=True):
            if value.name in last_reader or value.name in wanted:
                values.setdefault(value.name, result)
        for name in {*node.inputs} - wanted:
            if last_reader[name] is node:
                del values[name]


def _given(training: TrainingGraph, x: Tensor, given: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The given values in the run's number format; the parameters are checked only."""
    graph = training.graph
    batch = x.shape[graph.types[graph.input.name].axes.index("N")]
    values = {}
    for name, tensor in given.items():
        if name.startswith(_PARAMETER) and name[1:] in graph.parameters:
            shape = graph.parameters[name[1:]].shape
        elif name in training.values:
            shape = extents(training.values[name].type, batch)
        elif training.loss is None and name == gradient_of(graph.output):
            shape = extents(graph.types[graph.output], batch)
        else:
            raise _fault(training, f"%{name} is given, but is no value of the training graph", _some(training))
        if tuple(tensor.shape) != shape:
            raise _fault(training, f"%{name} is given with shape {tuple(tensor.shape)}, must be {shape}")
        if not name.startswith(_PARAMETER):
            is_index = name in training.values and training.values[name].format is Format.INDEX
            values[name] = tensor.detach().to(torch.int64 if is_index else dtype)
    return values


def _checked_labels(training: TrainingGraph, x: Tensor, labels: Tensor) -> Tensor:
    graph = training.graph
    if training.loss is None:
        raise _fault(training, "labels are given, but the training graph has no loss", "differentiate(graph, loss)")
    batch, classes = extents(graph.types[graph.output], x.shape[graph.types[graph.input.name].axes.index("N")])
    if labels.shape != (batch,) or labels.is_floating_point():
        raise _fault(training, f"labels are {labels.dtype} {tuple(labels.shape)}, must be {batch} class indices")
    if batch and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise _fault(training, f"a label lies outside the classes 0 to {classes - 1}")
    return labels.to(torch.int64)


def _check_complete(training: TrainingGraph, nodes: list[TrainingNode], values: Mapping[str, Tensor]) -> None:
    """Refuse a run in which a value without a maker is missing."""
    made = {value.name for node in nodes for value in node.results}
    missing = {name for node in nodes for name in node.inputs} - made - values.keys()
    if missing:
        seed = gradient_of(training.graph.output)
        hint = f"give labels, or the output's gradient as given={{{seed!r}: ...}}"
        raise _fault(training, f"%{min(missing)} is not given", hint)


def _check_slopes(training: TrainingGraph, slopes: Mapping[str, Slope]) -> None:
    steps = {node.name: node.step for node in training.nodes if isinstance(node.step, LifBackward)}
    for name in slopes:
        if name not in steps:
            raise _fault(training, f"a slope is given for {name}, which is no Lif that a gradient goes through")
        if steps[name].storage is not Storage.DENSE:
            hint = "keep all membrane potentials: leave KeepCompressed out"
            raise _fault(training, f"{name}: a slope needs potentials that are not kept", hint)


def _check_input(training: TrainingGraph, x: Tensor) -> None:
    node = training.graph.input
    want = training.graph.types[node.name]
    fits = x.ndim == len(want.shape) and all(
        isinstance(size, str) or size == got for size, got in zip(want.shape, x.shape, strict=True)
    )
    if not fits:
        raise _fault(training, f"input has shape {tuple(x.shape)}, the network takes {want}")
    if not torch.isfinite(x).all():
        raise _fault(training, "input holds a NaN or infinite value")


def _fault(training: TrainingGraph, message: str, hint: str = "") -> CompileError:
    node = training.graph.input
    return CompileError(f"{node.name}: {message}", node.loc, hint=hint)


def _some(training: TrainingGraph) -> str:
    """The first names, for an error message."""
    names = list(training.values)
    return f"values are {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
