"""One design in numbers: throughput, energy, area and bounds of a network, from the closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hwmodel.area import BUFFERS, chip_area
from hwmodel.config import H2LearnConfig
from hwmodel.energy import PJ_PER_J, glb_pj_per_byte, leakage_w, work_energy
from hwmodel.isa import Queue
from hwmodel.program import Layer
from hwmodel.timing.instructions import F16_BYTES, SGD_ADDS, SGD_MULTIPLIES
from hwmodel.timing.network import LayerCost, inference_cycles, training_time
from hwmodel.timing.passes import Pass, Setting
from hwmodel.work import Work


class Mode(StrEnum):
    """What the chip does with the network."""

    INFER = "infer"
    TRAIN = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A design running one network without a pause; all engines leak all the time.

    Units: energies in J for one sample, area in mm2, `period_cycles` from one sub-batch to the next without what a
    batch group shares. `bound_by` says of each layer, by direction, which engine or memory takes longest.
    """

    samples_per_second: float
    dynamic_j_per_sample: float
    leakage_j_per_sample: float
    area_mm2: float
    period_cycles: float
    bound_by: Mapping[str, str]

    @property
    def energy_j_per_sample(self) -> float:
        """Dynamic energy and leakage, external memory not counted."""
        return self.dynamic_j_per_sample + self.leakage_j_per_sample

    @property
    def power_w(self) -> float:
        """Mean power."""
        return self.energy_j_per_sample * self.samples_per_second

    @property
    def energy_delay_js(self) -> float:
        """Energy times time of a sample, J s."""
        return self.energy_j_per_sample / self.samples_per_second

    @property
    def throughput_per_area(self) -> float:
        """Samples a second and mm2."""
        return self.samples_per_second / self.area_mm2


def estimate(layers: Sequence[Layer], setting: Setting, mode: Mode, batch_group: int) -> Estimate:
    """Throughput, energy and area of a network on a configuration.

    Training: seconds per sample = (period + (fill + descent) / batch_group) / (batch * clock), with `batch_group`
    sub-batches between two updates of the weights, 0 for none. Inference: layer after layer, without it.
    Source: section 3.2.4, figure 3.9.
    """
    config = setting.config
    if mode is Mode.INFER:
        costs = inference_cycles(layers, setting)
        period = math.fsum(cost.cycles for cost in costs)
        seconds = period / setting.batch / (config.clock_ghz * 1e9)
        bounds = _bounds("forward", costs)
        dynamic_pj = _sub_batch_pj(costs, config) + _soma_pj(layers, setting, directions=1)
    else:
        time = training_time(layers, setting)
        costs = (*time.forward, *time.encoding, *time.encoding_update, *time.backward)
        period, seconds = time.period_cycles, time.seconds_per_sample(batch_group)
        bounds = {
            **_bounds("forward", (*time.encoding, *time.forward)),
            **_bounds("backward", (*time.backward, *time.encoding_update)),
        }
        dynamic_pj = _sub_batch_pj(costs, config) + _soma_pj(layers, setting, directions=2)
        weights = sum(part.gradient_bytes for cost in costs for part in cost.passes) / (2 * F16_BYTES)
        dynamic_pj += _accumulation_pj(weights, config)
        dynamic_pj += _descent_pj(weights, config) / batch_group if batch_group else 0.0
    leakage = math.fsum(part.total for part in leakage_w(config).values())
    return Estimate(
        samples_per_second=1 / seconds,
        dynamic_j_per_sample=dynamic_pj / setting.batch / PJ_PER_J,
        leakage_j_per_sample=leakage * seconds,
        area_mm2=chip_area(config).total,
        period_cycles=period,
        bound_by=bounds,
    )


def _bounds(direction: str, costs: Sequence[LayerCost]) -> dict[str, str]:
    return {f"{direction} {cost.name}": cost.bound_by for cost in costs}


def _sub_batch_pj(costs: Sequence[LayerCost], config: H2LearnConfig) -> float:
    """Work of the arrays, and the transfers of each pass."""
    parts = [part for cost in costs for part in cost.passes]
    return math.fsum(
        work_energy(part.work, config, part.queue).total + _transfer_pj(part, config) for part in parts
    )  # fmt: skip


def _transfer_pj(part: Pass, config: H2LearnConfig) -> float:
    """Assumed: every byte is written or read once in a buffer of the pass' engine, at the mean cost of its buffers."""
    return (part.sample_bytes + part.gradient_bytes) * _byte_pj(part.queue, config)


def _byte_pj(engine: Queue, config: H2LearnConfig) -> float:
    costs = [glb_pj_per_byte(buffer, config) for buffer in BUFFERS[engine]]
    return math.fsum(cost.read + cost.write for cost in costs) / (2 * len(costs))


def _soma_pj(layers: Sequence[Layer], setting: Setting, *, directions: int) -> float:
    """A step of each neuron forwards, and one of its gradient backwards."""
    neurons = sum(c * h * w for layer in layers for c, h, w in (neuron.shape for neuron in layer.neurons))
    step = Work(soma_steps=neurons * setting.images)
    return directions * work_energy(step, setting.config, Queue.FE).total


def _accumulation_pj(weights: float, config: H2LearnConfig) -> float:
    """The weight gradients of a sub-batch, added to those in Mem 2 on their way."""
    return work_energy(Work(adds=weights), config, Queue.WUE).total


def _descent_pj(weights: float, config: H2LearnConfig) -> float:
    """An SGD step; gradient and momentum come and go, the weight comes once and goes to both memories."""
    step = Work(adds=SGD_ADDS * weights, multiplies=SGD_MULTIPLIES * weights)
    moved = (2 + 2 + 3) * F16_BYTES * weights
    return work_energy(step, config, Queue.WUE).total + moved * _byte_pj(Queue.WUE, config)
