"""Loop orders: what the model prefers, that every order computes the same, and how measured ones are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compiler.fused import order as order_module
from compiler.fused.cache_file import CacheFileWarning
from compiler.fused.order import (
    LayerShape,
    Layout,
    LoopOrder,
    Machine,
    cache_key,
    candidates,
    layer_shapes,
    measure,
    modelled_order,
    modelled_seconds,
    this_machine,
    torch_trial,
)
from compiler.fused.order_cache import OrderCache, best_order
from compiler.fused.stages import plan_stages
from compiler.ir.ops import Conv2d
from tests.strategies import RandomNetwork, networks

SHAPE = LayerShape(timesteps=4, batch=3, channels=4, height=6, width=5, out_channels=2, kernel=(3, 3), padding=(1, 1))
MACHINE = Machine()

shapes = st.builds(
    LayerShape,
    timesteps=st.integers(1, 16),
    batch=st.integers(1, 64),
    channels=st.integers(1, 512),
    height=st.integers(3, 64),
    width=st.integers(3, 64),
    out_channels=st.integers(1, 512),
    kernel=st.just((3, 3)),
)


@given(shapes)
def test_candidates_are_orders_of_these_rows(shape: LayerShape) -> None:
    found = candidates(shape, MACHINE)
    assert found[0] == LoopOrder()
    assert len(set(found)) == len(found)
    assert all(0 <= order.rows_per_call < shape.rows for order in found)
    assert modelled_order(shape, MACHINE) in found
    for rows in (order.rows_per_call for order in found[1:]):
        caches = (MACHINE.l2_bytes * MACHINE.threads, MACHINE.l3_bytes)
        fits = [rows * shape.row_bytes + shape.weight_bytes <= cache for cache in caches]
        one_more = [(rows + 1) * shape.row_bytes + shape.weight_bytes <= cache for cache in caches]
        assert rows == shape.batch or fits != one_more


def test_hand_computed_model() -> None:
    """12 rows of 4 * (120 + 60) = 720 bytes, 240 of them results; 4 * 72 = 288 of weights; 6 * 72 * 30 operations.

    By 3 rows a call: 4 calls of 1 s, 8640 + 4 * 288 bytes at 10 a second from a cache of 2448, 2880 copied at 2;
    merged: one call of 1 s, 8928 bytes at 2 a second, as 8928 bytes do not fit.
    """
    machine = Machine(
        l2_bytes=1,
        l3_bytes=2448,
        cache_bytes_per_second=10.0,
        memory_bytes_per_second=2.0,
        call_seconds=1.0,
        operations_per_second=1e3,
    )
    assert (SHAPE.row_bytes, SHAPE.weight_bytes, SHAPE.out_size) == (720, 288, (6, 5))
    assert SHAPE.operations == 12960
    arithmetic = 12 * 12960 / 2e3
    assert modelled_seconds(SHAPE, LoopOrder(3), machine) == pytest.approx(arithmetic + 4 + 9792 / 10 + 2880 / 2)
    assert modelled_seconds(SHAPE, LoopOrder(), machine) == pytest.approx(arithmetic + 1 + 8928 / 2)
    assert modelled_order(SHAPE, machine) == LoopOrder(3)
    assert modelled_order(SHAPE, replace(machine, l3_bytes=8928)) == LoopOrder()
    assert modelled_order(SHAPE, replace(machine, call_seconds=1e6)) == LoopOrder()
    assert modelled_order(SHAPE, replace(machine, operations_per_second=1.0)) == LoopOrder()  # the rest is nothing


def test_where_arithmetic_dominates_steps_are_merged() -> None:
    """A 3 x 3 convolution of many channels, against one weight on large maps."""
    dense = LayerShape(timesteps=5, batch=32, channels=32, height=32, width=32, out_channels=64, kernel=(3, 3))
    thin = LayerShape(timesteps=5, batch=32, channels=1, height=128, width=128, out_channels=1, kernel=(1, 1))
    small = replace(MACHINE, l3_bytes=1 << 22)
    assert modelled_order(dense, small) == LoopOrder()
    assert modelled_order(thin, small).rows_per_call == 31  # 32 rows of 128 KiB fill the cache without the weight


def test_this_machine_has_caches() -> None:
    machine = this_machine()
    assert 0 < machine.l2_bytes <= machine.l3_bytes
    assert machine.threads == torch.get_num_threads()


@given(networks(blocks=(2, 3)), st.integers(1, 4))
def test_layers_have_the_shapes_of_the_graph(network: RandomNetwork, batch: int) -> None:
    plan = plan_stages(network.graph)
    for name, shape in layer_shapes(plan, batch).items():
        node = plan.graph.node(name)
        assert isinstance(node.op, Conv2d)
        kind = plan.graph.types[name]
        assert (shape.out_channels, *shape.out_size) == tuple(kind.size(axis) for axis in "CHW")
        assert shape.weight_shape == plan.graph.parameters[node.op.weight.name].shape
        assert shape.rows == plan.timesteps * batch


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("rows", [0, 3, 5, 100])
def test_a_trial_runs_the_whole_layer(rows: int, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the calls see, put together, is one merged call, however the rows are cut."""
    seen: list[int] = []
    plain = order_module._backward

    def recorded(shape: LayerShape, spikes: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        assert spikes.is_contiguous(memory_format=layout.memory_format)
        assert gradient.shape == (len(spikes), shape.out_channels, *shape.out_size)
        assert set(spikes.unique().tolist()) == {0.0, 1.0}
        seen.append(len(spikes))
        plain(shape, spikes, weight, gradient)

    monkeypatch.setattr(order_module, "_backward", recorded)
    torch_trial(SHAPE, LoopOrder(rows, layout), 0.3)()
    step = rows or SHAPE.rows
    assert seen == [min(step, SHAPE.rows - first) for first in range(0, SHAPE.rows, step)]


@dataclass
class Clock:
    """Time that passes when a trial says so."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def scripted(clock: Clock, times: dict[LoopOrder, list[float]]) -> order_module.Trial:
    """Trials that take the given times, one after the other."""

    def trial(shape: LayerShape, order: LoopOrder, density: float) -> Callable[[], None]:
        left = iter(times[order])

        def run() -> None:
            clock.seconds += next(left)

        return run

    return trial


def test_the_least_median_wins() -> None:
    """The first call, slow or not, does not count; one outlier does not either."""
    clock, first, second, third = Clock(), LoopOrder(), LoopOrder(3), LoopOrder(3, Layout.CONTIGUOUS)
    times = {first: [0.0, 5.0, 5.0, 5.0], second: [90.0, 4.0, 70.0, 4.0], third: [0.0, 1.0, 6.0, 6.0]}
    found = measure(SHAPE, [first, second, third], density=0.2, trial=scripted(clock, times), clock=clock)
    assert found == second


def test_the_first_of_equals_wins() -> None:
    clock, orders = Clock(), [LoopOrder(3), LoopOrder()]
    trial = scripted(clock, {order: [1.0] * 2 for order in orders})
    assert measure(SHAPE, orders, density=0.2, calls=1, trial=trial, clock=clock) == LoopOrder(3)


def test_a_measured_order_is_kept(tmp_path: Path) -> None:
    asked: list[Sequence[LoopOrder]] = []

    def search(shape: LayerShape, orders: Sequence[LoopOrder], density: float) -> LoopOrder:
        asked.append(orders)
        return orders[-1]

    cache = OrderCache(tmp_path / "new" / "folder")
    layouts = (Layout.CHANNELS_LAST, Layout.CONTIGUOUS)
    first = best_order(SHAPE, density=0.2, cache=cache, layouts=layouts, search=search)
    assert first.layout is Layout.CONTIGUOUS
    assert best_order(SHAPE, density=0.2, cache=cache, layouts=layouts, search=search) == first
    assert len(asked) == 1
    assert {order.layout for order in asked[0]} == set(layouts)
    assert best_order(replace(SHAPE, batch=4), density=0.2, cache=cache, search=search).layout is Layout.CHANNELS_LAST
    assert best_order(SHAPE, density=0.01, cache=cache, search=search) is not None
    assert len(asked) == 3
    assert [path.name for path in cache.folder.iterdir()] == [OrderCache.file_name]


def test_a_key_names_all_that_an_order_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = cache_key(SHAPE, 0.2)
    assert cache_key(replace(SHAPE, stride=(2, 1)), 0.2) != key
    assert cache_key(SHAPE, 0.21) == key != cache_key(SHAPE, 0.3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert cache_key(SHAPE, 0.2) != key
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert cache_key(SHAPE, 0.2) != key
    monkeypatch.undo()
    monkeypatch.setattr(order_module, "cpu_model", lambda: "another")
    assert cache_key(SHAPE, 0.2) != key


@given(st.dictionaries(st.text(), st.builds(LoopOrder, st.integers(0, 99), st.sampled_from(Layout)), max_size=5))
def test_kept_orders_are_found(tmp_path_factory: pytest.TempPathFactory, orders: dict[str, LoopOrder]) -> None:
    cache = OrderCache(tmp_path_factory.mktemp("orders"))
    for key, order in orders.items():
        cache.keep(key, order)
    assert {key: cache.find(key) for key in orders} == orders
    assert cache.find("\0none") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"{",
        b'{"format": 1}',
        b'{"format": 1, "orders": []}',
        b'{"format": 1, "orders": {"k": {"rows_per_call": -1, "layout": "contiguous"}}}',
        b'{"format": 1, "orders": {"k": {"rows_per_call": 2.5, "layout": "contiguous"}}}',
        b'{"format": 1, "orders": {"k": {"rows_per_call": 1, "layout": "sideways"}}}',
        b'{"format": 1, "orders": {"k": null}}',
    ],
)
def test_a_damaged_file_is_measured_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / OrderCache.file_name).write_bytes(content)
    cache = OrderCache(tmp_path)
    with pytest.warns(CacheFileWarning, match=f"{OrderCache.file_name}: .*; they are measured again"):
        assert cache.find("k") is None
    with pytest.warns(CacheFileWarning):
        cache.keep("k", LoopOrder(7))
    assert cache.find("k") == LoopOrder(7)


def test_orders_of_another_format_do_not_count(tmp_path: Path) -> None:
    cache = OrderCache(tmp_path)
    cache.keep("k", LoopOrder(7))
    content = json.loads((tmp_path / OrderCache.file_name).read_text())
    (tmp_path / OrderCache.file_name).write_text(json.dumps({**content, "format": 0}))
    assert cache.find("k") is None


def test_a_folder_that_cannot_be_written_is_only_warned_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheFileWarning, match="measured loop orders are not kept"):
        OrderCache(tmp_path / "file" / "below").keep("k", LoopOrder())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = OrderCache(tmp_path)
    cache.keep("k", LoopOrder(7))

    def fail(*paths: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.warns(CacheFileWarning, match="disk full"):
        cache.keep("other", LoopOrder(8))
    monkeypatch.undo()
    assert cache.find("k") == LoopOrder(7)
    assert [path.name for path in tmp_path.iterdir()] == [OrderCache.file_name]


def test_writers_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    cache = OrderCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: cache.keep(f"k{at}", LoopOrder(at)), range(40)))
    content = json.loads((tmp_path / OrderCache.file_name).read_text())["orders"]
    assert content
    assert all(entry == {"rows_per_call": int(key[1:]), "layout": "channels_last"} for key, entry in content.items())
