"""Zeros of the backward pass against a count over the maps that the machine left in memory."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir import Graph, Surrogate
from runtime.session import engines_for
from runtime.training_session import TrainingSession
from tests.runtime.chains import Chain, training_program
from tests.runtime.trained_step import run_step

WIDE = {"surrogate": Surrogate(width=1.0)}


def _network() -> Graph:
    """Behind conv1 a neuron comes last, behind conv2 a maximum, behind conv3 nothing that is a convolution."""
    chain = Chain((2, 9, 9), 5).conv("conv1", 4).lif("lif1", **WIDE)
    chain.conv("conv2", 5).lif("lif2", **WIDE).maximum("pool").conv("conv3", 6).lif("lif3", **WIDE)
    return chain.flatten().linear("fc", 4).lif("lif4", **WIDE).readout()


def _batch(samples: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.random((samples, 2, 9, 9), np.float32), rng.integers(0, 4, samples)


@pytest.mark.parametrize("samples", [4, 6])
def test_counts_equal_brute_force_without_absent_samples(samples: int) -> None:
    """Six samples fill one sub-batch of four and half of the next."""
    program, (x, labels) = training_program(_network(), batch=4), _batch(samples)
    engines = engines_for(program, use_golden=True)
    session = TrainingSession(program, engines)
    session.step(x, labels)
    seen = [sub_batch.maps for sub_batch in run_step(program, engines, x, labels).sub_batches]

    def zeros(name: str) -> float:
        maps = np.concatenate([one[name] for one in seen], 1)[:, :samples]
        return 1 - np.count_nonzero(maps) / maps.size

    rows = session.sparsity()
    assert [row.layer for row in rows] == ["conv2", "conv3"]
    assert [row.input_sparsity for row in rows] == [zeros("1.gradient"), zeros("2.gradient")]
    assert [row.output_sparsity for row in rows] == [zeros("0.mask0"), 0.0]  # a maximum has no mask of its own
    assert 0 < rows[0].output_sparsity < 1
    assert 0 < rows[0].input_sparsity < 1


def test_machines_and_steps_add_up() -> None:
    x, labels = _batch(7)
    sessions = []
    for machines in (1, 3):
        program = training_program(_network(), batch=2, machines=machines, learning_rate=1e-12)
        sessions.append(TrainingSession(program, engines_for(program, use_golden=True)))
        sessions[-1].step(x, labels)
    assert sessions[0].sparsity() == sessions[1].sparsity()
    once = sessions[0].sparsity()
    sessions[0].step(x, labels)
    assert sessions[0].sparsity() == once  # the weights did not move: the same counts over twice as many elements


def test_counts_go_through_a_checkpoint() -> None:
    program, (x, labels) = training_program(_network(), batch=4), _batch(4)
    engines = engines_for(program, use_golden=True)
    first, second = TrainingSession(program, engines), TrainingSession(program, engines)
    first.step(x, labels)
    second.restore(first.state())
    assert second.sparsity() == first.sparsity()


def test_a_network_without_a_second_convolution_has_no_rows() -> None:
    graph = Chain((2, 5, 5), 3).conv("conv", 4).lif("lif").flatten().linear("fc", 4).readout()
    program = training_program(graph)
    assert TrainingSession(program, engines_for(program, use_golden=True)).sparsity() == ()
