"""Which samples of a data set are attacked, and towards which classes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compiler.attack.iterate import checked
from compiler.attack.settings import Case, Settings
from compiler.attack.victim import Victim
from frontends.datasets import Samples
from hwmodel.errors import CompileError, Loc
from spikec.attack.verdicts import clean_scores

NO_TARGET, ALL_TARGETS, NEXT_TARGET = "none", "all", "next"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """samples: how many, the first ones; with per_class that many of each class.

    target: `none`, `all` other classes, the `next` class, or the number of one.
    """

    samples: int
    per_class: bool
    target: str

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise CompileError(f"{self.samples} samples are to be attacked, must be at least 1", Loc("--samples"))
        if self.target not in (NO_TARGET, ALL_TARGETS, NEXT_TARGET) and not self.target.isdecimal():
            raise CompileError(
                f"{self.target!r} is no target", Loc("--target"), hint="known: none, all, next or the number of a class"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The cases in their order, and the samples left out because the target is their own class."""

    cases: tuple[Case, ...]
    skipped: int

    def digest(self) -> str:
        """SHA-256 of the samples' numbers, values and labels."""
        state = hashlib.sha256()
        seen = set()
        for case in self.cases:
            if case.sample not in seen:
                seen.add(case.sample)
                state.update(f"{case.sample} {case.label} {case.x.shape} ".encode() + case.x.tobytes())
        return state.hexdigest()


def chosen_cases(victim: Victim, samples: Samples, choice: Choice, settings: Settings) -> Chosen:
    """The cases of a data set; where it has no labels, what the network says of its samples stands for them.

    Raises: CompileError for too few samples, samples or labels that do not fit the network, a target that is no class
    or that every sample has, and targets without labels.
    """
    loc = Loc(samples.name)
    if not samples.labelled and choice.target != NO_TARGET:
        raise CompileError(
            f"target {choice.target} is given, and the data has no labels", loc, hint="attack without a target"
        )
    index = _picked(samples, choice, loc)
    labels = [int(samples.y[at]) for at in index]
    found = [Case(sample=at, x=_values(samples, at), label=label) for at, label in zip(index, labels, strict=True)]
    for case in found:
        checked(case, victim)
    if not samples.labelled:
        found = _labelled(victim, found, settings)
    cases, skipped = _with_targets(found, choice.target, victim.classes)
    return Chosen(cases=cases, skipped=skipped)


def _values(samples: Samples, at: int) -> Floats:
    return np.ascontiguousarray(samples.x[at], np.float32)


def _picked(samples: Samples, choice: Choice, loc: Loc) -> list[int]:
    """Places in the data set."""
    if not choice.per_class:
        if choice.samples > len(samples):
            raise CompileError(
                f"{choice.samples} samples asked for, the test set has {len(samples)}",
                loc,
                hint=f"--samples 1 to {len(samples)}",
            )
        return list(range(choice.samples))
    if not samples.labelled:
        raise CompileError("samples of each class are asked for, and the data has no labels", loc)
    sizes = Counter(int(label) for label in samples.y)
    rare, size = min(sizes.items(), key=lambda item: (item[1], item[0]))
    if size < choice.samples:
        raise CompileError(
            f"{choice.samples} samples of each class asked for, the test set has {size} of class {rare}",
            loc,
            hint=f"--samples 1 to {size} with --per-class",
        )
    taken: Counter[int] = Counter()
    picked = []
    for at, label in enumerate(map(int, samples.y)):
        if taken[label] < choice.samples:
            taken[label] += 1
            picked.append(at)
    return picked


def _labelled(victim: Victim, cases: Sequence[Case], settings: Settings) -> list[Case]:
    """Cases whose label is what the network says of the clean sample; a tie is a clean error whatever it is."""
    answers = clean_scores(victim, cases, settings).argmax(1).tolist()
    return [replace(case, label=int(answer)) for case, answer in zip(cases, answers, strict=True)]


def _with_targets(cases: Sequence[Case], target: str, classes: int) -> tuple[tuple[Case, ...], int]:
    if target == NO_TARGET:
        return tuple(cases), 0
    if target == NEXT_TARGET:
        wanted = [[(case.label + 1) % classes] for case in cases]
    elif target == ALL_TARGETS:
        wanted = [[other for other in range(classes) if other != case.label] for case in cases]
    else:
        wanted = [[int(target)] if int(target) != case.label else [] for case in cases]
        if int(target) >= classes:
            raise CompileError(f"{target} is no class", Loc("--target"), hint=f"classes are 0 to {classes - 1}")
        if not any(wanted):
            raise CompileError(
                f"every sample has the label {target}, so none can be moved there", Loc("--target"), hint="take another"
            )
    aimed = tuple(replace(case, target=goal) for case, goals in zip(cases, wanted, strict=True) for goal in goals)
    return aimed, sum(not goals for goals in wanted)
