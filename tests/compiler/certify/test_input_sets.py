"""Input sets against the list of all inputs, written out from their definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.certify.input_sets import Box, Chain, Flips, InputSet, L0Ball, LinfReal, Retiming
from compiler.codes import bernoulli_draws
from compiler.evaluate import evaluate
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node
from compiler.ir.ops import Encode, Input

Floats = npt.NDArray[np.float32]
Made = tuple[InputSet, Callable[[Floats], bool]]  # a set, and its definition as a predicate over binary inputs
SHAPES = st.sampled_from([(1, 2), (2, 2), (3, 2), (4, 2), (2, 2, 2), (5, 1), (2, 1, 2, 2), (8, 1)])


def every(shape: tuple[int, ...]) -> Iterator[Floats]:
    for bits in product((0.0, 1.0), repeat=int(np.prod(shape))):
        yield np.array(bits, np.float32).reshape(shape)


@st.composite
def spike_sets(draw: st.DrawFn) -> Made:
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    clean = (rng.random(shape) < 0.4).astype(np.float32)
    mask = rng.random(shape) < 0.6
    kind = draw(st.sampled_from(["box", "ball", "step ball", "retiming"]))
    if kind == "box":
        return Box(clean=clean, free=mask), lambda x: bool(np.all((x == clean) | mask))
    if kind == "retiming":
        moved = draw(st.integers(0, 3))
        return Retiming(
            clean=clean, moved=moved
        ), lambda x: bool(np.all(x.sum(0) == clean.sum(0))) and int(np.sum(clean > x)) <= moved
    flips = draw(st.sampled_from(Flips))
    allowed = {Flips.BOTH: mask, Flips.INSERT: mask & (clean == 0), Flips.DELETE: mask & (clean == 1)}[flips]
    per_step = kind == "step ball"
    sizes = allowed.reshape(len(clean), -1).sum(1) if per_step else allowed.sum(keepdims=True)
    k = draw(st.integers(0, int(sizes.max())))

    def is_in_ball(x: Floats) -> bool:
        changed = x != clean
        count = int(changed.reshape(len(x), -1).sum(1).max()) if per_step else int(changed.sum())
        return count <= k and not bool(np.any(changed & ~allowed))

    return L0Ball(clean=clean, k=k, mask=mask, flips=flips, per_step=per_step), is_in_ball


@st.composite
def chains(draw: st.DrawFn) -> tuple[Chain, list[Floats]]:
    """A chain, and the codes of all intensities that can tell its codes apart, from few values so that draws tie."""
    timesteps, pixels = draw(st.sampled_from([(1, 2), (2, 3), (4, 2), (5, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    image = (rng.integers(0, 9, pixels) / 8).astype(np.float32)
    draws = (rng.integers(0, 16, (timesteps, pixels)) / 16).astype(np.float32)
    eps = draw(st.sampled_from([0.0, 0.0625, 0.125, 0.25, 0.3, 1.0]))
    made = Chain(image=image, eps=eps, draws=draws)
    codes = []
    for pixel in range(pixels):
        ends = [max(image[pixel] - eps, 0.0), min(image[pixel] + eps, 1.0)]
        values = {v for v in (*ends, *(i / 32 for i in range(33))) if ends[0] <= v <= ends[1]}
        codes.append(sorted({tuple((draws[:, pixel] < np.float32(v)).tolist()) for v in values}))
    return made, [np.array(some, np.float32).T for some in product(*codes)]


def check_against(inputs: InputSet, members: list[Floats], seed: int) -> None:
    """Everything that an input set says, from the list of its members."""
    rng = np.random.default_rng(seed)
    stack = np.stack(members)
    listed = [x.tobytes() for x in inputs.members()]
    assert len(set(listed)) == len(listed) == inputs.count == len(members)
    assert set(listed) == {x.tobytes() for x in members}
    np.testing.assert_array_equal(inputs.lower, stack.min(0))
    np.testing.assert_array_equal(inputs.upper, stack.max(0))
    assert inputs.lower.dtype == inputs.upper.dtype == np.float64
    assert inputs.contains(inputs.clean)
    a = torch.from_numpy(rng.integers(-8, 9, (2, 3, *inputs.shape)) / 8)  # grid: sums in f64 are exact
    want = (a.numpy()[:, :, None] * stack).reshape(2, 3, len(stack), -1).sum(-1).min(-1)
    np.testing.assert_array_equal(inputs.support(a).numpy(), want)
    np.testing.assert_array_equal(inputs.support(a.clone().requires_grad_()).detach().numpy(), want)
    drawn = inputs.sample(rng, 20)
    assert drawn.shape == (20, *inputs.shape)
    assert drawn.dtype == np.float32
    assert all(inputs.contains(x) for x in drawn)
    check_steps(inputs, stack)


def check_steps(inputs: InputSet, stack: Floats) -> None:
    """What the set says of single steps."""
    free = inputs.lower < inputs.upper
    for t in range(len(inputs.clean)):
        budget = inputs.step_flips if inputs.step_flips is not None else free[t].size
        changed = (every(inputs.shape[1:])) if inputs.shape[1:] else iter(())
        want = {
            x.tobytes() for x in changed
            if not np.any((x != inputs.clean[t]) & ~free[t]) and np.sum(x != inputs.clean[t]) <= budget
        }  # fmt: skip
        assert {x.tobytes() for x in stack[:, t]} == want


@settings(max_examples=80)
@given(made=spike_sets(), seed=st.integers(0, 2**16))
def test_spike_sets_are_their_definitions(made: Made, seed: int) -> None:
    inputs, is_member = made
    for x in every(inputs.shape):
        assert inputs.contains(x) == is_member(x)
    check_against(inputs, [x for x in every(inputs.shape) if is_member(x)], seed)


@settings(max_examples=60)
@given(made=chains(), seed=st.integers(0, 2**16))
def test_chains_are_the_codes_of_their_images(made: tuple[Chain, list[Floats]], seed: int) -> None:
    chain, members = made
    check_against(chain, members, seed)
    codes = {x.tobytes() for x in members}
    for x in every(chain.shape) if chain.clean.size <= 8 else members:
        assert chain.contains(x) == (x.tobytes() in codes)
    for x in members:
        image = chain.image_of(x)
        assert np.all((chain.least <= image) & (image <= chain.most))
        np.testing.assert_array_equal((chain.draws < image).astype(np.float32), x)


def test_a_chain_holds_what_the_encoding_makes_of_its_images() -> None:
    """Under the encoding's own draws of sample 3, images at any place of the interval have codes of the chain."""
    source = Node("x", Input(shape=("N", 5), dtype=DType.F32, axes="NC"), (), Loc("net.py", 1))
    code = Node("code", Encode(kind=Encoding.BERNOULLI, timesteps=4, seed=9), ("x",), Loc("net.py", 2))
    graph = Graph("net", (source, code), "code")
    rng = np.random.default_rng(0)
    image = rng.random(5, np.float32)
    chain = Chain(image=image, eps=0.2, draws=bernoulli_draws(9, 4, (1, 5), 3)[:, 0])
    made = set()
    for _ in range(300):
        x = np.clip(rng.uniform(chain.least, chain.most), chain.least, chain.most).astype(np.float32)
        spikes = evaluate(graph, torch.from_numpy(x[None]), first_sample=3).output[:, 0].numpy()
        assert chain.contains(spikes)
        made.add(spikes.tobytes())
    assert 1 < len(made) <= (chain.count or 0)
    np.testing.assert_array_equal(
        evaluate(graph, torch.from_numpy(image[None]), first_sample=3).output[:, 0].numpy(), chain.clean
    )


