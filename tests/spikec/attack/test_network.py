"""Attacks from Python: what they return, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import spikec
from compiler.attack.iterate import attack
from compiler.attack.settings import Case, Settings, Status
from compiler.attack.victim import Victim
from compiler.evaluate import evaluate
from compiler.ir import CompileError
from compiler.losses import Loss
from tests.spikec.attack.attacked import KINDS, graph_of, labels_of, samples_of


@pytest.mark.parametrize("kind", KINDS)
def test_samples_keep_their_order_and_form(kind: str) -> None:
    """The same outcomes as the library's own iterations, one case at a time."""
    graph, x = graph_of(kind), samples_of(kind)[:6]
    labels = labels_of(graph, x)
    axis = int(kind == "spikes")
    found = spikec.attack_network(graph, np.moveaxis(x, 0, axis), labels)
    assert found.examples.shape == np.moveaxis(x, 0, axis).shape
    victim = Victim(graph, loss=Loss.CROSS_ENTROPY)
    for at in range(6):
        case = Case(sample=at, x=x[at], label=int(labels[at]))
        (want,) = attack(victim, [case], Settings())
        np.testing.assert_array_equal(found.examples.take(at, axis), want.adversarial)
        assert found.succeeded[at] == (want.status is Status.SUCCESS)
        assert found.records[at].queries == want.queries
    attacked = [record for record in found.records if record.status is not Status.CLEAN_ERROR]
    assert found.success_rate == found.succeeded.sum() / len(attacked)


def test_the_network_tells_examples_as_their_targets() -> None:
    graph, x = graph_of("direct"), samples_of("direct")
    labels = labels_of(graph, x)
    targets = (labels + 3) % 10
    found = spikec.attack_network(graph, x, labels, targets=targets, settings=Settings(iterations=60))
    assert found.succeeded.any()
    told = evaluate(graph, torch.from_numpy(found.examples[found.succeeded])).output.argmax(1).numpy()
    np.testing.assert_array_equal(told, targets[found.succeeded])


def test_nothing_that_is_told_right() -> None:
    graph, x = graph_of("direct"), samples_of("direct")[:4]
    found = spikec.attack_network(graph, x, (labels_of(graph, x) + 1) % 10)
    assert math.isnan(found.success_rate)
    np.testing.assert_array_equal(found.examples, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"labels": [0]}, "attack: error: there are 1 labels for 2 samples", id="labels"),
        pytest.param({"targets": [1, 2, 3]}, "there are 3 targets for 2 samples", id="targets"),
        pytest.param({"targets": [0, 1]}, "sample 0: has its own label, 0, as target", id="own label"),
        pytest.param({"method": "magic"}, "'magic' is no method\n  hint: known: bim, fgsm, rga", id="method"),
        pytest.param(
            {"refinement": "much"}, "'much' is no refinement\n  hint: known: none, reduce, greedy", id="refinement"
        ),
        pytest.param({"loss": "hinge"}, "'hinge' is no loss", id="loss"),
        pytest.param({"fresh": 0}, "fresh is 0, must be at least 1", id="no draws"),
        pytest.param({"x": np.zeros((0, 1, 8, 8)), "labels": []}, "there are no samples to attack", id="no samples"),
        pytest.param({"x": np.zeros((2, 8, 8))}, "sample 0: has shape (8, 8), the network takes (1, 8, 8)", id="shape"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"x": samples_of("direct")[:2], "labels": [0, 0], **change}
    with pytest.raises(CompileError) as refused:
        spikec.attack_network(graph_of("direct"), **given)  # type: ignore[arg-type]
    assert message in str(refused.value)
