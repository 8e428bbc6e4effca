"""The attack's iterations over many samples, each in its own: finished ones make room for the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compiler.attack.goal import succeeds, wins
from compiler.attack.inputs import Attackable, Batch, View, along, attackable
from compiler.attack.lanes import Lanes
from compiler.attack.network import Network
from compiler.attack.perturbation import perturbation
from compiler.attack.randomness import step_number
from compiler.attack.settings import Case, Floats, Outcome, Settings, Status
from compiler.attack.spike_gradients import vanishes
from compiler.attack.victim import Forward, Victim
from compiler.ir import CompileError, DType


@dataclass(slots=True)
class _Slot:
    """One sample on its way."""

    case: Case
    place: int  # in the block that goes through the network
    now: Tensor
    step: int = 0
    restart: int = 0
    updates: int = 0  # of all restarts
    gradients: int = 0
    vanished: int = 0
    vanished_at_start: bool = False
    is_stuck: bool = False  # no gradient, and nothing else to go by

    @property
    def wanted(self) -> int:
        """The class that the loss is of."""
        return self.case.label if self.case.target is None else self.case.target

    @property
    def number(self) -> int:
        """Of the step among those of all restarts."""
        return step_number(self.restart, self.step)


def attack(victim: Network, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """Attack each case, and hand over its outcome when it is done, in no fixed order.

    A case ends with the first success, tested on the very input that the next gradient would be taken at. Without
    one it begins again, as often as the settings say. Which cases are attacked beside it changes nothing about an
    outcome.

    Raises: CompileError for a case that does not fit the network, and for settings that do not.
    Source: algorithm 5.
    """
    kind = attackable(victim, settings)
    queue = Lanes((checked(case, victim) for case in cases), lambda case: case.sample, blocks=1)
    slots: list[_Slot] = []
    while True:
        slots += [_Slot(case, place, torch.from_numpy(case.x.copy())) for place, case in queue.fill(_taken(slots))]
        if not slots:
            return
        seen = kind.seen(_batch(slots, kind.axis))
        passed = _passed(victim, seen, [slot.place for slot in slots])
        statuses = _judged(slots, passed.scores, settings)
        going = [at for at, status in enumerate(statuses) if status is None]
        if going:
            own = seen.index_select(int(victim.has_time), torch.tensor(going))
            _advance(victim, kind, [slots[at] for at in going], _Pass(passed, own, going), settings)
        left = []
        for slot, status in zip(slots, statuses, strict=True):
            if status is None or _begins_again(slot, status, kind, settings):
                left.append(slot)
            else:
                yield _outcome(slot, status)
        slots = left


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass through the network of which some samples go on, and what these were seen as."""

    passed: Forward | _Rerun
    seen: Tensor
    rows: list[int]


@dataclass(frozen=True, slots=True)
class _Rerun:
    """As `Forward`, of a network that scores and differentiates by passes of their own."""

    victim: Network
    x: Tensor
    places: list[int]

    @property
    def scores(self) -> Tensor:
        return self.victim.scores(self.x, self.places)

    def gradient(self, classes: Tensor, rows: list[int]) -> Tensor:
        own = self.x.index_select(int(self.victim.has_time), torch.tensor(rows))
        return self.victim.gradient(own, classes, [self.places[row] for row in rows])


def _passed(victim: Network, seen: Tensor, places: list[int]) -> Forward | _Rerun:
    """What overrides a victim's scores or gradient is asked for both."""
    return victim.forward(seen, places) if type(victim) is Victim else _Rerun(victim, seen, places)


def _taken(slots: list[_Slot]) -> set[int]:
    return {slot.place for slot in slots}


def _begins_again(slot: _Slot, status: Status, kind: Attackable, settings: Settings) -> bool:
    """Set a case without success back to where a restart begins, if there is one left."""
    if status in (Status.SUCCESS, Status.CLEAN_ERROR) or slot.restart == settings.restarts:
        return False
    slot.restart += 1
    slot.step, slot.is_stuck = 0, False
    slot.now = torch.from_numpy(slot.case.x.copy())
    slot.now = kind.start(_batch([slot], kind.axis)).select(kind.axis, 0)
    return True


