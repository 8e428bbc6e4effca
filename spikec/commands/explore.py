"""`spikec explore`: the design space of a network, and its Pareto front."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compiler.h2learn.facts import network_layers
from compiler.ir import Graph
from hwmodel.config import H2LearnConfig, TileConfig, load_config
from hwmodel.errors import CompileError, Loc
from hwmodel.estimate import Estimate, Mode
from hwmodel.sizing import check_room, sized
from spikec.commands.talk import Json, print_json, print_table, progress_bar
from spikec.explore.densities import DENSE, ByLayer, by_number, default_densities, load_densities
from spikec.explore.figure import check_matplotlib, draw_figure
from spikec.explore.pareto import dominates, objectives, pareto_front
from spikec.explore.points import PointResult, Study, TiledNetwork
from spikec.explore.quantities import Prefix, digits, prefix_of
from spikec.explore.results import ResultsFile, header_of
from spikec.explore.runner import explore
from spikec.explore.space import Point, Space, Value, configured, default_space, load_space, values_of
from spikec.models import load_model
from spikec.workers import Workers

Rows = Iterator[tuple[str, str]]

FIGURE_SUFFIX = ".svg"
REASONS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExploreRequest:
    """The command's arguments."""

    model: str
    mode: Mode
    space: str
    points: int
    seed: int
    config: str
    timesteps: int | None
    input_shape: str
    batch_group: int | None
    densities: str
    output: Path
    jobs: int | None
    cluster: str
    figure: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """All results; `designs` are those that were not refused, the base first, `front` its members' places.

    resized: the base got other buffers than its configuration states.
    """

    request: ExploreRequest
    base: H2LearnConfig
    densities: str
    results: tuple[PointResult, ...]
    designs: tuple[tuple[PointResult, Estimate], ...]
    front: tuple[int, ...]
    resized: bool
    seconds: float

    @property
    def by_throughput(self) -> list[tuple[PointResult, Estimate]]:
        """The front, fastest first."""
        return sorted((self.designs[at] for at in self.front), key=lambda design: -design[1].samples_per_second)

    @property
    def best_energy_delay(self) -> tuple[PointResult, Estimate]:
        """Least energy times time."""
        return min(self.designs, key=lambda design: design[1].energy_delay_js)

    @property
    def best_throughput_per_area(self) -> tuple[PointResult, Estimate]:
        """Most samples a second and mm2."""
        return max(self.designs, key=lambda design: design[1].throughput_per_area)

    @property
    def refusals(self) -> list[tuple[str, int]]:
        """Why designs were refused, and how many for each reason, most frequent first."""
        return Counter(result.refused for result in self.results if result.estimate is None).most_common()

    @property
    def better_than_base(self) -> list[int]:
        """Points that dominate the base."""
        base = objectives(self.designs[0][1])
        return [result.number for result, found in self.designs if dominates(objectives(found), base)]


def run_explore(request: ExploreRequest, *, as_json: bool) -> int:
    """Evaluate what is not finished, keep the file, report; the exit code."""
    start = time.perf_counter()
    _check_options(request)
    base = load_config(request.config)
    check_room(base, Loc(request.config))
    space = load_space(request.space) if request.space else default_space()
    with progress_bar("importing") as bar:
        model = load_model(
            request.model,
            timesteps=request.timesteps,
            seed=request.seed,
            input_shape=request.input_shape,
            progress=bar.training,
        )
    found = _explored(request, model.graph, base, space, start)
    if request.figure is not None:
        _draw(found, request.figure)
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found, space)
    return 0


def _explored(request: ExploreRequest, graph: Graph, base: H2LearnConfig, space: Space, start: float) -> Exploration:
    known = (request.densities or default_densities(request.model)) if request.mode is Mode.TRAIN else DENSE
    points = space.points(request.points, request.seed, base)
    study = _study(request, graph, base, known, points)
    header = header_of(study, space, network=request.model, densities=known, points=request.points, seed=request.seed)
    file = ResultsFile(path=request.output, header=header)
    workers = Workers(jobs=request.jobs or os.cpu_count() or 1, cluster=request.cluster)
    results = _results(study, points, file, workers)
    designs = tuple((result, result.estimate) for result in results if result.estimate is not None)
    return Exploration(
        request=request,
        base=base,
        densities=known,
        results=results,
        designs=designs,
        front=pareto_front([objectives(found) for _, found in designs]),
        resized=sized(base, study.timesteps) != base,
        seconds=time.perf_counter() - start,
    )


