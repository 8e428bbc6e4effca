"""The attack's iterations over many samples, each in its own: finished ones make room for the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compiler.attack.goal import succeeds, wins
from compiler.attack.inputs import Attackable, Batch, attackable
from compiler.attack.lanes import Lanes
from compiler.attack.perturbation import perturbation
from compiler.attack.settings import Case, Floats, Outcome, Settings, Status
from compiler.attack.spike_gradients import vanishes
from compiler.attack.victim import Victim
from compiler.ir import CompileError, DType


@dataclass(slots=True)
class _Slot:
    """One sample on its way."""

    case: Case
    place: int  # in the blocks that go through the network
    now: Tensor
    step: int = 0
    vanished: int = 0
    is_stuck: bool = False  # no gradient, and nothing else to go by

    @property
    def wanted(self) -> int:
        """The class that the loss is of."""
        return self.case.label if self.case.target is None else self.case.target


def attack(victim: Victim, cases: Iterable[Case], settings: Settings) -> Iterator[Outcome]:
    """Attack each case, and hand over its outcome when it is done, in no fixed order.

    A case ends with the first success, tested on the very input that the next gradient would be taken at. Which
    cases are attacked beside it changes nothing about an outcome.

    Raises: CompileError for a case that does not fit the network.
    Source: algorithm 5.
    """
    kind = attackable(victim, settings)
    queue = Lanes((checked(case, victim) for case in cases), lambda case: case.sample)
    slots: list[_Slot] = []
    while True:
        slots += [_Slot(case, place, torch.from_numpy(case.x.copy())) for place, case in queue.fill(_taken(slots))]
        if not slots:
            return
        seen = kind.seen(_batch(slots, kind.axis))
        scores = victim.scores(seen, [slot.place for slot in slots])
        statuses = _judged(slots, scores, settings)
        for slot, status in zip(slots, statuses, strict=True):
            if status is not None:
                yield _outcome(slot, status)
        going = [at for at, status in enumerate(statuses) if status is None]
        slots = [slots[at] for at in going]
        if slots:
            _advance(victim, kind, slots, seen.index_select(int(victim.has_time), torch.tensor(going)), settings)


def _taken(slots: list[_Slot]) -> set[int]:
    return {slot.place for slot in slots}


def _advance(victim: Victim, kind: Attackable, slots: list[_Slot], seen: Tensor, settings: Settings) -> None:
    """One iteration of each sample."""
    wanted = torch.tensor([slot.wanted for slot in slots])
    gradient = victim.gradient(seen, wanted, [slot.place for slot in slots])
    targeted = torch.tensor([slot.case.target is not None for slot in slots])
    axis = int(victim.has_time)
    shape = [1] * gradient.ndim
    shape[axis] = -1
    ascent = torch.where(targeted.reshape(shape), -gradient, gradient)
    gone = vanishes(ascent if victim.has_time else ascent.unsqueeze(0))
    after = kind.changed(_batch(slots, kind.axis), seen, ascent)
    for at, slot in enumerate(slots):
        slot.step += 1
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
            status = None if is_right[at] else Status.CLEAN_ERROR
        elif slot.is_stuck:
            status = Status.VANISHED
        elif _distance(slot) > settings.epsilon:
            status = Status.OUT_OF_BOUND
        elif hits[slot.case.target is not None][at]:
            status = Status.SUCCESS
        elif slot.step == settings.iterations:
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
        iterations=slot.step,
        vanished=slot.vanished,
        queries=slot.step + 1,
        gradients=slot.step,
        draw=slot.step,
    )


def _batch(slots: list[_Slot], axis: int) -> Batch:
    return Batch(
        samples=[slot.case.sample for slot in slots],
        steps=[slot.step for slot in slots],
        clean=torch.stack([torch.from_numpy(slot.case.x) for slot in slots], axis),
        now=torch.stack([slot.now for slot in slots], axis),
    )


def checked(case: Case, victim: Victim) -> Case:
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
