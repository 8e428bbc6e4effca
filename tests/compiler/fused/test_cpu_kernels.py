"""The CPU kernels over random populations, against torch's operators and autograd in f64."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compiler.fused.population import PER_CHANNEL, Activation, Norm, Population, Window
from compiler.ir.values import Compare, Reset, Surrogate, SurrogateKind
from compiler.tvm_setup import thread_count, tvm
from tests.compiler.fused.build import Run, run
from tests.compiler.fused.reference import (
    Case,
    Membranes,
    Result,
    U,
    autograd,
    membranes,
    near_edge,
    pooled,
    undecided,
)

CHANNELS = (1, 3, 10, 16, 37, 64)
ROWS = {
    "decay": (0.0, 1.0),
    "threshold": (0.3, 1.5),
    "input_scale": (0.5, 2.0),
    "leak_bias": (-0.3, 0.3),
    "reset_value": (-0.5, 0.2),
    "initial": (-0.5, 0.5),
}
WINDOWS = (
    None,
    Window(kernel=(2, 2), average=True),
    None,
    Window(kernel=(2, 2), average=False),
    Window(kernel=(2, 3), average=True, exact=False),
    Window(kernel=(3, 2), average=False, exact=False),
)


def some_population(index: int) -> Population:
    """The choices cycle so that each appears; a compiled population serves many examples."""
    rng = random.Random(index)

    def number(name: str) -> float | None:
        low, high = ROWS[name]
        return rng.choice((PER_CHANNEL, float(np.float32(rng.uniform(low, high)))))

    return Population(
        timesteps=rng.randint(1, 20),
        **{name: number(name) for name in ROWS},
        reset=list(Reset)[index % 3],
        reset_delay=index % 2 == 0,
        compare=rng.choice(list(Compare)),
        detach_reset=rng.random() < 0.3,
        surrogate=Surrogate(
            kind=list(SurrogateKind)[index % 7],
            width=rng.uniform(0.3, 2),
            scale=rng.uniform(0.3, 1.5),
            offset=rng.choice((0.0, -0.2, 0.35)),
        ),
        norm=list(Norm)[index // 2 % 3],
        window=WINDOWS[index % 6],
        repeated=index % 4 == 3,
        activation=Activation.BF16 if index % 5 == 4 else Activation.F32,
    )


POPULATIONS = tuple(map(some_population, range(14)))
LONG = replace(POPULATIONS[0], timesteps=60)


@st.composite
def cases(draw: st.DrawFn, population: st.SearchStrategy[Population] = st.sampled_from(POPULATIONS)) -> Case:  # noqa: B008
    drawn = draw(population)
    kernel, exact = (1, 1), True
    if drawn.window is not None:
        kernel, exact = drawn.window.kernel, drawn.window.exact
    height, width = (k * draw(st.integers(1, 3)) + (0 if exact else draw(st.integers(0, k - 1))) for k in kernel)
    shape = (draw(st.integers(1, 3)), height, width, draw(st.sampled_from(CHANNELS)))
    return on_data(drawn, shape, kept=not exact and draw(st.booleans()), seed=draw(st.integers(0, 2**16)))


def on_data(population: Population, shape: tuple[int, int, int, int], *, kept: bool, seed: int) -> Case:
    """Random data for a population, rounded to its activations' type."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(shape[-1], generator=generator) * (high - low) + low

    dtype = getattr(torch, str(population.activation))
    lead = () if population.repeated else (population.timesteps,)
    kernel = (1, 1) if population.window is None else population.window.kernel
    out = [math.ceil(size / k) if kept else size // k for size, k in zip(shape[1:3], kernel, strict=True)]
    return Case(
        population=population,
        x=(normal(*lead, *shape) * 1.5 + 0.5).to(dtype).float(),
        grad_y=normal(population.timesteps, shape[0], *out, shape[3]).to(dtype).float(),
        rows={name: uniform(*limits) for name, limits in ROWS.items()},
        weight=uniform(0.5, 1.5),
        bias=uniform(-0.5, 0.5),
        mean=uniform(0.0, 1.0),
        var=uniform(0.5, 3.0),
    )


@settings(max_examples=40)
@given(cases())
def test_spikes_differ_only_where_rounding_decides(case: Case) -> None:
    spikes_agree(case)


@settings(max_examples=2)
@given(cases(st.just(LONG)))
def test_spikes_over_many_steps(case: Case) -> None:
    spikes_agree(case)


def spikes_agree(case: Case) -> None:
    """y equals the pooled exact spikes but where a pixel's spike lies within the bound; nothing else is excused."""
    found, got = membranes(case), run(case)
    assert torch.equal(got.y, got.again)
    unsure = pooled(replace_window_by_maximum(case), undecided(case, found).double()) > 0
    want = pooled(case, found.spikes).to(got.y.dtype)  # a share of 1/9 in f32 rounds to the same bf16, or differs by:
    slack = 2 * U if case.population.activation is Activation.F32 else 2.0**-8
    different = (got.y.double() - want.double()).abs() > slack * want.double()
    event(f"differences {int(different.sum())}, undecided {int(unsure.sum())}")
    assert not (different & ~unsure).any()
    # the bound says little if it excuses much: 1e-6 of a density below 1 for each value, over at most 60 steps
    assert unsure.double().mean() < 0.05 or found.m.numel() < 200


def replace_window_by_maximum(case: Case) -> Case:
    window = case.population.window
    if window is None:
        return case
    return replace(case, population=replace(case.population, window=replace(window, average=False)))


@settings(max_examples=40)
@given(cases())
def test_gradients_are_as_exact_as_those_of_torch(case: Case) -> None:
    found = membranes(case)
    assume(not near_edge(case, found).any())  # then both make the same spikes and stand on the same side of each step
    exact, torch_f32, got = autograd(case, torch.float64), autograd(case, torch.float32), run(case)
    assume(torch.equal(exact.y.float(), torch_f32.y))
    case_gradients_agree(case, exact, torch_f32, got)


def case_gradients_agree(case: Case, exact: Result, torch_f32: Result, got: Run) -> None:
    names = ["grad_x"] if case.population.norm is Norm.NONE else ["grad_x", "grad_weight", "grad_bias"]
    for name in names:
        want, other, mine = (getattr(each, name).double() for each in (exact, torch_f32, got))
        size = want.abs().max().item()
        error, allowed = (mine - want).abs(), 2 * (other - want).abs().max().item()
        # torch's error may be 0 by luck; a step of the chain rounds about 6 times, and carries die out in a few steps
        allowed += 16 * U * size + 1e-30
        if name == "grad_x" and case.population.norm is Norm.BATCH:  # what is left of three terms, which may cancel
            allowed += 8 * U * largest_term(case)
        if name != "grad_x":  # a sum over the channel, whose terms may cancel while their roundings add up
            allowed += U * case.population.surrogate.scale * case.grad_y.double().abs().sum().item()
        if case.population.activation is Activation.BF16 and name == "grad_x":
            allowed = allowed + 2.0**-8 * want.abs()  # rounded to bf16 once
        event(f"{name} beyond torch: {bool((error > allowed / 2).any())}")
        assert (error <= allowed).all(), (name, error.max().item() / size, (other - want).abs().max().item() / size)


def largest_term(case: Case) -> float:
    """A bound on weight / deviation * dL/dy, the first term of equation 4.3, but for the factor of the carries."""
    x = case.x.double()
    deviation = (x.var(tuple(range(x.ndim - 1)), correction=0) + case.eps).sqrt()
    grad_y = case.population.surrogate.scale * case.grad_y.double().abs().sum(0).max()
    return float((case.weight.detach().double().abs() / deviation).max() * grad_y)


def dyadic(population: Population, index: int) -> Population:
    """The same choices, and numbers that are multiples of a power of two."""
    window = population.window
    if window is not None and set(window.kernel) != {2}:  # a share of 1/6 is not exact
        window = replace(window, average=False)
    kind = (SurrogateKind.RECTANGLE, SurrogateKind.TRIANGLE)[index % 2]
    return replace(
        population,
        timesteps=1 + index % 3,
        surrogate=Surrogate(kind=kind, width=0.5 * 2 ** (index % 3), scale=0.5),
        norm=(Norm.NONE, Norm.RUNNING)[index // 2 % 2],
        activation=Activation.F32,
        window=window,
        decay=0.5,
        threshold=0.5,
        reset_value=0.0,
        initial=0.0,
        leak_bias=0.0,
        input_scale=1.0,
    )


DYADIC = tuple(dyadic(some_population(index), index) for index in range(6))


@st.composite
def dyadic_cases(draw: st.DrawFn) -> Case:
    """So few bits and steps that no f32 operation rounds; many m equal the threshold.

    x has 4 bits, decay 0.5 adds one bit a step, a gradient is at most 3 factors of 8 bits: 24 bits suffice for all.
    """
    case = draw(cases(st.sampled_from(DYADIC)))
    ones = torch.ones_like(case.weight)
    return replace(
        case,
        x=(case.x * 2).round().clamp(-8, 8) / 2,
        grad_y=case.grad_y.round().clamp(-1, 1),
        weight=ones / 2,
        bias=ones / 4,
        mean=ones / 2,
        var=ones * 0.75,
        eps=0.25,
    )


@settings(max_examples=40)
@given(dyadic_cases())
def test_nothing_differs_where_nothing_rounds(case: Case) -> None:
    exact, got = autograd(case, torch.float64), run(case)
    found = membranes(case)
    event(f"at the threshold: {bool((found.m == 0.5).any())}")
    assert torch.equal(got.y, exact.y.float())
    assert torch.equal(got.again, exact.y.float())
    assert torch.equal(got.grad_x, exact.grad_x.float())
    if case.population.norm is Norm.RUNNING:
        assert exact.grad_weight is not None
        assert exact.grad_bias is not None
        assert torch.equal(got.grad_weight, exact.grad_weight.float())
        assert torch.equal(got.grad_bias, exact.grad_bias.float())


@pytest.mark.parametrize(("compare", "fires"), [(Compare.GE, 1.0), (Compare.GT, 0.0)])
def test_spike_at_the_threshold(compare: Compare, fires: float) -> None:
    population = Population(timesteps=1, decay=0.5, threshold=0.75, compare=compare)
    case = on_data(population, (1, 2, 2, 37), kept=False, seed=0)
    got = run(replace(case, x=torch.full_like(case.x, 0.75)))
    assert torch.equal(got.y, torch.full_like(got.y, fires))


@settings(max_examples=10)
@given(cases())
def test_arrays_need_no_alignment(case: Case) -> None:
    assert_same(run(case), run(case, shift=1))


@settings(max_examples=10)
@given(cases())
def test_threads_change_nothing(case: Case) -> None:
    configure = tvm.get_global_func("runtime.config_threadpool")
    before = thread_count()
    try:
        configure(1, 1)
        alone = run(case)
        configure(1, 3)
        assert_same(alone, run(case))
    finally:
        configure(1, before)


def assert_same(left: Run, right: Run) -> None:
    for name in ("y", "again", "grad_x", "grad_weight", "grad_bias"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name


def test_bound_holds_on_a_chain_of_rounded_steps() -> None:
    """The bound covers torch's f32 recurrence on the same numbers, and is within 100 times what is seen."""
    population = Population(timesteps=20, decay=0.9, threshold=1e9, norm=Norm.NONE)
    case = on_data(population, (2, 4, 4, 64), kept=False, seed=1)
    found: Membranes = membranes(case)
    v = torch.zeros(case.x.shape[1:])
    decay = case.number("decay", torch.float32)
    errors = []
    for x in case.x:
        v = decay * v + x
        errors.append(v.double())
    error = (torch.stack(errors) - found.m).abs()
    assert (error <= found.error).all()
    assert found.error.max() < 100 * error.max()
