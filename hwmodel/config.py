"""The accelerator's configuration: structure and sizes, read from TOML and checked field by field."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import cast, get_type_hints

from hwmodel.config_checks import check_structure
from hwmodel.errors import CompileError, Loc
from hwmodel.isa import Buffer

KIB = 1024
LARGEST = 1 << 53  # numbers beyond are no sizes, and are not exact as floats
MAY_BE_ZERO = ("pipe", "_cycles", "run_ahead")


class MembraneWrite(StrEnum):
    """How the forward pass stores membrane potentials, section 3.2.2."""

    COMPRESSED = "compressed"  # those inside the window of the surrogate, table 3.3
    DENSE = "dense"


class Halo(StrEnum):
    """What a tile does about the rim that it shares with its neighbours."""

    REFETCHED = "refetched"
    KEPT = "kept"  # on chip, from the tile before


class Skips(StrEnum):
    """Zeros that the Backward Engine skips, section 3.2.3."""

    BOTH = "both"
    INPUTS = "inputs"
    OUTPUTS = "outputs"
    NONE = "none"


class Synchronise(StrEnum):
    """When the PEs of the Backward Engine wait for the slowest one."""

    TILE = "tile"  # of one sample at one step
    ITERATION = "iteration"  # all samples and steps of a grid iteration


class UpdateMemory(StrEnum):
    """The memory behind the Weight Update Engine."""

    SHARED = "shared"  # with the Backward Engine
    SEPARATE = "separate"


class DmaChannels(StrEnum):
    """Transfers of one memory that wait for each other."""

    ONE = "one"  # all, in program order
    PER_ENGINE = "per_engine"  # those of one engine; the memory serves the engines as they come


class EncodingPath(StrEnum):
    """Where the encoding layer's dense passes run while the sub-batch before goes backward, section 3.2.4."""

    APART = "apart"  # beside the backward pass, as if it had PEs of its own
    BACKWARD = "backward"  # on the Backward Engine's critical path


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingConfig:
    """What the text leaves open about time, one choice for every network."""

    m_write: MembraneWrite
    spike_halo: Halo
    gradient_halo: Halo
    update_memory: UpdateMemory
    dma_channels: DmaChannels
    encoding: EncodingPath
    batch_group: int  # sub-batches between two updates of the weights


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """External memories, all alike."""

    count: int
    bytes_per_cycle: float
    capacity_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TileConfig:
    """Outputs that a grid iteration computes of a feature map."""

    h: int
    w: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBuffers:
    """Sizes in KiB, both banks of a buffer together."""

    s_in: float
    w: float
    psum: float
    s_out: float
    mask: float
    neuron: float
    state: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardConfig:
    """Forward Engine: rows x cols LUT PEs; `lanes` samples look up at once."""

    rows: int
    cols: int
    lanes: int
    sub_luts: int
    lut_entries: int
    taps_per_pe: int
    program_cycles: int
    buffers_kb: ForwardBuffers


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardBuffers:
    """Sizes in KiB, both banks of a buffer together."""

    gm_in: float
    w: float
    psum: float
    s_out: float
    mask: float
    m: float
    neuron: float
    state: float
    grad: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BackwardConfig:
    """Backward Engine: rows x cols groups of `pe_group` multiply-add PEs; `pipe` in cycles.

    run_ahead: tiles that a PE may be ahead of the slowest one, 0 where all wait for it.
    shared_columns: columns whose PEs share the output IDs of all of them, 1 where each column has its own.
    """

    rows: int
    cols: int
    pe_group: int
    id_buffers: int
    pipe: int
    pe_tile_bytes: int
    pe_psum_bytes: int
    skips: Skips
    synchronise: Synchronise
    run_ahead: int
    shared_columns: int
    buffers_kb: BackwardBuffers


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdateBuffers:
    """Sizes in KiB, both banks of a buffer together."""

    gm: float
    s_in: float
    gw_psum: float
    grad: float
    weight: float
    momentum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdateConfig:
    """Weight Update Engine: rows are time steps, cols gradient channels."""

    rows: int
    cols: int
    lanes: int
    sub_luts: int
    lut_entries: int
    window: int
    program_cycles: int
    buffers_kb: WeightUpdateBuffers


