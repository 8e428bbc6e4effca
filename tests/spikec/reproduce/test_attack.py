"""Chapter 5: tables by calculation, and a study on three digits whose numbers are counted again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from compiler.attack import Settings, Status, Victim, penultimate
from compiler.codes import bernoulli_draws
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Encoding, Graph
from compiler.ir.file import save_graph
from compiler.losses import Loss
from compiler.passes import PrependEncode
from frontends.datasets import Split, load
from frontends.from_torch import from_torch
from frontends.recipe import bernoulli, train
from frontends.zoo import build, entry
from spikec.reproduce import attack, attack_twin
from spikec.reproduce.attack_study import BOTH, Goal, Study, Subjects
from spikec.reproduce.attack_subjects import own_subjects
from spikec.reproduce.facts import Kind, load_facts
from tests.spikec.command import refusal, result

NAME = "digits-attack"
CLASSES = 3
STEPS = 6


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 2, in a file."""
    digits = load("digits", split=Split.TRAIN)
    chosen = digits.take(np.flatnonzero(digits.y < CLASSES)[:240])
    path = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, x=chosen.x, y=chosen.y)
    return path


@pytest.fixture(scope="module")
def network(few: Path) -> Graph:
    samples = load(str(few), split=Split.TRAIN)
    module = build(NAME, seed=0, timesteps=STEPS)
    train(
        module, samples, samples, epochs=8, batch=16, lr=2e-3, seed=0, encode=bernoulli(STEPS), loss=Loss.MSE, threads=1
    )
    graph = from_torch(module, torch.zeros(entry(NAME).example_shape(2, STEPS)), STEPS, name=NAME)
    return PrependEncode(Encoding.BERNOULLI, 0)(graph)


@pytest.fixture(scope="module")
def study(few: Path, network: Graph) -> Study:
    networks = dict.fromkeys(BOTH, network)
    return Study(Subjects(networks=networks, name="few", data=str(few), untargeted=3, targeted=1), lambda _: None)


def test_tables_by_calculation() -> None:
    rows = list(attack.attack_rows(load_facts(), lambda _: None, None, lambda _: True))
    exact = [row for row in rows if row.kind is Kind.EXACT]
    assert len(exact) == 6 + 4
    assert all(row.ours == row.published for row in exact)
    assert {row.item.rpartition(".")[0] for row in rows} == set(attack.GROUPS)


def test_what_is_not_wanted_is_not_attacked() -> None:
    def subjects() -> Subjects:
        raise AssertionError

    rows = list(attack.attack_rows(load_facts(), lambda _: None, subjects, lambda group: group == "table-5.2"))
    assert rows
    with pytest.raises(AssertionError):
        list(attack.attack_rows(load_facts(), lambda _: None, subjects, lambda group: group == "table-5.7"))


def test_cases_are_the_first_of_each_class_with_every_other_target(study: Study) -> None:
    labels = [case.label for case in study.cases(Goal.UNTARGETED)]
    assert sorted(labels) == sorted([*range(CLASSES)] * 3)
    targeted = study.cases(Goal.TARGETED)
    assert len(targeted) == CLASSES * (CLASSES - 1)
    assert all(case.target not in (None, case.label) for case in targeted)


def test_the_network_knows_its_digits(study: Study) -> None:
    assert study.accuracy(Loss.MSE) >= 0.9


def test_a_summary_is_counted_again(study: Study) -> None:
    outcomes = study.outcomes(Loss.MSE, Goal.UNTARGETED)
    assert study.outcomes(Loss.MSE, Goal.UNTARGETED) is outcomes
    summary = study.summary(Loss.MSE, Goal.UNTARGETED)
    right = [outcome for outcome in outcomes if outcome.status is not Status.CLEAN_ERROR]
    hits = [outcome for outcome in right if outcome.status is Status.SUCCESS]
    assert hits
    assert summary.success.value == len(hits) / len(right)
    squares = [float(np.mean((outcome.adversarial.astype(float) - outcome.case.x) ** 2)) for outcome in hits]
    assert summary.metric == pytest.approx(np.mean(squares), rel=1e-12)


def test_accuracy_is_lost_where_the_label_no_longer_wins(study: Study) -> None:
    outcomes = study.outcomes(Loss.MSE, Goal.UNTARGETED)
    hits = sum(outcome.status is Status.SUCCESS for outcome in outcomes)
    failed = sum(outcome.status not in (Status.SUCCESS, Status.CLEAN_ERROR) for outcome in outcomes)
    lost = study.accuracy_loss(Loss.MSE, outcomes) * len(outcomes)
    # what has no winner, or another one, is lost; a success has another winner
    assert hits <= round(lost) <= hits + failed


