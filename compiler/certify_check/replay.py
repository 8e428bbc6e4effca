"""Statements that are checked by doing it again: examples, exact verdicts and statistics.

What solves again is the exact path in rational numbers, not the one in integers that decides first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from compiler.certify_check.content import Content, Fault, as_flag, as_number, as_whole, unpacked
from compiler.certify_check.sets import Inputs, Values
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Graph

if TYPE_CHECKING:
    from compiler.certify.input_sets import InputSet

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
    scores = _scores(graph, example, arithmetic)
    if (np.delete(scores, label) < scores[label]).all():
        raise Fault(f"label {label} is alone highest on the example")
    return f"on an input of the set the scores are highest in {np.flatnonzero(scores == scores.max()).tolist()}"


def solved_again(graph: Graph, given: Content, label: int, arithmetic: str, seconds: float) -> str | None:
    """How it was decided again that the label is alone highest on every input; None: not within the limit.

    Raises: Fault if it is not so.
    """
    from compiler.certify.exact import Answer
    from compiler.certify.integer_network import lower
    from compiler.certify.integers import inexact_in_f32
    from compiler.certify.second import decide_by_smt

    try:
        is_exact = arithmetic != F32 or not inexact_in_f32(lower(graph))
    except CompileError as fault:
        raise Fault(f"it is about f32, and the network is on no grid: {fault}") from fault
    if not is_exact:
        raise Fault("it is about f32, which rounds where an exact solver does not")
    answer = decide_by_smt(graph, _input_set(graph, given), label, seconds=seconds)
    if answer is Answer.COUNTEREXAMPLE:
        raise Fault("solved again, there is an input on which the label is not alone highest")
    return "solved again in rational numbers: no input defeats the label" if answer is Answer.ROBUST else None


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


def _input_set(graph: Graph, given: Content) -> InputSet:
    """The set as the exact path takes it."""
    from compiler.certify.input_sets import Box, Chain, L0Ball, Retiming

    kind = graph.types[graph.input.name]
    shape = tuple(kind.size(axis) for axis in kind.axes if axis != "N")
    clean = unpacked(given.get("clean"), np.bool_, shape).astype(np.float32)
    match given.get("kind"):
        case "box":
            return Box(clean=clean, free=unpacked(given.get("free"), np.bool_, shape))
        case "l0":
            free, per_step = unpacked(given.get("free"), np.bool_, shape), as_flag(given.get("per_step"))
            return L0Ball(clean=clean, k=as_whole(given.get("k")), mask=free, per_step=per_step)
        case "retiming":
            return Retiming(clean=clean, moved=as_whole(given.get("moved")))
        case "chain":
            image, draws = unpacked(given.get("image"), np.float32, shape[1:]), given.get("draws")
            eps = as_number(given.get("eps"))
            return Chain(image=image, eps=eps, draws=unpacked(draws, np.float32, shape))
        case kind_of_set:
            raise Fault(f"{kind_of_set!r} is no set of spikes, as exact solvers take them")


def _scores(graph: Graph, example: Values, arithmetic: str) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """Shapes: -> (K,)."""
    batch = np.expand_dims(example, graph.types[graph.input.name].axes.index("N"))
    if arithmetic == F32:
        made = evaluate(graph, torch.from_numpy(np.ascontiguousarray(batch))).output
        return np.asarray(made[0].numpy())
    from compiler.certify.integer_network import lower
    from compiler.certify.integers import scores

    return np.asarray(scores(lower(graph), batch)[0])