def test_a_chain_is_smaller_than_its_box() -> None:
    """Two bits of one pixel: the one with the smaller draw is on whenever the other is."""
    chain = Chain(image=np.full(1, 0.5, np.float32), eps=0.3, draws=np.array([[0.6], [0.4]], np.float32))
    assert sorted(x[:, 0].tolist() for x in chain.members()) == [[0, 0], [0, 1], [1, 1]]
    box = Box(clean=chain.clean, free=chain.lower < chain.upper)
    a = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    assert (chain.support(a).item(), box.support(a).item()) == (0.0, -1.0)
    with pytest.raises(CompileError, match="code of no image"):
        chain.image_of(np.array([[1.0], [0.0]]))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**16), eps=st.sampled_from([0.0, 0.01, 0.1, 1 / 3, 2.0]))
def test_real_inputs_fill_their_box(seed: int, eps: float) -> None:
    rng = np.random.default_rng(seed)
    clean = rng.choice([0.0, 1.0, 0.3, rng.random()], (2, 3)).astype(np.float32)
    inputs = LinfReal(clean=clean, eps=eps)
    exact = clean.astype(np.float64)
    # The ends are f32 values inside the real interval, and the next ones are outside.
    assert np.all((inputs.lower >= exact - eps) & (inputs.upper <= exact + eps))
    assert np.all((inputs.lower >= 0) & (inputs.upper <= 1))
    below = np.nextafter(inputs.lower.astype(np.float32), np.float32(-9))
    assert np.all((below.astype(np.float64) < exact - eps) | (below < 0))
    a = torch.from_numpy(rng.normal(size=(4, 2, 3)))
    corners = np.where(a.numpy() > 0, inputs.lower, inputs.upper)
    np.testing.assert_allclose(inputs.support(a).numpy(), (a.numpy() * corners).sum((1, 2)), rtol=1e-12)
    drawn = inputs.sample(rng, 50)
    assert all(inputs.contains(x) for x in drawn)
    assert np.all((drawn * a[0].numpy()).sum((1, 2)) >= inputs.support(a)[0].item() - 1e-9)
    outside = clean.copy()
    outside[0, 0] = inputs.upper[0, 0] + 1e-3
    assert not inputs.contains(outside)


