"""Measured loop orders, kept between runs in one file of a folder."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compiler.fused.order import LayerShape, Layout, LoopOrder, cache_key, candidates, measure, this_machine

FILE_NAME = "loop_orders.json"
FORMAT = 1  # raised when a measurement means something else

Search = Callable[[LayerShape, Sequence[LoopOrder], float], LoopOrder]  # shape, orders, density -> the fastest


class OrderCacheWarning(UserWarning):
    """A file of measured orders could not be read or written."""


@dataclass(frozen=True, slots=True)
class OrderCache:
    """The file `loop_orders.json` in a folder; damaged, it counts as empty and is written anew.

    Processes may write at once: each puts a whole file in place, so that an order may be lost, but no file torn.
    """

    folder: Path

    def find(self, key: str) -> LoopOrder | None:
        """The order kept under the key."""
        return self._read().get(key)

    def keep(self, key: str, order: LoopOrder) -> None:
        """Keep the order, with a warning if the folder cannot be written."""
        entries = {name: asdict(value) for name, value in sorted({**self._read(), key: order}.items())}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.folder / FILE_NAME, json.dumps({"format": FORMAT, "orders": entries}, indent=1) + "\n")
        except OSError as error:
            warnings.warn(f"measured loop orders are not kept: {error}", OrderCacheWarning, stacklevel=3)

    def _read(self) -> dict[str, LoopOrder]:
        path = self.folder / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                return {}
            return {str(key): _order(entry) for key, entry in content["orders"].items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            warnings.warn(f"{path}: {error!r}; loop orders are measured again", OrderCacheWarning, stacklevel=4)
            return {}


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


def _order(entry: dict[str, object]) -> LoopOrder:
    rows = entry["rows_per_call"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise ValueError(f"rows_per_call is {rows!r}")
    return LoopOrder(rows, Layout(str(entry["layout"])))


def _replace(path: Path, text: str) -> None:
    """Write beside, then rename: whoever reads sees the old file or the new one."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
