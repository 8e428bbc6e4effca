"""Reference execution of a training graph in torch, without autograd."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compiler.differentiate.steps import Arrays, LifForward
from compiler.differentiate.training_graph import LABELS, LOSS, Format, TrainingGraph, TrainingNode, gradient_of
from compiler.ir import CompileError, TensorType
from compiler.ir.ops import Input

_PARAMETER = "@"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What one training step computed."""

    loss: float | None  # None where no labels are given
    scores: Tensor | None  # the network's output, where `outputs` has it
    gradients: Mapping[str, Tensor]  # by parameter name
    values: Mapping[str, Tensor]  # the training graph's outputs, and what was asked for, by value name


def run_training(
    training: TrainingGraph,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    want: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
    first_sample: int = 0,
) -> TrainingRun:
    """Execute what the outputs and the wanted values need.

    given: by value name, what to use in place of computing it; `@PARAM` stands for a parameter. A node none of
        whose other results are needed is not executed. Given spikes of a Lif also reset its membrane potentials
        where these are computed.
    want: values to return besides the outputs, as "d.conv1" or "lif1.membrane".
    first_sample: index of the batch's first sample; Bernoulli draws depend on seed and sample index only.

    Shapes: x as the input node says, labels (N,) of class indices; values are (T, N, C, ...).
    Raises: CompileError for an input, label or given value that does not fit, or an unknown name.
    """
    given = given or {}
    _check_names(training, given, want)
    _check_input(training, x)
    wanted = _wanted(training, given, want, labels)
    arrays = Arrays(
        parameters=training.graph.parameters,
        given={name[1:]: value.to(dtype) for name, value in given.items() if name.startswith(_PARAMETER)},
        dtype=dtype,
        first_sample=first_sample,
    )
    values = {name: _fitting(training, name, value, len_of_batch(training, x), dtype) for name, value in given.items() if not name.startswith(_PARAMETER)}
    if labels is not None:
        values[LABELS] = labels
    ...
