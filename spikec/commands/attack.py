"""`spikec attack`: adversarial examples of a network, and the replay of a results file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.attack.fresh import Share
from compiler.attack.methods import Method
from compiler.attack.settings import Status
from compiler.ir import DType
from compiler.losses import Loss
from frontends.datasets import Split, load
from hwmodel.errors import CompileError, Loc
from spikec.attack.cases import Choice, Chosen, chosen_cases
from spikec.attack.figure import Picture, check_place, draw_attack
from spikec.attack.plan import Plan, network_digest
from spikec.attack.records import Record
from spikec.attack.request import Options
from spikec.attack.results import AttackFile, Source, header_of
from spikec.attack.session import run_attack
from spikec.attack.summary import Summary
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.explore.figure import check_matplotlib
from spikec.models import load_model
from spikec.workers import Workers

Rows = Iterator[tuple[str, str]]

_TOLD = (str(Status.SUCCESS), str(Status.CLEAN_ERROR))  # in rows of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRequest:
    """The command's arguments."""

    source: Source
    choice: Choice
    options: Options
    output: Path | None
    figure: Path | None
    jobs: int
    cluster: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedAttack:
    """A finished attack."""

    request: AttackRequest
    plan: Plan
    chosen: Chosen
    summary: Summary
    figures: tuple[Path, ...]
    seconds: float


def run_attack_command(request: AttackRequest, *, as_json: bool) -> int:
    """Attack what is not finished, keep the file, report; the exit code.

    Raises: CompileError for bad input, before anything is written.
    """
    start = time.perf_counter()
    _check(request)
    source = request.source
    samples = load(source.data, split=Split.TEST)
    with progress_bar("importing") as bar:
        model = load_model(
            source.model,
            timesteps=source.timesteps,
            seed=source.model_seed,
            input_shape=source.input_shape,
            progress=bar.training,
        )
    plan = request.options.plan(model.graph)
    chosen = chosen_cases(plan.victim(), samples, request.choice, plan.settings)
    if chosen.skipped:
        print(f"left out, as they have the target as their label: {chosen.skipped} samples", file=sys.stderr)
    records = _records(request, plan, chosen)
    drawn = _drawn(request, plan, chosen, records) if request.figure is not None else ()
    found = FinishedAttack(
        request=request,
        plan=plan,
        chosen=chosen,
        summary=Summary(records=records, method=plan.method),
        figures=drawn,
        seconds=time.perf_counter() - start,
    )
    _hint(found)
    if as_json:
        print_json(_as_json(found))
    else:
        print_table(_title(found), [*_rates(found.summary), *_sizes(found), *_costs(found)])
    return 0


def _check(request: AttackRequest) -> None:
    """Refuse what can be told before the model is loaded, which may train it."""
    request.options.settings()
    if request.output is not None:
        loc = Loc(str(request.output))
        if request.output.is_dir():
            raise CompileError("is a folder, not a file", loc, hint="name a file inside it")
        if not request.output.parent.is_dir():
            raise CompileError(f"the folder {request.output.parent} does not exist", loc, hint="create it first")
    if request.figure is not None:
        check_place(request.figure)
        same = request.output is not None and os.path.realpath(request.figure) == os.path.realpath(request.output)
        if same:
            raise CompileError("is the file of the results too", Loc(str(request.figure)), hint="name another file")
        check_matplotlib()


def _records(request: AttackRequest, plan: Plan, chosen: Chosen) -> tuple[Record, ...]:
    file = None
    if request.output is not None:
        file = AttackFile(path=request.output, header=header_of(plan, request.source, request.choice, chosen))
    workers = Workers(jobs=request.jobs, cluster=request.cluster)
    try:
        with progress_bar("cases") as bar:
            return run_attack(plan, chosen.cases, workers, bar.samples, file)
    except KeyboardInterrupt:
        if file is not None:
            print(f"interrupted; the same command goes on from {file.path}", file=sys.stderr)
        raise


