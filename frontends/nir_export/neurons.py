"""Neurons of the graph as nodes of NIR, with what NIR has no field for as metadata."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compiler.ir import Compare, Graph, Node, Number, Param, Reset
from compiler.ir.ops import Li, Lif
from frontends.nir_file.nodes import Field, NirNode

Float64 = npt.NDArray[np.float64]


def neuron_node(graph: Graph, node: Node, shape: tuple[int, ...], dt: float) -> tuple[NirNode, str]:
    """The NIR node of a Lif or Li, and what of it other readers will not see ("" if nothing).

    With leak = 1 - decay: tau = dt / leak, r = input_scale / leak, v_leak = leak_bias / leak; without a leak an IF or
    I with r = input_scale / dt; a Lif that keeps nothing from step to step is a Threshold.

    Shapes: every field as the node's value without samples and time.
    Raises: CompileError for a leak bias without a leak, and decays of 1 beside others in one population.
    """
    op = node.op
    assert isinstance(op, Lif | Li)
    values = {
        name: _values(graph, getattr(op, name), shape) for name in ("decay", "input_scale", "leak_bias", "initial")
    }
    fields = _dynamics(graph, node, values, dt)
    if isinstance(op, Li):
        kind = "LI" if "tau" in fields else "I"
    else:
        threshold = _values(graph, op.threshold, shape)
        kind = "LIF" if "tau" in fields else "IF"
        if _is_memoryless(op, values):
            kind, fields = "Threshold", {"threshold": threshold}
        else:
            hard = op.reset is Reset.HARD
            fields |= {
                "v_threshold": threshold,
                "v_reset": _values(graph, op.reset_value, shape) if hard else np.zeros(()),
            }
    metadata, kept = _metadata(op, values["initial"])
    spread = {name: np.ascontiguousarray(np.broadcast_to(value, shape)) for name, value in fields.items()}
    return NirNode(kind=kind, fields=spread, metadata=metadata), kept


def _dynamics(graph: Graph, node: Node, values: dict[str, Float64], dt: float) -> dict[str, Float64]:
    """tau, r and v_leak; r alone without a leak."""
    leak, scale, bias = 1.0 - values["decay"], values["input_scale"], values["leak_bias"]
    if not leak.any():
        if bias.any():
            raise graph.site(node).fail("leak_bias without a leak (decay 1) has no place in NIR's IF and I")
        return {"r": scale / dt}
    if not leak.all():
        raise graph.site(node).fail("decay is 1 for some channels and less for others, which no NIR node is")
    is_same = scale.astype(np.float32) == leak.astype(np.float32)
    return {"tau": dt / leak, "r": np.where(is_same, 1.0, scale / leak), "v_leak": bias / leak}


def _is_memoryless(op: Lif, values: dict[str, Float64]) -> bool:
    """No value of one step reaches the next, and the input comes as it is."""
    keeps = values["decay"].any() or (op.reset is Reset.SOFT and op.reset_delay)
    return not keeps and bool((values["input_scale"] == 1.0).all()) and not values["leak_bias"].any()


def _metadata(op: Lif | Li, initial: Float64) -> tuple[dict[str, Field], str]:
    metadata: dict[str, Field] = {}
    kept = []
    if initial.any():
        metadata["initial"] = initial
        kept.append("an initial potential")
    if isinstance(op, Lif):
        metadata |= {"reset": str(op.reset), "compare": str(op.compare), "detach_reset": np.array(op.detach_reset)}
        if op.reset_delay:
            metadata["reset_delay"] = np.array(True)
        surrogate = op.surrogate
        metadata |= {
            "surrogate": str(surrogate.kind),
            "surrogate_width": np.array(surrogate.width, np.float64),
            "surrogate_scale": np.array(surrogate.scale, np.float64),
            "surrogate_offset": np.array(surrogate.offset, np.float64),
        }
        if op.compare is Compare.GE:
            kept.append("firing at the threshold itself")
        if op.reset is not Reset.HARD:
            kept.append(f"{op.reset} reset")
        if op.reset_delay and op.reset is Reset.SOFT:
            kept.append("its delay")
    return metadata, ", ".join(kept)


def _values(graph: Graph, value: Number, shape: tuple[int, ...]) -> Float64:
    """One value, or one for each channel, in a shape that spreads over the node's value."""
    if not isinstance(value, Param):
        return np.array(value, np.float64)
    return graph.parameters[value.name].astype(np.float64).reshape(-1, *(1,) * (len(shape) - 1))
