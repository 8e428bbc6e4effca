"""How many rows of the merged time and batch axis one call of torch's convolution takes: a model, and a measurement."""

from __future__ import annotations

import math
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from compiler.fused.plan import Plan, Stage
from compiler.ir.ops import Conv2d, window_extent

F32_BYTES = 4
COARSENESS = 0.05  # of the model: what more, smaller parallel regions cost beside the call is not in it


class Layout(StrEnum):
    """Of a convolution's spikes and results in memory."""

    CHANNELS_LAST = "channels_last"
    CONTIGUOUS = "contiguous"

    @property
    def memory_format(self) -> torch.memory_format:
        """As torch names it."""
        return torch.channels_last if self is Layout.CHANNELS_LAST else torch.contiguous_format


@dataclass(frozen=True, slots=True)
class LoopOrder:
    """Rows for each call, 0: all of them."""

    rows_per_call: int = 0
    layout: Layout = Layout.CHANNELS_LAST


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A convolution behind a stage's neurons, on `timesteps` * `batch` rows."""

    timesteps: int
    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def rows(self) -> int:
        """Of all time steps."""
        return self.timesteps * self.batch

    @cached_property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        sizes = zip((self.height, self.width), self.kernel, self.stride, self.padding, strict=True)
        height, width = (window_extent(size, kernel, stride, padding) for size, kernel, stride, padding in sizes)
        return height, width

    @property
    def result_bytes(self) -> int:
        """Of one row."""
        return F32_BYTES * self.out_channels * math.prod(self.out_size)

    @property
    def row_bytes(self) -> int:
        """Spikes and result of one row."""
        return F32_BYTES * self.channels * self.height * self.width + self.result_bytes

    @property
    def operations(self) -> int:
        """Multiplications and additions of one row: forward, input gradient, weight gradient."""
        return 3 * 2 * math.prod(self.weight_shape) * math.prod(self.out_size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """As torch has it."""
        return self.out_channels, self.channels // self.groups, *self.kernel

    @property
    def weight_bytes(self) -> int:
        """Of all kernels."""
        return F32_BYTES * math.prod(self.weight_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the model knows of a CPU; the rates were measured with torch on two cores of a server."""

    l2_bytes: int = 1 << 20  # of one core
    l3_bytes: int = 32 << 20
    threads: int = 2
    cache_bytes_per_second: float = 180e9
    memory_bytes_per_second: float = 15e9
    call_seconds: float = 20e-6  # a convolution and its backward pass on next to nothing
    operations_per_second: float = 40e9  # of a thread, in convolutions


def this_machine() -> Machine:
    """Cache sizes as Linux states them, where it does."""
    usual = Machine()
    sizes = {"2": usual.l2_bytes, "3": usual.l3_bytes}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = ((index / name).read_text().strip() for name in ("level", "size"))
        if level in sizes and re.fullmatch("[0-9]+K", size):
            sizes[level] = int(size[:-1]) << 10
    return Machine(l2_bytes=sizes["2"], l3_bytes=sizes["3"], threads=torch.get_num_threads())


def layer_shapes(plan: Plan, batch: int) -> dict[str, LayerShape]:
    """The convolutions of the plan's stages, by node."""
    found = {}
    for step in plan.steps:
        for node in step.linears if isinstance(step, Stage) else ():
            if not isinstance(node.op, Conv2d):
                continue
            x, y = plan.graph.types[node.inputs[0]], plan.graph.types[node.name]
            _, _, rows, columns = plan.graph.parameters[node.op.weight.name].shape
            found[node.name] = LayerShape(
                timesteps=x.size("T") if x.has("T") else 1,
                batch=batch,
                channels=x.size("C"),
                height=x.size("H"),
                width=x.size("W"),
                out_channels=y.size("C"),
                kernel=(rows, columns),
                stride=node.op.stride,
                padding=node.op.padding,
                groups=node.op.groups,
            )
    return found


def candidates(shape: LayerShape, machine: Machine) -> tuple[LoopOrder, ...]:
    """All time steps merged, one step at a time, and the most rows that a cache holds with the weights."""
    caches = (machine.l2_bytes * machine.threads, machine.l3_bytes)
    fitting = [(cache - shape.weight_bytes) // shape.row_bytes for cache in caches]
    rows = [count for count in (shape.batch, *fitting) if 0 < count < shape.rows]
    return tuple(LoopOrder(count) for count in dict.fromkeys([0, *rows]))


def modelled_seconds(shape: LayerShape, order: LoopOrder, machine: Machine) -> float:
    """Arithmetic, calls, and the bytes that they move.

    Spikes and results come from the cache if those of one call fit the last one beside the weights, else from memory;
    each call reads the weights again; results of several calls are copied side by side.
    """
    rows = min(order.rows_per_call or shape.rows, shape.rows)
    calls = -(-shape.rows // rows)
    is_cached = rows * shape.row_bytes + shape.weight_bytes <= machine.l3_bytes
    rate = machine.cache_bytes_per_second if is_cached else machine.memory_bytes_per_second
    moved = (shape.rows * shape.row_bytes + calls * shape.weight_bytes) / rate
    copied = shape.rows * shape.result_bytes / machine.memory_bytes_per_second if calls > 1 else 0.0
    arithmetic = shape.rows * shape.operations / (machine.operations_per_second * machine.threads)
    return arithmetic + calls * machine.call_seconds + moved + copied


def modelled_order(shape: LayerShape, machine: Machine) -> LoopOrder:
    """The candidate that the model finds fastest; merged, unless another saves more than the model's coarseness."""
    merged, *others = candidates(shape, machine)
    best = min(others, key=lambda order: modelled_seconds(shape, order, machine), default=merged)
    least = (1 - COARSENESS) * modelled_seconds(shape, merged, machine)
    return best if modelled_seconds(shape, best, machine) < least else merged


Trial = Callable[[LayerShape, LoopOrder, float], Callable[[], None]]  # shape, order, density -> one training step


def torch_trial(shape: LayerShape, order: LoopOrder, density: float) -> Callable[[], None]:
    """The layer's forward and backward pass on random spikes, of which `density` are 1."""
    random = torch.Generator().manual_seed(0)
    memory = order.layout.memory_format
    spikes = (torch.rand(shape.rows, shape.channels, shape.height, shape.width, generator=random) < density).float()
    spikes = spikes.contiguous(memory_format=memory)
    weight = torch.randn(shape.weight_shape, generator=random).contiguous(memory_format=memory)
    result = torch.empty(shape.rows, shape.out_channels, *shape.out_size).contiguous(memory_format=memory)
    gradient = torch.randn(result.shape, generator=random).contiguous(memory_format=memory)
    rows = order.rows_per_call or shape.rows
    chunks = tuple(zip(*(torch.split(tensor, rows) for tensor in (spikes, result, gradient)), strict=True))

    def run() -> None:
        for some, out, grad in chunks:
            values = functional.conv2d(some, weight, None, shape.stride, shape.padding, 1, shape.groups)
            if len(chunks) > 1:  # the parts must end up side by side
                out.copy_(values)
            _backward(shape, some, weight, grad)

    return run


def _backward(shape: LayerShape, spikes: Tensor, weight: Tensor, gradient: Tensor) -> None:
    torch.ops.aten.convolution_backward(
        gradient,
        spikes,
        weight,
        None,
        shape.stride,
        shape.padding,
        (1, 1),
        False,
        (0, 0),
        shape.groups,
        [True, True, False],
    )


def measure(
    shape: LayerShape,
    orders: Sequence[LoopOrder],
    density: float,
    *,
    calls: int = 3,
    trial: Trial = torch_trial,
    clock: Callable[[], float] = time.perf_counter,
) -> LoopOrder:
    """The order with the least median time over some calls, after one that counts for nothing; the first of equals."""
    assert orders
    assert calls >= 1

    def seconds(order: LoopOrder) -> float:
        run = trial(shape, order, density)
        run()
        times = []
        for _ in range(calls):
            start = clock()
            run()
            times.append(clock() - start)
        return statistics.median(times)

    return min(orders, key=seconds)


def cache_key(shape: LayerShape, density: float) -> str:
    """What a measured order depends on: CPU, threads, torch, layer, and the density to one digit."""
    sizes = " ".join(f"{item.name}={value}" for item, value in zip(fields(shape), astuple(shape), strict=True))
    return (
        f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {sizes}, density {density:.1g}"
    )


def cpu_model() -> str:
    """The CPU's name, as Linux states it or the platform does."""
    listing = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", listing.read_text() if listing.exists() else "", re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
