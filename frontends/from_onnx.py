"""ONNX import: a model of spikec becomes its graph, any other one goes through the PyTorch import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compiler.ir import CompileError, Loc
from compiler.passes.retime import Retime
from frontends.findings import Finding, Ground, ImportedFile
from frontends.from_torch import import_module
from frontends.onnx_import.binder import Binder
from frontends.onnx_import.files import MAX_CONSTANT, read_model
from frontends.onnx_import.module import OnnxNetwork, live_steps
from frontends.onnx_import.own import has_text, own_graph
from frontends.onnx_import.state import firings, refuse_lost_state, unrolled_steps
from frontends.to_onnx import require_onnx

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

_FLOAT = 1


def load_onnx(path: Path, *, timesteps: int | None = None, name: str = "", output: str = "") -> ImportedFile:
    """Read an ONNX file of opset 13 to 23.

    A file of `to_onnx` gives the graph it was written from, as long as its nodes are what `to_onnx` writes. Any other
    model is executed as a torch module and imported as `from_torch` does: time loops, unrolled or as `Scan`, become
    neurons over time, and the input is real-valued. A model that kept no state of its neurons is refused.

    timesteps: of the sequence, needed where the model does not show it; a network of spikec runs for so many.
    name: of the graph, where spikec has not written the file; else the file's.
    output: which output, where the model has several.
    Raises: CompileError for a file that is damaged, too large, or not expressible, naming the ONNX node.
    """
    loc = Loc(str(path))
    require_onnx(loc)
    if timesteps is not None and timesteps < 1:
        raise CompileError(f"timesteps is {timesteps}, must be at least 1", loc)
    try:
        model = read_model(path)
        own = own_graph(model, str(path))
        if own is not None:
            found = Finding(place=own.name, ground=Ground.READ, text="written by spikec, read back as it was")
            graph = Retime(timesteps)(own) if timesteps and own.timesteps else own
            return ImportedFile(graph=graph, findings=(found,))
        return _foreign(model, str(path), timesteps, name or path.stem, output)
    except RecursionError as fault:
        raise CompileError("is nested too deeply", loc) from fault


def _foreign(model: ModelProto, file: str, timesteps: int | None, name: str, output: str) -> ImportedFile:
    loc = Loc(file)
    source = _input(model, loc)
    shape = _shape(source, timesteps, loc)
    binder = Binder(model, file)
    names = binder.bind(source.name, shape)
    outputs = [value.name for value in model.graph.output]
    undefined = [value for value in outputs if value not in names]
    if undefined:
        raise CompileError(f"its output {undefined[0]!r} is defined by no node", loc)
    live = live_steps(binder.values, [names[value] for value in outputs])
    found = firings(binder.values, live)
    shown = unrolled_steps(binder.values, found)
    if timesteps != 1:
        refuse_lost_state(file, binder.values, live, found)
    steps = timesteps or shown or (shape[0] if len(shape) == 5 else None)
    if steps is None:
        hint = "load_onnx(path, timesteps=T); spikec import --timesteps T"
        raise CompileError("does not show how many time steps it has", loc, hint=hint)
    chosen = _chosen(outputs, output, loc)
    result = names[chosen]
    if binder.values.known[result].content is not None or result == source.name:
        raise CompileError(f"its output {chosen!r} is computed by no node from the input", loc)
    network = OnnxNetwork(binder.values, source.name, result)
    imported = import_module(network, torch.full(shape, 0.5), steps, name=name)
    if _has_two_leads(_dims(source)) and len(imported.input.features) != len(shape) - 2:
        raise CompileError(
            f"the first two axes of its input {source.name!r} are not time and samples",
            loc,
            hint="only those may be open when a network is exported",
        )
    findings = [_about_time(source.name, steps, timesteps, shown)]
    if has_text(model):
        text = "carries a text of spikec that does not describe its nodes; the nodes are read"
        findings.append(Finding(place=name, ground=Ground.READ, text=text))
    return ImportedFile(graph=imported.graph, findings=(*findings, *imported.findings))


def _about_time(place: str, steps: int, given: int | None, shown: int | None) -> Finding:
    if given is not None:
        return Finding(place=place, ground=Ground.READ, text=f"{steps} time steps, as given")
    if shown is not None:
        text = f"{steps} time steps, as the model's scans or the copies of its neurons"
        return Finding(place=place, ground=Ground.READ, text=text)
    return Finding(place=place, ground=Ground.ASSUMED, text=f"{steps} time steps, the first of the input's five axes")


def _input(model: ModelProto, loc: Loc) -> ValueInfoProto:
    arrays = {proto.name for proto in model.graph.initializer}
    sources = [value for value in model.graph.input if value.name not in arrays]
    if len(sources) != 1:
        names = ", ".join(value.name for value in sources[:8])
        raise CompileError(
            f"has {len(sources)} inputs ({names}), must have 1",
            loc,
            hint="a state belongs into the model: export a forward over all time steps from the reset state",
        )
    return sources[0]


def _shape(source: ValueInfoProto, timesteps: int | None, loc: Loc) -> tuple[int, ...]:
    """Extents of an example; a symbolic first axis may be time, samples or both."""
    kind = source.type.tensor_type
    if kind.elem_type != _FLOAT:
        raise CompileError(f"its input {source.name!r} has element type {kind.elem_type}, must be float32", loc)
    dims = _dims(source)
    samples = 3 if timesteps == 2 else 2
    lead = [timesteps, samples] if _has_two_leads(dims) else [samples * (timesteps or 1), None]
    for at, extent in enumerate(lead[: len(dims)]):
        if dims[at] is None:
            dims[at] = extent
    if None in dims or not 2 <= len(dims) <= 5:
        raise CompileError(
            f"the extents of its input {source.name!r} are open, or not 2 to 5",
            loc,
            hint="give timesteps; export with all axes but time and samples fixed",
        )
    shape = tuple(extent or 0 for extent in dims)
    count = 1
    for extent in shape:
        count *= extent
        if extent < 1 or count > MAX_CONSTANT:
            raise CompileError(f"its input {source.name!r} has shape {shape}", loc, hint="every extent is at least 1")
    return shape


def _dims(source: ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in source.type.tensor_type.shape.dim]


def _has_two_leads(dims: list[int | None]) -> bool:
    """Whether time and samples stand separate in front of the channels."""
    return len(dims) == 5 or (len(dims) >= 2 and dims[1] is None)


def _chosen(outputs: list[str], output: str, loc: Loc) -> str:
    if output in outputs:
        return output
    if output or len(outputs) != 1:
        listed = ", ".join(outputs[:8])
        found = f"has no output {output!r}" if output else f"has {len(outputs)} outputs"
        raise CompileError(f"{found}: {listed}", loc, hint="load_onnx(path, output=NAME) chooses one")
    return outputs[0]
