"""Emits the Soma's instructions: neuron stages and the pooling windows of a tile."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.h2learn.blocks import OutputBlock
from compiler.h2learn.isolate_pools import pool_of
from compiler.h2learn.keep import NOTHING, Kept
from compiler.h2learn.layers import NetworkLayer
from compiler.h2learn.quantise import Quantised
from compiler.h2learn.tile_feature_maps import PoolSpan, Span
from compiler.ir import Node
from compiler.ir.ops import AvgPool2d
from hwmodel.isa import CompareRule, Instruction, PoolKind, PoolSetup, ResetKind, Soma


class SomaEmitter:
    """Emits the pooling set-up and the Soma instruction of each output block of a layer."""

    def __init__(self, number: int, layer: NetworkLayer, constants: Quantised, kept: Kept = NOTHING) -> None:
        self._number = number
        self._membranes = {neuron.stage for neuron in kept.neurons if neuron.membrane}
        self._keep = kept is not NOTHING
        self._first_spikes = kept.first_spikes
        self._layer = layer
        self._stages = constants.stages

    @property
    def fires(self) -> bool:
        """Whether the layer's output is spikes."""
        return self._stages[-1].fire if self._stages else True

    def instructions(self, output: OutputBlock, bank: int, *, state_in: bool, state_out: bool) -> Iterator[Instruction]:
        """The set-up of the windows, then the Soma over all steps of the block."""
        rows, columns = output.tile.rows, output.tile.columns
        yield from self.windows(output)
        first = self._stages[0] if self._stages else None
        second = self._stages[1] if len(self._stages) > 1 else None
        yield Soma(
            layer=self._number,
            psum_bank=bank,
            neuron_bank=bank,
            out_bank=bank,
            nt=output.times.size,
            nn=output.samples.size,
            h=rows.size,
            w=columns.size,
            cols=output.columns.size,
            present1=first is not None,
            reset1=ResetKind(first.reset) if first else ResetKind.NONE,
            compare1=CompareRule(first.compare) if first else CompareRule.GE,
            fire1=first.fire if first else False,
            pre_bias1=first.has_pre_bias if first else False,
            scale1=first.has_scale if first else False,
            bias1=first.has_bias if first else False,
            present2=second is not None,
            reset2=ResetKind(second.reset) if second else ResetKind.NONE,
            compare2=CompareRule(second.compare) if second else CompareRule.GE,
            fire2=second.fire if second else False,
            scale2=second.has_scale if second else False,
            bias2=second.has_bias if second else False,
            pool1=self.pool_kinds()[0],
            pool2=self.pool_kinds()[1],
            state_in=state_in,
            state_out=state_out,
            keep=self._keep,
            keep_s1=self._first_spikes,
            keep_m1=0 in self._membranes,
            keep_m2=1 in self._membranes,
        )

    def windows(self, output: OutputBlock) -> Iterator[Instruction]:
        """The set-up of the pooling windows of a block's tile."""
        rows, columns = output.tile.rows, output.tile.columns
        for slot, (pool, span_h, span_w) in enumerate(zip(self._pools(), rows.pools, columns.pools, strict=True)):
            yield self._pool_setup(self._slot(slot), pool, span_h, span_w)

    def pool_kinds(self) -> tuple[PoolKind, PoolKind]:
        """Pooling before the first neuron, and after it."""
        if self._stages:
            return self._kind(self._layer.pool1), self._kind(self._layer.pool2)
        return PoolKind.NONE, self._kind(self._layer.pool1)

    def stage_region(self, output: OutputBlock, stage: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Start and size of the rows and columns that a neuron stage works on."""
        return self._stage_span(output.tile.rows, stage, 0), self._stage_span(output.tile.columns, stage, 1)

    def _stage_span(self, span: Span, stage: int, axis: int) -> tuple[int, int]:
        if stage == 1 or self._layer.pool2 is None:
            return span.out_start, span.out_size
        if self._layer.pool1 is None:
            return span.start, span.size
        window = span.pools[0]
        return span.start // pool_of(self._layer.pool1).stride[axis], window.out

    def _pools(self) -> list[Node]:
        return [node for node in (self._layer.pool1, self._layer.pool2) if node is not None]

    def _slot(self, position: int) -> int:
        """Pools before the first neuron use slot 1, after it slot 2; a lone pool has no neuron before it."""
        if not self._stages:
            return 2
        return 1 + position if self._layer.pool1 is not None else 2

    def _kind(self, node: Node | None) -> PoolKind:
        if node is None:
            return PoolKind.NONE
        return PoolKind.AVG if isinstance(node.op, AvgPool2d) else PoolKind.MAX

    def _pool_setup(self, slot: int, node: Node, rows: PoolSpan, columns: PoolSpan) -> PoolSetup:
        pool = pool_of(node)
        return PoolSetup(
            layer=self._number,
            slot=slot,
            kernel_h=pool.kernel[0],
            kernel_w=pool.kernel[1],
            stride_h=pool.stride[0],
            stride_w=pool.stride[1],
            out_h=rows.out,
            out_w=columns.out,
            top=rows.top,
            left=columns.top,
            limit_h=rows.limit,
            limit_w=columns.limit,
            include_pad=isinstance(pool, AvgPool2d) and pool.count_include_pad,
        )
