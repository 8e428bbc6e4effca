"""What is counted when examples of one network are shown to another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compiler.attack import Outcome, Settings, Status, Victim, attack
from compiler.attack.ann import AnnTwin
from compiler.attack.fresh import clopper_pearson, over_fresh_draws
from compiler.attack.goal import wins
from compiler.attack.transfer import cross
from compiler.ir import CompileError, Encoding, Surrogate, SurrogateKind
from compiler.losses import Loss
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers


def successes(kind: Encoding | None) -> tuple[Victim, list[Outcome]]:
    wide = Surrogate(kind=SurrogateKind.ATAN, width=1.0)
    victim = Victim(two_layers(kind), surrogate=wide, loss=Loss.CROSS_ENTROPY)
    outcomes = attack(victim, classified(victim, 60, 0), Settings(step=None if kind is None else 0.1))
    return victim, [outcome for outcome in outcomes if outcome.status is Status.SUCCESS]


@pytest.mark.parametrize("kind", [None, Encoding.DIRECT])
def test_on_the_network_itself_all_transfer(kind: Encoding | None) -> None:
    victim, found = successes(kind)
    assert found
    failed = replace(found[0], status=Status.FAILURE)
    moved = cross([*found, failed], victim)
    assert (moved.successes, moved.shown, moved.clean_errors) == (len(found), len(found), 0)
    assert moved.share == clopper_pearson(len(found), len(found))


def test_behind_a_code_each_example_has_one_fresh_draw() -> None:
    """The share lies near the mean over many draws."""
    victim, found = successes(Encoding.BERNOULLI)
    moved = cross(found, victim, seed=5)
    fresh = list(over_fresh_draws(victim, found, draws=64, seed=9))
    mean = sum(one.successes for one in fresh) / sum(one.draws for one in fresh)
    assert moved.share is not None
    assert moved.share.low <= mean <= moved.share.high
    assert moved.shown + moved.clean_errors == len(found)


def test_samples_that_the_other_network_misclassifies_are_not_shown() -> None:
    victim, found = successes(Encoding.DIRECT)
    twin = AnnTwin(victim.graph)
    clean = torch.stack([torch.from_numpy(outcome.case.x) for outcome in found])
    after = torch.stack([torch.from_numpy(outcome.adversarial) for outcome in found])
    labels = torch.tensor([outcome.case.label for outcome in found])
    right = wins(twin.scores(clean), labels)
    moved = cross(found, twin)
    assert (moved.shown, moved.clean_errors) == (int(right.sum()), int((~right).sum()))
    assert moved.successes == int((right & (twin.scores(after).argmax(1) != labels)).sum())


def test_nothing_shown_has_no_share() -> None:
    assert cross([], Victim(two_layers())).share is None


def test_another_shape_is_refused() -> None:
    _, found = successes(Encoding.DIRECT)
    with pytest.raises(CompileError, match=r"has shape \(6,\), the other network takes \(4, 6\)"):
        cross(found, Victim(two_layers()))
