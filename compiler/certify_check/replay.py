"""Statements that are checked by doing it again: examples and statistics."""

from __future__ import annotations

import numpy as np
import torch

from compiler.certify_check.content import Content, Fault, as_number, as_whole, unpacked
from compiler.certify_check.sets import Inputs, Values
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Graph

F32 = "f32"


def replayed(graph: Graph, inputs: Inputs, label: int, arithmetic: str, proof: Content) -> str:
    """What the network does on the example.

    Raises: Fault if it is no member, or the label is alone highest.
    """
    kind = graph.types[graph.input.name]
    shape = tuple(kind.size(axis) for axis in kind.axes if axis != "N")
    example = unpacked(proof.get("example"), np.float32, shape)
    if not inputs.contains(example):
        raise Fault("the example is not in the set")
    scores = scores_of(graph, example, arithmetic)
    if (np.delete(scores, label) < scores[label]).all():
        raise Fault(f"label {label} is alone highest on the example")
    return f"on an input of the set the scores are highest in {np.flatnonzero(scores == scores.max()).tolist()}"


def recomputed(graph: Graph, given: Content, label: int, proof: Content) -> str:
    """The count of masks under which all images around one are proved to get the label, again from their seed.

    Raises: Fault if it is another.
    """
    from compiler.certify.statistics import MaskTrial, Proof, Surround, count_masks

    kind = graph.types[graph.input.name]
    image = unpacked(given.get("image"), np.float32, tuple(kind.size(axis) for axis in kind.axes if axis != "N"))
    claimed = as_whole(proof.get("certified"))
    try:
        trial = MaskTrial(
            label=label,
            eps=as_number(given.get("eps")),
            masks=as_whole(given.get("masks")),
            seed=int(str(given.get("seed"))),
            sample=as_whole(given.get("sample")),
            surround=Surround(str(given.get("surround"))),
            proof=Proof(str(given.get("by"))),
        )
        found = count_masks(graph, image, trial).certified
    except (ValueError, CompileError) as fault:
        raise Fault(f"the statistics cannot be computed: {fault}") from fault
    if found != claimed:
        raise Fault(f"{found} of {trial.masks} masks are certified, not {claimed}")
    return f"{found} of {trial.masks} masks are certified, as was said"


def scores_of(graph: Graph, example: Values, arithmetic: str) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """What the network computes on one input, in f32 or in integers. Shapes: -> (K,)."""
    batch = np.expand_dims(example, graph.types[graph.input.name].axes.index("N"))
    if arithmetic == F32:
        made = evaluate(graph, torch.from_numpy(np.ascontiguousarray(batch))).output
        return np.asarray(made[0].numpy())
    from compiler.certify.integer_network import lower
    from compiler.certify.integers import scores

    return np.asarray(scores(lower(graph), batch)[0])
