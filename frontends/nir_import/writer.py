"""Which program wrote a NIR file, told by its habits."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt

from frontends.nir_file.nodes import NirNode
from frontends.nir_import.flat import FlatGraph

_SNNTORCH_DT = 1e-4  # seconds; fixed there


class Writer(StrEnum):
    """Which program wrote a file; the equations of its neurons are those of that program."""

    SPIKEC = "spikec"
    SPIKINGJELLY = "spikingjelly"
    SNNTORCH = "snntorch"
    NORSE = "norse"
    SINABS = "sinabs"
    OTHER = "other"  # NIR's own equations, one Euler step for each time step

    @property
    def manner(self) -> str:
        """How its files are read, for people."""
        return "by NIR's own equations" if self is Writer.OTHER else f"as {self} writes it"


def sniff(graph: FlatGraph, root: NirNode) -> tuple[Writer, str]:
    """The likely writer of a file, and what gives it away."""
    if root.stated("writer") == Writer.SPIKEC:
        return Writer.SPIKEC, "its metadata say so"
    neurons = [item.node for item in graph.nodes if item.node.kind in ("LIF", "IF", "LI")]
    if not neurons:
        return Writer.OTHER, "it holds no neurons that give a writer away"
    inputs = {item.path for item in graph.nodes if item.node.kind == "Input"}
    for writer, reason, looks in _SIGNS:
        if writer is Writer.SPIKINGJELLY and inputs == {"input"}:
            continue  # its tracer never gives that name
        if all(looks(node) for node in neurons):
            return writer, reason
    return Writer.OTHER, "its neurons look like those of no known writer"


def implied_dt(graph: FlatGraph) -> tuple[float, str] | None:
    """The time step that SpikingJelly's numbers betray, and the node: r is 1 / dt in an IF, 1 or tau / dt in a LIF."""
    for item in graph.nodes:
        r = _array(item.node, "r").reshape(-1)[0]
        above = 1.0 if item.node.kind == "IF" else _array(item.node, "tau").reshape(-1)[0]
        if item.node.kind in ("IF", "LIF") and r != 1.0 and np.isfinite(above / r) and above / r > 0.0:
            return float(f"{above / r:.12g}"), item.path
    return None


def _spikingjelly(node: NirNode) -> bool:
    tau, r = _array(node, "tau"), _array(node, "r")
    if r.dtype != np.float64 or not r.ndim:
        return False
    if node.kind == "IF":
        return bool((r != 1.0).all())
    return (
        node.kind == "LIF" and tau.shape == r.shape and np.array_equal(_array(node, "v_leak"), _array(node, "v_reset"))
    )


def _snntorch(node: NirNode) -> bool:
    with np.errstate(all="ignore"):
        steps = _array(node, "tau").astype(np.float64) / _SNNTORCH_DT
    r = _array(node, "r")
    return _is_torch(r) and node.kind == "LIF" and np.allclose(r, steps, rtol=1e-5) and bool((steps != 1.0).all())


def _sinabs(node: NirNode) -> bool:
    r = _array(node, "r")
    if not _is_torch(r) or not (r == 1.0).all():
        return False
    return r.ndim > 0 if node.kind == "IF" else bool((_array(node, "tau") >= 0.5).all())


def _norse(node: NirNode) -> bool:
    r = _array(node, "r")
    if not _is_torch(r) or r.ndim or r != 1.0:
        return False
    return node.kind == "IF" or bool((_array(node, "tau") < 1e-3).all())


def _is_torch(values: npt.NDArray[np.floating]) -> bool:
    """Tensors of torch; who writes a file with NumPy has 64-bit numbers."""
    return values.dtype == np.float32


def _array(node: NirNode, name: str) -> npt.NDArray[np.floating]:
    value = node.fields.get(name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.size:
        return value.astype(value.dtype if value.dtype.kind == "f" else np.float64)
    return np.full((1,), np.nan)


_SIGNS = (
    (Writer.SPIKINGJELLY, "64-bit parameters for each neuron, v_leak equal to v_reset", _spikingjelly),
    (Writer.SNNTORCH, "32-bit parameters, r is tau / 0.0001", _snntorch),
    (Writer.SINABS, "32-bit parameters, r is 1, tau counts steps", _sinabs),
    (Writer.NORSE, "single 32-bit parameters, r is 1, tau is below 1 ms", _norse),
)