def _drawn(request: AttackRequest, plan: Plan, chosen: Chosen, records: Sequence[Record]) -> tuple[Path, ...]:
    assert request.figure is not None
    source = plan.graph.types[plan.graph.input.name]
    title = f"{request.source.model} on {request.source.data}: {plan.method}, {_aim(request.choice)}"
    picture = Picture(title=title, records=records, cases=chosen.cases, is_spikes=source.dtype is DType.SPIKE)
    return draw_attack(picture, request.figure)


def _hint(found: FinishedAttack) -> None:
    """Say so where most gradients vanish, and what prevents it."""
    gone, attacked = found.summary.vanished_at_start or 0, len(found.summary.attacked)
    if not attacked or 2 * gone <= attacked:
        return
    if found.plan.loss is Loss.MSE:
        advice = "--loss cross_entropy has one where scores are exactly right"
    elif found.plan.surrogate is None and found.plan.method is not Method.RGA:  # whose gradients look at none
        advice = "--surrogate atan has one wherever neurons are"
    else:
        return
    print(f"hint: the first gradient of {gone} of {attacked} cases is zero; {advice}", file=sys.stderr)


# -- reports ----------------------------------------------------------------------------------------------------------


def _as_json(found: FinishedAttack) -> dict[str, Json]:
    request, source = found.request, found.request.source
    return {
        "model": source.model,
        "model_sha256": network_digest(found.plan.graph),
        "data": source.data,
        "data_sha256": found.chosen.digest(),
        "target": request.choice.target,
        "skipped": found.chosen.skipped,
        **found.summary.as_json(),
        **found.plan.described(),
        "results": str(request.output) if request.output is not None else None,
        "figures": [str(path) for path in found.figures],
        "seconds": found.seconds,
    }


def _title(found: FinishedAttack) -> str:
    source = found.request.source
    return f"{source.model} on {source.data}: {found.plan.method}, {_aim(found.request.choice)}"


def _aim(choice: Choice) -> str:
    return {"none": "untargeted", "all": "towards every other class", "next": "towards the next class"}.get(
        choice.target, f"towards class {choice.target}"
    )


def _rates(summary: Summary) -> Rows:
    clean = len(summary.records) - len(summary.attacked)
    yield "cases attacked, clean errors left out", f"{len(summary.attacked):,}; {clean:,}"
    yield "success", f"{len(summary.successes):,}, {_share(summary.success)}"
    others = {name: count for name, count in summary.statuses.items() if name not in _TOLD and count}
    for name, count in others.items():
        yield name.replace("_", " "), f"{count:,}"
    draws = max((record.fresh_draws for record in summary.attacked), default=0)
    if draws > 1:
        yield f"success over {draws} fresh draws each", _share(summary.fresh)
        yield "fools most of its fresh draws", _share(summary.majority)


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f} %)"


def _sizes(found: FinishedAttack) -> Rows:
    summary = found.summary
    source = found.plan.graph.types[found.plan.graph.input.name]
    if not summary.successes:
        return
    is_spikes = source.dtype is DType.SPIKE
    l0, rate = summary.mean("l0"), summary.mean("rate")
    assert l0 is not None
    assert rate is not None
    yield f"mean {'flips' if is_spikes else 'l0, elements'} of a success", f"{l0:.1f}, {100 * rate:.2f} %"
    if is_spikes:
        return
    yield "mean l1, l2, linf", ", ".join(f"{summary.mean(name) or 0.0:.4g}" for name in ("l1", "l2", "linf"))
    yield "mean root mean square", f"{summary.mean('rms') or 0.0:.4g}"
    yield "mean square, the dissertation's measure", f"{summary.mean('dissertation') or 0.0:.4g}"


def _costs(found: FinishedAttack) -> Rows:
    summary = found.summary
    yield "queries, gradients", f"{summary.total('queries'):,}; {summary.total('gradients'):,}"
    if summary.vanished_at_start is not None:
        yield "first gradient zero, cases", f"{summary.vanished_at_start:,}"
    if found.request.output is not None:
        yield "results", str(found.request.output)
    for path in found.figures:
        yield "figure", str(path)
    yield "seconds", f"{found.seconds:.1f}"
