"""`spikec certify`: verdicts on all inputs near each sample."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.certify.cascade import CHOSEN, Cascade
from compiler.certify.verdicts import Answer, Arithmetic, Method
from compiler.ir import Graph
from frontends.datasets import Split, load
from hwmodel.errors import CompileError, Loc
from spikec.attack.plan import network_digest
from spikec.attack.results import Source
from spikec.certify.cases import Case, Choice, chosen_cases, digest_of_cases
from spikec.certify.plan import Plan
from spikec.certify.records import Record
from spikec.certify.results import CertifyFile, Quantisation, header_of
from spikec.certify.session import run_certify
from spikec.certify.sets import set_named
from spikec.certify.subject import Subject
from spikec.certify.summary import Summary
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.models import load_model
from spikec.workers import Workers

Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyRequest:
    """The command's arguments."""

    source: Source
    choice: Choice
    quantisation: Quantisation
    spec: str
    cascade: Cascade
    output: Path | None
    certificates: bool
    jobs: int
    cluster: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCertification:
    """A finished run."""

    request: CertifyRequest
    plan: Plan
    model_sha256: str
    data_sha256: str
    summary: Summary
    seconds: float


def run_certify_command(request: CertifyRequest, *, as_json: bool) -> int:
    """Certify what is not finished, keep the file, report; the exit code.

    Raises: CompileError for bad input, before anything is written.
    """
    start = time.perf_counter()
    set_named(request.spec)
    if request.output is not None:
        check_place(request.output)
    samples = load(request.source.data, split=Split.TEST)
    graph = loaded(request.source)
    plan = _planned(request, graph)
    cases = chosen_cases(plan.subject, samples, request.choice)
    model_sha256 = network_digest(graph)
    records = _records(request, plan, cases, model_sha256)
    found = FinishedCertification(
        request=request,
        plan=plan,
        model_sha256=model_sha256,
        data_sha256=digest_of_cases(cases),
        summary=Summary(records=records),
        seconds=time.perf_counter() - start,
    )
    _report(found, as_json=as_json)
    return 0


def _planned(request: CertifyRequest, graph: Graph) -> Plan:
    """Raises: CompileError for a network that cannot be certified, or has no such sets."""
    bits = request.quantisation
    plan = Plan(
        subject=Subject.of(graph, bits.fraction_bits, bits.decay_bits),
        spec=set_named(request.spec),
        cascade=request.cascade,
        has_certificates=request.certificates and request.output is not None,
    )
    plan.run()
    return plan


def _records(request: CertifyRequest, plan: Plan, cases: Sequence[Case], model_sha256: str) -> tuple[Record, ...]:
    file = None
    if request.output is not None:
        header = header_of(plan, request.source, model_sha256, request.quantisation, request.choice, cases)
        file = CertifyFile(path=request.output, header=header, arithmetic=plan.subject.arithmetic)
    try:
        with progress_bar("samples") as bar:
            workers = Workers(jobs=request.jobs, cluster=request.cluster)
            return run_certify(plan, cases, workers, bar.samples, file)
    except KeyboardInterrupt:
        if file is not None:
            print(f"interrupted; the same command goes on from {file.path}", file=sys.stderr)
        raise


def loaded(source: Source) -> Graph:
    """The network that a user named."""
    with progress_bar("importing") as bar:
        model = load_model(
            source.model,
            timesteps=source.timesteps,
            seed=source.model_seed,
            input_shape=source.input_shape,
            progress=bar.training,
        )
    return model.graph


def methods_named(text: str) -> tuple[Method, ...]:
    """Methods by their names, in the order they are tried in; all of them for "".

    Raises: CompileError for other names.
    """
    names = {name.strip() for name in text.split(",")} if text else {str(method) for method in CHOSEN}
    known = {str(method): method for method in CHOSEN}
    foreign = sorted(names - known.keys())
    if foreign:
        raise CompileError(f"{foreign[0]!r} is no method", Loc("--methods"), hint=f"known: {', '.join(known)}")
    return tuple(method for name, method in known.items() if name in names)


def check_place(output: Path) -> None:
    """Raises: CompileError for a place where no file can be written."""
    loc = Loc(str(output))
    if output.is_dir():
        raise CompileError("is a folder, not a file", loc, hint="name a file inside it")
    if not output.parent.is_dir():
        raise CompileError(f"the folder {output.parent} does not exist", loc, hint="create it first")


# -- reports ----------------------------------------------------------------------------------------------------------


def _report(found: FinishedCertification, *, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(found))
    else:
        source = found.request.source
        title = f"{source.model} on {source.data}: {found.plan.spec.text}"
        print_table(title, [*_verdicts(found.summary), *_how(found)])


def _as_json(found: FinishedCertification) -> dict[str, Json]:
    request, source = found.request, found.request.source
    return {
        "model": source.model,
        "model_sha256": found.model_sha256,
        "certified_sha256": network_digest(found.plan.subject.graph),
        "data": source.data,
        "data_sha256": found.data_sha256,
        "first": request.choice.first,
        **found.summary.as_json(),
        **found.plan.described(),
        "fraction_bits": request.quantisation.fraction_bits,
        "results": str(request.output) if request.output is not None else None,
        "seconds": found.seconds,
    }


def _verdicts(summary: Summary) -> Rows:
    total = len(summary.records)
    yield "samples", f"{total:,}"
    yield "told right, clean", _share(summary.clean_accuracy, total)
    yield "ROBUST: certified accuracy", _share(summary.certified_accuracy, total)
    wrong = summary.count(Answer.COUNTEREXAMPLE) - summary.clean_errors
    yield "COUNTEREXAMPLE, clean errors left out", f"{wrong:,}"
    unknown = f"{summary.count(Answer.UNKNOWN):,}"
    yield "UNKNOWN", f"{unknown}, {summary.timed_out:,} of them out of time" if summary.timed_out else unknown
    for method, count in summary.methods.items():
        yield f"decided by {method}", f"{count:,}"


def _share(share: float, total: int) -> str:
    return f"{round(share * total):,}, {100 * share:.1f} %"


def _how(found: FinishedCertification) -> Rows:
    subject = found.plan.subject
    if found.summary.mean_margin is not None:
        yield "mean lower bound of margins", f"{found.summary.mean_margin:.4g}"
    mask = found.plan.described()["mask"]
    if mask is not None:
        yield "for these draws of the code alone", f"{mask}"
    exact = Arithmetic.INTEGERS
    yield "arithmetic", "integers, exact" if subject.arithmetic is exact else "f32, any order of sums"
    if subject.changes is not None:
        largest = max((change.largest_change for change in subject.changes), default=0.0)
        yield "quantised: largest change of a number", f"{largest:.4g}"
    if found.request.output is not None:
        yield "results", str(found.request.output)
    yield "seconds", f"{found.seconds:.1f}"
