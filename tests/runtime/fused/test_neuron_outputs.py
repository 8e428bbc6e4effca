"""Results and their masks as bits: against the results as numbers, and what gradients make of masked ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from compiler.fused.population import Norm, Population, Window
from compiler.ir.values import Compare, Reset, Surrogate, SurrogateKind
from compiler.surrogate import surrogate_gradient
from runtime.fused.neurons import NeuronsRun, Norming, Outputs
from tests.compiler.fused.reference import Case, membranes
from tests.compiler.fused.test_cpu_kernels import dyadic, on_data, some_population

WINDOWS = (
    None,
    Window(kernel=(2, 2), average=False),
    Window(kernel=(2, 2), average=True),
    Window(kernel=(3, 2), average=False, exact=False, ceil=True),
    Window(kernel=(2, 3), average=True, exact=False, ceil=True),
    Window(kernel=(2, 2), average=False, exact=False),
    None,
)


def masked_population(index: int) -> Population:
    """Some population with a surrogate that is 0 far from the threshold."""
    some = some_population(index)
    kind = (SurrogateKind.RECTANGLE, SurrogateKind.TRIANGLE)[index % 4 == 1]
    surrogate = replace(some.surrogate, kind=kind, width=0.2 + 0.15 * (index % 3))
    steps = min(some.timesteps, 6)
    return replace(some, surrogate=surrogate, window=WINDOWS[index % 7], timesteps=steps, detach_reset=index % 3 == 2)


TAILS, WHOLE = (3, 37, 70), (16, 64)  # channels; kernels for both would take twice as long to compile
POPULATIONS = tuple(map(masked_population, range(7)))
DYADIC = tuple(dyadic(masked_population(index), index) for index in (1, 2, 3, 6))


@st.composite
def cases(draw: st.DrawFn, population: st.SearchStrategy[Population] = st.sampled_from(POPULATIONS)) -> Case:  # noqa: B008
    drawn = draw(population)
    window = drawn.window
    kernel, exact = ((1, 1), True) if window is None else (window.kernel, window.exact)
    height, width = (k * draw(st.integers(1, 3)) + (0 if exact else draw(st.integers(0, k - 1))) for k in kernel)
    channels = draw(st.sampled_from(WHOLE if drawn in DYADIC else TAILS))
    shape = (draw(st.integers(1, 2)), height, width, channels)
    kept = window is not None and window.ceil
    return on_data(drawn, shape, kept=kept, seed=draw(st.integers(0, 2**16)))


def run_of(case: Case) -> NeuronsRun:
    """The case as the runtime executes it."""
    population = case.population
    dtype = getattr(torch, str(population.activation))
    norming = None
    if population.norm is not Norm.NONE:
        norming = Norming(
            weight=case.weight,
            bias=case.bias,
            running_mean=case.mean,
            running_var=case.var,
            eps=case.eps,
            all_reduce=None,
        )
    x = (case.x[None] if population.repeated else case.x).to(dtype)
    numbers = {name: values for name, values in case.rows.items() if getattr(population, name) is None}
    return NeuronsRun(population, x, numbers, norming, lambda _, shape, dtype: torch.empty(shape, dtype=dtype))


def of(run: NeuronsRun, *, y: bool = False, words: bool = False, mask: bool = False) -> Outputs:
    """Memory full of what must not stay there."""
    bits = functools.partial(torch.full, run.words_shape, -1, dtype=torch.int32)
    return Outputs(
        y=torch.full(run.out_shape, torch.nan, dtype=run.x.dtype) if y else None,
        words=bits() if words else None,
        mask=bits() if mask else None,
    )


def as_words(flags: Tensor) -> Tensor:
    """(.., C) -> int32 (.., ceil(C / 32)), by numpy."""
    padded = functional.pad(flags, (0, -flags.shape[-1] % 32)).numpy()
    return torch.from_numpy(np.packbits(padded, axis=-1, bitorder="little").view("<i4").astype(np.int32))


def as_flags(words: Tensor, channels: int) -> Tensor:
    """The bits of present channels."""
    return (words[..., None] >> torch.arange(32)).bitwise_and(1).flatten(-2)[..., :channels].bool()


def same(left: Tensor | None, right: Tensor | None) -> None:
    assert left is not None
    assert right is not None
    assert torch.equal(left, right)


@settings(max_examples=40)
@given(cases())
def test_words_are_the_bits_of_the_spikes(case: Case) -> None:
    run = run_of(case)
    moments, binary = run.moments(), case.population.binary
    y = run.forward(moments)
    everything, alone = of(run, y=True, words=binary, mask=True), of(run, words=binary, mask=True)
    run.fill(moments, everything)
    run.fill(moments, alone)
    same(everything.y, y)
    same(everything.mask, alone.mask)
    if binary:
        same(alone.words, as_words(y > 0))
        same(everything.words, alone.words)


@dataclass(frozen=True, slots=True)
class Grads:
    """What a backward pass yields."""

    tensors: tuple[Tensor, ...]

    def check_same(self, other: Grads) -> None:
        for left, right in zip(self.tensors, other.tensors, strict=True):
            assert torch.equal(left, right)


def gradients(run: NeuronsRun, moments: Tensor | None, grad: Tensor, y: Tensor | None = None) -> Grads:
    grad_x, of_norm = run.backward(moments, grad.to(run.x.dtype).clone(), y)
    return Grads((grad_x, *(of_norm or ())))


@settings(max_examples=60)
@given(cases() | cases(st.sampled_from(DYADIC)))
def test_gradients_of_masked_results_count_for_nothing(case: Case) -> None:
    run = run_of(case)
    moments, outputs = run.moments(), of(run, words=case.population.binary, mask=True)
    run.fill(moments, outputs)
    assert outputs.mask is not None
    counts = as_flags(outputs.mask, case.x.shape[-1])
    event(f"masked: {0 < counts.float().mean() < 1}")
    wanted = gradients(run, moments, case.grad_y)
    wanted.check_same(gradients(run, moments, torch.where(counts, case.grad_y, 0.0)))
    wanted.check_same(gradients(run, moments, torch.where(counts, case.grad_y, 100.0 - 7 * case.grad_y)))


@settings(max_examples=30)
@given(cases())
def test_gradients_do_not_need_the_result(case: Case) -> None:
    run = run_of(case)
    moments, again = run.moments(), of(run, y=True).y
    gradients(run, moments, case.grad_y, again).check_same(gradients(run, moments, case.grad_y))
    same(again, run.forward(moments))


@settings(max_examples=40)
@given(cases(st.sampled_from(DYADIC)))
def test_masks_are_exact_where_nothing_rounds(case: Case) -> None:
    """Of m = threshold + width exactly, and without a single bit that could be 0 and is not."""
    ones = torch.ones_like(case.weight)
    x = (case.x * 2).round().clamp(-8, 8) / 2
    case = replace(case, x=x, weight=ones / 2, bias=ones / 4, mean=ones / 2, var=ones * 0.75, eps=0.25)
    run = run_of(case)
    outputs = of(run, words=case.population.binary, mask=True)
    run.fill(run.moments(), outputs)
    same(outputs.mask, as_words(expected_mask(case)))


def expected_mask(case: Case) -> Tensor:
    """By unfolding windows of exact membrane potentials."""
    found, surrogate = membranes(case), case.population.surrogate
    event(f"at an edge: {bool(((found.m - 0.5 - surrogate.offset).abs() == surrogate.width).any())}")
    near = surrogate_gradient(surrogate, found.m - 0.5 - surrogate.offset) != 0
    window = case.population.window
    if window is None:
        return near
    rows, columns = window.kernel
    size = case.grad_y.shape[2:4]
    room = [k * n for k, n in zip(window.kernel, size, strict=True)]

    def windows(values: Tensor) -> Tensor:
        (height, width), (tall, wide) = room, values.shape[2:4]
        fitted = functional.pad(values, (0, 0, 0, width - wide, 0, height - tall))  # cuts where it is negative
        split = fitted.reshape(*values.shape[:2], size[0], rows, size[1], columns, values.shape[-1])
        return split.movedim(3, 4).flatten(4, 5)  # (T, N, H', W', pixels, C)

    if window.average:
        return windows(near.float()).amax(4) > 0
    first = windows(found.spikes).argmax(4, keepdim=True)  # of equal ones the first
    return windows(near.float()).gather(4, first).squeeze(4) > 0


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 31, 32, 33, 48, 100])
def test_absent_channels_have_no_bits(channels: int) -> None:
    population = Population(timesteps=2, decay=0.5, threshold=0.0, reset=Reset.NONE, compare=Compare.GE)
    case = on_data(population, (2, 3, 5, channels), kept=False, seed=0)
    run = run_of(replace(case, x=torch.zeros_like(case.x)))
    outputs = of(run, words=True, mask=True)
    run.fill(None, outputs)
    same(outputs.words, as_words(torch.ones(run.out_shape, dtype=torch.bool)))
    same(outputs.mask, outputs.words)


def averages(run: NeuronsRun) -> None:
    run.fill(None, of(run, words=True))


def everywhere(run: NeuronsRun) -> None:
    run.fill(None, of(run, mask=True))


@pytest.mark.parametrize(
    ("window", "kind", "fill", "message"),
    [
        (Window(kernel=(1, 2), average=True), SurrogateKind.RECTANGLE, averages, "averages of spikes are no bits"),
        (None, SurrogateKind.ATAN, everywhere, "the atan surrogate is 0 nowhere, so there is no mask"),
    ],
    ids=["averages", "atan"],
)
def test_bits_that_there_are_not(
    window: Window | None, kind: SurrogateKind, fill: Callable[[NeuronsRun], None], message: str
) -> None:
    surrogate = Surrogate(kind=kind)
    population = Population(timesteps=1, decay=0.5, threshold=1.0, window=window, surrogate=surrogate)
    with pytest.raises(ValueError, match=message):
        fill(run_of(on_data(population, (1, 2, 2, 16), kept=False, seed=0)))


@pytest.mark.parametrize("kind", list(SurrogateKind), ids=str)
def test_which_surrogates_have_masks(kind: SurrogateKind) -> None:
    """Those whose derivative is 0 at ten widths from the threshold."""
    surrogate = Surrogate(kind=kind, width=0.5)
    is_zero = bool(surrogate_gradient(surrogate, torch.tensor(5.0)) == 0)
    assert Population(timesteps=1, decay=0.5, threshold=1.0, surrogate=surrogate).masked is is_zero
