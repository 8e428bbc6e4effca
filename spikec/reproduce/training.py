"""Tables 3.1 and 3.2 and figure 3.15: what training costs, on the V100 and here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.losses import Loss
from hwmodel.config import (
    DmaChannels,
    EncodingPath,
    H2LearnConfig,
    Halo,
    MembraneWrite,
    Skips,
    Synchronise,
    UpdateMemory,
)
from hwmodel.engine_study import peak_power
from hwmodel.program import Program
from hwmodel.timing.sampled_tiles import SampledTiles
from runtime.timing.simulate import KeptByLayer
from runtime.timing.step import step_cost
from spikec.reproduce.facts import Facts, Kind, Row
from spikec.reproduce.networks import (
    SEED,
    TRAINED,
    Published,
    graph_of,
    time_of,
    v100_seconds_per_sample,
)

Progress = Callable[[str], None]
ENDLESS = 1e6  # times the bandwidth

_HALO = {Halo.KEPT: "FP16 halo kept", Halo.REFETCHED: "FP16 halo loaded again"}
_MEMORY = {
    UpdateMemory.SHARED: "Backward and Weight Update Engine share a memory",
    UpdateMemory.SEPARATE: "Weight Update Engine on a memory of its own",
}
_ENCODING = {
    EncodingPath.APART: "encoding layer beside the backward pass, as if on PEs of its own, without their area",
    EncodingPath.BACKWARD: "encoding layer on the Backward Engine",
}


def assumptions(config: H2LearnConfig) -> str:
    """What the closed form of a training step rests on."""
    timing = config.timing
    return "; ".join(
        (
            "closed form: engines and memories perfectly overlapped within a layer",
            "densities of table 3.2",
            f"sub-batch {config.sub_batch}",
            _ENCODING[timing.encoding],
            _MEMORY[timing.update_memory],
            _HALO[timing.gradient_halo],
            f"membrane potentials {timing.m_write}",
            f"first forward pass and weight update (with momentum) shared by {timing.batch_group} sub-batches",
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The preset with one choice taken otherwise."""

    name: str
    config: H2LearnConfig
    batch_group: int
    dense: bool = False
    serial: bool = False


def training_rows(facts: Facts, config: H2LearnConfig, progress: Progress, *, simulated: bool = True) -> Iterator[Row]:
    """The lowest and the highest speedup over the V100, and what each choice is worth."""
    for variant in variants(config):
        speedups = {name: speedup(facts, name, variant) for name in TRAINED}
        yield from _ends(facts, speedups, variant.name, config)
        if not variant.name:
            most = max(speedups, key=lambda name: speedups[name])
            claim = facts["figure-3.15.claim_imagenet_gains_most"]
            yield claim.row(most == "imagenet", Kind.REPRODUCED, _shown(speedups))
    if simulated:
        for name, changed in simulations(config).items():
            speedups = {}
            for network in TRAINED:
                progress(f"compiling and simulating zoo:{network}")
                speedups[network] = simulated_speedup(facts, network, config, changed)
            yield from _ends(facts, speedups, name, config)
    yield from _power(facts, config)
    bars = facts["figure-3.15.bars"]
    default = next(variants(config))
    for name in TRAINED:
        ours = speedup(facts, name, default)
        yield bars.row(ours, Kind.LOST, f"speedup on {name}; {assumptions(config)}", variant=name)


def _power(facts: Facts, config: H2LearnConfig) -> Iterator[Row]:
    """The ratio of powers; what the V100 draws without its memory is not printed."""
    ours = peak_power(config).total
    for end in ("low", "high"):
        fact = facts[f"figure-3.15.power_saving_{end}"]
        implied = facts.number(fact.item) * facts.number("table-3.6.power")
        why = (
            f"a ratio of powers: with the printed 20.57 W the V100 without its memory draws {implied:.0f} W, which is "
            f"not printed; over our maximum of {ours:.1f} W. As a saving of energy it would be speedup times as much, "
            "so that print contradicts itself where it says energy"
        )
        yield fact.row(implied / ours, Kind.INCONSISTENT, why)