@settings(max_examples=40)
@given(made=spike_sets(), seed=st.integers(0, 2**16))
def test_larger_sets_have_lower_minima(made: Made, seed: int) -> None:
    inputs, _ = made
    a = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, *inputs.shape)))
    hull = Box(clean=inputs.clean, free=inputs.lower < inputs.upper)
    assert bool((hull.support(a) <= inputs.support(a) + 1e-9).all())
    at_clean = (a * torch.from_numpy(inputs.clean.copy())).flatten(1).sum(1)
    assert bool((inputs.support(a) <= at_clean + 1e-9).all())


def test_minima_have_gradients() -> None:
    """The gradient of a minimum by the form is the member that takes it."""
    clean = np.array([[1, 0], [0, 1]], np.float32)
    chain = Chain(image=np.full(2, 0.5, np.float32), eps=0.5, draws=np.array([[0.2, 0.7], [0.6, 0.1]], np.float32))
    for inputs in (L0Ball(clean=clean, k=2), Retiming(clean=clean, moved=1), Box(clean=clean, free=clean > 0), chain):
        a = torch.tensor([[0.5, -1.0], [-2.0, 3.0]], dtype=torch.float64, requires_grad=True)
        low = inputs.support(a)
        (best,) = torch.autograd.grad(low, a)
        assert inputs.contains(best.numpy())
        assert (best * a).sum().item() == pytest.approx(low.item())


def full(shape: int | tuple[int, ...], value: float) -> Floats:
    return np.full(shape, value, np.float32)


def zeros(shape: int | tuple[int, ...]) -> Floats:
    return full(shape, 0.0)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "box mask shape": (lambda: Box(clean=zeros((2, 3)), free=np.ones((3, 2), bool)), "no bool one"),
    "box mask type": (lambda: Box(clean=zeros((2, 3)), free=np.ones((2, 3))), "no bool one"),  # type: ignore[arg-type]
    "not binary": (lambda: Box(clean=full((2, 3), 0.5), free=np.ones((2, 3), bool)), "other values than 0 and 1"),
    "ball negative": (lambda: L0Ball(clean=zeros((2, 3)), k=-1), "-1 flips"),
    "ball too large": (lambda: L0Ball(clean=zeros((2, 3)), k=7), "7 flips are to be allowed, of 6"),
    "ball deletes": (lambda: L0Ball(clean=zeros((2, 3)), k=1, flips=Flips.DELETE), "of 0 elements that may"),
    "ball step": (lambda: L0Ball(clean=zeros((2, 3)), k=4, per_step=True), "of 3 elements of a step"),
    "chain eps": (lambda: Chain(image=zeros(2), eps=-0.1, draws=zeros((3, 2))), "eps is -0.1"),
    "chain shape": (lambda: Chain(image=zeros(2), eps=0.1, draws=zeros((3, 4))), "not those of an image"),
    "chain image": (lambda: Chain(image=full(2, 1.5), eps=0.1, draws=zeros((3, 2))), r"not in \[0, 1\]"),
    "real eps": (lambda: LinfReal(clean=zeros(2), eps=float("nan")), "eps is nan"),
    "real clip": (lambda: LinfReal(clean=full(2, -1.0), eps=0.1), r"not in \[0, 1\]"),
    "real nan": (lambda: LinfReal(clean=full(2, np.nan), eps=0.1), "NaN"),
    "real members": (lambda: list(LinfReal(clean=zeros(2), eps=0.1).members()), "no list of members"),
    "moved": (lambda: Retiming(clean=zeros((2, 3)), moved=-1), "-1 spikes"),
    "empty": (lambda: Retiming(clean=zeros((2, 0)), moved=1), "holds no sample"),
    "form type": (lambda: LinfReal(clean=zeros(2), eps=0.1).support(torch.zeros(2)), "no f64 one"),
    "form shape": (lambda: LinfReal(clean=zeros(2), eps=0.1).support(torch.zeros(3).double()), "no f64 one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets_are_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(CompileError, match=message):
        make()


def test_sets_cannot_be_changed() -> None:
    clean = np.zeros((2, 3), np.float32)
    inputs = Box(clean=clean, free=np.ones((2, 3), bool))
    clean[0, 0] = 1
    assert not inputs.clean.any()
    with pytest.raises(ValueError, match="read-only"):
        inputs.clean[0, 0] = 1
