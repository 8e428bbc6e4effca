"""NIR front end: the Neuromorphic Intermediate Representation, an HDF5 file, becomes a graph."""

from __future__ import annotations

from pathlib import Path

from compiler.ir import Compare, CompileError, Graph, Loc, Reset
from compiler.passes import Retime
from frontends.findings import Finding, Ground, ImportedFile
from frontends.nir_file.nodes import NirNode
from frontends.nir_file.read import read_nir
from frontends.nir_import.flat import FlatGraph, flatten
from frontends.nir_import.network import Network, stated_shape
from frontends.nir_import.own import restore
from frontends.nir_import.reading import Choices, Reading, choose
from frontends.nir_import.writer import Writer

__all__ = ["DEFAULT_TIMESTEPS", "Choices", "Writer", "from_nir_node", "load_nir"]

DEFAULT_TIMESTEPS = 10
_MAX_TIMESTEPS = 1 << 20


def load_nir(
    path: Path,
    *,
    timesteps: int | None = None,
    dt: float | None = None,
    reset: Reset | None = None,
    writer: Writer | None = None,
    compare: Compare | None = None,
    reset_delay: bool | None = None,
    norm_input: bool | None = None,
    input_shape: tuple[int, ...] | None = None,
    name: str = "",
) -> ImportedFile:
    """Read a NIR file; the findings say what it states and what it leaves to us.

    NIR states differential equations. What a time step of them is (`dt`, seconds), which kind of reset, and whether
    a neuron fires at its threshold, differs between the programs that write it; `writer` names the program, and is
    guessed from habits of theirs where it is not given. A file of `to_nir` gives back the graph that it was written
    from, unless options are given, or another program has changed its nodes: then the nodes are read.

    The graph takes a real-valued sequence. Edges into one node are added up. SumPool2d becomes an average and a Scale.

    timesteps: 10 unless given or stated.
    input_shape: of a sample, (C,), (C, L) or (C, H, W), where the file has none or a wrong one.
    Units: dt in seconds.
    Shapes: the graph's input is (T, N, C) or (T, N, C, H, W); lines (C, L) have H = 1.
    Raises: CompileError naming the node that the graph cannot express, numbers that dt and writer make no sense of,
    or the damage of the file.
    Source: the nir package 1.0.8, and the export functions of the writers (frontends/nir_import/dynamics.py).
    """
    choices = Choices(
        writer=writer, dt=dt, reset=reset, compare=compare, reset_delay=reset_delay, norm_input=norm_input
    )
    root = read_nir(path)
    return from_nir_node(
        root, str(path), timesteps=timesteps, choices=choices, input_shape=input_shape, name=name or path.stem
    )


def from_nir_node(
    root: NirNode,
    file: str,
    *,
    timesteps: int | None = None,
    choices: Choices | None = None,
    input_shape: tuple[int, ...] | None = None,
    name: str = "network",
) -> ImportedFile:
    """As `load_nir`, of the node that a file holds.

    Raises: as `load_nir`.
    """
    loc = Loc(file)
    if timesteps is not None and not 1 <= timesteps <= _MAX_TIMESTEPS:
        raise CompileError(f"timesteps is {timesteps}, must be from 1 to {_MAX_TIMESTEPS}", loc)
    if input_shape is not None and not (1 <= len(input_shape) <= 3 and min(input_shape) >= 1):
        raise CompileError(f"the input shape is {input_shape}", loc, hint="(C,), (C, L) or (C, H, W), each at least 1")
    stated = choices or Choices()
    findings: list[Finding] = []
    if stated.none and input_shape is None:
        own = restore(root, file)
        if own is not None and own.graph is not None:
            graph = own.graph if timesteps is None else Retime(timesteps)(own.graph)
            return ImportedFile(graph=graph, findings=own.findings)
        findings += own.findings if own is not None else ()
    flat = flatten(root, file)
    reading, chosen = choose(flat, root, stated, file)
    findings += [*chosen, *(Finding(place=file, ground=Ground.ASSUMED, text=text) for text in flat.added)]
    if timesteps is None:
        timesteps = DEFAULT_TIMESTEPS
        findings.append(Finding(place=file, ground=Ground.ASSUMED, text=f"{timesteps} time steps (NIR has no number)"))
    graph, built = _build(flat, reading, timesteps, input_shape, file, name)
    return ImportedFile(graph=graph, findings=(*findings, *built, *_training(graph, file)))


def _build(
    flat: FlatGraph, reading: Reading, timesteps: int, input_shape: tuple[int, ...] | None, file: str, name: str
) -> tuple[Graph, list[Finding]]:
    """The graph for the first reading of the input's shape that every node takes."""
    whole = stated_shape(flat) if input_shape is None else input_shape
    cuts = range(min(3, len(whole)) if reading.leaves_samples and input_shape is None else 1)
    shapes = [whole[cut:] for cut in cuts if 1 <= len(whole) - cut <= 3]
    if not shapes:
        raise CompileError(
            "the shape of the network's input is not known",
            Loc(file),
            hint="the file has none of 1 to 3 axes; state it, as --input-shape 3x32x32",
        )
    faults: list[tuple[int, CompileError]] = []
    for shape in shapes:
        network = Network(file, reading, shape, timesteps)
        try:
            graph = network.build(flat, name)
        except CompileError as fault:
            faults.append((len(network.nodes), fault))
            continue
        if shape != whole:
            text = f"the input has shape {shape}; the file's {whole} has axes of samples or steps before it"
            network.findings.insert(0, Finding(place=file, ground=Ground.ASSUMED, text=text))
        return graph, network.findings
    # The reading that got furthest is most likely the intended one.
    raise max(faults, key=lambda entry: entry[0])[1]


def _training(graph: Graph, file: str) -> tuple[Finding, ...]:
    """NIR has no surrogate derivative."""
    from compiler.ir.ops import Lif

    if not any(isinstance(node.op, Lif) for node in graph.nodes):
        return ()
    text = "the surrogate derivative is a rectangle where a neuron's metadata name no other; only training uses it"
    return (Finding(place=file, ground=Ground.ASSUMED, text=text),)