def _study(request: ExploreRequest, graph: Graph, base: H2LearnConfig, known: str, points: Sequence[Point]) -> Study:
    """The layers for every tile of the space, so that no worker needs the graph."""
    own = network_layers(graph, base)
    densities = load_densities(known, own) if request.mode is Mode.TRAIN else None
    tiles = dict.fromkeys(
        configured(base, {path: value for path, value in point.changes.items() if path.startswith("tile")}).tile
        for point in points
    )
    return Study(
        base=base,
        mode=request.mode,
        timesteps=graph.timesteps,
        batch=(base.timing.batch_group if request.batch_group is None else request.batch_group) * base.sub_batch,
        seed=request.seed,
        networks=tuple(_network(graph, base, tile, densities) for tile in tiles),
    )


def _network(graph: Graph, base: H2LearnConfig, tile: TileConfig, densities: ByLayer | None) -> TiledNetwork:
    try:
        layers = network_layers(graph, replace(base, tile=tile))
        numbered = by_number(densities, layers) if densities is not None else None
    except CompileError as fault:
        if tile == base.tile:
            raise
        return TiledNetwork(tile=tile, layers=(), densities=None, fault=fault.message)
    return TiledNetwork(tile=tile, layers=layers, densities=numbered)


def _results(study: Study, points: Sequence[Point], file: ResultsFile, workers: Workers) -> tuple[PointResult, ...]:
    try:
        with progress_bar("points") as bar:
            return explore(study, points, file, workers, bar.samples)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {file.path}", file=sys.stderr)
        raise


def _check_options(request: ExploreRequest) -> None:
    """Refuse what can be told before the model is loaded, which may train it."""
    for path in (request.output, request.figure):
        if path is None:
            continue
        loc = Loc(str(path))
        if path.is_dir():
            raise CompileError("is a folder, not a file", loc, hint="name a file inside it")
        if not path.parent.is_dir():
            raise CompileError(f"the folder {path.parent} does not exist", loc, hint="create it first")
    if request.figure is not None:
        _check_figure(request.figure, request.output)


def _check_figure(figure: Path, output: Path) -> None:
    loc = Loc(str(figure))
    if figure.suffix != FIGURE_SUFFIX:
        raise CompileError(f"a figure's file must end in {FIGURE_SUFFIX}", loc)
    same = os.path.realpath(figure) == os.path.realpath(output)
    if same or (figure.exists() and output.exists() and figure.samefile(output)):
        raise CompileError("is the file of the results too", loc, hint="name another file for the figure")
    check_matplotlib()


def _draw(found: Exploration, path: Path) -> None:
    request = found.request
    what = "training" if request.mode is Mode.TRAIN else "inference"
    title = f"{request.model}, {what}: {len(found.designs)} designs, {len(found.front)} on the Pareto front"
    draw_figure(title, [design for _, design in found.designs], found.front, found.designs[0][1], path)


# -- reports ----------------------------------------------------------------------------------------------------------


def _as_json(found: Exploration) -> dict[str, Json]:
    request = found.request
    return {
        "network": request.model,
        "mode": str(request.mode),
        "config": found.base.name,
        "densities": found.densities,
        "results": str(request.output),
        "figure": str(request.figure) if request.figure is not None else None,
        "designs": len(found.results),
        "designs_refused": len(found.results) - len(found.designs),
        "refusals": [{"reason": reason, "designs": count} for reason, count in found.refusals],
        "base": {
            **_design(found.designs[0]),
            "buffers_resized": found.resized,
            "on_front": 0 in found.front,
            "dominated_by": found.better_than_base,
        },
        "front": [_design(design) for design in found.by_throughput],
        "best_energy_delay": _design(found.best_energy_delay),
        "best_throughput_per_area": _design(found.best_throughput_per_area),
        "seconds": found.seconds,
    }


def _design(design: tuple[PointResult, Estimate]) -> dict[str, Json]:
    result, found = design
    return {
        "point": result.number,
        "changes": result.changes,
        "samples_per_second": found.samples_per_second,
        "energy_j_per_sample": found.energy_j_per_sample,
        "dynamic_j_per_sample": found.dynamic_j_per_sample,
        "leakage_j_per_sample": found.leakage_j_per_sample,
        "area_mm2": found.area_mm2,
        "power_w": found.power_w,
        "energy_delay_js_per_sample": found.energy_delay_js,
        "samples_per_second_per_mm2": found.throughput_per_area,
        "period_cycles": found.period_cycles,
        "bound_by": found.bound_by,
    }