@dataclass(frozen=True, slots=True, kw_only=True)
class H2LearnConfig:
    """One accelerator.

    Units: clock in GHz, buffers in KiB, bandwidth in bytes per cycle of one memory.
    Source: tables 3.5 and 3.6; what they do not print is marked in the preset.
    """

    name: str
    clock_ghz: float
    sub_batch: int
    timesteps: int
    memory: MemoryConfig
    tile: TileConfig
    forward: ForwardConfig
    backward: BackwardConfig
    weight_update: WeightUpdateConfig
    timing: TimingConfig

    def bank_bytes(self, buffer: Buffer) -> int:
        """Bytes of one bank (half of the ping-pong buffer)."""
        forward, backward = self.forward.buffers_kb, self.backward.buffers_kb
        update = self.weight_update.buffers_kb
        sizes_kb = {
            Buffer.S_IN: forward.s_in,
            Buffer.W: forward.w,
            Buffer.PSUM: forward.psum,
            Buffer.S_OUT: forward.s_out,
            Buffer.MASK: forward.mask,
            Buffer.NEURON: forward.neuron,
            Buffer.STATE: forward.state,
            Buffer.BE_IN: backward.gm_in,
            Buffer.BE_W: backward.w,
            Buffer.BE_PSUM: backward.psum,
            Buffer.BE_OUT: backward.s_out,
            Buffer.BE_MASK: backward.mask,
            Buffer.BE_M: backward.m,
            Buffer.BE_NEURON: backward.neuron,
            Buffer.BE_STATE: backward.state,
            Buffer.BE_GRAD: backward.grad,
            Buffer.WU_IN: update.s_in,
            Buffer.WU_GM: update.gm,
            Buffer.WU_PSUM: update.gw_psum,
            Buffer.WU_GRAD: update.grad,
            Buffer.WU_WEIGHT: update.weight,
            Buffer.WU_MOMENTUM: update.momentum,
        }
        return int(sizes_kb[buffer] * KIB / 2)

    def as_mapping(self) -> dict[str, object]:
        """The configuration as the nested tables of its TOML file."""
        return asdict(self)


def load_config(name: str) -> H2LearnConfig:
    """A preset by name, or a TOML file; a file may name a preset as `base` and state only what differs.

    Raises: CompileError with the path of each faulty field, and of each buffer that does not hold a tile.
    """
    presets = resources.files("hwmodel") / "presets"
    if not name.endswith(".toml"):
        preset = presets / f"{name}.toml"
        if not preset.is_file():
            known = sorted(p.name.removesuffix(".toml") for p in presets.iterdir() if p.name.endswith(".toml"))
            raise CompileError(f"no preset {name!r}", Loc(name), hint=f"presets: {', '.join(known)}, or FILE.toml")
        return config_from_mapping(tomllib.loads(preset.read_text()), Loc(name))
    loc = Loc(name)
    try:
        table: dict[str, object] = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise CompileError(f"cannot read the configuration: {reason}", loc) from fault
    base = table.pop("base", None)
    if base is not None:
        if not isinstance(base, str) or base.endswith(".toml"):
            raise CompileError(f"base is {_shown(base)}, must name a preset", loc)
        table = _merged(load_config(base).as_mapping(), table)
    config = config_from_mapping(table, loc)
    from hwmodel.sizing import check_room  # which needs the class above

    check_room(config, loc)
    return config


def config_from_mapping(table: Mapping[str, object], loc: Loc) -> H2LearnConfig:
    """A configuration from nested tables; every field must be there, and nothing else.

    Raises: CompileError listing each faulty field by its path.
    """
    faults: list[str] = []
    config = cast(H2LearnConfig, _build(H2LearnConfig, table, "", faults))
    if not faults:
        check_structure(config, faults)
    if faults:
        raise CompileError("; ".join(faults), loc)
    return config


def _merged(base: dict[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        nested = isinstance(old, dict) and isinstance(value, Mapping)
        merged[key] = _merged(cast(dict[str, object], old), cast(Mapping[str, object], value)) if nested else value
    return merged


def _build(kind: type, table: object, path: str, faults: list[str]) -> object:
    if not isinstance(table, Mapping):
        faults.append(f"{path.rstrip('.')} is {_shown(table)}, must be a table")
        return None
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    faults += [f"{path}{key} is not a field of the configuration" for key in table if key not in known]
    values: dict[str, object] = {}
    for name in sorted(known):
        if name not in table:
            faults.append(f"{path}{name} is missing")
            continue
        hint = hints[name]
        if is_dataclass(hint):
            values[name] = _build(cast(type, hint), table[name], f"{path}{name}.", faults)
        else:
            values[name] = _scalar(hint, table[name], f"{path}{name}", faults)
    return kind(**values) if not faults else None


def _scalar(kind: type, value: object, path: str, faults: list[str]) -> object:
    if issubclass(kind, StrEnum):
        if value not in list(kind):
            faults.append(f"{path} is {_shown(value)}, must be {' or '.join(map(repr, map(str, kind)))}")
            return value
        return kind(cast(str, value))
    allowed = {int: (int,), float: (int, float), str: (str,)}[kind]
    if isinstance(value, bool) or not isinstance(value, allowed):
        faults.append(f"{path} is {_shown(value)}, must be {'a number' if kind is float else kind.__name__}")
    elif not isinstance(value, str) and value > LARGEST:
        faults.append(f"{path} is too large, must be finite and at most {LARGEST}")
    elif isinstance(value, int) and kind is int and value < (least := 0 if path.endswith(MAY_BE_ZERO) else 1):
        faults.append(f"{path} is {_shown(value)}, must be at least {least}")
    elif isinstance(value, int | float) and kind is float and not value > 0:  # NaN is not positive either
        faults.append(f"{path} is {_shown(value)}, must be positive")
    return float(cast(float, value)) if kind is float and not faults else value


def _shown(value: object) -> str:
    """A value of a fault; the text of an integer of any size may itself be refused by Python."""
    match value:
        case int() if abs(value) > LARGEST:
            return "a huge integer"
        case bool() | int() | float() | str():
            return repr(value)
    return "a table" if isinstance(value, Mapping) else f"a {type(value).__name__}"
