"""Every method goes by its name, on the inputs that it is for, and refinements on those that they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler.attack import Settings, Status, Victim
from compiler.attack.budget import Budget, Norm
from compiler.attack.methods import Method, Refinement, attack_with, method
from compiler.attack.retime import RetimeBudget
from compiler.ir import CompileError, Encoding, Surrogate, SurrogateKind
from tests.compiler.attack.test_iterate import classified
from tests.compiler.attack.test_victim import two_layers

ONLY_SPIKES = {Method.SPARSE, Method.GREEDY, Method.RETIME, Method.TRIAL_SPIKES}
ONLY_IMAGES = {Method.ANN, Method.TRIAL_PIXELS}
LINF = Budget(norm=Norm.LINF, bound=0.4)


@pytest.mark.parametrize("name", list(Method))
@pytest.mark.parametrize("kind", [None, Encoding.BERNOULLI, Encoding.DIRECT])
def test_each_method(name: Method, kind: Encoding | None) -> None:
    victim = Victim(two_layers(kind))
    setup = Settings(iterations=3, budget=None if kind is None else LINF)
    start = classified(victim, 6, 0)
    if name in (ONLY_IMAGES if kind is None else ONLY_SPIKES):
        with pytest.raises(CompileError):
            list(attack_with(name, victim, start, setup))
        return
    outcomes = list(attack_with(name, victim, start, setup))
    assert sorted(outcome.case.sample for outcome in outcomes) == sorted(case.sample for case in start)
    for outcome in outcomes:
        assert outcome.status is not Status.CLEAN_ERROR


def test_a_single_update_of_fgsm() -> None:
    victim = Victim(two_layers())
    assert {outcome.iterations for outcome in method(Method.FGSM)(victim, classified(victim, 9, 0), Settings())} == {1}


def test_refinements_leave_fewer_flips() -> None:
    victim = Victim(two_layers())
    start = classified(victim, 40, 0)
    flips = {}
    for refinement in Refinement:
        outcomes = attack_with(Method.BIM, victim, start, Settings(), refinement)
        flips[refinement] = {o.case.sample: o.perturbation.l0 for o in outcomes if o.status is Status.SUCCESS}
    assert flips[Refinement.NONE].keys() == flips[Refinement.REDUCE].keys() == flips[Refinement.GREEDY].keys()
    for sample, plain in flips[Refinement.NONE].items():
        assert flips[Refinement.GREEDY][sample] <= flips[Refinement.REDUCE][sample] <= plain
    assert sum(flips[Refinement.REDUCE].values()) < sum(flips[Refinement.NONE].values())


def test_limits_on_moved_spikes_reach_the_method() -> None:
    victim = Victim(two_layers())
    start = classified(victim, 20, 0)
    for outcome in attack_with(Method.RETIME, victim, start, Settings(), retiming=RetimeBudget(moved=1)):
        assert outcome.perturbation.l0 in (0, 2)


def test_starts_reach_the_boundary_attack() -> None:
    victim = Victim(two_layers())
    known = classified(victim, 60, 0)
    start = [replace(case, target=(case.label + 1) % 3) for case in known[:5]]
    for outcome in attack_with(Method.BOUNDARY, victim, start, Settings(), starts=known):
        others = [case for case in known if case.label == outcome.case.target]
        assert outcome.status is Status.SUCCESS
        assert outcome.perturbation.l0 <= max(int((other.x != outcome.case.x).sum()) for other in others)


def test_refusals() -> None:
    spikes, image = Victim(two_layers()), Victim(two_layers(Encoding.DIRECT))
    with pytest.raises(CompileError, match=r"refinement reduce takes back flips of spikes, .* intensities\n  hint"):
        attack_with(Method.BIM, image, [], Settings(), Refinement.REDUCE)
    with pytest.raises(CompileError, match=r"refinement greedy takes back single flips, and retime keeps"):
        attack_with(Method.RETIME, spikes, [], Settings(), Refinement.GREEDY)
    with pytest.raises(CompileError, match=r"method bim moves none\n  hint: use retime"):
        attack_with(Method.BIM, spikes, [], Settings(), retiming=RetimeBudget(moved=1))


@pytest.mark.parametrize("name", [Method.SPARSE, Method.BOUNDARY, Method.RANDOM, Method.TRIAL_PIXELS, Method.ANN])
def test_settings_that_a_method_has_no_use_for_are_refused(name: Method) -> None:
    victim = Victim(two_layers(Encoding.BERNOULLI))
    for setup, message in (
        (Settings(restarts=1, budget=LINF), "restarts are given"),
        (Settings(draws=2, budget=LINF), "several draws are given"),
        (Settings(pull=0.1, budget=LINF), "a pull is given"),
    ):
        if name is Method.ANN and setup.pull:
            assert list(attack_with(name, victim, [], setup)) == []
            continue
        with pytest.raises(
            CompileError, match=rf"{message}, and method {name} has none\n  hint: methods .* bim, fgsm, rga"
        ):
            attack_with(name, victim, [], setup)


@pytest.mark.parametrize("name", [Method.RGA, Method.BOUNDARY, Method.RANDOM, Method.TRIAL_SPIKES])
def test_gradients_that_nobody_takes_are_not_tuned(name: Method) -> None:
    wide = Surrogate(kind=SurrogateKind.ATAN, width=1.0)
    for tuned, what in (({"threshold": 2.0}, "threshold"), ({"surrogate": wide}, "surrogate")):
        victim = Victim(two_layers(), **tuned)  # type: ignore[arg-type]
        assert list(attack_with(name, victim, [], Settings(), Refinement.REDUCE)) == []
        if name is Method.RGA and what == "threshold":
            assert list(attack_with(name, victim, [], Settings())) == []
            continue
        with pytest.raises(CompileError, match=rf"a {what} is given, and method {name} has none\n  hint: methods"):
            attack_with(name, victim, [], Settings())
