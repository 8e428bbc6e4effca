"""The manifest beside a network's CUDA files: a report as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from compiler.fused.cuda.description import CudaLayer, CudaReport, Kernel, LayerLaunch, Parameter, Resources
from compiler.fused.gpu_launch import Extents, GpuKernel, GpuSchedule, Launch
from compiler.fused.population import Activation, Norm, Population, Window
from compiler.ir.values import Compare, Reset, Surrogate, SurrogateKind
from hwmodel.errors import CompileError, Loc

VERSION = 1
Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]
Entry = Mapping[str, Json]


def manifest_text(report: CudaReport) -> str:
    """The report as JSON; layers name their population by its index."""
    content = asdict(report) | {"version": VERSION}
    index = {population: at for at, population in enumerate(report.populations)}
    content["layers"] = [asdict(layer) | {"population": index[layer.population]} for layer in report.layers]
    return json.dumps(content, indent=1) + "\n"


def read_manifest(path: Path) -> CudaReport:
    """The report of a manifest.

    Raises: CompileError for a file that is not there or is no manifest of this version.
    """
    loc = Loc(str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise CompileError(f"cannot read the manifest: {fault.strerror}", loc) from fault
    except ValueError as fault:
        raise CompileError(f"no manifest of CUDA kernels: {fault}", loc) from fault
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise CompileError(f"no manifest of CUDA kernels, version {VERSION}", loc, hint="compile the network again")
    try:
        return _report(content)
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        raise CompileError(f"the manifest is damaged: {fault!r}", loc, hint="compile the network again") from fault


def _report(content: Entry) -> CudaReport:
    populations = tuple(_population(entry) for entry in _entries(content, "populations"))
    return CudaReport(
        network=_text(content, "network"),
        arch=_text(content, "arch"),
        source=_text(content, "source"),
        binary=None if content["binary"] is None else _text(content, "binary"),
        compiler=None if content["compiler"] is None else _text(content, "compiler"),
        populations=populations,
        kernels=tuple(_kernel(entry) for entry in _entries(content, "kernels")),
        resources=tuple(
            Resources(
                registers=_int(entry, "registers"),
                spill_bytes=_int(entry, "spill_bytes"),
                stack_bytes=_int(entry, "stack_bytes"),
                shared_bytes=_int(entry, "shared_bytes"),
            )
            for entry in _entries(content, "resources")
        ),
        layers=tuple(
            CudaLayer(
                name=_text(entry, "name"),
                population=populations[_int(entry, "population")],
                extents=_extents(_entry(entry, "extents")),
            )
            for entry in _entries(content, "layers")
        ),
        launches=tuple(_launch(entry) for entry in _entries(content, "launches")),
    )


def _population(entry: Entry) -> Population:
    surrogate, window = _entry(entry, "surrogate"), entry["window"]
    return Population(
        timesteps=_int(entry, "timesteps"),
        decay=_number(entry, "decay"),
        threshold=_number(entry, "threshold"),
        input_scale=_number(entry, "input_scale"),
        leak_bias=_number(entry, "leak_bias"),
        reset=Reset(_text(entry, "reset")),
        reset_value=_number(entry, "reset_value"),
        reset_delay=_bool(entry, "reset_delay"),
        compare=Compare(_text(entry, "compare")),
        detach_reset=_bool(entry, "detach_reset"),
        initial=_number(entry, "initial"),
        surrogate=Surrogate(
            kind=SurrogateKind(_text(surrogate, "kind")),
            width=_float(surrogate, "width"),
            scale=_float(surrogate, "scale"),
            offset=_float(surrogate, "offset"),
        ),
        norm=Norm(_text(entry, "norm")),
        window=None if window is None else _window(_entry(entry, "window")),
        repeated=_bool(entry, "repeated"),
        activation=Activation(_text(entry, "activation")),
    )


def _window(entry: Entry) -> Window:
    rows, columns = _ints(entry, "kernel")
    return Window(
        kernel=(rows, columns),
        average=_bool(entry, "average"),
        exact=_bool(entry, "exact"),
        ceil=_bool(entry, "ceil"),
    )


def _kernel(entry: Entry) -> Kernel:
    schedule = _entry(entry, "schedule")
    return Kernel(
        symbol=_text(entry, "symbol"),
        population=_int(entry, "population"),
        name=GpuKernel(_text(entry, "name")),
        schedule=GpuSchedule(index=_text(schedule, "index"), tile=_int(schedule, "tile")),
        parameters=tuple(
            Parameter(name=_text(each, "name"), dtype=_text(each, "dtype"), array=_bool(each, "array"))
            for each in _entries(entry, "parameters")
        ),
    )


def _launch(entry: Entry) -> LayerLaunch:
    launch = _entry(entry, "launch")
    columns, rows = _ints(launch, "grid")
    return LayerLaunch(
        layer=_text(entry, "layer"),
        training=_bool(entry, "training"),
        backward=_bool(entry, "backward"),
        symbol=_text(entry, "symbol"),
        name=GpuKernel(_text(entry, "name")),
        launch=Launch(grid=(columns, rows), threads=_int(launch, "threads")),
        bytes_moved=_int(entry, "bytes_moved"),
    )


def _extents(entry: Entry) -> Extents:
    return Extents(
        n=_int(entry, "n"),
        height=_int(entry, "height"),
        width=_int(entry, "width"),
        out_height=_int(entry, "out_height"),
        out_width=_int(entry, "out_width"),
        channels=_int(entry, "channels"),
    )


def _text(entry: Entry, name: str) -> str:
    value = entry[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _int(entry: Entry, name: str) -> int:
    value = entry[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is no integer")
    return value


def _ints(entry: Entry, name: str) -> tuple[int, ...]:
    values = entry[name]
    if not isinstance(values, list):
        raise TypeError(f"{name} is no list")
    return tuple(_int({name: value}, name) for value in values)


def _float(entry: Entry, name: str) -> float:
    value = entry[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is no number")
    return float(value)


def _number(entry: Entry, name: str) -> float | None:
    return None if entry[name] is None else _float(entry, name)


def _bool(entry: Entry, name: str) -> bool:
    value = entry[name]
    if not isinstance(value, bool):
        raise TypeError(f"{name} is neither true nor false")
    return value


def _entry(entry: Entry, name: str) -> Entry:
    value = entry[name]
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    return value


def _entries(entry: Entry, name: str) -> list[Entry]:
    values = entry[name]
    if not isinstance(values, list):
        raise TypeError(f"{name} is no list")
    return [_entry({name: value}, name) for value in values]
