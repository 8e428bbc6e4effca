"""A run: what it hands over, keeps, and does not do twice; how cases are split changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compiler.attack.methods import Method, Refinement
from compiler.attack.settings import Case, Settings, Status
from compiler.attack.victim import BLOCK
from frontends.datasets import Samples
from hwmodel.errors import CompileError
from spikec.attack.cases import Choice, Chosen, chosen_cases
from spikec.attack.plan import Plan, network_digest
from spikec.attack.records import Record
from spikec.attack.results import AttackFile, Source, header_of
from spikec.attack.session import attack_piece, run_attack, spread
from spikec.attack.verdicts import one_thread
from spikec.workers import Workers
from tests.spikec.attack.attacked import KINDS, graph_of, labels_of, samples_of

SOURCE = Source(model="net.spk", timesteps=None, input_shape="", model_seed=0, data="data.npz")
CHOICE = Choice(samples=20, per_class=False, target="next")
ALONE = Workers(jobs=1)


def begun(kind: str, **changed: object) -> tuple[Plan, Chosen]:
    """An attack on the small network."""
    graph = graph_of(kind)
    plan = replace(Plan(graph=graph, method=Method.BIM, settings=Settings(iterations=6), fresh=7), **changed)  # type: ignore[arg-type]
    x = samples_of(kind)
    data = Samples(x=x, y=labels_of(graph, x), name="data.npz")
    return plan, chosen_cases(plan.victim(), data, CHOICE, plan.settings)


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody sees."""


def lines(records: tuple[Record, ...]) -> list[str]:
    return [record.as_json() for record in records]


@pytest.mark.parametrize("kind", KINDS)
def test_records_come_in_order_and_pieces_change_nothing(kind: str) -> None:
    plan, chosen = begun(kind)
    records = run_attack(plan, chosen.cases, ALONE, quiet)
    assert [record.number for record in records] == list(range(len(chosen.cases)))
    assert [(record.sample, record.target) for record in records] == [
        (case.sample, case.target) for case in chosen.cases
    ]
    assert len({record.status for record in records}) > 1
    for size in (1, 7):
        found: dict[int, str] = {}
        numbered = list(enumerate(chosen.cases))
        for at in range(0, len(numbered), size):
            with one_thread():  # a worker keeps the one that it takes
                piece = attack_piece(plan, numbered[at : at + size])
            found |= {record.number: record.as_json() for record in piece}
        assert [found[number] for number in range(len(found))] == lines(records)


def test_fresh_draws_are_counted_for_successes_alone() -> None:
    plan, chosen = begun("bernoulli")
    records = run_attack(plan, chosen.cases, ALONE, quiet)
    assert {record.fresh_draws for record in records} == {7}
    assert all(not record.fresh_successes for record in records if record.status is not Status.SUCCESS)
    assert any(record.fresh_successes for record in records)
    plan, chosen = begun("direct")
    for record in run_attack(plan, chosen.cases, ALONE, quiet):
        assert (record.fresh_successes, record.fresh_draws) == (int(record.status is Status.SUCCESS), 1)


def test_torch_has_its_threads_again() -> None:
    plan, chosen = begun("spikes")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_attack(plan, chosen.cases[:1], ALONE, quiet)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_neighbours_stand_at_different_places() -> None:
    x = samples_of("direct")[0]
    cases = [Case(sample=sample, x=x, label=0, target=target) for sample in range(40) for target in range(1, 4)]
    ordered = spread(list(enumerate(cases)))
    assert sorted(number for number, _ in ordered) == list(range(len(cases)))
    for at in range(0, 6 * BLOCK, BLOCK):  # until a place has none left
        assert len({case.sample % BLOCK for _, case in ordered[at : at + BLOCK]}) == BLOCK


def file_of(path: Path, plan: Plan, chosen: Chosen) -> AttackFile:
    return AttackFile(path=path, header=header_of(plan, SOURCE, CHOICE, chosen))


def test_a_file_goes_on_where_it_ends(tmp_path: Path) -> None:
    """Its lines stand in any order; those that are there are not attacked again."""
    plan, chosen = begun("spikes")
    file = file_of(tmp_path / "r.jsonl", plan, chosen)
    records = run_attack(plan, chosen.cases, ALONE, quiet, file)
    want = file.path.read_bytes()
    header, *rest = want.splitlines(keepends=True)
    file.path.write_bytes(b"".join([header, rest[5], rest[2], rest[7][:30]]))
    told: list[tuple[int, int]] = []
    again = run_attack(plan, chosen.cases, ALONE, lambda done, total: told.append((done, total)), file)
    assert told == [(done, len(records)) for done in range(2, len(records) + 1)]
    assert lines(again) == lines(records)
    assert file.path.read_bytes() == want
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_finished_file_attacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, chosen = begun("spikes")
    file = file_of(tmp_path / "r.jsonl", plan, chosen)
    records = run_attack(plan, chosen.cases, ALONE, quiet, file)
    monkeypatch.setattr("spikec.attack.session._records", lambda _plan, cases: [1 / 0 for _ in cases])
    assert lines(run_attack(plan, chosen.cases, Workers(jobs=3), quiet, file)) == lines(records)


CHANGES: dict[str, dict[str, object]] = {
    "method": {"method": Method.FGSM},
    "refinement": {"refinement": Refinement.REDUCE},
    "threshold": {"threshold": 1.0},
    "fresh": {"fresh": 8},
    "settings": {"settings": Settings(iterations=6, seed=1)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_attacks_file_is_refused(tmp_path: Path, name: str) -> None:
    plan, chosen = begun("spikes")
    file = file_of(tmp_path / "r.jsonl", plan, chosen)
    run_attack(plan, chosen.cases[:2], ALONE, quiet, file)
    before = file.path.read_bytes()
    other = replace(plan, **CHANGES[name])  # type: ignore[arg-type]
    with pytest.raises(CompileError, match=f"r.jsonl: error: is of another attack: {name} differs"):
        run_attack(other, chosen.cases[:2], ALONE, quiet, file_of(file.path, other, chosen))
    assert file.path.read_bytes() == before


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    plan, chosen = begun("spikes")
    file = file_of(tmp_path / "r.jsonl", plan, chosen)
    run_attack(plan, chosen.cases[:2], ALONE, quiet, file)
    weights = {name: array * (2 if name == "w3" else 1) for name, array in plan.graph.parameters.items()}
    other = replace(plan, graph=plan.graph.with_nodes(plan.graph.nodes, parameters=weights))
    with pytest.raises(CompileError, match="is of another attack: model_sha256 differs"):
        run_attack(other, chosen.cases[:2], ALONE, quiet, file_of(file.path, other, chosen))


def test_what_a_method_refuses_leaves_no_file(tmp_path: Path) -> None:
    plan, chosen = begun("direct", refinement=Refinement.REDUCE)
    with pytest.raises(CompileError, match="refinement reduce takes back flips of spikes"):
        run_attack(plan, chosen.cases, ALONE, quiet, file_of(tmp_path / "r.jsonl", plan, chosen))
    assert list(tmp_path.iterdir()) == []


def test_the_networks_digest_is_of_text_and_weights() -> None:
    graph = graph_of("direct")
    moved = graph.with_nodes(tuple(replace(node, loc=replace(node.loc, file="elsewhere.py")) for node in graph.nodes))
    assert moved.digest() != graph.digest()
    assert network_digest(moved) == network_digest(graph)
    other = graph.with_nodes(graph.nodes, parameters={"w3": graph.parameters["w3"] * 2})
    assert network_digest(other) != network_digest(graph)
    assert network_digest(graph_of("bernoulli")) != network_digest(graph)
