"""A network's time in closed form: layer after layer, engines and memories perfectly overlapped within each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwmodel.config import EncodingPath, H2LearnConfig, UpdateMemory
from hwmodel.isa import Queue
from hwmodel.program import Layer
from hwmodel.timing.passes import Pass, Setting, forward_pass, gradient_pass, update_pass
from hwmodel.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One layer in one direction: cycles of what could bind it. Units: cycles."""

    name: str
    passes: tuple[Pass, ...]
    compute_cycles: dict[Queue, float]
    memory_cycles: dict[str, float]

    @property
    def cycles(self) -> float:
        """Cycles with perfect overlap."""
        return max([*self.compute_cycles.values(), *self.memory_cycles.values()])

    @property
    def bound_by(self) -> str:
        """What takes longest: an engine or a memory."""
        everything = {**{str(queue): cycles for queue, cycles in self.compute_cycles.items()}, **self.memory_cycles}
        return max(everything, key=lambda name: everything[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTime:
    """A sub-batch in the steady state of figure 3.9: forward of the next one beside backward and update of this one.

    Units: cycles. `period_cycles` is what a sub-batch costs; a batch group adds one `fill_cycles`, its first forward
    pass, and one `descent_cycles`, the update of the weights.
    """

    config: H2LearnConfig
    batch: int
    forward: tuple[LayerCost, ...]
    encoding: tuple[LayerCost, ...]
    encoding_update: tuple[LayerCost, ...]
    backward: tuple[LayerCost, ...]
    descent_cycles: float

    @property
    def forward_cycles(self) -> float:
        """Forward Engine, all layers."""
        return _total(self.forward)

    @property
    def encoding_cycles(self) -> float:
        """Dense passes of the encoding layer, forwards."""
        return _total(self.encoding)

    @property
    def backward_cycles(self) -> float:
        """Backward and Weight Update Engine side by side, without the encoding layer's own passes."""
        return _total(self.backward)

    @property
    def period_cycles(self) -> float:
        """Cycles from one sub-batch to the next."""
        forward, encoding, backward = self.forward_cycles, self.encoding_cycles, self.backward_cycles
        if self.config.timing.encoding is EncodingPath.APART:
            return max(forward + encoding, backward)
        return max(forward, backward + encoding + _total(self.encoding_update))

    @property
    def fill_cycles(self) -> float:
        """The first forward pass of a batch group, beside which nothing runs backward."""
        return self.forward_cycles + self.encoding_cycles

    def seconds_per_sample(self, batch_group: int = 0) -> float:
        """Steady state, or with fill and weight update shared by a batch group of so many sub-batches."""
        cycles = self.period_cycles
        if batch_group:
            cycles += (self.fill_cycles + self.descent_cycles) / batch_group
        return cycles / self.batch / (self.config.clock_ghz * 1e9)

    @property
    def work(self) -> dict[Queue, Work]:
        """What each engine does for one sub-batch."""
        found: dict[Queue, Work] = {}
        for cost in (*self.forward, *self.encoding, *self.encoding_update, *self.backward):
            for part in cost.passes:
                found[part.queue] = found.get(part.queue, Work()) + part.work
        return found


def training_time(layers: Sequence[Layer], setting: Setting) -> TrainingTime:
    """Time of one sub-batch of BPTT training.

    Both take the gradients of a layer's sums: the Backward Engine for the layer in front, the Weight Update Engine for
    the layer's weights. So they overlap layer by layer, and share the sub-batch's memory or not, as configured.
    Source: section 3.2.4, figure 3.9.
    """
    forward: list[LayerCost] = []
    encoding: list[LayerCost] = []
    encoding_update: list[LayerCost] = []
    backward: list[LayerCost] = []
    updates = [update_pass(number, layer, setting) for number, layer in enumerate(layers)]
    for number, layer in enumerate(layers):
        found = forward_pass(number, layer, setting, keeps=True)
        (encoding if layer.engine is Queue.BE else forward).append(cost_of(layer.name, [found], setting))
    for number in range(len(layers) - 1, -1, -1):
        behind = layers[number + 1] if number + 1 < len(layers) else None
        parts = [gradient_pass(number, layers[number], behind, setting)]
        if behind is not None:
            parts.append(updates[number + 1])
        backward.append(cost_of(behind.name if behind is not None else "loss", parts, setting))
    last = encoding_update if layers[0].engine is Queue.BE else backward
    last.append(cost_of(layers[0].name, [updates[0]], setting))
    rate = setting.config.memory.bytes_per_cycle
    return TrainingTime(
        config=setting.config,
        batch=setting.batch,
        forward=tuple(forward),
        encoding=tuple(encoding),
        encoding_update=tuple(encoding_update),
        backward=tuple(backward),
        # gradients, and their momentum, come from Mem 2 and go back there; weights travel beside them
        descent_cycles=sum(part.gradient_bytes for part in updates) * (2 if setting.momentum else 1) / rate,
    )


def inference_cycles(layers: Sequence[Layer], setting: Setting) -> tuple[LayerCost, ...]:
    """The layers of one sub-batch forwards, one after the other."""
    return tuple(
        cost_of(layer.name, [forward_pass(number, layer, setting, keeps=False)], setting)
        for number, layer in enumerate(layers)
    )


def cost_of(name: str, passes: list[Pass], setting: Setting) -> LayerCost:
    rate = setting.config.memory.bytes_per_cycle
    is_shared = setting.config.timing.update_memory is UpdateMemory.SHARED
    compute: dict[Queue, float] = {}
    memory: dict[str, float] = {}
    for part in passes:
        compute[part.queue] = compute.get(part.queue, 0.0) + part.work.cycles
        way = "samples" if is_shared or part.queue is not Queue.WUE else "update"
        memory[way] = memory.get(way, 0.0) + part.sample_bytes / rate
        if part.gradient_bytes:
            memory["gradients"] = memory.get("gradients", 0.0) + part.gradient_bytes / rate
    return LayerCost(name=name, passes=tuple(passes), compute_cycles=compute, memory_cycles=memory)


def _total(costs: Sequence[LayerCost]) -> float:
    return sum(cost.cycles for cost in costs)
