"""The results file of an attack: what it rests on, then a line for every case.

An example is a shape with base64 of zlib of its values: `bits` of spikes in the order of `numpy.packbits`, else `f32`,
little-endian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from compiler.attack.budget import Budget, Norm
from compiler.attack.methods import Method
from compiler.attack.retime import RetimeBudget
from compiler.attack.settings import Settings
from hwmodel.errors import CompileError, Loc
from spikec import __version__
from spikec.attack.cases import Choice, Chosen
from spikec.attack.plan import Plan, network_digest
from spikec.attack.records import Record
from spikec.record_file import Header, RecordFile, digest_of, header_in

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a user named: the model, as `load_model` takes it, and the data set."""

    model: str
    timesteps: int | None
    input_shape: str
    model_seed: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFile(RecordFile[Record]):
    """The file of one attack."""

    kind: ClassVar[str] = "attack"
    record: ClassVar[str] = "record of a case"
    unnamed: ClassVar[str] = "the header"

    def parsed(self, line: str) -> Record:
        return Record.from_json(line)

    def written(self, record: Record) -> str:
        return record.as_json()

    def number(self, record: Record) -> int:
        return record.number


def header_of(plan: Plan, source: Source, choice: Choice, chosen: Chosen) -> Header:
    """All that the results rest on."""
    shown: dict[str, object] = {
        "format": FORMAT,
        "version": __version__,
        "model": source.model,
        "model_sha256": network_digest(plan.graph),
        "timesteps": source.timesteps,
        "input_shape": source.input_shape,
        "model_seed": source.model_seed,
        "data": source.data,
        "data_sha256": chosen.digest(),
        "target": choice.target,
        "samples": choice.samples,
        "per_class": choice.per_class,
        "cases": len(chosen.cases),
        **plan.described(),
    }
    return {AttackFile.kind: digest_of(shown), **shown}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a results file says of the run that wrote it, as far as its verdicts rest on it."""

    source: Source
    choice: Choice
    model_sha256: str
    data_sha256: str
    cases: int
    fresh: int
    settings: Settings  # what is judged by: the seed and the bounds
    retiming: RetimeBudget | None  # limits of a method that moves spikes
    file: AttackFile


def stored_in(path: Path) -> Stored:
    """The header of a results file.

    Raises: CompileError for a file that cannot be read, or whose header is no attack's, of another format or damaged.
    """
    loc = Loc(str(path))
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as fault:
        raise CompileError(f"cannot be read: {fault.strerror}", loc) from fault
    header = header_in(line, AttackFile.kind, path)
    if header.get("format") != FORMAT:
        raise CompileError(
            f"has format {header.get('format')!r}, this spikec reads format {FORMAT}", loc, hint="attack again"
        )
    shown = {name: value for name, value in header.items() if name != AttackFile.kind}
    if digest_of(shown) != header[AttackFile.kind]:
        raise CompileError("its header was changed or is damaged", Loc(str(path), 1), hint="attack again")
    return _stored(header, AttackFile(path=path, header=header))


def _stored(header: Mapping[str, object], file: AttackFile) -> Stored:
    """Of a header whose digest is right."""
    timesteps, settings = header["timesteps"], header["settings"]
    assert timesteps is None or isinstance(timesteps, int)
    assert isinstance(settings, dict)
    source = Source(
        model=str(header["model"]),
        timesteps=timesteps,
        input_shape=str(header["input_shape"]),
        model_seed=int(str(header["model_seed"])),
        data=str(header["data"]),
    )
    budget = settings["budget"]
    return Stored(
        source=source,
        choice=Choice(
            samples=int(str(header["samples"])), per_class=bool(header["per_class"]), target=str(header["target"])
        ),
        model_sha256=str(header["model_sha256"]),
        data_sha256=str(header["data_sha256"]),
        cases=int(str(header["cases"])),
        fresh=int(str(header["fresh"])),
        settings=Settings(
            seed=int(settings["seed"]),
            budget=None if budget is None else Budget(norm=Norm(budget["norm"]), bound=float(budget["bound"])),
            epsilon=math.inf if settings["epsilon"] is None else float(settings["epsilon"]),
        ),
        retiming=_retiming(header),
        file=file,
    )


def _retiming(header: Mapping[str, object]) -> RetimeBudget | None:
    """The limits of a method that moves spikes, none of them given included."""
    limits = header["retiming"]
    if header["method"] != Method.RETIME:
        return None
    return RetimeBudget(**limits) if isinstance(limits, dict) else RetimeBudget()
