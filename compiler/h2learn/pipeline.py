"""Program order within a layer: what a grid iteration loads ahead stands before the work of the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from compiler.h2learn.synchronise import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class GridIteration:
    """What one grid iteration loads ahead, then does (engine work, late loads, stores)."""

    early: tuple[Action, ...]
    work: tuple[Action, ...]


def pipelined(iterations: Iterable[GridIteration]) -> Iterator[tuple[Action, ...]]:
    """The actions in program order, one group an iteration.

    Ensures: executing them one after the other is correct; banks alternate, so loads run ahead.
    """
    pending: tuple[Action, ...] = ()
    for iteration in iterations:
        yield (*iteration.early, *pending)
        pending = iteration.work
    if pending:
        yield pending
