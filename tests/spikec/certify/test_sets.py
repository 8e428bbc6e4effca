"""What SPEC stands for."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.certify.input_sets import Box, Chain, Flips, L0Ball, LinfReal, Retiming
from compiler.codes import bernoulli_draws
from hwmodel.errors import CompileError
from spikec.certify.sets import BoxSpec, L0Spec, LinfSpec, RetimeSpec, SetSpec, set_named
from spikec.certify.subject import Subject
from tests.spikec.certify.certified import STEPS, graph_of, samples_of

TEXTS: dict[str, SetSpec] = {
    "l0:k=3": L0Spec(k=3, flips=Flips.BOTH, per_step=False),
    "l0:k=3,insert": L0Spec(k=3, flips=Flips.INSERT, per_step=False),
    "l0:k=0,delete,per-step": L0Spec(k=0, flips=Flips.DELETE, per_step=True),
    "linf:eps=0.02": LinfSpec(eps=0.02),
    "box:share=0.05,seed=7": BoxSpec(share=0.05, seed=7),
    "retime:moved=2": RetimeSpec(moved=2),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_back(text: str) -> None:
    assert set_named(text) == TEXTS[text]
    assert TEXTS[text].text == text


def test_other_spellings() -> None:
    assert set_named("linf:width=0.04") == LinfSpec(eps=0.02)
    assert set_named("box:share=0.05") == BoxSpec(share=0.05, seed=0)
    assert set_named("l0:insert, delete, k=1") == L0Spec(k=1, flips=Flips.BOTH, per_step=False)


WRONG = {
    "": "is no input set",
    "l0": "does not say k",
    "l1:eps=1": "is no input set",
    "l0:k=-1": "not a whole number",
    "l0:k=1.5": "not a whole number",
    "l0:k=1,k=2": "says something twice",
    "l0:k=1,insert=2": "insert takes no value",
    "l0:k=1,eps=2": "has no option 'eps'",
    "linf:eps=-0.1": "must be from 0 to 1",
    "linf:eps=nan": "must be from 0 to 1",
    "linf:eps=two": "not a number",
    "linf:eps=0.1,width=0.2": "one of them says all",
    "linf:width=2.5": "must be from 0 to 2",
    "box:seed=1": "does not say share",
    "box:share=1.1": "must be from 0 to 1",
    f"box:share=0.1,seed={1 << 63}": "must be below",
    "retime:": "does not say moved",
}


@pytest.mark.parametrize("text", WRONG)
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(CompileError, match=WRONG[text]):
        set_named(text)


SPIKES, BERNOULLI, DIRECT = (Subject.of(graph_of(kind)) for kind in ("spikes", "bernoulli", "direct"))


def test_sets_of_spikes() -> None:
    x = samples_of("spikes")[3]
    ball = set_named("l0:k=2,delete").inputs(SPIKES, x, 3)
    assert isinstance(ball, L0Ball)
    assert (ball.k, ball.flips, ball.per_step) == (2, Flips.DELETE, False)
    assert np.array_equal(ball.clean, x)
    moved = set_named("retime:moved=2").inputs(SPIKES, x, 3)
    assert isinstance(moved, Retiming)
    assert moved.moved == 2


def test_where_fewer_spikes_may_flip_all_of_them_may() -> None:
    x = np.zeros((STEPS, 1, 4, 4), np.float32)
    x[0, 0, 0, 0] = 1
    ball = set_named("l0:k=5,delete").inputs(SPIKES, x, 0)
    assert isinstance(ball, L0Ball)
    assert (ball.k, ball.count) == (1, 2)
    none = set_named("l0:k=5,delete,per-step").inputs(SPIKES, 0 * x, 0)
    assert none.count == 1


def test_free_spikes_are_picked_by_seed_and_sample() -> None:
    x = samples_of("spikes")[0]

    def free(text: str, sample: int) -> bytes:
        box = set_named(text).inputs(SPIKES, x, sample)
        assert isinstance(box, Box)
        return box.free.tobytes()

    assert free("box:share=0.3", 1) == free("box:share=0.3,seed=0", 1)
    assert len({free("box:share=0.3", 1), free("box:share=0.3", 2), free("box:share=0.3,seed=1", 1)}) == 3
    assert free("box:share=0", 1) == bytes(48)
    assert free("box:share=1", 1) == bytes([1] * 48)


def test_intensities() -> None:
    x = samples_of("direct")[0]
    real = set_named("linf:eps=0.02").inputs(DIRECT, x, 0)
    assert isinstance(real, LinfReal)
    assert real.eps == 0.02


def test_codes_are_those_that_evaluation_draws() -> None:
    x = samples_of("bernoulli")[7]
    chain = set_named("linf:eps=0.02").inputs(BERNOULLI, x, 7)
    assert isinstance(chain, Chain)
    batch = samples_of("bernoulli")
    draws = bernoulli_draws(5, STEPS, batch.shape, 0)[:, 7]
    assert np.array_equal(chain.draws, draws)
    assert np.array_equal(chain.clean, (draws < x).astype(np.float32))
    ball = set_named("l0:k=1").inputs(BERNOULLI, x, 7)
    assert np.array_equal(ball.clean, chain.clean)


@pytest.mark.parametrize(
    ("text", "subject", "message"),
    [
        ("linf:eps=0.1", SPIKES, "spikes, which have no intensities"),
        ("retime:moved=1", DIRECT, "intensities, which have no steps"),
        ("l0:k=1,per-step", DIRECT, "an input without steps"),
        ("l0:k=49", SPIKES, "the input has only 48 elements"),
        ("l0:k=17,per-step", SPIKES, "a step of the input has only 16 elements"),
        ("retime:moved=49", SPIKES, "the input has only 48 elements"),
    ],
    ids=["linf of spikes", "retimed images", "steps of images", "k", "k a step", "moves"],
)
def test_networks_without_such_sets(text: str, subject: Subject, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        set_named(text).check(subject)


def test_grey_images_do_not_flip() -> None:
    with pytest.raises(CompileError, match="sample 4 has other values than 0 and 1"):
        set_named("l0:k=1").inputs(DIRECT, samples_of("direct")[4], 4)
    binary = np.round(samples_of("direct")[4])
    assert isinstance(set_named("l0:k=1").inputs(DIRECT, binary, 4), L0Ball)
