"""How the neurons of a NIR file are meant: who wrote it, what a time step is, and what the file leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from compiler.ir import Compare, CompileError, Loc, Reset
from frontends.findings import Finding, Ground
from frontends.nir_file.nodes import Field, NirNode
from frontends.nir_import.flat import FlatGraph
from frontends.nir_import.writer import Writer, implied_dt, sniff

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a user states about a file; None leaves it to the file or the writer's default.

    dt: seconds of one time step.
    reset_delay: whether a soft reset acts one step later (snnTorch).
    norm_input: whether the input is scaled by 1 - decay (sinabs).
    """

    writer: Writer | None = None
    dt: float | None = None
    reset: Reset | None = None
    reset_delay: bool | None = None
    compare: Compare | None = None
    norm_input: bool | None = None

    @property
    def none(self) -> bool:
        """Whether nothing is stated."""
        return self == Choices()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Habits:
    """A writer's defaults, each with the reason that a finding gives."""

    dt: float
    compare: Compare
    reset: Reset
    dt_reason: str
    compare_reason: str
    reset_reason: str
    reset_delay: bool = False
    detach_reset: bool = False
    is_reset_known: bool = False  # the writer writes no other kind


_HABITS: Mapping[Writer, _Habits] = MappingProxyType(
    {
        Writer.SPIKINGJELLY: _Habits(
            dt=1e-4,
            compare=Compare.GE,
            reset=Reset.HARD,
            dt_reason="SpikingJelly's default",
            compare_reason="as SpikingJelly",
            reset_reason="SpikingJelly exports no other",
            is_reset_known=True,
        ),
        Writer.SNNTORCH: _Habits(
            dt=1e-4,
            compare=Compare.GT,
            reset=Reset.SOFT,
            dt_reason="fixed in snnTorch",
            compare_reason="as snnTorch",
            reset_reason="Leaky's default; the file says v_reset 0 for every kind",
            reset_delay=True,
            detach_reset=True,
        ),
        Writer.NORSE: _Habits(
            dt=1e-3,
            compare=Compare.GT,
            reset=Reset.HARD,
            dt_reason="norse's default",
            compare_reason="as norse",
            reset_reason="norse's default; its export leaves the kind and v_reset out",
        ),
        Writer.SINABS: _Habits(
            dt=1.0,
            compare=Compare.GE,
            reset=Reset.SOFT,
            dt_reason="sinabs writes tau in steps",
            compare_reason="as sinabs' SingleSpike; its MultiSpike has no place in the graph",
            reset_reason="sinabs' default; its export leaves it out",
        ),
        Writer.OTHER: _Habits(
            dt=1e-4,
            compare=Compare.GT,
            reset=Reset.HARD,
            dt_reason="usual in NIR",
            compare_reason="as NIR defines it",
            reset_reason="as NIR defines it",
        ),
        Writer.SPIKEC: _Habits(
            dt=1e-4,
            compare=Compare.GE,
            reset=Reset.HARD,
            dt_reason="the default of the export",
            compare_reason="where a neuron's metadata say nothing else",
            reset_reason="where a neuron's metadata say nothing else",
            is_reset_known=True,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read the neurons of one file; `detach_reset` and `norm_input` as the writer has them."""

    writer: Writer
    dt: float
    compare: Compare
    reset: Reset
    reset_delay: bool
    detach_reset: bool
    norm_input: bool

    @property
    def leaves_samples(self) -> bool:
        """Whether the writer leaves the axis of samples in the shapes of input and output."""
        return self.writer in (Writer.SNNTORCH, Writer.NORSE)


def choose(graph: FlatGraph, root: NirNode, choices: Choices, file: str) -> tuple[Reading, list[Finding]]:
    """The reading of a file, and what of it is assumed.

    Raises: CompileError for a dt that is no positive number, and a reset that no op has.
    """
    writer, reason = sniff(graph, root)
    settle = _Settle(file)
    is_own = writer is Writer.SPIKEC
    writer = settle(choices.writer, writer, f"read {writer.manner}", reason, is_known=is_own)
    habits = _HABITS[writer]
    dt = _dt(graph, root, writer, choices, settle)
    fires = f"neurons fire where m {'>=' if habits.compare is Compare.GE else '>'} threshold"
    compare = settle(choices.compare, habits.compare, fires, habits.compare_reason, is_known=is_own)
    reset, delay = _reset(writer, choices, settle)
    norm_input = True
    if writer is Writer.SINABS and any(item.node.kind in ("LIF", "LI") for item in graph.nodes):
        norm_input = settle(choices.norm_input, True, "inputs are scaled by 1 - decay", "sinabs' norm_input=True")
    reading = Reading(
        writer=writer,
        dt=dt,
        compare=compare,
        reset=reset,
        reset_delay=delay,
        detach_reset=habits.detach_reset and choices.reset_delay is not False,
        norm_input=norm_input,
    )
    return reading, settle.findings


@dataclass(slots=True)
class _Settle:
    """Takes what the user states, or else a default, of which a finding tells."""

    file: str
    findings: list[Finding] = field(default_factory=list)

    def __call__(self, given: T | None, default: T, text: str, reason: str, *, is_known: bool = False) -> T:
        if given is not None:
            return given
        self.note(Ground.READ if is_known else Ground.ASSUMED, f"{text} ({reason})")
        return default

    def note(self, ground: Ground, text: str) -> None:
        self.findings.append(Finding(place=self.file, ground=ground, text=text))


def _dt(graph: FlatGraph, root: NirNode, writer: Writer, choices: Choices, settle: _Settle) -> float:
    """Seconds of a step: of the user, of the file's metadata or numbers, or of the writer."""
    habits, stated = _HABITS[writer], _number(root.metadata, "dt")
    if choices.dt is None and stated is not None:
        settle.note(Ground.READ, f"dt is {stated:g} s")
    elif choices.dt is None and writer is Writer.SPIKINGJELLY and (implied := implied_dt(graph)) is not None:
        stated, node = implied
        settle.note(Ground.READ, f"dt is {stated:g} s (r of {node} says so)")
    unit = "" if writer is Writer.SINABS else " s"
    given = choices.dt if choices.dt is not None else stated
    dt = settle(given, habits.dt, f"dt is {habits.dt:g}{unit}", habits.dt_reason)
    if not (np.isfinite(dt) and dt > 0.0):
        raise CompileError(f"dt is {dt:g}, must be a positive number of seconds", Loc(settle.file))
    return dt


def _reset(writer: Writer, choices: Choices, settle: _Settle) -> tuple[Reset, bool]:
    """The kind of reset, and whether it acts one step later."""
    habits = _HABITS[writer]
    known = habits.is_reset_known
    reset = settle(choices.reset, habits.reset, f"{habits.reset} reset", habits.reset_reason, is_known=known)
    if reset is not Reset.SOFT:
        return reset, False
    if writer is not Writer.SNNTORCH:
        return reset, bool(choices.reset_delay)
    text, reason = "the reset acts one step later", "Leaky's default, reset_delay=True"
    if not settle(choices.reset_delay, habits.reset_delay, text, reason):
        raise CompileError(
            "snnTorch's soft reset without delay subtracts in the next step once more what is still above the "
            "threshold, which no op does",
            Loc(settle.file),
            hint="networks with reset_delay=True or a hard reset are imported",
        )
    return reset, True


def _number(metadata: Mapping[str, Field], name: str) -> float | None:
    value = metadata.get(name)
    return (
        float(value.reshape(-1)[0])
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "fiu"
        else None
    )
