"""The host's loss, readout gradients and optimiser against torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from compiler.ir import CompileError, Reading
from compiler.losses import RATE_SCALE, Loss
from hwmodel.program import Program
from runtime.host_loss import BatchTally, HostSgd, LossHost, loss_and_gradient, over_time
from tests.runtime.chains import Chain, training_program

EPS = 2.0**-24  # one rounding of f32


@st.composite
def scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels; rates lie in [0, 1], membrane potentials further out."""
    samples, classes = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    spread = draw(st.sampled_from([1.0, 0.0, 30.0]))
    return rng.normal(0.5, spread, (samples, classes)).astype(np.float32), rng.integers(0, classes, samples)


@settings(max_examples=50, deadline=None)
@given(drawn=scores(), loss=st.sampled_from(Loss))
def test_loss_and_gradient_equal_torch(drawn: tuple[np.ndarray, np.ndarray], loss: Loss) -> None:
    """Within the roundings of f32: exp and log of a sum of C terms, whose argument is RATE_SCALE times a score."""
    values, labels = drawn
    leaf = torch.from_numpy(values).double().requires_grad_()
    want, losses = _torch_loss(leaf, torch.from_numpy(labels), loss)
    (gradient,) = torch.autograd.grad(losses, leaf)
    found, slopes = loss_and_gradient(loss, values, labels)
    reach = 1 + RATE_SCALE * float(np.abs(values).max())
    roundings = (len(values[0]) + 16) * EPS * reach
    assert found.dtype == slopes.dtype == np.float32
    assert torch.allclose(torch.from_numpy(found).double(), want, rtol=roundings, atol=roundings)
    assert torch.allclose(torch.from_numpy(slopes).double(), gradient, rtol=0, atol=RATE_SCALE * roundings)


def _torch_loss(leaf: torch.Tensor, labels: torch.Tensor, loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each sample, and their sum."""
    if loss is Loss.CROSS_ENTROPY:
        each = cross_entropy(RATE_SCALE * leaf, labels, reduction="none")
    else:
        each = mse_loss(leaf, one_hot(labels, leaf.shape[1]).double(), reduction="none").mean(1)
    return each.detach(), each.sum()


@settings(max_examples=30, deadline=None)
@given(
    readout=st.sampled_from(Reading),
    shape=st.tuples(*[st.integers(1, 4)] * 5),
    is_spikes=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_gradients_over_time_equal_those_of_torch(
    readout: Reading, shape: tuple[int, int, int, int, int], is_spikes: bool, seed: int
) -> None:
    """Maps in memory's order; a maximum of spikes is reached at many steps, among which it is shared."""
    rng = np.random.default_rng(seed)
    output = rng.integers(0, 2, shape).astype(np.uint8) if is_spikes else rng.normal(size=shape).astype(np.float16)
    leaf = torch.from_numpy(output.astype(np.float64)).requires_grad_()
    sequence = leaf.permute(0, 1, 4, 2, 3).flatten(2)
    readouts = {Reading.RATE: sequence.mean(0), Reading.LAST: sequence[-1], Reading.MAX: sequence.amax(0)}
    sent = rng.normal(size=readouts[readout].shape).astype(np.float32)
    (want,) = torch.autograd.grad(readouts[readout], leaf, torch.from_numpy(sent).double())
    found = over_time(readout, output, sent)
    assert found.dtype == np.float32
    assert torch.allclose(torch.from_numpy(np.array(found)).double(), want, rtol=4 * EPS, atol=0)  # two roundings


def _program(loss: Loss = Loss.MSE, **descent: float) -> Program:
    graph = Chain((3,), 4).linear("fc", 2).readout()
    return training_program(graph, batch=3, loss=loss, **descent)


def test_gradient_is_scaled_and_absent_samples_do_not_count() -> None:
    """Two of three places hold samples: each gradient is 16 x 3/2 x 2 (score - target) / 2 classes / 4 steps."""
    output = np.zeros((4, 3, 1, 1, 2), np.float16)
    output[:, :, 0, 0] = 1.0
    tally = BatchTally()
    host = LossHost(program=_program(loss_scale=16.0), factor=3 / 2, labels=[np.array([1, 0])], tally=tally)
    gradient = host.loss_gradient(output)
    assert gradient.dtype == np.float16
    assert gradient[:, 0, 0, 0].tolist() == [[6.0, 0.0]] * 4
    assert gradient[:, 1, 0, 0].tolist() == [[0.0, 6.0]] * 4
    assert not gradient[:, 2].any()
    assert (tally.samples, tally.loss, tally.correct) == (2, 1.0, 1)  # (1 + 0) / 2 each; a tie is the first class


def test_the_labels_of_the_sub_batches_are_taken_in_turn() -> None:
    output = np.zeros((4, 3, 1, 1, 2), np.float16)
    host = LossHost(program=_program(), labels=[np.array([0, 0, 0]), np.array([1])])
    assert [np.flatnonzero(host.loss_gradient(output)[0, 0, 0, 0]).tolist() for _ in range(2)] == [[0], [1]]
    assert host.tally.samples == 4


def test_a_gradient_that_leaves_fp16_is_refused_with_its_step() -> None:
    program = _program(loss_scale=65536.0)
    program = replace(program, host=replace(program.host, readout="last"))
    host = LossHost(program=program, labels=[np.array([0])])
    with pytest.raises(CompileError, match="the gradient of the loss overflows FP16 at step 3") as caught:
        host.loss_gradient(np.zeros((4, 3, 1, 1, 2), np.float16))
    assert caught.value.hint == "lower the loss scale"


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.25), (0.5, 0.25)])
def test_host_optimiser_equals_torch_in_f32(momentum: float, weight_decay: float) -> None:
    """The constants are powers of two, so that a fused multiply-add of torch rounds as ours does."""
    rng = np.random.default_rng(5)
    start = rng.normal(size=(3, 2, 4)).astype(np.float32)
    optimiser = HostSgd(learning_rate=0.125, momentum=momentum, weight_decay=weight_decay, scale=96.0)
    optimiser.masters = {"w": start.copy()}
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = torch.optim.SGD([parameter], lr=0.125, momentum=momentum, weight_decay=weight_decay)
    for _ in range(4):
        gradient = rng.normal(0, 50, start.shape).astype(np.float16)
        copy = optimiser.step("w", gradient)
        parameter.grad = torch.from_numpy(gradient.astype(np.float32) / np.float32(96.0))
        reference.step()
        assert np.array_equal(optimiser.masters["w"], parameter.detach().numpy())
        assert np.array_equal(copy, optimiser.masters["w"].astype(np.float16))


def test_host_optimiser_counts_steps_that_the_fp16_copy_does_not_show() -> None:
    """At 1 FP16 is 2^-11 below and 2^-10 above apart: of three steps one is 0, one too small, one seen."""
    optimiser = HostSgd(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    optimiser.masters = {"w": np.ones(3, np.float32)}
    copy = optimiser.step("w", np.array([0.0, 2.0**-13, 2.0**-9], np.float16))
    assert copy.tolist() == [1.0, 1.0, 1.0 - 2.0**-9]
    assert (optimiser.moved["w"], optimiser.lost["w"]) == (1, 1)
    assert optimiser.masters["w"][1] == 1.0 - 2.0**-13
