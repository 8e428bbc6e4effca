"""An ONNX model of a network with ReLU, as a torch module that takes any number of samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.ir import CompileError, Loc
from frontends.onnx_import.binder import Binder
from frontends.onnx_import.files import read_model
from frontends.onnx_import.module import OnnxNetwork
from frontends.onnx_import.own import own_graph
from frontends.onnx_import.values import Values
from frontends.to_onnx import require_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

_SAMPLES = 64  # of a model that leaves their number open
_MOST_SAMPLES = 4096


class AnyBatch(OnnxNetwork):
    """Shows a model samples in the number that it is bound for; zeros fill up the last part.

    Shapes: (N, ...) -> (N, ...).
    """

    def __init__(self, values: Values, source: str, output: str, samples: int) -> None:
        super().__init__(values, source, output)
        self._samples = samples

    def forward(self, x: Tensor) -> Tensor:
        """The model's output for each sample."""
        if len(x) == self._samples:
            return super().forward(x)
        missing = -len(x) % self._samples
        full = functional.pad(x, (*(0, 0) * (x.ndim - 1), 0, missing))
        parts = full.reshape(-1, self._samples, *x.shape[1:])
        return torch.cat([super(AnyBatch, self).forward(part) for part in parts])[: len(x)]


def onnx_network(path: Path, features: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The module, and an example of its input: as many samples as the model takes, of the features given.

    Raises: CompileError for a file that is damaged or not expressible, one that spikec wrote, one with several inputs
    or outputs, or an input of other features.
    """
    loc = Loc(str(path))
    require_onnx(loc)
    try:
        model = read_model(path)
        if own_graph(model, str(path)) is not None:
            raise CompileError("is a spiking network already", loc, hint="import it without --ann")
        source, output, samples = _ends(model, features, loc)
        binder = Binder(model, str(path))
        result = binder.bind(source, (samples, *features)).get(output, source)
    except RecursionError as fault:
        raise CompileError("is nested too deeply", loc) from fault
    if result == source or binder.values.known[result].content is not None:
        raise CompileError("its output is computed by no node from the input", loc)
    return AnyBatch(binder.values, source, result, samples), torch.zeros(samples, *features)


def _ends(model: ModelProto, features: tuple[int, ...], loc: Loc) -> tuple[str, str, int]:
    """The names of input and output, and how many samples the input takes."""
    arrays = {proto.name for proto in model.graph.initializer}
    sources = [value for value in model.graph.input if value.name not in arrays]
    outputs = [value.name for value in model.graph.output]
    if len(sources) != 1 or len(outputs) != 1:
        raise CompileError(f"has {len(sources)} inputs and {len(outputs)} outputs, must have 1 of each", loc)
    dims = [dim.dim_value for dim in sources[0].type.tensor_type.shape.dim]  # 0: open
    if len(dims) != len(features) + 1 or any(dim not in (0, own) for dim, own in zip(dims[1:], features, strict=True)):
        shape = ", ".join(str(dim or "?") for dim in dims)
        raise CompileError(f"its input is ({shape}), samples are (N, {', '.join(map(str, features))})", loc)
    samples = dims[0] or _SAMPLES
    if not 1 <= samples <= _MOST_SAMPLES:
        raise CompileError(f"takes {samples} samples at a time, 1 to {_MOST_SAMPLES} are read", loc)
    return sources[0].name, outputs[0], samples
