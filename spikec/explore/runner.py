"""Runs the points that are not finished yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from hwmodel.errors import CompileError, Loc
from spikec.explore.points import PointResult, Study, evaluate
from spikec.explore.results import ResultsFile
from spikec.explore.space import Point
from spikec.workers import Workers

Progress = Callable[[int, int], None]


def explore(
    study: Study, points: Sequence[Point], file: ResultsFile, workers: Workers, progress: Progress
) -> tuple[PointResult, ...]:
    """All points in their order; each is written as it is finished, those of the file are not evaluated again.

    Raises: CompileError if the base itself is refused, the file is another's, or workers are lost.
    """
    finished = file.read()
    base = finished.get(0) or evaluate(study, points[0])
    if base.refused:
        raise CompileError(base.refused, Loc(study.base.name))
    with workers.ready(evaluate, len(points) - len({0, *finished})) as run, file.appending() as end:
        finished = file.read()
        if 0 not in finished:
            end.add(base)
            finished[0] = base
        progress(len(finished), len(points))
        with closing(run(study, [point for point in points if point.number not in finished])) as results:
            for result in results:
                end.add(result)
                finished[result.number] = result
                progress(len(finished), len(points))
        ordered = tuple(finished[point.number] for point in points)
        file.finish(ordered)
    return ordered
