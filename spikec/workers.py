"""Does many pieces of work that share a study: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Protocol, TypeVar

from hwmodel.errors import CompileError, Loc
from spikec.worker_start import begin_pool_worker

LOCAL = "local"
AHEAD = 4  # pieces in flight for each worker
CONNECT_S = 10

Study = TypeVar("Study")
Piece = TypeVar("Piece")
Result = TypeVar("Result")
Work = Callable[[Study, Piece], Result]
Run = Callable[[Study, Sequence[Piece]], Generator[Result, None, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who works. `cluster` is a Dask scheduler's address, `local` for one of `jobs` workers, "" for processes."""

    jobs: int
    cluster: str = ""

    def stay_here(self, pieces: int) -> bool:
        """Whether so many pieces are done in this process."""
        return not pieces or (not self.cluster and (self.jobs == 1 or pieces < 2))

    @contextmanager
    def ready(self, work: Work[Study, Piece, Result], pieces: int) -> Iterator[Run[Study, Piece, Result]]:
        """What does so many pieces of work, and hands on their results as they are finished.

        work: a function of a module; it, the study and the pieces travel to other processes.
        Raises: CompileError if the cluster does not answer.
        """
        if self.stay_here(pieces):
            yield partial(_in_turn, work)
        elif self.cluster:
            with _client(self) as client:
                yield partial(_on_cluster, client, Loc(f"--cluster {self.cluster}"), work)
        else:
            yield partial(_in_processes, min(self.jobs, pieces), work)


def _in_turn(work: Work[Study, Piece, Result], study: Study, pieces: Sequence[Piece]) -> Generator[Result, None, None]:
    with import_module("threadpoolctl").threadpool_limits(1):  # threads for small matrices only wait for each other
        for piece in pieces:
            yield work(study, piece)


def _in_processes(
    jobs: int, work: Work[Study, Piece, Result], study: Study, pieces: Sequence[Piece]
) -> Generator[Result, None, None]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of the network's framework
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_pool_worker)
    rest = iter(pieces)
    try:
        flying: set[Future[Result]] = {pool.submit(work, study, piece) for piece in islice(rest, AHEAD * jobs)}
        while flying:
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            flying |= {pool.submit(work, study, piece) for piece in islice(rest, len(done))}
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
        self, function: Work[Study, Piece, Result], study: Study, piece: Piece, *, pure: bool
    ) -> Future[Result]: ...

    def nthreads(self) -> dict[str, int]: ...


class _Completed(Iterator[Future[Result]], Protocol[Result]):
    """What is used of `distributed.as_completed`."""

    def add(self, future: Future[Result]) -> None: ...


def _on_cluster(
    client: _Client, loc: Loc, work: Work[Study, Piece, Result], study: Study, pieces: Sequence[Piece]
) -> Generator[Result, None, None]:
    distributed = import_module("distributed")
    lost = (distributed.KilledWorker, distributed.comm.CommClosedError, CancelledError)
    rest = iter(pieces)
    try:
        shared = client.scatter(study, broadcast=True)
        ahead = AHEAD * max(sum(client.nthreads().values()), 1)
        completed: _Completed[Result] = distributed.as_completed(
            [client.submit(work, shared, piece, pure=False) for piece in islice(rest, ahead)]
        )
        for future in completed:
            yield future.result()
            for piece in islice(rest, 1):
                completed.add(client.submit(work, shared, piece, pure=False))
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
