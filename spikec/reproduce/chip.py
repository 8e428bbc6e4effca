"""Tables 3.3 to 3.6 and the numbers of sections 3.3.1 and 3.3.2 that follow from the structure of the chip."""

from __future__ import annotations

from collections.abc import Iterator

from compiler.h2learn.keep import kept_of
from compiler.h2learn.layers import split_layers
from compiler.passes import FoldBatchNorm, HoistEncode, MeanLast, SinkFlatten, run_passes
from frontends.zoo import entry
from hwmodel.area import adder_count, chip_area, glb_bytes, lut_bytes, peak_tflops
from hwmodel.baselines import without_luts
from hwmodel.components import energy_table
from hwmodel.config import KIB, H2LearnConfig
from hwmodel.engine_study import peak_power
from hwmodel.isa import Queue
from spikec.reproduce.facts import Facts, Kind, Row
from spikec.reproduce.networks import graph_of

_BY_STRUCTURE = "follows from the configuration"


def chip_rows(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    """Structure, area and power."""
    yield from _structure(facts, config)
    yield from _networks(facts)
    area = chip_area(config)
    parts = ", ".join(f"{engine} {area.engine(engine).total:.1f}" for engine in (Queue.FE, Queue.BE, Queue.WUE))
    fitted = f"area of the private buffers of the Backward Engine's PEs solved for the total; {parts} mm2"
    yield facts["table-3.6.area"].row(area.total, Kind.FITTED, fitted)
    v100 = facts.number("table-3.6.v100_area")
    yield facts["table-3.6.v100_area"].row(v100, Kind.GIVEN, "another platform: its published constant")
    yield facts["table-3.6.area_ratio"].row(v100 / area.total, Kind.FITTED, fitted)
    yield facts["table-3.6.clock"].row(config.clock_ghz * 1000, Kind.GIVEN, "the configuration states it")
    bandwidth = config.memory.count * config.memory.bytes_per_cycle * config.clock_ghz
    yield facts["table-3.6.bandwidth"].row(bandwidth, Kind.GIVEN, "the configuration states it")
    adders = "adders of the Forward and the Weight Update Engine, three operations in each PE of the Backward Engine"
    yield facts["table-3.6.throughput"].row(round(peak_tflops(config), 2), Kind.EXACT, adders)
    power = peak_power(config)
    what = (
        f"all engines busy, the Backward Engine dense: {power.forward:.1f} + {power.backward:.1f} + "
        f"{power.weight_update:.1f} W, buffers at full bandwidth {power.memory:.1f} W, leakage {power.leakage:.1f} W; "
        f"energy of an addition, {energy_table().fp16_add.value} pJ, picked for it"
    )
    yield facts["table-3.6.power"].row(power.total, Kind.FITTED, what)


def _structure(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    engines = {"forward": Queue.FE, "weight_update": Queue.WUE}
    for name, engine in engines.items():
        adders = adder_count(without_luts(config, engine), engine)
        yield facts[f"section-3.3.1.{name}_baseline_adders"].row(adders, Kind.EXACT, "one adder a tap, PE and lane")
        kib = lut_bytes(config, engine) / KIB
        yield facts[f"section-3.3.2.{name}_lut"].row(kib, Kind.EXACT, "PEs x sub-LUTs x entries x 2 B")
    forward, backward, update = config.forward, config.backward, config.weight_update
    shapes = {
        "forward": (forward.rows, forward.cols),
        "backward": (backward.rows, backward.cols),
        "weight_update": (update.rows, update.cols),
    }
    for name, (rows, columns) in shapes.items():
        yield facts[f"section-3.3.2.{name}_rows"].row(rows, Kind.GIVEN, "the configuration states it")
        yield facts[f"section-3.3.2.{name}_columns"].row(columns, Kind.GIVEN, "the configuration states it")
    lost = facts["table-3.5.specifications"]
    for name, engine in (*engines.items(), ("backward", Queue.BE)):
        kib = glb_bytes(config, engine) / KIB
        yield lost.row(
            kib, Kind.LOST, "the preset; its comments say what is assumed", f"GLB of the {name} engine", "KiB"
        )


def _networks(facts: Facts) -> Iterator[Row]:
    for name in ("nmnist", "cifar10dvs", "mnist", "cifar10", "imagenet"):
        notation = entry(name).notation
        yield facts[f"table-3.4.{name}"].row(notation, Kind.EXACT, "the zoo builds, trains and compiles it")
    lowered, _ = run_passes(graph_of("nmnist"), (HoistEncode(), FoldBatchNorm(), MeanLast(), SinkFlatten()))
    neurons = [neuron for layer in split_layers(lowered).layers for neuron in kept_of(layer).neurons]
    binary = ["s"] if all(neuron.spikes for neuron in neurons) else []
    binary += ["spike_gradient_mask"] if neurons else []
    kept = ", ".join([*binary, "membrane_gradient_mask"])
    yield facts["table-3.3.binary_variables"].row(kept, Kind.EXACT, "what a compiled program stores as one bit each")
