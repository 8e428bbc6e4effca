"""Cuts a layer's feature maps into tiles, with the pooling windows that each tile holds."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.h2learn.isolate_pools import pool_of
from compiler.h2learn.layers import NetworkLayer
from compiler.ir import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpan:
    """One axis of a tile's pooling: `out` windows, the first at `top`, the padded input ending at `limit`."""

    out: int
    top: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One axis of a tile: where it lies before and after pooling."""

    start: int  # of the Soma's input
    size: int
    pools: tuple[PoolSpan, ...]
    out_start: int
    out_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """The Soma's input of one tile, and its place in the layer's output."""

    rows: Span
    columns: Span


def tile_feature_maps(layer: NetworkLayer, height: int, width: int) -> tuple[Tile, ...]:
    """Tiles of at most height x width Soma inputs (pooling from memory: of outputs), in raster order.

    Needs: pools of a layer with a synapse fit a tile (isolate_pools). Ensures: the outputs are covered once.
    Source: figure 3.1.
    """
    if not layer.synapse_type.has("H"):
        point = Span(start=0, size=1, pools=(), out_start=0, out_size=1)
        return (Tile(rows=point, columns=point),)
    rows = _spans(layer, "H", height)
    columns = _spans(layer, "W", width)
    return tuple(Tile(rows=r, columns=c) for r in rows for c in columns)


def _spans(layer: NetworkLayer, axis: str, tile: int) -> list[Span]:
    pools = [node for node in (layer.pool1, layer.pool2) if node is not None]
    extent = layer.synapse_type.size(axis)
    if layer.synapse is None and pools:
        return _memory_spans(pools[0], axis, extent, layer.output_type.size(axis), tile)
    index = "HW".index(axis)
    outputs = [layer.pool1_type.size(axis), layer.output_type.size(axis)]
    strides = [pool_of(node).stride[index] for node in pools]
    totals = [extent] + (outputs if len(pools) == 2 else outputs[1:] if pools else [])
    used = totals[-1]
    for stride, total in zip(reversed(strides), reversed(totals[:-1]), strict=True):
        used = min(total, used * stride)
    unit = 1
    for stride in strides:
        unit *= stride
    step = max(tile // unit, 1) * unit
    spans = []
    for start in range(0, used, step):
        at, size, windows = start, min(step, used - start), []
        for stride, before, after in zip(strides, totals, totals[1:], strict=False):
            first = at // stride
            out = min(after - first, -(-size // stride))
            windows.append(PoolSpan(out=out, top=0, limit=before - at))
            at, size = first, out
        spans.append(Span(start=start, size=min(step, used - start), pools=tuple(windows), out_start=at, out_size=size))
    return spans


def _memory_spans(pool_node: Node, axis: str, extent: int, outputs: int, tile: int) -> list[Span]:
    pool = pool_of(pool_node)
    index = "HW".index(axis)
    kernel, stride, padding = pool.kernel[index], pool.stride[index], pool.padding[index]
    spans = []
    for first in range(0, outputs, tile):
        out = min(tile, outputs - first)
        begin = max(0, first * stride - padding)
        end = min(extent, (first + out - 1) * stride - padding + kernel)
        window = PoolSpan(out=out, top=first * stride - padding - begin, limit=extent + padding - begin)
        spans.append(Span(start=begin, size=end - begin, pools=(window,), out_start=first, out_size=out))
    return spans
