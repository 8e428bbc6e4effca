"""What a kernel does with one cell, a neuron or a pooling window of neurons, through all time steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from compiler.fused.dynamics import Dynamics
from compiler.fused.emit import Buffer, Expr, Lanes, T, both, f32, local, put, select
from compiler.fused.population import Population

Index = Expr | int
Flags = Callable[[Index], Expr]  # 1 or 0 for a lane
Membranes = Callable[[Index, Index], Expr]  # m of a pixel and a lane


class Cell(ABC):
    """Where a cell's values stand, under one schedule. `t`: time step, `k`: pixel of the window, `lane`: see Lanes.

    A schedule may treat several cells side by side in each step: its members. Then all else speaks of the member that
    the loop of `each` is at.
    """

    population: Population
    lanes: Lanes

    @abstractmethod
    def steps(self) -> AbstractContextManager[Expr]:
        """Loop over the time steps."""

    @abstractmethod
    def number(self, name: str, lane: Index) -> Expr:
        """A neuron's number from the table."""

    @abstractmethod
    def x(self, t: Index, k: Index, lane: Index) -> Expr:
        """An input value; 0 outside the feature map."""

    @abstractmethod
    def grad_y(self, t: Index, lane: Index) -> Expr:
        """The gradient of a result; 0 for a window that has none."""

    @abstractmethod
    def store_y(self, t: Index, value: Callable[[Index], Expr]) -> None:
        """Write a result, if the cell has one."""

    @abstractmethod
    def store_grad_x(self, t: Index, k: Index, value: Callable[[Index], Expr]) -> None:
        """Write an input's gradient, if the pixel is inside the feature map."""

    @abstractmethod
    def valid(self, k: Index) -> Expr | None:
        """Whether a pixel is inside the feature map; None: always."""

    @abstractmethod
    def share(self) -> Expr:
        """1 / pixels inside the feature map, for averages."""

    def fetch(self, t: Index, *, back: bool) -> None:  # noqa: B027  # most schedules have nothing to do
        """At the start of each step, forward and back in time: ask for memory that a later cell will need."""

    def local(self, *shape: int) -> Buffer:
        """Values in registers, or near."""
        return local(*shape)

    @property
    def members(self) -> int:
        """The most members."""
        return 1

    @contextmanager
    def each(self) -> Iterator[Index]:
        """Loop over the members."""
        yield 0

    @property
    def pixels(self) -> int:
        """Pixels of the window."""
        window = self.population.window
        return 1 if window is None else window.kernel[0] * window.kernel[1]

    def dynamics(self, lane: Index) -> Dynamics:
        """The equations of one lane's neurons."""
        return Dynamics(self.population, lambda name: self.number(name, lane))


@dataclass(frozen=True, slots=True)
class _State:
    """What the neurons of the members carry from step to step."""

    v: Buffer  # (members, pixels, lanes)
    reset_by: Buffer | None  # of a delayed reset

    def subtrahend(self, j: Index, k: Index, lane: Index) -> Expr | None:
        return None if self.reset_by is None else self.reset_by[j, k, lane]


def forward(cell: Cell, write: Callable[[Index, Membranes], None] | None = None) -> None:
    """Algorithm 1: the cell's spikes, pooled.

    write(t, m): what becomes of a step's membrane potentials; None: results are stored.
    """
    state = _start(cell)
    m = cell.local(cell.pixels, cell.lanes.width)
    with cell.steps() as t, cell.each() as j:
        cell.fetch(t, back=False)
        with T.unroll(cell.pixels) as k:
            _advance(cell, state, (t, j, k), lambda k, lane: m[k, lane], lambda k, lane, value: put(m, value, k, lane))
        written = lambda k, lane: m[k, lane]  # noqa: E731
        if write is None:
            store_result(cell, t, pooled(cell, written))
        else:
            write(t, written)


def backward(cell: Cell, result: Callable[[Index, Index, Buffer], None], *, spikes: bool) -> None:
    """Algorithms 2 and 3 up to dL/dm: membrane potentials recomputed forward, gradients from the last step back.

    result(t, k, grad_m): what becomes of dL/dm[t] (pixels, lanes) of a pixel.
    spikes: write the cell's results too, for the weight gradient of the layer behind.
    """
    timesteps, pixels, lanes = cell.population.timesteps, cell.pixels, cell.lanes
    m = cell.local(timesteps, cell.members, pixels, lanes.width)
    state = _start(cell)
    with cell.steps() as t, cell.each() as j:
        cell.fetch(t, back=False)
        with T.unroll(pixels) as k:
            put_m = lambda k, lane, value: put(m, value, t, j, k, lane)  # noqa: E731
            _advance(cell, state, (t, j, k), lambda k, lane: m[t, j, k, lane], put_m)
        if spikes:
            store_result(cell, t, pooled(cell, lambda k, lane: m[t, j, k, lane]))
    later = _filled(cell, lambda _: f32(0.0))  # dL/dm[t+1]
    grad_m, grad_s = cell.local(pixels, lanes.width), cell.local(pixels, lanes.width)
    with cell.steps() as back, cell.each() as j:
        t = timesteps - 1 - back
        cell.fetch(t, back=True)
        _spread(cell, t, lambda k, lane: m[t, j, k, lane], grad_s)
        with T.unroll(pixels) as k:
            with lanes.each() as lane:
                put(grad_m, cell.dynamics(lane).grad_m(m[t, j, k, lane], grad_s[k, lane], later[j, k, lane]), k, lane)
            with lanes.each() as lane:
                put(later, grad_m[k, lane], j, k, lane)
            result(t, k, grad_m)


