"""Measured loop orders, kept between runs in one file of a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from compiler.fused.cache_file import CacheFile
from compiler.fused.order import LayerShape, Layout, LoopOrder, cache_key, candidates, measure, this_machine

Search = Callable[[LayerShape, Sequence[LoopOrder], float], LoopOrder]  # shape, orders, density -> the fastest


@dataclass(frozen=True, slots=True)
class OrderCache(CacheFile[LoopOrder]):
    """The file of loop orders."""

    file_name: ClassVar[str] = "loop_orders.json"
    format: ClassVar[int] = 1
    entries: ClassVar[str] = "measured loop orders"

    def parsed(self, value: object) -> LoopOrder:
        if not isinstance(value, dict):
            raise TypeError("an order is an object")
        rows = value["rows_per_call"]
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
            raise ValueError(f"rows_per_call is {rows!r}")
        return LoopOrder(rows, Layout(str(value["layout"])))

    def written(self, entry: LoopOrder) -> object:
        return asdict(entry)


def best_order(
    shape: LayerShape,
    *,
    density: float,
    cache: OrderCache,
    layouts: tuple[Layout, ...] = (Layout.CHANNELS_LAST,),
    search: Search = measure,
) -> LoopOrder:
    """The fastest loop order of a layer on this machine: as kept, or else measured and kept."""
    key = f"{cache_key(shape, density)}, {' '.join(layouts)}"
    order = cache.find(key)
    if order is None:
        rows = [order.rows_per_call for order in candidates(shape, this_machine())]
        order = search(shape, [LoopOrder(count, layout) for layout in layouts for count in rows], density)
        cache.keep(key, order)
    return order
