"""Scratch memory of one training step, planned before it runs: which buffers there are, and where each one lies."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.fused.plan import Plan, Stage, Step, TorchStep
from compiler.fused.population import Activation, Norm, Population
from compiler.ir import TensorType
from compiler.ir.ops import Add, Encode, Flatten, Input

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector
SUM_GROUPS = 64  # partial sums of a batch norm: fixed, so that results do not depend on the number of threads
ITEM_BYTES = {Activation.F32: 4, Activation.BF16: 2}

Key = tuple[str, str, str, int]  # stage, "forward" or "backward", role, part


@dataclass(frozen=True, slots=True)
class Request:
    """A buffer and the ticks from its first to its last use, both included."""

    key: Key
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer lies in the block."""

    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Places such that no two buffers overlap that live at the same tick.

    lower_bound_bytes: the most that is alive at one tick; no arrangement needs less.
    """

    places: Mapping[Key, Place]
    total_bytes: int
    lower_bound_bytes: int

    @property
    def ratio(self) -> float:
        """How much larger the block is than the lower bound."""
        return self.total_bytes / self.lower_bound_bytes if self.lower_bound_bytes else 1.0


def arrange(requests: Sequence[Request]) -> Arrangement:
    """Greedy: the largest buffer first, each into the tightest gap between those that live when it does."""
    placed: list[tuple[Place, Request]] = []
    places: dict[Key, Place] = {}
    for request in sorted(requests, key=lambda r: (-r.size_bytes, r.first, r.key)):
        assert request.first <= request.last
        assert request.key not in places
        neighbours = [place for place, other in placed if _meet(request, other)]
        places[request.key] = place = Place(_tightest(_aligned(request.size_bytes), neighbours), request.size_bytes)
        insort(placed, (place, request), key=lambda entry: entry[0].offset)
    return Arrangement(
        places=places,
        total_bytes=max((place.offset + _aligned(place.size_bytes) for place in places.values()), default=0),
        lower_bound_bytes=_most_alive(requests),
    )


def _meet(one: Request, other: Request) -> bool:
    return one.first <= other.last and other.first <= one.last


def _tightest(size: int, neighbours: Sequence[Place]) -> int:
    """The offset of the smallest gap that is large enough, or behind all; neighbours in order of offset."""
    best, smallest, end = -1, math.inf, 0
    for place in neighbours:
        gap = place.offset - end
        if size <= gap < smallest:
            best, smallest = end, gap
        end = max(end, place.offset + _aligned(place.size_bytes))
    return end if best < 0 else best


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _most_alive(requests: Sequence[Request]) -> int:
    changes = [(request.first, _aligned(request.size_bytes)) for request in requests]
    changes += [(request.last + 1, -_aligned(request.size_bytes)) for request in requests]
    alive = most = 0
    for _, change in sorted(changes):  # what ends goes before what begins at the same tick
        alive += change
        most = max(most, alive)
    return most


def scratch_requests(plan: Plan, batch: int, activation: Activation = Activation.F32) -> tuple[Request, ...]:
    """The buffers of spikec's own kernels in one training step; what torch's operators return is torch's.

    Ticks run forward over the steps, then backward in reverse order; a stage has one for each part and more for its
    layers. So stages share memory, but for what one hands to another. Roles, part by part:

    moments      mean, variance and count of the batch norm's input: to the end of the stage's backward pass
    sums totals  partial sums of a batch norm and what they add up to
    table        per-channel numbers; with a batch norm also `reciprocal`, one over the deviation
    y            spikes; forward until the layers have read them, or, if they leave the stage, to its backward pass;
                 backward until the weight gradients. Of a packed stage: its input, unpacked in the backward pass
    bits         of a packed stage, its input with a bit for each spike: from its forward to its backward pass
    features     the flattened spikes, and grad_maps their gradient as maps; part: behind the last one
    grad_x       the input's gradient, where it cannot take the place of the result's: until the backward pass of the
                 step that made the input, and through sums and reshapes of those before it, which hand it on
    """
    ends = _Ticks(plan)
    found: list[Request] = []
    for step in plan.steps:
        if isinstance(step, Stage):
            found += _StageScratch(plan, step, batch, ITEM_BYTES[activation], ends).requests()
    return tuple(found)


@dataclass(slots=True)
class _Ticks:
    """When each step runs, forward and backward: its first tick and its last."""

    plan: Plan
    forward: dict[str, tuple[int, int]] = field(default_factory=dict)  # by any value that the step hands on
    backward: dict[str, tuple[int, int]] = field(default_factory=dict)
    end: int = 0

    def __post_init__(self) -> None:
        for spans, steps in ((self.forward, self.plan.steps), (self.backward, self.plan.steps[::-1])):
            for step in steps:
                length = len(step.parts) + 2 if isinstance(step, Stage) else 1
                span = (self.end, self.end + length - 1)
                spans.update(dict.fromkeys(step.outputs, span))
                self.end += length

    def gradient_read(self, value: str) -> int:
        """The last tick at which somebody reads the gradient of a value that a stage took."""
        last, waiting, seen = 0, [value], set[str]()
        while waiting:
            name = waiting.pop()
            seen.add(name)
            producer = self._producer(name)
            last = max(last, self.backward[name][1])
            if isinstance(producer, TorchStep) and isinstance(producer.node.op, Input):
                return self.end
            if isinstance(producer, TorchStep) and isinstance(producer.node.op, Add | Flatten | Encode):
                waiting += [given for given in producer.node.inputs if given not in seen]  # the same memory, handed on
        return last

    def _producer(self, value: str) -> Step:
        return next(step for step in self.plan.steps if value in step.outputs)


@dataclass(slots=True)
class _StageScratch:
    plan: Plan
    stage: Stage
    batch: int
    item_bytes: int
    ticks: _Ticks

    def requests(self) -> Iterator[Request]:
        name = self.stage.outputs[0]
        forward, backward = self.ticks.forward[name], self.ticks.backward[name]
        if self.stage.packed:
            spikes = self._maps(self.stage.source)
            yield self._request("forward", "bits", 0, -(-spikes // self.item_bytes // 8), (forward[0], backward[1]))
            yield self._request("backward", "y", 0, spikes, backward)
            return
        yield from self._tables("forward", forward)
        yield from self._tables("backward", backward)
        yield from self._forward(forward, backward)
        yield from self._backward(backward)

    def _forward(self, forward: tuple[int, int], backward: tuple[int, int]) -> Iterator[Request]:
        start, end = forward
        parts, stage = self.stage.parts, self.stage
        leaves = backward[1] if stage.spikes is not None else end  # whoever reads them has done so by then
        for index, part in enumerate(parts):
            if isinstance(part, Population):
                is_last = index == len(parts) - 1
                until = leaves if is_last and not self._copies else end
                yield self._request("forward", "y", index, self._maps(stage.results[index]), (start + index, until))
        if self._copies:
            yield self._request("forward", "features", len(parts), self._maps(stage.results[-1]), (end, leaves))

    def _backward(self, span: tuple[int, int]) -> Iterator[Request]:
        """Results again, then gradients from the last part to the first, then those of the layers' weights."""
        stage = self.stage
        for index, part in enumerate(stage.parts):
            if isinstance(part, Population):
                yield self._request("backward", "y", index, self._maps(stage.results[index]), span)
        if self._copies:
            yield self._request("backward", "features", len(stage.parts), self._maps(stage.results[-1]), span)
        yield from self._gradients(span)

    def _gradients(self, span: tuple[int, int]) -> Iterator[Request]:
        stage, count = self.stage, len(self.stage.parts)
        # The buffer that holds the gradient now, if it is one of ours: role, part, bytes, first tick.
        held = ("grad_maps", count, self._maps(stage.results[-1]), span[0]) if self._copies else None
        for index in reversed(range(count)):
            part, tick = stage.parts[index], span[0] + count - index
            if isinstance(part, Population) and part.in_place:
                continue
            if held is not None:
                yield self._request("backward", *held[:3], (held[3], tick))
            held = ("grad_x", index, self._input(index), tick) if isinstance(part, Population) else None
        if held is not None:
            last = max(span[1], self.ticks.gradient_read(stage.source))
            yield self._request("backward", *held[:3], (held[3], last))

    def _tables(self, direction: str, span: tuple[int, int]) -> Iterator[Request]:
        """What belongs to the parts' channels; a table is made again for results and for gradients."""
        channels = self._channels
        for index, part in enumerate(self.stage.parts):
            if not isinstance(part, Population):
                continue
            if part.rows:
                yield self._request(direction, "table", index, len(part.rows) * channels * 4, span)
            if part.norm is Norm.NONE:
                continue
            yield self._request(direction, "reciprocal", index, channels * 8, span)
            yield self._request(direction, "sums", index, SUM_GROUPS * 2 * channels * 8, span)
            if direction == "forward":
                kept = (span[0], self.ticks.backward[self.stage.outputs[0]][1])
                yield self._request(direction, "moments", index, 3 * channels * 8, kept)
            else:
                yield self._request(direction, "totals", index, 2 * channels * 8, span)

    def _request(self, direction: str, role: str, part: int, size_bytes: int, span: tuple[int, int]) -> Request:
        return Request((self.stage.name, direction, role, part), size_bytes, *span)

    @property
    def _channels(self) -> int:
        return self._type(self.stage.source).size("C")

    @property
    def _copies(self) -> bool:
        """Whether flattening moves values: with the channels last, the pixels come first in memory."""
        maps = self._type(self.stage.results[-1])
        return self.stage.flatten is not None and (maps.size("H"), maps.size("W")) != (1, 1)

    def _input(self, part: int) -> int:
        return self._maps(self.stage.results[part - 1] if part else self.stage.source)

    def _maps(self, value: str) -> int:
        sizes = [self.batch if isinstance(size, str) else size for size in self._type(value).shape]
        return math.prod(sizes) * self.item_bytes

    def _type(self, value: str) -> TensorType:
        return self.plan.graph.types[value]
