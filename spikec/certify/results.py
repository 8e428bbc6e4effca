"""The results file of a certification: what it rests on, then a line for every sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from compiler.certify.cascade import Cascade
from compiler.certify.verdicts import Arithmetic, Method
from hwmodel.errors import CompileError, Loc
from spikec import __version__
from spikec.attack.plan import network_digest
from spikec.attack.results import Source
from spikec.certify.cases import Case, Choice, digest_of_cases
from spikec.certify.plan import Plan
from spikec.certify.records import Record
from spikec.packed_values import whole
from spikec.record_file import Header, RecordFile, digest_of, header_in

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """Bits behind the point, of numbers and of decays; None for a network that stays as it is."""

    fraction_bits: int | None = None
    decay_bits: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyFile(RecordFile[Record]):
    """The file of one certification."""

    kind: ClassVar[str] = "certification"
    record: ClassVar[str] = "record of a sample"
    unnamed: ClassVar[str] = "the header"

    arithmetic: Arithmetic

    def parsed(self, line: str) -> Record:
        return Record.from_json(line, self.arithmetic)

    def written(self, record: Record) -> str:
        return record.as_json()

    def number(self, record: Record) -> int:
        return record.number


def header_of(
    plan: Plan, source: Source, model_sha256: str, quantisation: Quantisation, choice: Choice, cases: Sequence[Case]
) -> Header:
    """All that the results rest on."""
    shown: dict[str, object] = {
        "format": FORMAT,
        "version": __version__,
        "model": source.model,
        "model_sha256": model_sha256,
        "certified_sha256": network_digest(plan.subject.graph),
        "timesteps": source.timesteps,
        "input_shape": source.input_shape,
        "model_seed": source.model_seed,
        "fraction_bits": quantisation.fraction_bits,
        "decay_bits": quantisation.decay_bits,
        "data": source.data,
        "data_sha256": digest_of_cases(cases),
        "samples": choice.samples,
        "first": choice.first,
        **plan.described(),
    }
    return {CertifyFile.kind: digest_of(shown), **shown}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a results file says of the run that wrote it."""

    source: Source
    choice: Choice
    quantisation: Quantisation
    cascade: Cascade
    spec: str
    has_certificates: bool
    model_sha256: str
    data_sha256: str
    file: CertifyFile


def stored_in(path: Path) -> Stored:
    """The header of a results file.

    Raises: CompileError for a file that cannot be read, or whose header is no certification's, of another format or
        damaged.
    """
    loc = Loc(str(path))
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as fault:
        raise CompileError(f"cannot be read: {fault.strerror}", loc) from fault
    header = header_in(line, CertifyFile.kind, path)
    if header.get("format") != FORMAT:
        raise CompileError(
            f"has format {header.get('format')!r}, this spikec reads format {FORMAT}", loc, hint="certify again"
        )
    shown = {name: value for name, value in header.items() if name != CertifyFile.kind}
    if digest_of(shown) != header[CertifyFile.kind]:
        raise CompileError("its header was changed or is damaged", Loc(str(path), 1), hint="certify again")
    return _stored(header, path)


def _stored(header: Mapping[str, object], path: Path) -> Stored:
    """Of a header whose digest is right."""
    timesteps, bits = header["timesteps"], header["fraction_bits"]
    tried, seconds, work = header["tried"], header["seconds_a_sample"], header["work_a_sample"]
    assert isinstance(tried, list)
    return Stored(
        source=Source(
            model=str(header["model"]),
            timesteps=None if timesteps is None else whole(timesteps),
            input_shape=str(header["input_shape"]),
            model_seed=whole(header["model_seed"]),
            data=str(header["data"]),
        ),
        choice=Choice(samples=whole(header["samples"]), first=whole(header["first"])),
        quantisation=Quantisation(
            fraction_bits=None if bits is None else whole(bits), decay_bits=whole(header["decay_bits"])
        ),
        cascade=Cascade(
            methods=tuple(Method(name) for name in tried),
            seconds=math.inf if seconds is None else float(str(seconds)),
            work=None if work is None else float(str(work)),
            seed=whole(header["seed"]),
        ),
        spec=str(header["set"]),
        has_certificates=bool(header["has_certificates"]),
        model_sha256=str(header["model_sha256"]),
        data_sha256=str(header["data_sha256"]),
        file=CertifyFile(path=path, header=header, arithmetic=Arithmetic(str(header["arithmetic"]))),
    )
