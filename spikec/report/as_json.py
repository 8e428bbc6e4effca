"""A report as one JSON object; the unit of each number is in its key."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hwmodel.energy import Energy
from spikec.commands.talk import Json
from spikec.report.analysis import Analysis, ChannelReport, LayerReport, PhaseReport
from spikec.report.roofline import Roof
from spikec.report.tables import area_parts
from spikec.report.whatif import WhatIf


def report_json(analysis: Analysis, changes: Sequence[WhatIf], densities: str) -> dict[str, Json]:
    """The whole report."""
    program = analysis.program
    return {
        "program": program.name,
        "config": analysis.config.name,
        "mode": "infer" if program.training is None else "train",
        "timesteps": program.timesteps,
        "batch": program.batch,
        "machines": analysis.machines,
        "densities": densities or None,
        "samples_per_group": analysis.samples,
        "cycles_per_group": analysis.cycles,
        "seconds_per_group": analysis.seconds,
        "samples_per_s": analysis.samples_per_s,
        "energy_j_per_sample": analysis.joules_per_sample,
        "energy_j_per_sample_by_component": analysis.energy_by_component(),
        "energy_j_per_sample_by_engine": analysis.energy_by_engine(),
        "power_w": analysis.energy_j / analysis.seconds,
        "area_mm2": analysis.area.total,
        "area_mm2_by_component": area_parts(analysis),
        "phases": [_phase(phase) for phase in analysis.phases],
        "what_if": [_change(change) for change in changes],
    }


def _phase(phase: PhaseReport) -> dict[str, Json]:
    return {
        "phase": str(phase.phase),
        "launches": phase.launches,
        "elapsed_cycles": phase.elapsed_cycles,
        "critical_cycles": phase.critical_cycles,
        "energy_j": _energy(phase.energy),
        "channels": [_channel(channel) for channel in phase.channels],
        "layers": [_layer(layer) for layer in phase.layers],
        "roofline": [_roof(roof) for roof in phase.roofs],
    }


def _energy(energy: Energy) -> dict[str, Json]:
    return {
        "total": energy.total_j,
        "dynamic": energy.dynamic_j,
        "leakage": energy.leakage_j,
        "by_component": energy.by_component(),
        "by_engine": {str(engine): joules for engine, joules in energy.by_engine().items()},
    }


def _channel(channel: ChannelReport) -> dict[str, Json]:
    return {
        "channel": channel.name,
        "memory": channel.memory or None,
        "instructions": channel.instructions,
        "busy_cycles": channel.busy,
        "blocked_cycles": channel.blocked,
        "contended_cycles": channel.contended,
        "done_cycles": channel.done,
    }


def _layer(layer: LayerReport) -> dict[str, Json]:
    stalls: list[dict[str, Json]] = [
        {"channel": stall.channel, "cause": stall.cause, "contended": stall.contended, "cycles": cycles}
        for stall, cycles in layer.stall_cycles.items()
    ]
    return {
        "layer": layer.name,
        "elapsed_cycles": layer.elapsed_cycles,
        "critical_cycles": layer.critical_cycles,
        "busy_cycles": layer.busy_cycles,
        "bound_by": layer.bound_by or None,
        "bound_over_next": layer.margin if math.isfinite(layer.margin) else None,
        "stalls": stalls,
        "memory_bytes": layer.memory_bytes,
        "buffer_bytes": layer.buffer_bytes,
        "on_chip_bytes": layer.on_chip_bytes,
        "dynamic_energy_j": layer.dynamic_j,
    }


def _roof(roof: Roof) -> dict[str, Json]:
    return {
        "engine": str(roof.engine),
        "operations": roof.operations,
        "memory": roof.memory or None,
        "memory_bytes": roof.memory_bytes,
        "attained_ops_per_s": roof.attained_ops_per_s,
        "roof_ops_per_s": roof.roof_ops_per_s,
        "peak_ops_per_s": roof.peak_ops_per_s,
        "bandwidth_bytes_per_s": roof.bandwidth_bytes_per_s,
        "intensity_ops_per_byte": roof.intensity_ops_per_byte if roof.memory_bytes else None,
    }


def _change(change: WhatIf) -> dict[str, Json]:
    return {
        "changes": dict(change.changes),
        "now": dict(change.now),
        "time_ratio": change.time_ratio,
        "speedup": change.speedup,
        "energy_ratio": change.energy_ratio,
        "area_ratio": change.area_ratio,
    }