def _show(found: Exploration, space: Space) -> None:
    energies = [found.designs[0], *found.by_throughput]
    prefix = prefix_of(design.energy_j_per_sample for _, design in energies)
    console = Console(markup=False, highlight=False, emoji=False)
    console.print(_front_table(found, prefix))
    size = f"{len(found.results):,} designs, the base with them, of a space of {space.size:,}"
    print_table(size, [*_counted(found), *_base_rows(found, space, prefix), *_best_rows(found), *_made(found)])
    if found.refusals:
        console.print(_refusals_table(found.refusals))


def _front_table(found: Exploration, energy: Prefix) -> Table:
    request = found.request
    table = Table(title=f"{request.model}, {request.mode}: Pareto front, fastest first", title_justify="left")
    for name in ("point", *_quantities(energy)):
        table.add_column(name, justify="right")
    table.add_column(f"changed from {found.base.name}", ratio=1)
    for result, design in found.by_throughput:
        table.add_row(str(result.number), *_numbers(design, energy), _grouped(result.changes) or "nothing: the base")
    return table


def _refusals_table(refusals: Sequence[tuple[str, int]]) -> Table:
    table = Table(title="refused designs", title_justify="left", show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for reason, count in refusals[:REASONS_SHOWN]:
        table.add_row(f"{count:,}", "; ".join(reason.splitlines()))
    rest = refusals[REASONS_SHOWN:]
    if rest:
        table.add_row(
            f"{sum(count for _, count in rest):,}",
            f"for {len(rest)} more {_plural('reason', len(rest))}; --json lists all",
        )
    return table


def _counted(found: Exploration) -> Rows:
    yield "refused", f"{len(found.results) - len(found.designs):,}"
    yield "on the front", str(len(found.front))
    yield "densities of the gradients' masks", found.densities if found.request.mode is Mode.TRAIN else "-"


def _base_rows(found: Exploration, space: Space, energy: Prefix) -> Rows:
    base, ahead = found.designs[0][1], len(found.better_than_base)
    yield f"base: {', '.join(_quantities(energy))}", "; ".join(_numbers(base, energy))
    yield "base: fields of the space", _grouped(values_of(found.base, tuple(axis.path for axis in space.axes)))
    yield "base: buffers", "of the size that it needs here" if found.resized else "its own"
    yield (
        "base stands",
        "on the front" if 0 in found.front else f"behind {ahead} {_plural('design', ahead)} in everything",
    )


def _best_rows(found: Exploration) -> Rows:
    base, edp, dense = found.designs[0][1], found.best_energy_delay, found.best_throughput_per_area
    prefix = prefix_of([edp[1].energy_delay_js])
    yield "least energy-delay: point", f"{edp[0].number}: {prefix.shown(edp[1].energy_delay_js)} {prefix.symbol}J s"
    yield "of the base", f"{prefix.shown(base.energy_delay_js)} {prefix.symbol}J s"
    yield "most samples/s per mm2: point", f"{dense[0].number}: {digits(dense[1].throughput_per_area)}"
    yield "of the base", digits(base.throughput_per_area)


def _made(found: Exploration) -> Rows:
    yield "results", str(found.request.output)
    yield "seconds", f"{found.seconds:.1f}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _grouped(values: Mapping[str, Value | str]) -> str:
    """The fields of an engine behind its name."""
    groups: dict[str, list[str]] = {}
    for path, value in values.items():
        engine, _, name = path.rpartition(".")
        groups.setdefault(engine or path, []).append(f"{name} {value:g}" if engine else f"{value}")
    return "; ".join(f"{engine} {', '.join(fields)}" for engine, fields in groups.items())


def _quantities(energy: Prefix) -> tuple[str, str, str, str]:
    """What `_numbers` holds."""
    return "samples/s", f"{energy.symbol}J/sample", "mm2", "W"


def _numbers(found: Estimate, energy: Prefix) -> tuple[str, str, str, str]:
    return (
        f"{found.samples_per_second:,.0f}",
        energy.shown(found.energy_j_per_sample),
        f"{found.area_mm2:.1f}",
        f"{found.power_w:.1f}",
    )
