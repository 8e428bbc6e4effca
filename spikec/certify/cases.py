"""Which samples of a data set are certified."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compiler.evaluate import evaluate
from frontends.datasets import Samples
from hwmodel.errors import CompileError, Loc
from spikec.certify.subject import Floats, Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A sample: its place in the data set, values and label. Shapes: x as `Subject.shape`."""

    sample: int
    x: Floats
    label: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """samples: how many, from number `first` on."""

    samples: int
    first: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("samples", self.samples, 1), ("first", self.first, 0)):
            if value < least:
                raise CompileError(f"is {value}, must be at least {least}", Loc(f"--{name}"))


def chosen_cases(subject: Subject, samples: Samples, choice: Choice) -> tuple[Case, ...]:
    """The cases of a data set; where it has no labels, what the network says of its samples stands for them.

    Raises: CompileError for too few samples, and samples or labels that do not fit the network.
    """
    if choice.first + choice.samples > len(samples):
        raise CompileError(
            f"samples {choice.first} to {choice.first + choice.samples - 1} asked for, the test set has {len(samples)}",
            Loc(samples.name),
            hint="take a smaller --samples or --first",
        )
    kind = subject.graph.types[subject.graph.output]
    classes = kind.size("C") if kind.axes == "NC" else None  # of other networks, `Plan.run` says what is wrong
    cases = []
    for at in range(choice.first, choice.first + choice.samples):
        x = np.ascontiguousarray(samples.x[at], np.float32)
        subject.check(x, at)
        label = int(samples.y[at]) if samples.labelled else _told(subject, x, at)
        if classes is not None and not 0 <= label < classes:
            raise CompileError(
                f"sample {at}: has label {label}, the classes are 0 to {classes - 1}", subject.graph.input.loc
            )
        cases.append(Case(sample=at, x=x, label=label))
    return tuple(cases)


def digest_of_cases(cases: Sequence[Case]) -> str:
    """SHA-256 of the samples' numbers, values and labels."""
    state = hashlib.sha256()
    for case in cases:
        state.update(f"{case.sample} {case.label} {case.x.shape} ".encode() + case.x.tobytes())
    return state.hexdigest()


def _told(subject: Subject, x: Floats, sample: int) -> int:
    axis = subject.graph.types[subject.graph.input.name].axes.index("N")
    batch = torch.from_numpy(np.expand_dims(subject.seen(x, sample), axis).copy())
    return int(evaluate(subject.graph, batch).output[0].argmax())
