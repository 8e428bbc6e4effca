"""Chapter 6: what follows by calculation, and a study on few digits whose numbers are counted again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compiler.attack.goal import decided, wins
from compiler.attack.randomness import Purpose, uniform_draws
from compiler.certify.chain import Chain
from compiler.evaluate import evaluate
from compiler.passes import DropEncode
from spikec.reproduce import robust
from spikec.reproduce.facts import Fact, Kind, Row, load_facts
from spikec.reproduce.robust import GROUPS, robust_rows, unstable_share
from spikec.reproduce.robust_study import DRAWS, EPSILON, NOTATIONS, RobustStudy, Training

FACTS = load_facts()


def facts_of_the_chapter() -> list[Fact]:
    return [fact for item, fact in FACTS.by_item.items() if item.partition("-")[2].startswith("6.")]


def rows(*, wanted: bool = False) -> list[Row]:
    return list(robust_rows(FACTS, lambda _: None, None, lambda _: wanted))


@pytest.fixture(scope="module")
def study() -> RobustStudy:
    """Trained for so short that nothing is to be expected of it."""
    return RobustStudy(lambda _: None, epochs=1, samples=12, notations={"fc": "12FC-10FC", "conv": "2C3S2-10FC"})


def test_every_number_of_the_chapter_has_one_row() -> None:
    found = [row.item for row in rows()]
    assert sorted(found) == sorted(fact.item for fact in facts_of_the_chapter())
    assert {item.rpartition(".")[0] for item in found} == set(GROUPS)


def test_lost_numbers_stay_lost() -> None:
    lost = {fact.item for fact in facts_of_the_chapter() if fact.status == "lost"}
    assert {row.item for row in rows() if row.kind is Kind.LOST} == lost
    assert len(lost) == 16


def test_rows_by_calculation() -> None:
    exact = [row for row in rows() if row.kind is Kind.EXACT]
    assert len(exact) == 5
    assert all(row.ours == row.published for row in exact)
    ours = {row.item: row.ours for row in rows()}
    assert ours["section-6.2.2.unstable_probability"] == 0.5
    assert ours["section-6.2.2.l0_unbounded"] is False


def test_unstable_spikes_are_as_frequent_as_counted() -> None:
    """Equation 6.11 with its corner cases, by the hulls of many draws."""
    image = np.array([0.0, 0.03, 0.5, 0.98], np.float32)
    draws = np.random.default_rng(0).random((20_000, 4), np.float32)
    chain = Chain(image=image, eps=0.1, draws=draws)
    counted = (chain.lower < chain.upper).mean(0)
    for pixel, share in zip(image, counted, strict=True):
        assert unstable_share(np.array([pixel]), 0.2) * 0.2 == pytest.approx(share, abs=0.01)
    assert unstable_share(image, 0.2) == pytest.approx((0.5 + 0.65 + 1 + 0.6) / 4, abs=1e-6)


def test_what_is_not_wanted_is_not_trained() -> None:
    def study() -> RobustStudy:
        raise AssertionError

    assert list(robust_rows(FACTS, lambda _: None, study, lambda _: False)) == rows()
    with pytest.raises(AssertionError):
        list(robust_rows(FACTS, lambda _: None, study, lambda group: group == "figure-6.4"))


@pytest.mark.parametrize("group", GROUPS)
def test_measures_belong_to_their_group(group: str, study: RobustStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a number or a verdict on a published item; sweeps are cut short here."""
    for name, values in (("TIMESTEPS", (1, 3)), ("ATTACKED", (0.1, 0.3)), ("TRAINED", (0.01, 0.02))):
        monkeypatch.setattr(robust, name, values)
    found = list(robust_rows(FACTS, lambda _: None, lambda: study, lambda one: one == group))
    measured = [row for row in found if row.kind is Kind.MEASURED]
    assert measured
    for row in measured:
        assert row.item.rpartition(".")[0] == group
        assert isinstance(row.ours, bool) == isinstance(row.published, bool)
        assert row.ours is not None
        assert study.basis in row.assumption


def test_errors_and_certified_shares_are_counted_again(study: RobustStudy) -> None:
    """Within next to nothing an attack leaves the errors of fresh codes; what is certified is told rightly."""
    training = Training(structure="fc", eps=EPSILON, timesteps=3)
    twin = study.twin(training)
    assert study.twin(training) is twin
    sequence, labels, wrong = DropEncode()(twin.graph), torch.from_numpy(study.test.y), 0
    for draw in range(DRAWS):
        uniform = uniform_draws(0, Purpose.FRESH, range(12), [draw] * 12, (10, 1, 8, 8))
        scores = evaluate(sequence, (uniform < torch.from_numpy(study.test.x)).float()).output
        wrong += int((decided(scores) & (scores.argmax(1) != labels)).sum())
    assert study.attack_error(training, 1e-7) == wrong / (12 * DRAWS)
    scores = evaluate(twin.graph, torch.from_numpy(study.test.x)).output
    right = float(wins(scores, labels).double().mean())
    assert study.certified_share(training, EPSILON) <= study.certified_share(training, 1e-7) <= right


@pytest.mark.slow
def test_robust_training_makes_digits_harder_to_attack() -> None:
    study = RobustStudy(lambda _: None, epochs=12, samples=50, notations={"fc": NOTATIONS["fc"]})
    plain, trained = (Training(structure="fc", eps=eps, timesteps=3 if eps else None) for eps in (0.0, EPSILON))
    assert study.certified_share(trained, EPSILON) > study.certified_share(plain, EPSILON)
    assert study.attack_error(trained, 0.1) < study.attack_error(plain, 0.1)
