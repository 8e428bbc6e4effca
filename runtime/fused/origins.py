"""Where layers' results come from, so that they can be computed again instead of being kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from compiler.fused.plan import Stage
from compiler.fused.spikes.costs import MOST_AGAIN
from compiler.fused.spikes.counts import counts_of
from runtime.fused.ops import program_of
from runtime.fused.stage import keeps_bits


@dataclass(frozen=True, slots=True)
class Origin:
    """What a layer's result can be computed from: words, weight, maybe bias; its stage's program, its place there."""

    tensors: tuple[Tensor, ...]
    program: int
    layer: int


NOWHERE = Origin((), -1, 0)


def origins_of(
    stage: Stage, program: int, parameters: Sequence[Tensor], results: Sequence[Tensor]
) -> dict[str, Origin]:
    """By layer of a stage that keeps its spikes as bits, what its result can be computed from.

    Layers of averages take nearly as long as dense ones to do so, and have a result a quarter as large as those before
    them: theirs are kept, and so are results that took more than `MOST_AGAIN` multiplications a value.

    parameters: of its layers, in order. results: all that the stage's op returned.
    """
    found = program_of(program)
    if not keeps_bits(found, results[0]) or counts_of(found.parts[-1]) is not None:
        return {}
    words, rest = results[len(stage.outputs)].detach(), iter(parameters)
    made = {}
    for at, (node, layer) in enumerate(zip(stage.linears, found.layers, strict=True)):
        own = [next(rest).detach() for _ in range(1 + layer.bias)]
        if own[0][0].numel() <= MOST_AGAIN:
            made[node.name] = Origin((words, *own), program, at)
    return made
