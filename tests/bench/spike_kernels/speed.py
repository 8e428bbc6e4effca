"""Each pass of a convolution by each spike kernel, and whole steps, against torch's better layout."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import torch

from compiler.fused.spikes.costs import WAYS, LayerCosts, Pass, Way
from compiler.fused.spikes.geometry import Geometry
from runtime.fused.spikes.measure import measure
from tests.bench.spike_kernels.clocks import Call, Clock, in_turn, median_interval
from tests.bench.spike_kernels.trial import LAYOUTS, Dense, Inputs, Setting, Spiking, Trial

SHAPES = {"a": "64-128@32", "b": "128-256@16", "c": "256-256@16", "d": "512-512@8"}
KERNELS = (Way.LOOKUP, Way.EVENTS, Way.MASKED)
STEP = "step"
PASSES = (*(str(of) for of in Pass), STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kernel against torch.

    density: the share that the kernel's time depends on: of spikes; of the masked kernel, of open neurons; of the
    events of an input gradient, of gradients that are not zero. of: the pass, or all three. ms_best_dense: of the
    layout with the smaller median. speedup: of medians; low and high bound the median of the rounds' own ratios.
    """

    shape: str
    density: float
    kernel: str
    of: str
    threads: int
    ms_median: float
    ms_best_dense: float
    dense_layout: str
    speedup: float
    speedup_low: float
    speedup_high: float

    def record(self) -> dict[str, object]:
        """As JSON has it."""
        values = asdict(self)
        return {"pass" if name == "of" else name: value for name, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is timed, and how."""

    densities: Sequence[float]
    rounds: int
    clock: Clock = Clock.WALL
    kernels: Sequence[Way] = KERNELS
    passes: Sequence[str] = PASSES
    setting: Setting = field(default_factory=Setting)


class Contender(NamedTuple):
    """One of those that take turns."""

    kernel: str  # of torch, the layout
    call: Call


def geometry_of(text: str, images: int) -> Geometry:
    """A 3x3 convolution by name, or as CHANNELS-OUTPUTS@SIZE. Raises: ValueError for anything else."""
    found = re.fullmatch(r"(\d+)-(\d+)@(\d+)", SHAPES.get(text, text))
    if found is None:
        raise ValueError(f"{text!r} is no shape; {', '.join(SHAPES)}, or as 64-128@32")
    channels, outputs, size = (int(word) for word in found.groups())
    return Geometry(
        images=images, height=size, width=size, channels=channels, out_channels=outputs, kernel=(3, 3), padding=(1, 1)
    )


def rows(shape: str, geometry: Geometry, plan: Plan) -> Iterator[Row]:
    """The rows of one shape."""
    bench = _Bench(shape, Trial.of(geometry), plan)
    window = plan.setting.window
    for density in plan.densities:
        for of in (Pass.FORWARD, Pass.WEIGHT_GRADIENT):
            yield from bench.of_pass(of, density, bench.ways(of))
        yield from bench.of_pass(Pass.INPUT_GRADIENT, density, bench.ways(Pass.INPUT_GRADIENT) & {Way.EVENTS})
    yield from bench.of_pass(Pass.INPUT_GRADIENT, window, bench.ways(Pass.INPUT_GRADIENT) & {Way.MASKED})
    if STEP in plan.passes:
        every = [measure(bench.trial.layer, of, clock=plan.clock.now) for of in Pass]
        costs = bench.allowed(LayerCosts({key: cost for one in every for key, cost in one.costs.items()}))
        for density in plan.densities:
            yield bench.of_step(density, costs)


@dataclass(frozen=True, slots=True)
class _Bench:
    shape: str
    trial: Trial
    plan: Plan

    def ways(self, of: Pass) -> set[Way]:
        """Kernels of a pass that are asked for and compute the layer."""
        if of not in self.plan.passes:
            return set()
        return {way for way in WAYS[of] if way in self.plan.kernels and self.trial.layer.supports(of, way)}

    def of_pass(self, of: Pass, share: float, ways: set[Way]) -> Iterator[Row]:
        if not ways:
            return
        few = share if of is Pass.INPUT_GRADIENT and Way.EVENTS in ways else 1.0
        window = share if Way.MASKED in ways else self.plan.setting.window
        inputs = Inputs.of(self.trial, spikes=share, window=window, grad=few)
        spiking = Spiking.of(self.trial, inputs, self.plan.setting)
        ours = [Contender(str(way), spiking.pass_(of, way)) for way in WAYS[of] if way in ways]
        layer = self.trial.layer.layer
        dense = [Contender(layout, Dense(layer, inputs.laid_out(layout)).pass_(of)) for layout in LAYOUTS]
        yield from self._compared(str(of), share, dense, ours)

    def of_step(self, density: float, costs: LayerCosts) -> Row:
        """All passes in one sequence, each by the way that costs say is fastest, gradients dense."""
        window = self.plan.setting.window
        spikes, grads = {Way.EVENTS: density}, {Way.EVENTS: 1.0, Way.MASKED: window}
        shares: Mapping[Pass, Mapping[Way, float]] = {
            Pass.FORWARD: spikes, Pass.WEIGHT_GRADIENT: spikes, Pass.INPUT_GRADIENT: grads
        }  # fmt: skip
        ways = {of: costs.choose(of, shares[of]) for of in Pass}
        inputs = Inputs.of(self.trial, spikes=density, window=window)
        spiking = Spiking.of(self.trial, inputs, self.plan.setting)
        ours = Contender(" + ".join(ways.values()), lambda: spiking.step(ways))
        layer = self.trial.layer.layer
        dense = [Contender(layout, Dense(layer, inputs.laid_out(layout)).step) for layout in LAYOUTS]
        (row,) = self._compared(STEP, density, dense, [ours])
        return row

    def allowed(self, costs: LayerCosts) -> LayerCosts:
        """Without the kernels that are not asked for."""
        kept = (*self.plan.kernels, Way.DENSE)
        return replace(costs, costs={key: cost for key, cost in costs.costs.items() if key[1] in kept})

    def _compared(self, of: str, share: float, dense: list[Contender], ours: list[Contender]) -> Iterator[Row]:
        calls = {contender.kernel: contender.call for contender in (*dense, *ours)}
        seconds = in_turn(calls, self.plan.rounds, self.plan.clock)
        medians = {kernel: statistics.median(times) for kernel, times in seconds.items()}
        best = min((contender.kernel for contender in dense), key=medians.__getitem__)
        for kernel in (contender.kernel for contender in ours):
            ratios = [slow / fast for slow, fast in zip(seconds[best], seconds[kernel], strict=True)]
            low, high = median_interval(ratios)
            yield Row(
                shape=self.shape, density=share, kernel=kernel, of=of, threads=torch.get_num_threads(),
                ms_median=medians[kernel] * 1e3, ms_best_dense=medians[best] * 1e3, dense_layout=best,
                speedup=medians[best] / medians[kernel], speedup_low=low, speedup_high=high,
            )  # fmt: skip
