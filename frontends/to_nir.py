"""NIR back end: a graph becomes a file of the Neuromorphic Intermediate Representation."""

from __future__ import annotations

from pathlib import Path

from compiler.ir import Graph
from frontends.findings import Finding
from frontends.nir_export.network import nir_graph
from frontends.nir_file.write import write_nir

__all__ = ["DEFAULT_DT", "to_nir"]

DEFAULT_DT = 1e-4  # seconds; SpikingJelly and snnTorch read files with it


def to_nir(graph: Graph, path: Path, *, dt: float = DEFAULT_DT) -> tuple[Finding, ...]:
    """Write a graph as NIR, and say what other readers of the file will not see.

    A neuron is a LIF with tau = dt / (1 - decay), r = input_scale / (1 - decay), v_leak = leak_bias / (1 - decay); an
    IF with r = input_scale / dt where decay is 1; a Threshold where nothing stays from step to step. A sum is two
    edges into one node. Encodings at the input and readouts at the output stay out: other readers see a network of
    sequences. The graph's text, its other arrays, dt and the kinds of reset and comparison go into metadata, from
    which `load_nir` gives back an equal graph.

    The file appears whole or not at all.
    Units: dt in seconds.
    Raises: CompileError for what NIR has no node for (batch norm: fold it first; maximum pooling; encodings and
    readouts elsewhere than at the ends), a dt that is not positive, or a file that cannot be written.
    Source: the nir package 1.0.8.
    """
    exported = nir_graph(graph, dt)
    write_nir(exported.root, path)
    return exported.findings
