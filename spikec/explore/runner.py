"""Runs the points that are not finished yet: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Protocol

from hwmodel.errors import CompileError, Loc
from spikec.explore.points import PointResult, Study, evaluate
from spikec.explore.results import ResultsFile
from spikec.explore.space import Point
from spikec.explore.worker import begin_pool_worker

LOCAL = "local"
AHEAD = 4  # points in flight for each worker
CONNECT_S = 10

Progress = Callable[[int, int], None]
Results = Generator[PointResult, None, None]
Run = Callable[[Study, Sequence[Point]], Results]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who evaluates. `cluster` is a Dask scheduler's address, `local` for one of `jobs` workers, "" for processes."""

    jobs: int
    cluster: str = ""

    @contextmanager
    def ready(self, points: int) -> Iterator[Run]:
        """What evaluates so many points, and hands on their results as they are finished.

        Raises: CompileError if the cluster does not answer.
        """
        if self.cluster and points:
            with _client(self) as client:
                yield partial(_on_cluster, client, Loc(f"--cluster {self.cluster}"))
        elif self.jobs == 1 or points < 2:
            yield _in_turn
        else:
            yield partial(_in_processes, min(self.jobs, points))


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
    with workers.ready(len(points) - len({0, *finished})) as run, file.appending() as end:
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


def _in_turn(study: Study, points: Sequence[Point]) -> Results:
    with import_module("threadpoolctl").threadpool_limits(1):  # threads for small matrices only wait for each other
        for point in points:
            yield evaluate(study, point)


def _in_processes(jobs: int, study: Study, points: Sequence[Point]) -> Results:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of the network's framework
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_pool_worker)
    rest = iter(points)
    try:
        flying: set[Future[PointResult]] = {pool.submit(evaluate, study, point) for point in islice(rest, AHEAD * jobs)}
        while flying:
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            flying |= {pool.submit(evaluate, study, point) for point in islice(rest, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool as fault:
        raise CompileError("a worker process died", Loc("--jobs"), hint="the same command goes on") from fault
    finally:
        pool.shutdown(cancel_futures=True)


class _Client(Protocol):
    """What is used of `distributed.Client`, which has no types."""

    def scatter(self, data: Study, *, broadcast: bool) -> Study: ...

    def submit(
        self, function: Callable[[Study, Point], PointResult], study: Study, point: Point, *, pure: bool
    ) -> Future[PointResult]: ...

    def nthreads(self) -> dict[str, int]: ...


class _Completed(Iterator[Future[PointResult]], Protocol):
    """What is used of `distributed.as_completed`."""

    def add(self, future: Future[PointResult]) -> None: ...


def _on_cluster(client: _Client, loc: Loc, study: Study, points: Sequence[Point]) -> Results:
    distributed = import_module("distributed")
    lost = (distributed.KilledWorker, distributed.comm.CommClosedError, CancelledError)
    rest = iter(points)
    try:
        shared = client.scatter(study, broadcast=True)
        ahead = AHEAD * max(sum(client.nthreads().values()), 1)
        completed: _Completed = distributed.as_completed(
            [client.submit(evaluate, shared, point, pure=False) for point in islice(rest, ahead)]
        )
        for future in completed:
            yield future.result()
            for point in islice(rest, 1):
                completed.add(client.submit(evaluate, shared, point, pure=False))
    except lost as fault:
        raise CompileError("the cluster's workers are lost", loc, hint="the same command goes on") from fault


@contextmanager
def _client(workers: Workers) -> Iterator[_Client]:
    address, loc = workers.cluster, Loc(f"--cluster {workers.cluster}")
    try:
        distributed = import_module("distributed")
    except ImportError as fault:
        raise CompileError("dask.distributed is not installed", loc, hint="pip install 'spikec[explore]'") from fault
    with ExitStack() as stack:
        if address == LOCAL:
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers.jobs,
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                    preload=[begin_pool_worker.__module__],
                )
            )
        try:
            client = distributed.Client(address, timeout=CONNECT_S)
        except (OSError, ValueError) as fault:
            reason = str(fault).split("\n")[0]
            raise CompileError(f"no cluster answers: {reason}", loc, hint="such as tcp://10.0.0.1:8786") from fault
        yield stack.enter_context(client)