def _advance(victim: Network, kind: Attackable, slots: list[_Slot], first: _Pass, settings: Settings) -> None:
    """One iteration of each sample."""
    axis = int(victim.has_time)
    wanted = torch.tensor([slot.wanted for slot in slots])
    sign = torch.tensor([1.0 if slot.case.target is None else -1.0 for slot in slots])
    batch, places = _batch(slots, kind.axis), [slot.place for slot in slots]

    def view(seen: Tensor, gradient: Tensor) -> View:
        return View(seen, gradient * along(sign, gradient.ndim, axis))

    views = [view(first.seen, first.passed.gradient(wanted, first.rows))]
    for copy in range(1, settings.draws):
        seen = kind.seen(batch, copy)
        views.append(view(seen, victim.gradient(seen, wanted, places)))
    gone = torch.stack([vanishes(view.ascent if axis else view.ascent.unsqueeze(0)) for view in views]).all(0)
    after = kind.changed(batch, views)
    for at, slot in enumerate(slots):
        slot.vanished_at_start |= not slot.updates and bool(gone[at])
        slot.step += 1
        slot.updates += 1
        slot.gradients += len(views)
        slot.vanished += int(gone[at])
        slot.is_stuck = bool(gone[at]) and not settings.flipping
        if not slot.is_stuck:
            slot.now = after.select(kind.axis, at)


def _judged(slots: list[_Slot], scores: Tensor, settings: Settings) -> list[Status | None]:
    """What became of each sample; None for those that go on."""
    labels = torch.tensor([slot.case.label for slot in slots])
    wanted = torch.tensor([slot.wanted for slot in slots])
    is_right = wins(scores, labels)
    hits = {flag: succeeds(scores, wanted, targeted=flag) for flag in (False, True)}
    statuses: list[Status | None] = []
    for at, slot in enumerate(slots):
        status = None
        if slot.step == 0:
            status = None if slot.restart or is_right[at] else Status.CLEAN_ERROR
        elif slot.is_stuck:
            status = Status.VANISHED
        elif _distance(slot) > settings.epsilon:
            status = Status.OUT_OF_BOUND
        elif hits[slot.case.target is not None][at]:
            status = Status.SUCCESS
        elif slot.step == settings.updates:
            status = Status.FAILURE
        statuses.append(status)
    return statuses


def _distance(slot: _Slot) -> float:
    return perturbation(slot.case.x, slot.now.numpy()).dissertation


def _outcome(slot: _Slot, status: Status) -> Outcome:
    adversarial: Floats = np.ascontiguousarray(slot.now.numpy())
    return Outcome(
        case=slot.case,
        status=status,
        adversarial=adversarial,
        perturbation=perturbation(slot.case.x, adversarial),
        iterations=slot.updates,
        vanished=slot.vanished,
        queries=slot.updates + 1,
        gradients=slot.gradients,
        draw=slot.number,
        vanished_at_start=slot.vanished_at_start,
    )


def _batch(slots: list[_Slot], axis: int) -> Batch:
    return Batch(
        samples=[slot.case.sample for slot in slots],
        steps=[slot.number for slot in slots],
        clean=torch.stack([torch.from_numpy(slot.case.x) for slot in slots], axis),
        now=torch.stack([slot.now for slot in slots], axis),
    )


def checked(case: Case, victim: Network) -> Case:
    """Raises: CompileError for a case that does not fit the network."""
    graph = victim.graph
    node = graph.input
    kind = graph.types[node.name]
    place = f"sample {case.sample}"
    shape = tuple(size for size, axis in zip(kind.shape, kind.axes, strict=True) if axis != "N")
    fault = ""
    if case.x.shape != shape:
        fault = f"has shape {case.x.shape}, the network takes {shape}"
    elif kind.dtype is DType.SPIKE and not np.isin(case.x, (0, 1)).all():
        fault = "holds values other than 0 and 1, and the network takes spikes"
    elif not ((case.x >= 0) & (case.x <= 1)).all():
        fault = "holds values outside [0, 1]"
    elif not 0 <= case.label < victim.classes:
        fault = f"has label {case.label}, the classes are 0 to {victim.classes - 1}"
    elif case.target is not None and not 0 <= case.target < victim.classes:
        fault = f"has target {case.target}, the classes are 0 to {victim.classes - 1}"
    elif case.target == case.label:
        fault = f"has its own label, {case.label}, as target"
    if fault:
        raise CompileError(f"{place}: {fault}", node.loc)
    return case
