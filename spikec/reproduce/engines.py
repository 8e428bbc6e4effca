"""Figures 3.10 to 3.14: the engines by themselves, on the layer of section 3.3.2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hwmodel.area import engine_area
from hwmodel.baselines import ConvFacts, SpinalFlow, spinalflow_layer
from hwmodel.config import H2LearnConfig, MembraneWrite, Skips
from hwmodel.energy import work_energy
from hwmodel.engine_study import (
    ENGINE_LAYER,
    LAYER,
    WINDOW_DENSITY,
    BackwardStudy,
    backward_study,
    lut_partitions,
    lut_study,
)
from hwmodel.isa import Queue
from hwmodel.timing.network import LayerCost, cost_of
from hwmodel.timing.passes import Setting, forward_pass, gradient_pass, update_pass
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from hwmodel.timing.tiles import DenseTiles, TileSource
from spikec.reproduce.facts import Facts, Kind, Row
from spikec.reproduce.networks import SEED, TRAINED, Published, layers_of
from spikec.reproduce.profile import measured_numbers

DENSITY = 0.25  # both sparsities are 75 % in section 3.3.2
STUDY_TILES = 256
SIMILAR = 1.2  # the larger over the smaller
LARGE_SHARE = 0.25
MUCH_HIGHER = 1.5
HALVED, DOUBLED, NOTHING = (0.45, 0.55), 1.9, 1.02

STUDY_LAYER = ENGINE_LAYER.facts()


def engine_rows(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    """All rows of the engines."""
    yield from _luts(facts, config)
    yield from _backward(facts, study_of(config), config)
    for m_write in MembraneWrite:
        yield from _design_space(facts, replace(config, timing=replace(config.timing, m_write=m_write)))
    yield from _rivals(facts, config)


def _luts(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    study = lut_study(config)
    for name, engine in (("forward", Queue.FE), ("weight_update", Queue.WUE)):
        found = study[engine]
        kind = Kind.FITTED if engine is Queue.FE else Kind.REPRODUCED
        how = "one constant solved for it" if engine is Queue.FE else "predicted with the Forward Engine's constants"
        why = f"PEs and Acc units; {how}"
        yield facts[f"figure-3.11.{name}_area_saving"].row(found.area_saving, kind, why)
        yield facts[f"figure-3.11.{name}_energy_saving"].row(found.energy_saving, kind, why)
        for part in lut_partitions(config, engine):
            what = f"PEs and Acc units, {part.adders} adders, {part.storage_kib:.0f} KiB of sub-LUTs"
            variant = f"{name}: {part.sub_luts} sub-LUTs of {part.entries} entries"
            partitions = facts["figure-3.10.partitions"]
            yield partitions.row(part.area_mm2, Kind.LOST, what, f"{variant}, area", "mm2")
            yield partitions.row(part.energy_mj, Kind.LOST, what, f"{variant}, energy", "mJ")
        bars, layer = facts["figure-3.11.bars"], "256-256 channels, 56x56, 4 samples, 10 steps"
        yield bars.row(found.cycles, Kind.LOST, layer, f"{name}: time", "cycles")
        yield bars.row(
            found.engine_area_saving, Kind.LOST, "with GLB and Soma", f"{name}: area of the whole engine", "x"
        )
        whole = "with GLB accesses and leakage"
        yield bars.row(found.engine_energy_saving, Kind.LOST, whole, f"{name}: energy of the whole engine", "x")


def study_of(config: H2LearnConfig) -> BackwardStudy:
    """The Backward Engine with each kind of skip, masks drawn independently."""
    tiles: dict[Skips, TileSource] = {}
    for skips in Skips:
        one = replace(config, backward=replace(config.backward, skips=skips))
        density = {LAYER: Density(inputs=DENSITY, outputs=DENSITY)}
        tiles[skips] = (
            DenseTiles(one)
            if skips is Skips.NONE
            else SampledTiles(one, density, seed=SEED, samples_per_shape=STUDY_TILES)
        )
    return backward_study(config, tiles)


def _backward(facts: Facts, study: BackwardStudy, config: H2LearnConfig) -> Iterator[Row]:
    rows = study.rows
    both, inputs, outputs, dense = (rows[skips] for skips in (Skips.BOTH, Skips.INPUTS, Skips.OUTPUTS, Skips.NONE))
    tile, waits = config.tile, config.backward.synchronise
    drawn = (
        f"masks of 75 % zeros drawn independently; {tile.h}x{tile.w} tiles, PEs wait for the slowest at each {waits}"
    )
    yield facts["figure-3.12.speedup"].row(both.speedup, Kind.CHOSEN, f"{drawn}; the tile was picked with it in sight")
    measured = measured_numbers()
    for variant, ours in measured.speedups.items():
        yield facts["figure-3.12.speedup"].row(ours, Kind.REPRODUCED, measured.how_speedups, variant)
    energy = "dynamic energy of the PEs and buffers, and the engine's own leakage over its own time"
    yield facts["figure-3.12.energy_saving"].row(both.energy_saving, Kind.REPRODUCED, energy)
    ratio = inputs.speedup / outputs.speedup
    claims = {
        "claim_similar": (
            1 / SIMILAR < ratio < SIMILAR,
            f"inputs {inputs.speedup:.2f}x, outputs {outputs.speedup:.2f}x",
        ),
        "claim_leakage": (
            both.leakage_share > LARGE_SHARE and study.glb_of_leakage > 1 / 2,
            f"leakage is {dense.leakage_share:.0%} of the dense and {both.leakage_share:.0%} of the sparse energy; but "
            f"by area the GLB leaks only {study.glb_of_leakage:.0%}, with the PEs' private buffers "
            f"{study.storage_of_leakage:.0%}: that the total area fits only with private buffers speaks against the "
            "claim's second half",
        ),
        "claim_dense_array": (
            dense.pe_array_mj > dense.glb_mj + dense.leakage_mj,
            f"{dense.pe_array_mj / dense.total_mj:.0%} of the dense energy",
        ),
        "claim_input_only_array": (
            inputs.pe_array_mj / outputs.pe_array_mj > MUCH_HIGHER,
            f"{inputs.pe_array_mj:.1f} against {outputs.pe_array_mj:.1f} mJ",
        ),
    }
    for name, (holds, why) in claims.items():
        fact = facts[f"figure-3.12.{name}"]
        yield fact.row(holds, Kind.REPRODUCED, f"{fact.note}: {why}")
    for skips, row in rows.items():
        bars = facts["figure-3.12.bars"]
        yield bars.row(row.speedup, Kind.LOST, drawn, f"skips {skips}: speedup", "x")
        for part, energy_mj in (("PEs", row.pe_array_mj), ("GLB", row.glb_mj), ("leakage", row.leakage_mj)):
            yield bars.row(energy_mj, Kind.LOST, drawn, f"skips {skips}: energy of {part}", "mJ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Throughput with half and with twice of one setting, over that of the preset."""

    halved: float
    doubled: float
    bound_by: str  # with twice


