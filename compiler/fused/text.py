"""Plans as text: a line for each step, with what it keeps for the backward pass."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.fused.order import LoopOrder
from compiler.fused.plan import Part, Plan, Stage, Step, TorchStep
from compiler.fused.population import Norm, Population
from compiler.fused.spikes.costs import MOST_AGAIN, SpikeKernels
from compiler.fused.spikes.counts import counts_of
from compiler.fused.spikes.eligible import kernels_of
from compiler.fused.spikes.geometry import BITS as WORD_BITS
from compiler.ir import TensorType
from compiler.ir.fields import class_word
from compiler.ir.graph import Node
from compiler.ir.lexer import bare_or_quoted
from compiler.ir.ops import AvgPool2d, BatchNorm, Conv2d, Linear, MaxPool2d

F32_BITS = 32
INDEX_BITS = 64  # of the places that torch's maximum pooling keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How a network is trained: on which kernels layers read spikes, and whether their results are computed again."""

    kernels: SpikeKernels = SpikeKernels.OFF
    recompute: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A value that a step keeps for its backward pass.

    format: f32, bits of spikes or of counts, a mask of the places where gradients count, or places of maxima.
    """

    value: str
    format: str
    bytes_per_sample: int


def kept_values(plan: Plan, step: Step, keeping: Keeping | None = None) -> tuple[Kept, ...]:
    """What a step keeps; two steps that keep one value as f32 share its memory.

    keeping: None for layers on dense kernels alone.

    A batch norm's moments, three numbers for each channel whatever the batch, are not among them. Li and Readout
    are torch's to differentiate and not counted.
    """
    given = keeping or Keeping()
    if isinstance(step, Stage):
        source = () if step.source in _computed_again(plan, given) else (_source(plan, step),)
        return (*source, *_bits(plan, step, given.kernels))
    node = step.node
    if not isinstance(node.op, Conv2d | Linear | BatchNorm | AvgPool2d | MaxPool2d):
        return ()
    taken = _kept(plan, node.inputs[0], "f32", F32_BITS)
    return (taken, _kept(plan, node.name, "places", INDEX_BITS)) if isinstance(node.op, MaxPool2d) else (taken,)


def _source(plan: Plan, stage: Stage) -> Kept:
    return _kept(plan, stage.source, *(("bits", 1) if stage.packed else ("f32", F32_BITS)))


def _bits(plan: Plan, stage: Stage, kernels: SpikeKernels) -> Iterator[Kept]:
    """Of the spikes, or of counts; each pixel's bits fill whole words."""
    if kernels_of(plan, stage, kernels) is SpikeKernels.OFF:
        return
    result, last = stage.results[-1], stage.parts[-1]
    assert isinstance(last, Population)
    counts, kind = counts_of(last), plan.graph.types[result]
    pixels = math.prod(kind.size(axis) for axis in kind.axes if axis not in ("N", "C"))
    plane = pixels * -(-kind.size("C") // WORD_BITS) * WORD_BITS // 8
    planes, form = (1, "bits") if counts is None else (counts.planes, f"{counts.planes} bits of counts")
    yield Kept(value=result, format=form, bytes_per_sample=planes * plane)
    if last.masked:
        yield Kept(value=result, format="a mask", bytes_per_sample=plane)


def _computed_again(plan: Plan, keeping: Keeping) -> set[str]:
    """Results of layers that are not kept."""
    if not keeping.recompute:
        return set()
    return {
        node.name
        for step in plan.steps
        if isinstance(step, Stage)
        and kernels_of(plan, step, keeping.kernels) is not SpikeKernels.OFF
        and counts_of(step.parts[-1]) is None
        for node in step.linears
        if _taps(plan, node) <= MOST_AGAIN
    }


def _taps(plan: Plan, node: Node) -> int:
    """Multiplications of a value of a layer's result."""
    assert isinstance(node.op, Conv2d | Linear)
    return math.prod(plan.graph.parameters[node.op.weight.name].shape[1:])


def kept_bytes_per_sample(plan: Plan, keeping: Keeping | None = None) -> int:
    """Of all steps, a value that several keep counted once."""
    every = {kept for step in plan.steps for kept in kept_values(plan, step, keeping)}
    return sum(kept.bytes_per_sample for kept in every)


def plan_text(plan: Plan, orders: Mapping[str, LoopOrder] | None = None, keeping: Keeping | None = None) -> str:
    """The plan, step by step: what it takes, its parts, its layers, what it keeps.

    orders: by layer, its loop order where one was chosen. keeping: None for layers on dense kernels alone.
    """
    seen: set[Kept] = set()
    lines = [f"plan {json.dumps(plan.network)}, {plan.timesteps} time steps {{"]
    for step in plan.steps:
        body = _stage(plan, step, orders or {}) if isinstance(step, Stage) else _torch(plan, step)
        kept = kept_values(plan, step, keeping)
        notes = [f"; keep {_kept_text(value, again=value in seen)}" for value in kept]
        seen.update(kept)
        lines.append("  " + body + "".join(notes))
    total = f"{kept_bytes_per_sample(plan, keeping):,}"
    return "\n".join((*lines, f"  return {_name(plan.output)}", f"}} keeps {total} bytes for each sample\n"))


def _stage(plan: Plan, stage: Stage, orders: Mapping[str, LoopOrder]) -> str:
    chain = list(_chain(plan, stage))
    if stage.packed:
        chain.append("as bits")
    layers = [f"{_op_word(node.op)} {_name(node.name)}{_order(orders.get(node.name))}" for node in stage.linears]
    if stage.spikes is not None:
        layers.append(f"return {_name(stage.spikes)}")
    source = f"{_name(stage.source)} : {plan.graph.types[stage.source]}"
    repeated = f" at each of {plan.timesteps} steps" if stage.repeated else ""
    return f"stage {source}{repeated} -> {' -> '.join([*chain, ', '.join(layers)])}"


def _chain(plan: Plan, stage: Stage) -> Iterator[str]:
    if stage.batch_norm is not None:
        yield f"batch_norm {_name(stage.batch_norm.name)}"
    lifs = iter(stage.lifs)
    for part, result in zip(stage.parts, stage.results, strict=True):
        name = next(lifs).name if isinstance(part, Population) else result
        yield from _part(part, name, plan.graph.types[result])
    if stage.flatten is not None:
        yield "flatten"


def _part(part: Part, name: str, result: TensorType) -> Iterator[str]:
    if not isinstance(part, Population):
        yield f"{_op_word(part)} {_name(name)} {_size(part.kernel)} by torch to {_extents(result)}"
        return
    table = [
        row for row in part.rows if part.norm is Norm.NONE or row in ("decay", "threshold", "reset_value", "initial")
    ]
    yield f"lif {_name(name)}" + (f" ({', '.join(table)} per channel)" if table else "")
    if part.window is not None:
        kind = "avg" if part.window.average else "max"
        yield f"{kind} {_size(part.window.kernel)} to {_extents(result)}"


def _torch(plan: Plan, step: TorchStep) -> str:
    node = step.node
    inputs = ", ".join(_name(name) for name in node.inputs)
    once = f" once for {step.repeats} steps" if step.repeats > 1 else ""
    return f"torch {_name(node.name)} : {plan.graph.types[node.name]} = {_op_word(node.op)}({inputs}){once}"


def _order(order: LoopOrder | None) -> str:
    if order is None:
        return ""
    return f" [{'all rows' if order.rows_per_call == 0 else f'{order.rows_per_call} rows'} a call, {order.layout}]"


def _kept_text(kept: Kept, *, again: bool) -> str:
    shared = ", shared" if again else ""
    return f"{_name(kept.value)} as {kept.format}, {kept.bytes_per_sample:,} bytes{shared}"


def _kept(plan: Plan, value: str, form: str, bits: int) -> Kept:
    sizes = [size for size in plan.graph.types[value].shape if isinstance(size, int)]  # all but the batch
    return Kept(value=value, format=form, bytes_per_sample=-(-math.prod(sizes) * bits // 8))


def _op_word(op: object) -> str:
    return class_word(type(op))


def _size(kernel: tuple[int, int]) -> str:
    return f"{kernel[0]}x{kernel[1]}"


def _extents(value: TensorType) -> str:
    return f"{value.size('H')}x{value.size('W')}"


def _name(name: str) -> str:
    return f"%{bare_or_quoted(name)}"
