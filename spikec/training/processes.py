"""Several processes that train one network: what they share, and how a fault of one ends all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# before any group exists: its functions' defaults would hold the group, and its threads, to the end of the process,
# where a thread that needs the interpreter once more aborts it
import torch.distributed.nn.functional
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hwmodel.errors import CompileError, Loc

BAD_INPUT = 2

_COUNT, _RANK = "WORLD_SIZE", "RANK"
_ADDRESS, _PORT = "MASTER_ADDR", "MASTER_PORT"
_OTHERS = (_RANK, _ADDRESS, _PORT)  # that go with the count
_HIGHEST_PORT = 2**16 - 1
_MEETING = timedelta(minutes=5)  # for all to start, and for the slowest to do its part of a step
_NOTICE_S = 5.0  # for a fault to reach the others
_LOOK_S = 0.2  # between looks for one
_FAULT, _REPORTED = "fault", "reported"  # keys of the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Of this process among those that torchrun started."""

    rank: int
    count: int


def place_of(environment: Mapping[str, str]) -> Place | None:
    """From the variables that torchrun sets; None for a process alone.

    Raises: CompileError for variables that contradict each other.
    """
    count = _number(environment, _COUNT) if _COUNT in environment else 1
    if count == 1:
        return None
    missing = [name for name in _OTHERS if name not in environment]
    if missing:
        raise _environment_fault(missing[0], f"is not set, and {_COUNT} is {count}")
    rank = _number(environment, _RANK)
    if not 0 <= rank < count:
        raise _environment_fault(_RANK, f"is {rank}, must be from 0 to {count - 1}")
    port = _number(environment, _PORT)
    if not 1 <= port <= _HIGHEST_PORT:
        raise _environment_fault(_PORT, f"is {port}, must be from 1 to {_HIGHEST_PORT}")
    return Place(rank=rank, count=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes of a run, which all do the same steps; the first one leads: it writes and speaks."""

    place: Place
    store: Store
    group: str  # its name

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.place.rank == 0

    def part(self, samples: int) -> slice:
        """The samples of a batch that this process takes."""
        rank, count = self.place.rank, self.place.count
        return slice(samples * rank // count, samples * (rank + 1) // count)

    def add(self, values: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the processes."""
        every = torch.cat([value.flatten() for value in values])
        dist.all_reduce(every)
        for value, total in zip(values, every.split([value.numel() for value in values]), strict=True):  # type: ignore[no-untyped-call]
            value.copy_(total.view(value.shape))

    def in_some(self, flag: bool) -> bool:
        """Whether the flag is set in some process."""
        flags = torch.tensor([float(flag)])
        dist.all_reduce(flags)
        return bool(flags > 0)

    def check_same(self, text: str, what: str) -> None:
        """Refuse processes that differ in what all must have alike.

        Raises: CompileError, in each process.
        """
        digest = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8).double()
        total = digest.clone()
        dist.all_reduce(total)
        # a process that is the mean of the others by chance hears of them
        if self.in_some(not torch.equal(total, self.place.count * digest)):
            raise CompileError(f"differs between the {self.place.count} processes", Loc(what))

    def check_batch(self, batch: int, samples: int) -> None:
        """Refuse batches that do not come out even, or that leave a process without a sample.

        Raises: CompileError naming the option.
        """
        count, loc = self.place.count, Loc("--batch")
        if batch % count:
            raise CompileError(
                f"is {batch}, must be a multiple of the {count} processes",
                loc,
                hint=f"--batch {-(-batch // count) * count} is all processes' samples together",
            )
        rest = samples % batch
        if 0 < rest < count:
            raise CompileError(
                f"is {batch}, which leaves {rest} of {samples} samples for the last of an epoch, fewer than processes",
                loc,
                hint=f"start fewer than the {count} processes, or take batches of another size",
            )


def together(place: Place, work: Callable[[Processes], int]) -> int:
    """The exit code of the work that all processes do; a fault of one ends all, and is printed once.

    Raises: CompileError if the processes do not find each other.
    """
    try:
        processes = _join(place)
    except (RuntimeError, ValueError, OSError) as fault:
        raise CompileError(
            f"the {place.count} processes do not meet: {_line(fault)}",
            Loc("torchrun"),
            hint=f"they meet at {_ADDRESS}:{_PORT}, a host that all reach and a port that is free there",
        ) from fault
    watch = _Watch(processes)
    watch.start()
    try:
        code = work(processes)
        watch.leave()
        return code
    except CompileError as fault:
        return watch.end_all(str(fault))
    except RuntimeError as fault:
        if not _is_lost(fault):
            raise
        return watch.end_all(str(CompileError("another process ended or no longer answers", Loc("torchrun"))))
    finally:
        dist.destroy_process_group()


def _join(place: Place) -> Processes:
    store, rank, count = next(rendezvous("env://", place.rank, place.count, timeout=_MEETING))
    group_store = PrefixStore("group", store)
    dist.init_process_group("gloo", store=group_store, rank=rank, world_size=count, timeout=_MEETING)
    assert dist.group.WORLD is not None
    return Processes(place=place, store=store, group=dist.group.WORLD.group_name)


class _Watch(threading.Thread):
    """Ends this process when some process has a fault, wherever it stands: no sum can be waited for any more."""

    def __init__(self, processes: Processes) -> None:
        super().__init__(daemon=True)
        self._place, self._store = processes.place, processes.store
        self._done = threading.Event()

    def run(self) -> None:
        try:
            while not self._store.check([_FAULT]):
                if self._done.wait(_LOOK_S):
                    return
            self._end()
        except RuntimeError:
            return  # the store is gone with the process that kept it
        # the main thread may be inside a sum that never comes about, where no exception reaches it
        os._exit(BAD_INPUT)

    def leave(self) -> None:
        """This process has done its part."""
        self._done.set()
        self.join()
        with contextlib.suppress(RuntimeError):
            self._store.set(self._left(self._place.rank), "")

    def end_all(self, message: str) -> int:
        """Every process ends; the exit code, should this one have lost the others already."""
        with contextlib.suppress(RuntimeError):
            self._store.compare_set(_FAULT, "", message)
        self.join()
        print(message, file=sys.stderr)
        return BAD_INPUT

    def _end(self) -> None:
        """The first process prints the first fault, and outlives the others, since it may keep the store."""
        others = [self._left(rank) for rank in range(1, self._place.count)]
        if self._place.rank == 0:
            print(bytes(self._store.get(_FAULT)).decode(), file=sys.stderr, flush=True)
            self._store.set(_REPORTED, "")
            self._wait(others)
        else:
            self._wait([_REPORTED])
            self._store.set(self._left(self._place.rank), "")

    def _wait(self, keys: list[str]) -> None:
        deadline = time.monotonic() + _NOTICE_S
        while not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def _left(self, rank: int) -> str:
        return f"left/{rank}"


def _is_lost(fault: RuntimeError) -> bool:
    """Whether a fault of torch's is that another process does not answer."""
    return isinstance(fault, dist.DistError) or "gloo" in str(fault)


def _line(fault: Exception) -> str:
    return str(fault).strip().split("\n")[0]


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        value = int(environment[name])
    except ValueError as fault:
        raise _environment_fault(name, f"is {environment[name]!r}, no whole number") from fault
    if name == _COUNT and value < 1:
        raise _environment_fault(name, f"is {value}, must be at least 1")
    return value


def _environment_fault(name: str, message: str) -> CompileError:
    return CompileError(message, Loc(name), hint=f"start several processes with torchrun, one without {_COUNT}")