def scalings(config: H2LearnConfig) -> Iterator[tuple[str, str, Scaling]]:
    """Engine, setting, and what it is worth: the nine settings of figure 3.13."""
    for engine, parallelism in (("forward", "lanes"), ("weight_update", "lanes"), ("backward", "pe_group")):
        base = engine_cost(config, engine)
        for name, field in (("rows", "rows"), ("columns", "cols"), ("parallelism", parallelism)):
            costs = []
            for factor in (0.5, 2):
                part = getattr(config, engine)
                changed = replace(part, **{field: max(int(getattr(part, field) * factor), 1)})
                costs.append(engine_cost(replace(config, **{engine: changed}), engine))
            halved, doubled = costs
            yield (
                engine,
                name,
                Scaling(
                    halved=base.cycles / halved.cycles,
                    doubled=base.cycles / doubled.cycles,
                    bound_by=doubled.bound_by,
                ),
            )


def engine_cost(config: H2LearnConfig, engine: str) -> LayerCost:
    """The layer of section 3.3.2 on one engine, its memory to itself."""
    setting = Setting(
        config=config,
        timesteps=config.timesteps,
        batch=config.sub_batch,
        tiles=SampledTiles(config, {LAYER: Density(inputs=DENSITY, outputs=DENSITY)}, seed=SEED),
        window_density={LAYER: WINDOW_DENSITY},
    )
    match engine:
        case "forward":
            found = forward_pass(LAYER, STUDY_LAYER, setting, keeps=True)
        case "backward":
            found = gradient_pass(LAYER, STUDY_LAYER, STUDY_LAYER, setting)
        case _:
            found = update_pass(LAYER, STUDY_LAYER, setting)
    return cost_of(STUDY_LAYER.name, [found], setting)


