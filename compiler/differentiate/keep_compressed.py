"""H2Learn's storage policy: bits for spikes, a gradient mask, and the membrane potentials inside the window only."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.differentiate.steps import Storage
from compiler.differentiate.storage import with_storage
from compiler.differentiate.training_graph import TrainingGraph
from compiler.ir import CompileError, Graph, Node, Reset
from compiler.ir.ops import Lif
from compiler.surrogate import vanishes_outside

_PROVED = (Reset.HARD, Reset.SOFT, Reset.NONE)  # the cases of the docstring


@dataclass(frozen=True, slots=True)
class KeepCompressed:
    """Keep spikes and masks as bits, and of the membrane potentials those inside the window where they are read.

    Needs: surrogates that are zero outside their window. Ensures: the same gradients bit for bit.

    Why a membrane potential m[t] outside the window is not needed. The backward pass (`LifBackward`) reads m[t] in
    fire'(m[t]) and in ds[t], and ds[t] only as ds[t] * fire'(m[t]); outside the window that product is +0 whatever
    ds[t] is. The other term of dm[t] is dv[t] * (1 - s[t]) or dv[t], without m[t]; dv[t] = decay * dm[t+1].
    What ds[t] reads inside the window:

        hard      dv[t] * (reset_value - m[t]): m[t] is kept
        soft      -threshold * dv[t], with reset_delay -threshold * dm[t+1]: no m[t]
        none      no path through the reset: no m[t]; detach_reset likewise, for any reset

    So where fire' is constant inside the window (rectangle), m is kept for a hard reset that is not detached, and
    for nothing else. Where it is not (triangle), m inside the window is kept for fire' itself.
    Only a hard reset reads s[t] of its own neuron.

    Raises: CompileError naming the neuron for another surrogate or reset.
    Source: equations 2.4 to 2.6 and 3.1; section 3.1.4.
    """

    def __call__(self, training: TrainingGraph) -> TrainingGraph:
        for node in training.graph.nodes:
            if isinstance(node.op, Lif):
                _check(training.graph, node, node.op)
        return with_storage(training, Storage.WINDOW, type(self).__name__)


def _check(graph: Graph, node: Node, op: Lif) -> None:
    if not vanishes_outside(op.surrogate):
        raise _refusal(
            graph,
            node,
            f"surrogate {op.surrogate.kind} is not zero outside its window, so every membrane potential is needed",
            "use a rectangle or triangle surrogate, or KeepAll",
        )
    if op.reset not in _PROVED:
        raise _refusal(
            graph,
            node,
            f"there is no proof that reset {op.reset} needs no membrane potential outside the window",
            "use KeepAll",
        )


def _refusal(graph: Graph, node: Node, message: str, hint: str) -> CompileError:
    return graph.site(node).fail(f"KeepCompressed: {message}", hint)
