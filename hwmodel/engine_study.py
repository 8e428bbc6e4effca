"""The comparisons of section 3.3.2: one layer on each engine with and without LUTs, and with each kind of skip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import fmean

from hwmodel.area import adder_count, engine_area, lut_bytes
from hwmodel.baselines import FORWARD_PARTITIONS, UPDATE_PARTITIONS, with_partition, with_skips, without_luts
from hwmodel.components import AreaTable, EnergyTable
from hwmodel.config import KIB, H2LearnConfig, Halo, Skips
from hwmodel.energy import NO_ENERGY, PJ_PER_J, EngineEnergy, leakage_w, transfer_energy, work_energy
from hwmodel.isa import Buffer, GradConvTile, Load, Queue, Store, Transfer
from hwmodel.program import Format, Layer, NeuronFacts, Role, Tensor
from hwmodel.timing.instructions import transfer_bytes
from hwmodel.timing.passes import Setting, forward_pass, gradient_pass, update_pass
from hwmodel.timing.tiles import DenseTiles, TileCounts, TileSource
from hwmodel.work import F16_BYTES, Work

LAYER = 0  # the number that all instructions carry
WINDOW_DENSITY = 0.25  # membrane potentials inside the surrogate's window: as the spike gradients that are not zero
DRAWS = 64  # grid iterations over whose masks the Backward Engine's counts are averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyLayer:
    """A convolution of stride 1 whose rim is padded. Source: section 3.3.2."""

    samples: int = 4
    timesteps: int = 10
    channels_in: int = 256
    channels_out: int = 256
    h: int = 56
    w: int = 56
    kernel: int = 3

    def facts(self) -> Layer:
        """What the passes of a network know of it."""
        return _conv_facts(self, self.channels_in, self.channels_out)

    def front_facts(self) -> Layer:
        """The layer whose spikes it reads, and whose spike gradients its backward pass computes."""
        return _conv_facts(self, self.channels_in, self.channels_in)

    def setting(self, config: H2LearnConfig, tiles: TileSource | None = None) -> Setting:
        """The layer's samples and steps on a machine; without a source of tiles the Backward Engine skips nothing."""
        tiles = tiles if tiles is not None else DenseTiles(config)
        return Setting(
            config=config,
            timesteps=self.timesteps,
            batch=self.samples,
            tiles=tiles,
            window_density={LAYER: WINDOW_DENSITY},
        )


ENGINE_LAYER = StudyLayer()


@dataclass(frozen=True, slots=True)
class _MeanTiles:
    """Mean of several grid iterations: a pass asks once for all its iterations of a shape."""

    tiles: TileSource

    def counts(self, tile: GradConvTile, position: int) -> TileCounts:
        found = [self.tiles.counts(tile, at) for at in range(DRAWS)]
        return TileCounts(**{f.name: fmean(getattr(one, f.name) for one in found) for f in fields(TileCounts)})


def forward_work(config: H2LearnConfig, layer: StudyLayer = ENGINE_LAYER) -> Work:
    """The layer's forward pass on the Forward Engine."""
    return forward_pass(LAYER, layer.facts(), layer.setting(config), keeps=True).work


def update_work(config: H2LearnConfig, layer: StudyLayer = ENGINE_LAYER) -> Work:
    """The layer's weight gradients on the Weight Update Engine."""
    return update_pass(LAYER, layer.facts(), layer.setting(config)).work


def backward_work(config: H2LearnConfig, tiles: TileSource, layer: StudyLayer = ENGINE_LAYER) -> Work:
    """The layer's backward pass on the Backward Engine; `tiles` is asked at `DRAWS` places of the stream."""
    setting = layer.setting(config, _MeanTiles(tiles))
    return gradient_pass(LAYER, layer.front_facts(), layer.facts(), setting).work


