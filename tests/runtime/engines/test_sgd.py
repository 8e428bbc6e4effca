"""SGD unit: against torch.optim.SGD, its counts, and fast against golden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import F16, Sgd, SgdResult, fast, golden
from tests.runtime.engines.fp16_values import Values, assert_same_bits, f16, kinds, seeds

GOLDEN, FAST = golden(), fast()

rules = st.builds(
    Sgd,
    learning_rate=st.sampled_from([1e-3, 0.1, 1.0]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 5e-4, 0.25]),
    scale=st.sampled_from([1.0, 32.0, 65536.0, 50 * 1024.0]),
)


def torch_steps(weight: F16, gradients: list[F16], rule: Sgd) -> np.ndarray:
    """Weights after torch's optimiser has taken the gradients in f64, loss scale divided out."""
    parameter = torch.nn.Parameter(torch.tensor(weight.astype(np.float64)))
    optimiser = torch.optim.SGD(
        [parameter], lr=rule.learning_rate, momentum=rule.momentum, weight_decay=rule.weight_decay
    )
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient.astype(np.float64) / rule.scale)
        optimiser.step()
    return parameter.detach().numpy()


def golden_steps(weight: F16, gradients: list[F16], rule: Sgd) -> F16:
    buffer = np.zeros_like(weight) if rule.momentum else None
    for gradient in gradients:
        result = GOLDEN.sgd(weight, gradient, buffer, rule)
        assert result.finite
        weight, buffer = result.weight, result.momentum
    return weight


def test_dyadic_steps_are_those_of_torch() -> None:
    """No number has more than eleven bits: weights are eighths below 8, b gains one bit a step from momentum 1/2."""
    rng = np.random.default_rng(0)
    rule = Sgd(learning_rate=0.25, momentum=0.5, weight_decay=0.5, scale=4.0)
    weight = (rng.integers(-8, 9, 200) / 4).astype(np.float16)
    gradients = [rng.integers(-8, 9, 200).astype(np.float16) for _ in range(2)]
    np.testing.assert_array_equal(golden_steps(weight, gradients, rule), torch_steps(weight, gradients, rule))


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([1e-3, 0.1, 1.0]),
    momentum=st.sampled_from([0.0, 0.9]),
    decay=st.sampled_from([0.0, 5e-4, 0.01]),
    scale=st.sampled_from([1.0, 32.0, 50 * 20.0]),
    seed=seeds,
)
def test_golden_follows_torch(rate: float, momentum: float, decay: float, scale: float, seed: int) -> None:
    """Ten steps, roundings of 2^-11 each: of a momentum below 1.1 five times, which 0.9 hands on 6.5 times in all, and
    of a weight below 4 + 10 * rate once.
    """
    rng = np.random.default_rng(seed)
    rule = Sgd(learning_rate=rate, momentum=momentum, weight_decay=decay, scale=scale)
    weight = rng.uniform(-4, 4, 100).astype(np.float16)
    gradients = [(rng.uniform(-0.1, 0.1, 100) * scale).astype(np.float16) for _ in range(10)]
    got = golden_steps(weight, gradients, rule)
    bound = 10 * (rate * 5 * 1.1 * 6.5 + 4 + 10 * rate) * 2.0**-11
    np.testing.assert_allclose(got.astype(np.float64), torch_steps(weight, gradients, rule), rtol=0, atol=bound)


def assert_same_result(got: SgdResult, want: SgdResult) -> None:
    assert got.finite == want.finite
    assert (got.momentum is None) == (want.momentum is None)
    if not want.finite:
        return
    assert (got.changed, got.lost) == (want.changed, want.lost)
    assert_same_bits(got.weight, want.weight)
    if got.momentum is not None and want.momentum is not None:
        assert_same_bits(got.momentum, want.momentum)


@settings(max_examples=60, deadline=None)
@given(
    rule=rules,
    size=st.sampled_from([1, 7, 16, 33, 4096, 9000]),
    has_momentum=st.booleans(),
    kind=kinds,
    seed=seeds,
)
def test_fast_equals_golden(rule: Sgd, size: int, has_momentum: bool, kind: Values, seed: int) -> None:
    weight, gradient = f16(seed, (size,), Values.NORMAL if seed % 2 else kind), f16(seed + 1, (size,), kind)
    momentum = f16(seed + 2, (size,), kind) if has_momentum else None
    assert_same_result(FAST.sgd(weight, gradient, momentum, rule), GOLDEN.sgd(weight, gradient, momentum, rule))


def test_counts_of_moved_and_lost_weights() -> None:
    """2048 - 1/2 rounds back to 2048, 2048 - 2 does not, and a step of 0 is not lost."""
    rule = Sgd(learning_rate=0.5, momentum=0.0, weight_decay=0.0, scale=1.0)
    weight, gradient = np.full(4, 2048, np.float16), np.array([1, 4, 0, -0.0], np.float16)
    for engines in (GOLDEN, FAST):
        result = engines.sgd(weight, gradient, None, rule)
        assert result.weight.tolist() == [2048, 2046, 2048, 2048]
        assert (result.changed, result.lost, result.finite) == (1, 1, True)


def test_a_step_below_fp16_is_lost() -> None:
    """2^-24 / 2^16 is 0 in FP16 but not in f32."""
    rule = Sgd(learning_rate=1.0, momentum=0.0, weight_decay=0.0, scale=65536.0)
    for engines in (GOLDEN, FAST):
        result = engines.sgd(np.zeros(1, np.float16), np.full(1, 2.0**-24, np.float16), None, rule)
        assert (result.changed, result.lost) == (0, 1)


@pytest.mark.parametrize("place", ["weight", "gradient", "momentum", "step"])
def test_what_is_not_finite(place: str) -> None:
    weight, gradient, momentum = (np.ones(20, np.float16) for _ in range(3))
    values = {"weight": weight, "gradient": gradient, "momentum": momentum, "step": gradient}[place]
    values[17] = 65504 if place == "step" else np.inf
    rule = Sgd(learning_rate=1.0, momentum=0.5, weight_decay=0.0, scale=0.5)
    for engines in (GOLDEN, FAST):
        assert not engines.sgd(weight, gradient, momentum, rule).finite
        assert engines.sgd(weight[:16], gradient[:16], momentum[:16], rule).finite
