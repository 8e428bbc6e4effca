"""What a kernel does with one cell, a neuron or a pooling window of neurons, through all time steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from compiler.fused.dynamics import Dynamics
from compiler.fused.emit import Buffer, Expr, Lanes, T, both, f32, local, put, select
from compiler.fused.population import Population

Index = Expr | int


class Cell(ABC):
    """Where a cell's values stand, under one schedule. `t`: time step, `k`: pixel of the window, `lane`: see Lanes."""

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
    """What the neurons of a cell carry from step to step."""

    v: Buffer  # (pixels, lanes)
    reset_by: Buffer | None  # of a delayed reset

    def subtrahend(self, k: Index, lane: Index) -> Expr | None:
        return None if self.reset_by is None else self.reset_by[k, lane]


def forward(cell: Cell) -> None:
    """Algorithm 1: the cell's spikes, pooled."""
    state = _start(cell)
    m = local(cell.pixels, cell.lanes.width)
    with cell.steps() as t:
        with T.unroll(cell.pixels) as k:
            _advance(cell, state, t, k, lambda k, lane: m[k, lane], lambda k, lane, value: put(m, value, k, lane))
        _write_result(cell, t, lambda k, lane: m[k, lane])


def backward(cell: Cell, result: Callable[[Index, Index, Buffer], None], *, spikes: bool) -> None:
    """Algorithms 2 and 3 up to dL/dm: membrane potentials recomputed forward, gradients from the last step back.

    result(t, k, grad_m): what becomes of dL/dm[t] (pixels, lanes) of a pixel.
    spikes: write the cell's results too, for the weight gradient of the layer behind.
    """
    pixels, lanes = cell.pixels, cell.lanes
    m = local(cell.population.timesteps, pixels, lanes.width)
    state = _start(cell)
    with cell.steps() as t:
        with T.unroll(pixels) as k:
            _advance(cell, state, t, k, lambda k, lane: m[t, k, lane], lambda k, lane, value: put(m, value, t, k, lane))
        if spikes:
            _write_result(cell, t, lambda k, lane: m[t, k, lane])
    grad_m = local(pixels, lanes.width)
    with T.unroll(pixels) as k, lanes.each() as lane:
        put(grad_m, f32(0.0), k, lane)
    grad_s = local(pixels, lanes.width)
    with cell.steps() as back:
        t = cell.population.timesteps - 1 - back
        _spread(cell, t, m, grad_s)
        with T.unroll(pixels) as k:
            with lanes.each() as lane:
                neuron = cell.dynamics(lane)
                grad_next = grad_m[k, lane]
                delayed = grad_next if cell.population.delayed else None
                value = neuron.grad_m(m[t, k, lane], grad_s[k, lane], neuron.number("decay") * grad_next, delayed)
                put(grad_m, value, k, lane)
            result(t, k, grad_m)


def _start(cell: Cell) -> _State:
    v = local(cell.pixels, cell.lanes.width)
    reset_by = local(cell.pixels, cell.lanes.width) if cell.population.delayed else None
    with T.unroll(cell.pixels) as k, cell.lanes.each() as lane:
        put(v, cell.dynamics(lane).initial(), k, lane)
    if reset_by is not None:
        with T.unroll(cell.pixels) as k, cell.lanes.each() as lane:
            put(reset_by, f32(0.0), k, lane)
    return _State(v, reset_by)


def _advance(
    cell: Cell,
    state: _State,
    t: Index,
    k: Index,
    m: Callable[[Index, Index], Expr],
    put_m: Callable[[Index, Index, Expr], None],
) -> None:
    """One step of one pixel's neurons: m[t], then v[t]."""
    with cell.lanes.each() as lane:
        charged = cell.dynamics(lane).charge(state.v[k, lane], cell.x(t, k, lane), state.subtrahend(k, lane))
        put_m(k, lane, charged)
    with cell.lanes.each() as lane:
        put(state.v, cell.dynamics(lane).after(m(k, lane)), k, lane)
    if state.reset_by is not None:
        with cell.lanes.each() as lane:
            neuron = cell.dynamics(lane)
            put(state.reset_by, select(neuron.fires(m(k, lane)), neuron.number("threshold"), f32(0.0)), k, lane)


def _write_result(cell: Cell, t: Index, m: Callable[[Index, Index], Expr]) -> None:
    """Spikes, or what their pooling makes of them."""

    def spike(k: Index, lane: Index) -> Expr:
        fired = select(cell.dynamics(lane).fires(m(k, lane)), f32(1.0), f32(0.0))
        valid = cell.valid(k)
        return fired if valid is None else select(valid, fired, f32(0.0))

    window = cell.population.window
    if window is None:
        cell.store_y(t, lambda lane: spike(0, lane))
        return
    pooled = local(cell.lanes.width)
    with cell.lanes.each() as lane:
        put(pooled, f32(0.0), lane)
    with T.unroll(cell.pixels) as k, cell.lanes.each() as lane:
        value = pooled[lane] + spike(k, lane) if window.average else T.max(pooled[lane], spike(k, lane))
        put(pooled, value, lane)
    cell.store_y(t, lambda lane: pooled[lane] * cell.share() if window.average else pooled[lane])


def _spread(cell: Cell, t: Index, m: Buffer, grad_s: Buffer) -> None:
    """dL/ds[t] of each pixel from the result's gradient; a maximum hands it to the first pixel that attains it."""
    window, lanes = cell.population.window, cell.lanes
    if window is None or window.average:
        with T.unroll(cell.pixels) as k, lanes.each() as lane:
            grad = cell.grad_y(t, lane)
            put(grad_s, grad if window is None else grad * cell.share(), k, lane)
        return
    taken = local(lanes.width)
    with lanes.each() as lane:
        put(taken, f32(0.0), lane)
    with T.unroll(cell.pixels) as k, lanes.each() as lane:
        valid = cell.valid(k)
        fired = cell.dynamics(lane).fires(m[t, k, lane])
        spike = select(fired if valid is None else both(valid, fired), f32(1.0), f32(0.0))
        put(grad_s, spike * (f32(1.0) - taken[lane]), k, lane)
        put(taken, T.max(taken[lane], spike), lane)
    with lanes.each() as lane:  # without a spike every pixel attains the maximum, and the first one counts
        put(grad_s, grad_s[0, lane] + (f32(1.0) - taken[lane]), 0, lane)
    with T.unroll(cell.pixels) as k, lanes.each() as lane:
        put(grad_s, grad_s[k, lane] * cell.grad_y(t, lane), k, lane)
