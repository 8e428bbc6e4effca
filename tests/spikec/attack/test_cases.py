"""Which samples and targets are attacked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from compiler.attack.settings import Settings
from compiler.attack.victim import Victim
from frontends.datasets import Samples
from hwmodel.errors import CompileError
from spikec.attack.cases import Choice, chosen_cases
from tests.spikec.attack.attacked import SAMPLES, graph_of, labels_of, samples_of

GRAPH = graph_of("direct")
VICTIM = Victim(GRAPH)
X = samples_of("direct")
Y = np.arange(SAMPLES) % 3
DATA = Samples(x=X, y=Y, name="data")
SETTINGS = Settings()


def pairs(choice: Choice, data: Samples = DATA) -> list[tuple[int, int, int | None]]:
    chosen = chosen_cases(VICTIM, data, choice, SETTINGS)
    return [(case.sample, case.label, case.target) for case in chosen.cases]


def test_the_first_samples() -> None:
    assert pairs(Choice(samples=4, per_class=False, target="none")) == [
        (0, 0, None),
        (1, 1, None),
        (2, 2, None),
        (3, 0, None),
    ]


def test_so_many_of_each_class() -> None:
    data = replace(DATA, y=np.array([0, 0, 0, 0, 1, 0, 2, 1, 2, 2] + [0] * (SAMPLES - 10)))
    found = pairs(Choice(samples=2, per_class=True, target="none"), data)
    assert [sample for sample, _, _ in found] == [0, 1, 4, 6, 7, 8]
    assert Counter(label for _, label, _ in found) == {0: 2, 1: 2, 2: 2}


def test_every_other_class_is_a_target() -> None:
    found = pairs(Choice(samples=5, per_class=False, target="all"))
    assert len(found) == 5 * 9
    for sample in range(5):
        assert [goal for at, _, goal in found if at == sample] == [c for c in range(10) if c != Y[sample]]


def test_the_next_class_begins_again_behind_the_last() -> None:
    data = replace(DATA, y=np.full(SAMPLES, 9))
    assert pairs(Choice(samples=1, per_class=False, target="next"), data) == [(0, 9, 0)]
    assert pairs(Choice(samples=2, per_class=False, target="next")) == [(0, 0, 1), (1, 1, 2)]


def test_samples_of_the_target_class_are_left_out() -> None:
    chosen = chosen_cases(VICTIM, DATA, Choice(samples=6, per_class=False, target="1"), SETTINGS)
    assert [case.sample for case in chosen.cases] == [0, 2, 3, 5]
    assert chosen.skipped == 2


def test_data_without_labels_gets_the_networks_own() -> None:
    data = replace(DATA, y=np.zeros(SAMPLES, np.int64), labelled=False)
    found = pairs(Choice(samples=SAMPLES, per_class=False, target="none"), data)
    assert [label for _, label, _ in found] == labels_of(GRAPH, X).tolist()


def test_the_digest_is_of_samples_and_labels() -> None:
    def digest(data: Samples, count: int = 4, target: str = "none") -> str:
        return chosen_cases(VICTIM, data, Choice(samples=count, per_class=False, target=target), SETTINGS).digest()

    other = X.copy()
    other[3, 0, 0, 0] = 0.5
    digests = [digest(DATA), digest(DATA, 5), digest(replace(DATA, x=other)), digest(replace(DATA, y=(Y + 1) % 3))]
    assert len(set(digests)) == 4
    assert digest(DATA) == digest(DATA, target="all") == digest(replace(DATA, name="elsewhere"))


@pytest.mark.parametrize(
    ("data", "choice", "message"),
    [
        pytest.param({}, {"samples": 25}, "data: error: 25 samples asked for, the test set has 24", id="too many"),
        pytest.param({}, {"samples": 0}, "0 samples are to be attacked, must be at least 1", id="none"),
        pytest.param(
            {},
            {"samples": 9, "per_class": True},
            "9 samples of each class asked for, the test set has 8 of class 0",
            id="too many of a class",
        ),
        pytest.param({}, {"target": "some"}, "'some' is no target", id="unknown target"),
        pytest.param({}, {"target": "10"}, "10 is no class\n  hint: classes are 0 to 9", id="target outside"),
        pytest.param({"y": np.ones(SAMPLES, int)}, {"target": "1"}, "every sample has the label 1", id="own target"),
        pytest.param(
            {"labelled": False}, {"target": "next"}, "target next is given, and the data has no labels", id="no labels"
        ),
        pytest.param(
            {"labelled": False},
            {"per_class": True},
            "of each class are asked for, and the data has no",
            id="no classes",
        ),
        pytest.param(
            {"y": np.full(SAMPLES, 11)}, {}, "sample 0: has label 11, the classes are 0 to 9", id="label outside"
        ),
        pytest.param({"x": X * 2}, {}, "sample 0: holds values outside [0, 1]", id="values outside"),
        pytest.param({"x": X[:, :, 1:]}, {}, "sample 0: has shape (1, 7, 8), the network takes (1, 8, 8)", id="shape"),
    ],
)
def test_refusals(data: dict[str, object], choice: dict[str, object], message: str) -> None:
    with pytest.raises(CompileError) as refused:
        pairs(Choice(**{"samples": 2, "per_class": False, "target": "none", **choice}), replace(DATA, **data))  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_spikes_must_be_binary() -> None:
    data = Samples(x=samples_of("spikes") * 0.5, y=Y, name="data")
    with pytest.raises(CompileError, match="sample 0: holds values other than 0 and 1"):
        chosen_cases(Victim(graph_of("spikes")), data, Choice(samples=2, per_class=False, target="none"), SETTINGS)
