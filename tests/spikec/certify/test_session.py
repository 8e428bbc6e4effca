"""A run: what it hands over, keeps, and does not do twice; how samples are split changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.certify.cascade import Cascade
from compiler.certify.verdicts import Method
from frontends.datasets import Samples
from spikec.attack.results import Source
from spikec.attack.verdicts import one_thread
from spikec.certify.cases import Case, Choice, chosen_cases
from spikec.certify.plan import Plan
from spikec.certify.records import Record
from spikec.certify.results import CertifyFile, Quantisation, header_of
from spikec.certify.session import certify_piece, run_certify
from spikec.certify.sets import set_named
from spikec.certify.subject import Subject
from spikec.workers import Workers
from tests.spikec.certify.certified import KINDS, SAMPLES, SETS, graph_of, labels_of, samples_of

ALONE = Workers(jobs=1)
SOURCE = Source(model="net.spk", timesteps=None, input_shape="", model_seed=0, data="data.npz")
CHOICE = Choice(samples=SAMPLES)


def begun(kind: str) -> tuple[Plan, tuple[Case, ...]]:
    """A certification of the tiny network."""
    graph, x = graph_of(kind), samples_of(kind)
    plan = Plan(
        subject=Subject.of(graph),
        spec=set_named(SETS[kind]),
        cascade=Cascade(methods=(Method.IBP, Method.SEARCH, Method.HULL)),
        has_certificates=True,
    )
    data = Samples(x=x, y=labels_of(graph, x), name="data.npz")
    return plan, chosen_cases(plan.subject, data, CHOICE)


def quiet(_done: int, _total: int) -> None:
    """Progress that nobody sees."""


def lines(records: tuple[Record, ...]) -> list[str]:
    return [record.as_json() for record in records]


def file_of(path: Path, plan: Plan, cases: tuple[Case, ...]) -> CertifyFile:
    header = header_of(plan, SOURCE, "0" * 64, Quantisation(), CHOICE, cases)
    return CertifyFile(path=path, header=header, arithmetic=plan.subject.arithmetic)


@pytest.mark.parametrize("kind", KINDS)
def test_records_come_in_order_and_pieces_change_nothing(kind: str) -> None:
    plan, cases = begun(kind)
    records = run_certify(plan, cases, ALONE, quiet)
    assert [record.number for record in records] == list(range(SAMPLES))
    assert [(record.sample, record.label) for record in records] == [(case.sample, case.label) for case in cases]
    assert len({record.verdict.answer for record in records}) > 1
    for size in (1, 7):
        found: list[Record] = []
        numbered = list(enumerate(cases))
        for at in range(0, len(numbered), size):
            with one_thread():  # a worker keeps the one that it takes
                found += certify_piece(plan, numbered[at : at + size])
        assert lines(tuple(found)) == lines(records)


def test_lines_and_back() -> None:
    plan, cases = begun("bernoulli")
    for record in run_certify(plan, cases, ALONE, quiet):
        line = record.as_json()
        assert Record.from_json(line, plan.subject.arithmetic).as_json() == line


def test_torch_has_its_threads_again() -> None:
    plan, cases = begun("spikes")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_certify(plan, cases[:1], ALONE, quiet)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_file_goes_on_where_it_ends(tmp_path: Path) -> None:
    """Its lines stand in any order; those that are there are not certified again."""
    plan, cases = begun("spikes")
    file = file_of(tmp_path / "r.jsonl", plan, cases)
    records = run_certify(plan, cases, ALONE, quiet, file)
    want = file.path.read_bytes()
    header, *rest = want.splitlines(keepends=True)
    file.path.write_bytes(b"".join([header, rest[5], rest[2], rest[7][:30]]))
    told: list[tuple[int, int]] = []
    again = run_certify(plan, cases, ALONE, lambda done, total: told.append((done, total)), file)
    assert told == [(done, SAMPLES) for done in range(2, SAMPLES + 1)]
    assert lines(again) == lines(records)
    assert file.path.read_bytes() == want
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_finished_file_certifies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, cases = begun("spikes")
    file = file_of(tmp_path / "r.jsonl", plan, cases)
    records = run_certify(plan, cases, ALONE, quiet, file)
    monkeypatch.setattr("spikec.certify.session._records", lambda _plan, todo: [1 / 0 for _ in todo])
    assert lines(run_certify(plan, cases, Workers(jobs=3), quiet, file)) == lines(records)
