"""What the network says of clean samples and of finished examples, judged as an attack judges them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from compiler.attack.goal import wins
from compiler.attack.inputs import Batch, attackable
from compiler.attack.searches import judged
from compiler.attack.settings import Case, Outcome, Settings
from compiler.attack.victim import BLOCK, Victim

_AT_ONCE = 4 * BLOCK


def clean_scores(victim: Victim, cases: Sequence[Case], settings: Settings) -> Tensor:
    """Scores of each clean sample under the code of step 0, by which an attack tells clean errors.

    Shapes: (N, K).
    """
    kind = attackable(victim, settings)
    parts = []
    for start in range(0, len(cases), _AT_ONCE):
        some = cases[start : start + _AT_ONCE]
        now = torch.stack([torch.from_numpy(case.x) for case in some], kind.axis)
        samples = [case.sample for case in some]
        seen = kind.seen(Batch(samples=samples, steps=[0] * len(some), clean=now, now=now))
        with one_thread():
            parts.append(victim.scores(seen, [sample % BLOCK for sample in samples]))
    return torch.cat(parts)


def right_at_first(victim: Victim, cases: Sequence[Case], settings: Settings) -> list[bool]:
    """Whether each clean sample's label alone has the highest score."""
    labels = torch.from_numpy(np.array([case.label for case in cases], np.int64))
    return [bool(is_right) for is_right in wins(clean_scores(victim, cases, settings), labels)]


def fools(victim: Victim, outcomes: Sequence[Outcome], settings: Settings) -> list[bool]:
    """Whether each outcome's last values are what its attacker wants, under the code of its own draw."""
    kind = attackable(victim, settings)
    verdicts: list[bool] = []
    for start in range(0, len(outcomes), _AT_ONCE):
        some = outcomes[start : start + _AT_ONCE]
        with one_thread():
            verdicts += judged(victim, kind, some, [outcome.case.sample % BLOCK for outcome in some])
    return verdicts


@contextmanager
def one_thread() -> Iterator[None]:
    """torch takes one thread in the block: how it sums may depend on their number, and results must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