def _ends(facts: Facts, speedups: dict[str, float], variant: str, config: H2LearnConfig) -> Iterator[Row]:
    rests_on = assumptions(config) if not variant else f"as the default but: {variant}"
    assumption = f"{rests_on}. {_shown(speedups)}"
    for item, ours in (("speedup_low", min(speedups.values())), ("speedup_high", max(speedups.values()))):
        yield facts[f"figure-3.15.{item}"].row(ours, Kind.CHOSEN, assumption, variant=variant)


def _shown(speedups: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}x" for name, value in speedups.items())


def variants(config: H2LearnConfig) -> Iterator[Variant]:
    """The default first, under the empty name; then one change each."""
    group = config.timing.batch_group

    def timing(name: str, **changes: object) -> Variant:
        changed = replace(config.timing, **changes)  # type: ignore[arg-type]  # fields of TimingConfig
        return Variant(name=name, config=replace(config, timing=changed), batch_group=group)

    yield Variant(name="", config=config, batch_group=group)
    yield timing("encoding layer, with its weight gradients, on the Backward Engine", encoding=EncodingPath.BACKWARD)
    yield timing("Weight Update Engine on a memory of its own", update_memory=UpdateMemory.SEPARATE)
    yield timing("FP16 halo loaded again", gradient_halo=Halo.REFETCHED)
    yield timing("membrane potentials stored dense", m_write=MembraneWrite.DENSE)
    yield Variant(name="steady state alone, no fill and no weight update", config=config, batch_group=0)
    yield Variant(name="weights updated every 4 sub-batches", config=config, batch_group=4)
    yield Variant(name="no overlap of forward and backward pass", config=config, batch_group=group, serial=True)
    dense = replace(config, backward=replace(config.backward, skips=Skips.NONE))
    yield Variant(name="dense Backward Engine", config=dense, batch_group=group, dense=True)
    by_iteration = replace(config, backward=replace(config.backward, synchronise=Synchronise.ITERATION))
    yield Variant(name="PEs wait for each other once a grid iteration", config=by_iteration, batch_group=group)


def speedup(facts: Facts, name: str, variant: Variant) -> float:
    """V100 seconds per sample over ours."""
    time = time_of(facts, name, variant.config, dense=variant.dense)
    seconds = time.seconds_per_sample(variant.batch_group)
    if variant.serial:
        cycles = time.forward_cycles + time.encoding_cycles + time.backward_cycles - time.period_cycles
        seconds += cycles / time.batch / (variant.config.clock_ghz * 1e9)
    return v100_seconds_per_sample(facts, name) / seconds


def simulations(config: H2LearnConfig) -> dict[str, H2LearnConfig]:
    """Settings for which the compiled programs are simulated, by name."""
    channels = replace(config.timing, dma_channels=DmaChannels.PER_ENGINE)
    fast = replace(config.memory, bytes_per_cycle=config.memory.bytes_per_cycle * ENDLESS)
    return {
        "compiled program, simulated: buffers of the preset cut tiles and steps, transfers in program order": config,
        "compiled program, simulated: transfers of each engine in their own order": replace(config, timing=channels),
        "compiled program, simulated: memories without end, so that only engines count": replace(config, memory=fast),
    }


def simulated_speedup(facts: Facts, name: str, base: H2LearnConfig, config: H2LearnConfig) -> float:
    """The same from the events of a compiled program: one launch a sub-batch, fill and update shared by the group."""
    published = Published.of(facts, name)
    program = replace(_program(name, base), config=config)
    tiles = SampledTiles(config, published.densities, seed=SEED)
    kept = KeptByLayer(published.windows)
    cycles = step_cost(program, tiles, kept).cycles_per_sample
    return v100_seconds_per_sample(facts, name) / (cycles / (config.clock_ghz * 1e9))


@cache
def _program(name: str, config: H2LearnConfig) -> Program:
    """Compiled once; the variants change only how it is timed."""
    descent = Descent(momentum=0.9, batch_group=config.timing.batch_group)
    return compile_training(graph_of(name), config, loss=Loss.MSE, descent=descent).program
