"""Reduced examples still succeed, are part of the old ones, and no flip of them can be taken back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.attack import Outcome, Settings, Status, Victim, attack
from compiler.attack.goal import succeeds
from compiler.attack.reduce import reduce_flips
from compiler.ir import CompileError, DType, Encoding, Graph, Surrogate, SurrogateKind
from tests.compiler.attack.networks import victims
from tests.compiler.attack.spike_checks import Counted, counted
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers

WIDE = Surrogate(kind=SurrogateKind.ATAN, width=1.0)


def still(victim: Victim, outcome: Outcome, x: np.ndarray) -> bool:
    scores = victim.scores(torch.from_numpy(x).unsqueeze(1), [outcome.case.sample])
    target = outcome.case.target
    wanted = torch.tensor([outcome.case.label if target is None else target])
    return bool(succeeds(scores, wanted, targeted=target is not None)[0])


def check_minimal(victim: Victim, before: Outcome, after: Outcome) -> None:
    old, new = before.adversarial != before.case.x, after.adversarial != after.case.x
    assert not (new & ~old).any()
    assert after.perturbation.l0 == new.sum() <= before.perturbation.l0
    assert still(victim, after, after.adversarial)
    for place in np.argwhere(new):
        single = after.adversarial.copy()
        single[tuple(place)] = after.case.x[tuple(place)]
        assert not still(victim, after, single)


@settings(max_examples=10, deadline=None)
@given(victims(image_input=False), st.booleans(), st.integers(0, 99))
def test_of_random_networks(graph: Graph, targeted: bool, seed: int) -> None:
    if graph.types[graph.input.name].dtype is not DType.SPIKE:
        return
    victim = Counted(graph, surrogate=WIDE)
    start = classified(victim, 20, seed)
    if targeted:
        start = [replace(case, target=(case.label + 1) % victim.classes) for case in start]
    before = {outcome.case.sample: outcome for outcome in attack(victim, start, Settings(iterations=8, gamma=0.5))}
    after = {
        outcome.case.sample: outcome
        for outcome in counted(victim, reduce_flips(victim, before.values()), list(before.values()))
    }
    assert before.keys() == after.keys()
    for sample, outcome in after.items():
        if outcome.status is Status.SUCCESS:
            check_minimal(victim, before[sample], outcome)
        else:
            assert outcome is before[sample]


def test_fewer_flips_are_left_than_the_plain_method_makes() -> None:
    victim = Victim(two_layers(), surrogate=WIDE)
    start = classified(victim, 100, 0)
    settings_ = Settings(sampling=False)
    before = {outcome.case.sample: outcome for outcome in attack(victim, start, settings_)}
    after = list(reduce_flips(victim, before.values()))
    found = [outcome for outcome in after if outcome.status is Status.SUCCESS]
    assert len(found) >= 20
    for outcome in found:
        check_minimal(victim, before[outcome.case.sample], outcome)
    flips = sum(before[outcome.case.sample].perturbation.l0 for outcome in found)
    assert sum(outcome.perturbation.l0 for outcome in found) <= 0.7 * flips


def test_of_intensities_nothing_is_taken_back() -> None:
    with pytest.raises(CompileError, match="takes intensities"):
        list(reduce_flips(Victim(two_layers(Encoding.BERNOULLI)), []))