def test_spikes_of_the_penultimate_layer_begin_at_the_clean_code(study: Study, network: Graph) -> None:
    victim = Victim(network)
    layer = penultimate(victim.sequence).name
    samples = study.chosen(1)
    x = torch.from_numpy(study.samples.x[samples])
    draws = [bernoulli_draws(0, STEPS, (1, *x.shape[1:]), sample)[:, 0] for sample in samples]
    codes = (torch.from_numpy(np.stack(draws, 1)) < x).float()
    want = float(evaluate(victim.sequence, codes, traces=[layer]).traces[layer].sum()) / len(samples)
    counts = study.penultimate_spikes(Loss.MSE, 2)
    assert counts[0] == want
    assert study.penultimate_spikes(Loss.MSE, 1, threshold=2.0)[0] < want


@pytest.mark.parametrize(("groups", "make"), [pytest.param(*entry_, id=entry_[0][0]) for entry_ in attack._MEASURES])
def test_measures_belong_to_their_groups(
    groups: tuple[str, ...], make: object, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a number or a verdict on a published item; sweeps are cut short here."""
    for name, values in (("GAMMAS", (0.05, 0.2)), ("THRESHOLDS", (0.3, 1.0)), ("ITERATIONS", 3)):
        monkeypatch.setattr(attack, name, values)
    monkeypatch.setattr(attack_twin, "EPSILONS", (32,))
    monkeypatch.setattr(attack_twin, "_BOUNDARY_ITERATIONS", 2)
    facts = load_facts()
    found = list(make(study))  # type: ignore[operator]
    assert found
    for measure in found:
        fact = facts[measure.item]
        assert measure.item.rpartition(".")[0] in groups
        assert isinstance(measure.value, bool) == isinstance(fact.value, bool)
        assert measure.text


def refusals(files: Path, few: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    pair = f"{files}/a.spk,{files}/a.spk"
    yield ("--networks", f"{files}/a.spk", "--data", str(few)), "is not of the form MSE.spk,CE.spk"
    yield ("--networks", pair), "--networks: error: needs the data"
    yield ("--data", "digits"), "--data: error: means nothing without --networks"
    yield ("--networks", pair, "--data", str(few), "--per-class", "5"), "is not of the form 5,1"
    yield ("--networks", pair, "--data", str(few), "--per-class", "0,1"), "is not of the form 5,1"
    yield ("--networks", f"{files}/d.spk,{files}/d.spk", "--data", str(few)), "images behind a Bernoulli code"


def test_refusals(tmp_path: Path, few: Path, network: Graph) -> None:
    save_graph(network, tmp_path / "a.spk")
    direct = build("digits-conv", seed=0, timesteps=2)
    save_graph(from_torch(direct, torch.zeros(2, 1, 8, 8), 2), tmp_path / "d.spk")
    for options, message in refusals(tmp_path, few):
        assert message in refusal("reproduce", "table-5.7", *options)
    with pytest.raises(CompileError, match="No such file"):
        own_subjects(f"{tmp_path}/a.spk,{tmp_path}/none.spk", str(few))


def test_a_chapter_of_a_users_own_networks(tmp_path: Path, few: Path, network: Graph) -> None:
    save_graph(network, tmp_path / "a.spk")
    pair = f"{tmp_path}/a.spk,{tmp_path}/a.spk"
    report = result("reproduce", "table-5.3", "--networks", pair, "--data", str(few), "--per-class", "2,1")
    measured = [row for row in report["rows"] if row["variant"]]  # type: ignore[index, union-attr]
    assert [row["item"] for row in measured] == ["table-5.3.mnist_mse", "table-5.3.mnist_ce"]
    cases = Study(own_subjects(pair, str(few), "2,1"), lambda _: None)
    outcomes = cases.outcomes(Loss.MSE, Goal.UNTARGETED, Settings(iterations=1))
    right = [outcome for outcome in outcomes if outcome.status is not Status.CLEAN_ERROR]
    share = sum(outcome.vanished_at_start for outcome in right) / len(right)
    assert measured[0]["ours"] == 500 * share
    listed = result("reproduce", "chapter-5", "--no-simulated")["rows"]
    assert {row["item"].split(".")[0] for row in listed} == {"table-5", "figure-5"}  # type: ignore[index, union-attr]