def _start(cell: Cell) -> _State:
    v = _filled(cell, lambda lane: cell.dynamics(lane).initial())
    return _State(v, _filled(cell, lambda _: f32(0.0)) if cell.population.delayed else None)


def _filled(cell: Cell, value: Callable[[Index], Expr]) -> Buffer:
    """A number for every neuron of every member."""
    numbers = cell.local(cell.members, cell.pixels, cell.lanes.width)
    with cell.each() as j, T.unroll(cell.pixels) as k, cell.lanes.each() as lane:
        put(numbers, value(lane), j, k, lane)
    return numbers


def _advance(
    cell: Cell,
    state: _State,
    at: tuple[Index, Index, Index],
    m: Membranes,
    put_m: Callable[[Index, Index, Expr], None],
) -> None:
    """One step of the neurons at (t, member, pixel): m[t], then v[t]."""
    t, j, k = at
    with cell.lanes.each() as lane:
        charged = cell.dynamics(lane).charge(state.v[j, k, lane], cell.x(t, k, lane), state.subtrahend(j, k, lane))
        put_m(k, lane, charged)
    with cell.lanes.each() as lane:
        put(state.v, cell.dynamics(lane).after(m(k, lane)), j, k, lane)
    if state.reset_by is not None:
        with cell.lanes.each() as lane:
            neuron = cell.dynamics(lane)
            put(state.reset_by, select(neuron.fires(m(k, lane)), neuron.number("threshold"), f32(0.0)), j, k, lane)


def pooled(cell: Cell, m: Membranes) -> Flags:
    """Spikes: of the neuron, or their maximum over the window; of averages, how many there are."""

    def spike(k: Index, lane: Index) -> Expr:
        fired = select(cell.dynamics(lane).fires(m(k, lane)), f32(1.0), f32(0.0))
        valid = cell.valid(k)
        return fired if valid is None else select(valid, fired, f32(0.0))

    window = cell.population.window
    if window is None:
        return lambda lane: spike(0, lane)
    found = cell.local(cell.lanes.width)
    with cell.lanes.each() as lane:
        put(found, f32(0.0), lane)
    with T.unroll(cell.pixels) as k, cell.lanes.each() as lane:
        put(found, found[lane] + spike(k, lane) if window.average else T.max(found[lane], spike(k, lane)), lane)
    return lambda lane: found[lane]


def store_result(cell: Cell, t: Index, spikes: Flags) -> None:
    """Write the result from its `pooled` spikes."""
    window = cell.population.window
    is_average = window is not None and window.average
    cell.store_y(t, lambda lane: spikes(lane) * cell.share() if is_average else spikes(lane))


def reached(cell: Cell, m: Membranes) -> Flags:
    """Whether the result's gradient reaches an m where ds/dm is not 0: of averages any pixel's, else that of `_spread`.

    dL/dm takes dL/ds times ds/dm and nothing else of it; the paths through resets start from later dL/dm.
    """

    def gate(value: Expr, lane: Index) -> Expr:
        return select(cell.dynamics(lane).surrogate(value) != f32(0.0), f32(1.0), f32(0.0))

    window = cell.population.window
    if window is None:
        return lambda lane: gate(m(0, lane), lane)
    found = cell.local(cell.lanes.width)
    with cell.lanes.each() as lane:
        put(found, f32(0.0) if window.average else m(0, lane), lane)
    with T.unroll(cell.pixels) as back, cell.lanes.each() as lane:
        k = cell.pixels - 1 - back  # of a maximum the first pixel with a spike is the last to be put
        valid = cell.valid(k)
        if window.average:
            value = gate(m(k, lane), lane)
            put(found, T.max(found[lane], value if valid is None else select(valid, value, f32(0.0))), lane)
        else:
            fired = cell.dynamics(lane).fires(m(k, lane))
            put(found, select(fired if valid is None else both(valid, fired), m(k, lane), found[lane]), lane)
    return lambda lane: found[lane] if window.average else gate(found[lane], lane)


def _spread(cell: Cell, t: Index, m: Membranes, grad_s: Buffer) -> None:
    """dL/ds[t] of each pixel from the result's gradient; a maximum hands it to the first pixel that attains it."""
    window, lanes = cell.population.window, cell.lanes
    if window is None or window.average:
        with T.unroll(cell.pixels) as k, lanes.each() as lane:
            grad = cell.grad_y(t, lane)
            put(grad_s, grad if window is None else grad * cell.share(), k, lane)
        return
    taken = cell.local(lanes.width)
    with lanes.each() as lane:
        put(taken, f32(0.0), lane)
    with T.unroll(cell.pixels) as k, lanes.each() as lane:
        valid = cell.valid(k)
        fired = cell.dynamics(lane).fires(m(k, lane))
        spike = select(fired if valid is None else both(valid, fired), f32(1.0), f32(0.0))
        put(grad_s, spike * (f32(1.0) - taken[lane]), k, lane)
        put(taken, T.max(taken[lane], spike), lane)
    with lanes.each() as lane:  # without a spike every pixel attains the maximum, and the first one counts
        put(grad_s, grad_s[0, lane] + (f32(1.0) - taken[lane]), 0, lane)
    with T.unroll(cell.pixels) as k, lanes.each() as lane:
        put(grad_s, grad_s[k, lane] * cell.grad_y(t, lane), k, lane)