def backward_transfers(
    config: H2LearnConfig, layer: StudyLayer = ENGINE_LAYER, table: EnergyTable | None = None
) -> EngineEnergy:
    """What the backward pass' loads and stores spend in the Backward Engine's buffers.

    Each grid iteration loads gradients, their mask and weights; each block of outputs the spikes, the gradient mask
    and the membrane potentials of the forward pass, and stores its gradients with their mask.
    """
    backward, tiles = config.backward, _tiles(config, layer)
    blocks = tiles * -(-layer.channels_in // backward.cols)
    iterations = blocks * -(-layer.channels_out // backward.rows)
    timing, rim = config.timing, layer.kernel - 1
    gradient_rim = 0 if timing.gradient_halo is Halo.KEPT else rim
    mask_rim = 0 if timing.spike_halo is Halo.KEPT else rim
    spent = NO_ENERGY
    for buffer, form, channels, halo, stores, times in (
        (Buffer.BE_IN, Format.FP16, backward.rows, gradient_rim, False, iterations),
        (Buffer.BE_IN, Format.S1, backward.rows, mask_rim, False, iterations),
        (Buffer.BE_MASK, Format.S1, backward.cols, 0, False, blocks),
        (Buffer.BE_OUT, Format.S1, backward.cols, 0, False, blocks),
        (Buffer.BE_M, Format.MCOMP, backward.cols, 0, False, blocks),
        (Buffer.BE_PSUM, Format.FP16, backward.cols, 0, True, blocks),
        (Buffer.BE_MASK, Format.S1, backward.cols, 0, True, blocks),
    ):
        tensor = _tensor(layer, form)
        transfer = _transfer(buffer, config, layer, channels, halo, stores)
        moved = transfer_bytes(transfer, tensor, config, window_density=WINDOW_DENSITY)
        spent += transfer_energy(moved * times, buffer, config, store=stores, table=table)
    weights = F16_BYTES * layer.kernel**2 * backward.rows * backward.cols * iterations
    return spent + transfer_energy(weights, Buffer.BE_W, config, table=table)


@dataclass(frozen=True, slots=True, kw_only=True)
class LutComparison:
    """An engine with LUTs against the same without: how many times less area and energy it takes.

    The savings that are compared with figure 3.11 are of the PE array (PEs and Acc units, dynamic energy): then one
    constant each, fitted to the Forward Engine, gives the Weight Update Engine's. `engine_*` are of the whole engine,
    with GLB and Soma, GLB accesses and leakage.
    """

    engine: Queue
    area_saving: float
    energy_saving: float
    engine_area_saving: float
    engine_energy_saving: float
    baseline_adders: int
    adders: int
    lut_kib: float
    cycles: float


def lut_study(
    config: H2LearnConfig, area: AreaTable | None = None, energy: EnergyTable | None = None
) -> dict[Queue, LutComparison]:
    """Savings of the LUTs of Forward and Weight Update Engine for the layer of section 3.3.2, figure 3.11."""
    return {engine: _lut_comparison(config, engine, area, energy) for engine in (Queue.FE, Queue.WUE)}


def _lut_comparison(
    config: H2LearnConfig, engine: Queue, area: AreaTable | None, energy: EnergyTable | None
) -> LutComparison:
    baseline = without_luts(config, engine)
    areas = [engine_area(one, engine, area) for one in (baseline, config)]
    works = [_lut_work(one, engine) for one in (baseline, config)]
    spent = [work_energy(w, one, engine, energy) for w, one in zip(works, (baseline, config), strict=True)]
    whole = [
        part.total / PJ_PER_J + leakage_w(one, area, energy)[engine].total * work.cycles / (one.clock_ghz * 1e9)
        for part, one, work in zip(spent, (baseline, config), works, strict=True)
    ]
    return LutComparison(
        engine=engine,
        area_saving=areas[0].pe_array / areas[1].pe_array,
        energy_saving=spent[0].pe_array / spent[1].pe_array,
        engine_area_saving=areas[0].total / areas[1].total,
        engine_energy_saving=whole[0] / whole[1],
        baseline_adders=adder_count(baseline, engine),
        adders=adder_count(config, engine),
        lut_kib=lut_bytes(config, engine) / KIB,
        cycles=works[1].cycles,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A PE's window over some sub-LUTs, PEs and Acc units of the whole array, figure 3.10. Units: mm2, mJ, KiB."""

    sub_luts: int
    entries: int
    adders: int
    storage_kib: float
    area_mm2: float
    energy_mj: float


def lut_partitions(
    config: H2LearnConfig, engine: Queue, area: AreaTable | None = None, energy: EnergyTable | None = None
) -> tuple[Partition, ...]:
    """All partitions of an engine's window; the last is the design without LUTs."""
    counts = FORWARD_PARTITIONS if engine is Queue.FE else UPDATE_PARTITIONS
    rows = []
    for sub_luts in counts:
        one = with_partition(config, engine, sub_luts)
        spent = work_energy(_lut_work(one, engine), one, engine, energy)
        rows.append(
            Partition(
                sub_luts=sub_luts,
                entries=(one.forward if engine is Queue.FE else one.weight_update).lut_entries,
                adders=adder_count(one, engine),
                storage_kib=lut_bytes(one, engine) / KIB,
                area_mm2=engine_area(one, engine, area).pe_array,
                energy_mj=spent.pe_array / PJ_PER_J * 1000,
            )
        )
    return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipRow:
    """The Backward Engine with one kind of skip, figure 3.12 b; its own leakage over its own time. Units: mJ."""

    skips: Skips
    cycles: float
    pe_array_mj: float
    glb_mj: float
    leakage_mj: float
    speedup: float
    energy_saving: float

    @property
    def total_mj(self) -> float:
        """Dynamic energy and leakage."""
        return self.pe_array_mj + self.glb_mj + self.leakage_mj

    @property
    def leakage_share(self) -> float:
        """Leakage in the energy of this design."""
        return self.leakage_mj / self.total_mj


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardStudy:
    """All kinds of skips, and what the leakage of the engine is made of.

    glb_of_leakage: the global buffers' part. storage_of_leakage: with the private buffers of the PEs.
    """

    rows: Mapping[Skips, SkipRow]
    glb_of_leakage: float
    storage_of_leakage: float


def backward_study(
    config: H2LearnConfig, tiles_by_mode: Mapping[Skips, TileSource], energy: EnergyTable | None = None
) -> BackwardStudy:
    """Speedup and energy saving of each kind of skip over the dense engine, for the layer of section 3.3.2.

    Raises: ValueError without a source for the dense engine.
    """
    if Skips.NONE not in tiles_by_mode:
        raise ValueError("the dense engine has no tiles, all savings refer to it")
    measured = {mode: _skip_energy(with_skips(config, mode), tiles, energy) for mode, tiles in tiles_by_mode.items()}
    base_cycles, base_parts = measured[Skips.NONE]
    rows = {
        mode: SkipRow(
            skips=mode,
            cycles=cycles,
            pe_array_mj=parts[0],
            glb_mj=parts[1],
            leakage_mj=parts[2],
            speedup=base_cycles / cycles,
            energy_saving=sum(base_parts) / sum(parts),
        )
        for mode, (cycles, parts) in measured.items()
    }
    leakage = leakage_w(config, table=energy)[Queue.BE]
    return BackwardStudy(
        rows=rows,
        glb_of_leakage=leakage.glb / leakage.total,
        storage_of_leakage=(leakage.glb + leakage.pe_buffers) / leakage.total,
    )


def _skip_energy(
    config: H2LearnConfig, tiles: TileSource, energy: EnergyTable | None
) -> tuple[float, tuple[float, float, float]]:
    """Cycles, and mJ of PE array, GLB and leakage."""
    work = backward_work(config, tiles)
    spent = work_energy(work, config, Queue.BE, energy) + backward_transfers(config, table=energy)
    seconds = work.cycles / (config.clock_ghz * 1e9)
    leakage = leakage_w(config, table=energy)[Queue.BE].total * seconds
    return work.cycles, (spent.pe_array / PJ_PER_J * 1000, spent.glb / PJ_PER_J * 1000, leakage * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakPower:
    """The chip with every engine busy. Units: W."""

    forward: float
    backward: float
    weight_update: float
    memory: float
    leakage: float

    @property
    def total(self) -> float:
        """What table 3.6 calls the maximum during learning."""
        return self.forward + self.backward + self.weight_update + self.memory + self.leakage


def peak_power(config: H2LearnConfig, area: AreaTable | None = None, energy: EnergyTable | None = None) -> PeakPower:
    """Power while all three engines work on the layer of section 3.3.2, the Backward Engine dense.

    All memories write on-chip buffers at full bandwidth meanwhile: spikes, gradients, weight gradients. The Soma's few
    operations are left out.
    """
    hertz = config.clock_ghz * 1e9
    dense = backward_work(config, DenseTiles(config))
    works = {Queue.FE: forward_work(config), Queue.BE: dense, Queue.WUE: update_work(config)}
    watts = {
        engine: work_energy(work, config, engine, energy).total / work.cycles * hertz / PJ_PER_J
        for engine, work in works.items()
    }
    memory = sum(
        transfer_energy(config.memory.bytes_per_cycle, buffer, config, table=energy).total
        for buffer in (Buffer.S_IN, Buffer.BE_IN, Buffer.WU_GRAD)
    )
    return PeakPower(
        forward=watts[Queue.FE],
        backward=watts[Queue.BE],
        weight_update=watts[Queue.WUE],
        memory=memory * hertz / PJ_PER_J,
        leakage=sum(part.total for part in leakage_w(config, area, energy).values()),
    )


def _lut_work(config: H2LearnConfig, engine: Queue) -> Work:
    return forward_work(config) if engine is Queue.FE else update_work(config)


def _tiles(config: H2LearnConfig, layer: StudyLayer) -> int:
    return -(-layer.h // config.tile.h) * -(-layer.w // config.tile.w)


def _conv_facts(layer: StudyLayer, channels_in: int, channels_out: int) -> Layer:
    return Layer(
        name=f"{channels_in}-{channels_out}", engine=Queue.FE, kind="conv", nodes=(),
        neurons=(NeuronFacts(node="lif", fires=True, shape=(channels_out, layer.h, layer.w)),), c_in=channels_in,
        c_out=channels_out, kernel=(layer.kernel, layer.kernel), stride=(1, 1), out_h=layer.h, out_w=layer.w, groups=1,
        hold=False,
    )  # fmt: skip


def _tensor(layer: StudyLayer, form: Format) -> Tensor:
    shape = (layer.timesteps, layer.samples, layer.h, layer.w, layer.channels_out)
    return Tensor(
        name=form, memory=0, mirrored=False, address=0, shape=shape, format=form, role=Role.ACTIVATION, layer=LAYER
    )


def _transfer(
    buffer: Buffer, config: H2LearnConfig, layer: StudyLayer, channels: int, halo: int, stores: bool
) -> Transfer:
    """A tile away from the map's borders, of all samples and steps."""
    kind = Store if stores else Load
    return kind(
        layer=LAYER, buffer=buffer, bank=0, tensor=0, t0=0, nt=layer.timesteps, n0=0, nn=layer.samples,
        y0=config.tile.h, h=config.tile.h + halo, x0=config.tile.w, w=config.tile.w + halo, c0=0, nc=channels,
        flat=False,
    )  # fmt: skip
