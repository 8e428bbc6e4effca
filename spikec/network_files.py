"""Networks in files: `.spk`, and what other programs write, ONNX and NIR."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.ir import Compare, CompileError, Loc, Reset
from compiler.ir.file import load_graph
from compiler.passes import Retime
from frontends.findings import Finding, Ground, ImportedFile

SUFFIXES = (".spk", ".onnx", ".nir")


@dataclass(frozen=True, slots=True, kw_only=True)
class NirOptions:
    """What a user states about a NIR file; the fields of `frontends.nir_import.reading.Choices`."""

    writer: str | None = None
    dt: float | None = None
    reset: Reset | None = None
    compare: Compare | None = None
    reset_delay: bool | None = None
    norm_input: bool | None = None


def load_network_file(
    file: str,
    *,
    timesteps: int | None = None,
    input_shape: str = "",
    output: str = "",
    nir: NirOptions | None = None,
) -> ImportedFile:
    """The graph of a file, and what its reader found and assumed.

    timesteps: a file's own unless given; NIR files without one get 10.
    input_shape: of a sample, as 3x32x32, for NIR files that do not say it.
    output: name of an output, for ONNX files that have several.
    Raises: CompileError for a file that cannot be read or imported, options that are not for its kind, and a package
    that is not installed.
    """
    path, loc = Path(file), Loc(file)
    if path.suffix != ".nir" and nir not in (None, NirOptions()):
        raise CompileError("options of NIR files are given for another kind of file", loc)
    if path.suffix != ".onnx" and output:
        raise CompileError("an output is chosen, but the file has one", loc)
    if path.suffix != ".nir" and input_shape:
        raise CompileError("an input shape is given, but the file has its own", loc)
    match path.suffix:
        case ".spk":
            graph = load_graph(path)
            return ImportedFile(graph=graph if timesteps is None else Retime(timesteps)(graph), findings=())
        case ".onnx":
            from frontends.from_onnx import load_onnx

            imported = load_onnx(path, timesteps=timesteps, output=output)
            return imported if timesteps is None else replace(imported, graph=Retime(timesteps)(imported.graph))
        case ".nir":
            return _load_nir(path, timesteps, sample_shape(input_shape, loc) if input_shape else None, nir)
    raise CompileError("is no network file", loc, hint=f"known files: {', '.join(SUFFIXES)}")


def _load_nir(
    path: Path, timesteps: int | None, input_shape: tuple[int, ...] | None, nir: NirOptions | None
) -> ImportedFile:
    from frontends.from_nir import Writer, load_nir

    stated = nir or NirOptions()
    return load_nir(
        path,
        timesteps=timesteps,
        dt=stated.dt,
        reset=stated.reset,
        writer=Writer(stated.writer) if stated.writer is not None else None,
        compare=stated.compare,
        reset_delay=stated.reset_delay,
        norm_input=stated.norm_input,
        input_shape=input_shape,
    )


def sample_shape(text: str, loc: Loc) -> tuple[int, ...]:
    """The extents of `3x32x32`.

    Raises: CompileError for another form, or an extent below 1.
    """
    try:
        shape = tuple(int(word) for word in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise CompileError(
            f"input shape {text!r} is not of the form 3x32x32", loc, hint="give a sample's extents, each at least 1"
        )
    return shape


def say_assumed(findings: Sequence[Finding]) -> None:
    """Tell on stderr what an import took for granted."""
    for finding in findings:
        if finding.ground is Ground.ASSUMED:
            print(f"{finding.place}: assumed: {finding.text}", file=sys.stderr)