def _design_space(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    m_write = config.timing.m_write
    for engine, name, scaling in scalings(config):
        halved, doubled = (facts[f"figure-3.13.{engine}_{name}_{what}"] for what in ("halved", "doubled"))
        variant = "" if m_write is MembraneWrite.COMPRESSED else "m_write = dense"
        why = f"membrane potentials {m_write}"
        holds = HALVED[0] <= scaling.halved <= HALVED[1]
        yield halved.row(holds, Kind.CHOSEN, f"{halved.note}: {scaling.halved:.2f}x; {why}", variant)
        if "nothing" in doubled.note:
            holds = scaling.doubled < NOTHING
        elif "less than" in doubled.note:
            holds = scaling.doubled < DOUBLED
        else:
            holds = scaling.doubled >= DOUBLED
        text = f"{doubled.note}: {scaling.doubled:.2f}x, then bound by {scaling.bound_by}; {why}"
        yield doubled.row(holds, Kind.CHOSEN, text, variant)
    yield facts["figure-3.13.bars"].row(
        None, Kind.LOST, f"the ratios stand in the rows of the claims, m_write {m_write}"
    )


def _rivals(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    """The Forward Engine beside a SpinalFlow-like one on CIFAR10; the V100 by engine."""
    flow, bars = SpinalFlow.of(), facts["figure-3.14.spinalflow"]
    found = dict(_spinalflow(facts, config, flow))
    steps = config.timesteps
    why = (
        f"SpinalFlow-like at {flow.clock_ghz} GHz over H2Learn at {config.clock_ghz} GHz, adders and weight storage; "
        f"one spike a neuron in {steps} steps (temporal coding); its parameters from the literature, unverified"
    )
    for layer, (energy, area) in found.items():
        yield bars.row(energy, Kind.LOST, why, f"{layer}: energy", "x")
        yield bars.row(area, Kind.LOST, why, f"{layer}: area at equal throughput", "x")
    slower = config.clock_ghz / flow.clock_ghz
    for place, name in enumerate(("energy", "area")):
        claim, ratios = facts[f"figure-3.14.claim_{name}"], [ratio[place] for ratio in found.values()]
        text = f"{claim.note}: {min(ratios):.2f}x to {max(ratios):.2f}x by layer; {why}"
        if name == "area":
            text += f"; at equal throughput, {min(ratios) / slower:.2f}x to {max(ratios) / slower:.2f}x at equal clocks"
        yield claim.row(min(ratios) > 1, Kind.REPRODUCED, text)
    why = (
        f"the V100's time by engine is not in the text; whole training steps stand in figure 3.15 ({len(TRAINED)} sets)"
    )
    yield facts["figure-3.14.v100_engines"].row(None, Kind.LOST, why)


def _spinalflow(facts: Facts, config: H2LearnConfig, flow: SpinalFlow) -> Iterator[tuple[str, tuple[float, float]]]:
    """Layers of CIFAR10's network, with energy and area at equal throughput of the rival over ours."""
    tiles = SampledTiles(config, Published.of(facts, "cifar10").densities, seed=SEED)
    setting = Setting(config=config, timesteps=config.timesteps, batch=config.sub_batch, tiles=tiles)
    for number, layer in enumerate(layers_of("cifar10", config)):
        if layer.kind != "conv" or layer.engine is Queue.BE:
            continue
        ours = cost_of(layer.name, [forward_pass(number, layer, setting, keeps=False)], setting)
        conv = ConvFacts(
            batch=config.sub_batch, c_in=layer.c_in, c_out=layer.c_out, out_h=layer.out_h, out_w=layer.out_w,
            kernel_h=layer.kernel[0], kernel_w=layer.kernel[1],
        )  # fmt: skip
        rival = spinalflow_layer(conv, flow, 1 / config.timesteps, config.timesteps)
        seconds = ours.cycles / (config.clock_ghz * 1e9)
        energy = rival.energy_pj / work_energy(ours.passes[0].work, config, Queue.FE).pe_array
        area = rival.area_mm2 * rival.seconds / seconds / engine_area(config, Queue.FE).pe_array
        yield layer.name, (energy, area)
