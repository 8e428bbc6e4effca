"""Which stages keep their spikes as bits and run their layers on spike kernels."""

from __future__ import annotations

import math

from compiler.fused.plan import Plan, Stage
from compiler.fused.population import Population
from compiler.fused.spikes.costs import SMALLEST, SpikeKernels
from compiler.fused.spikes.counts import counts_of
from compiler.ir.graph import Node
from compiler.ir.ops import Conv2d, Linear

OF_A_SAMPLE = SMALLEST // 4  # multiplications: in batches of 4 and more, the largest layer then is large enough


def kernels_of(plan: Plan, stage: Stage, wanted: SpikeKernels) -> SpikeKernels:
    """What is wanted, or `OFF` for a stage that has no use for it.

    Layers must read what the stage's last neurons give, in the order in which it lies in memory, and it must be
    spikes, or averages of spikes over windows of 2, 4, 8 or 16 pixels, whose counts are kept bit by bit. Averages of
    other windows, of which thirds and ninths are no numbers of f32, are left to the dense kernels, and so are sums of
    residual branches and features that a Flatten takes from more than one pixel. Where measurements choose, one layer
    must be worth it.
    """
    last = stage.parts[-1] if stage.parts else None
    if not isinstance(last, Population) or not stage.linears or not (last.binary or counts_of(last)):
        return SpikeKernels.OFF
    if stage.flatten is not None:
        maps = plan.graph.types[stage.results[-1]]
        if (maps.size("H"), maps.size("W")) != (1, 1):
            return SpikeKernels.OFF
    if wanted is SpikeKernels.MEASURED and max(_multiplications(plan, node) for node in stage.linears) < OF_A_SAMPLE:
        return SpikeKernels.OFF
    return wanted


def _multiplications(plan: Plan, node: Node) -> int:
    """Of one sample's time steps in a layer."""
    assert isinstance(node.op, Conv2d | Linear)
    weight = math.prod(plan.graph.parameters[node.op.weight.name].shape)
    kind = plan.graph.types[node.name]
    pixels = kind.size("H") * kind.size("W") if kind.has("H") else 1
    return plan.timesteps * pixels * weight
