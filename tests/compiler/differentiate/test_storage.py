"""Storage policies: same gradients bit for bit, what each keeps, and what KeepCompressed refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.differentiate import (
    BatchStatistics,
    Format,
    KeepAll,
    KeepCompressed,
    Loss,
    differentiate,
    gradient_of,
    kept_bytes,
    run_training,
    work,
)
from compiler.evaluate import evaluate
from compiler.ir import CompileError, Encoding, Graph, Param, Reading, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import AvgPool2d, BatchNorm, Conv2d, Encode, Flatten, Lif, Linear, MaxPool2d, Readout
from tests.compiler.differentiate.small import chain, normal, random_like
from tests.strategies import RandomNetwork, networks

VANISHING = [SurrogateKind.RECTANGLE, SurrogateKind.TRIANGLE]


@st.composite
def with_windows(draw: st.DrawFn) -> RandomNetwork:
    """Networks whose surrogates are zero outside their window."""
    network = draw(
        networks(
            free_neurons=True,
            residual=draw(st.booleans()),
            dyadic=draw(st.booleans()),  # in dyadic networks many membrane potentials lie on a window's edge
            encodings=list(Encoding),
            max_size=9,
            max_channels=6,
            max_timesteps=5,
        )
    )
    nodes = []
    for node in network.graph.nodes:
        op = node.op
        if isinstance(op, Lif):
            kind, offset = draw(st.sampled_from(VANISHING)), draw(st.sampled_from([0.0, 0.125]))
            op = replace(op, surrogate=replace(op.surrogate, kind=kind, offset=offset))
        nodes.append(replace(node, op=op))
    return replace(network, graph=network.graph.with_nodes(tuple(nodes)))


@settings(max_examples=40)
@given(with_windows(), st.sampled_from(BatchStatistics))
def test_both_policies_give_the_same_bits(network: RandomNetwork, statistics: BatchStatistics) -> None:
    """Every gradient of every value, signs of zeros included."""
    graph, x = network.graph, torch.from_numpy(network.example)
    dense = differentiate(graph, None, statistics=statistics)
    seed = {gradient_of(graph.output): random_like(evaluate(graph, x).output)}
    gradients = [name for name in dense.values if name.startswith("d.")]
    want = run_training(dense, x, given=seed, want=gradients)
    got = run_training(KeepCompressed()(dense), x, given=seed, want=gradients)
    for name in gradients:
        assert torch.equal(got.values[name].view(torch.int32), want.values[name].view(torch.int32)), name


def test_the_sign_of_a_zero_does_not_depend_on_the_policy() -> None:
    """m = 3, 1 with the window (0.5, 1.5): dm[1] = -1, dv[0] = -0.5, and dv[0] * (1 - s[0]) = -0.

    ds[0] is -1 - 0.5 * (0 - 3) > 0 where m[0] is kept and -1 where it is not; its term is +0 either way.
    """
    graph = chain(Lif(decay=0.5, threshold=1.0), shape=(2, "N", 1), axes="TNC")
    dense = differentiate(graph, None)
    x, dy = torch.tensor([3.0, 1.0]).reshape(2, 1, 1), torch.full((2, 1, 1), -1.0)
    for training in (dense, KeepCompressed()(dense)):
        dx = run_training(training, x, given={"d.n2": dy}, want=["d.x"]).values["d.x"].flatten()
        assert dx.tolist() == [0.0, -1.0]
        assert not dx[0].signbit()


@pytest.mark.parametrize("kind", VANISHING)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize("reset", Reset)
def test_kept_of_a_neuron(reset: Reset, delay: bool, detach: bool, kind: SurrogateKind) -> None:
    """Membranes for a hard reset that is not detached, or a triangle; spikes for a hard reset; +0 outside."""
    op = Lif(
        decay=0.5, threshold=1.0, reset=reset, reset_delay=delay, detach_reset=detach, surrogate=Surrogate(kind=kind)
    )  # fmt: skip
    graph = chain(op, shape=(5, "N", 3), axes="TNC")
    training = replace(KeepCompressed()(differentiate(graph, None)), outputs=("d.x",))
    want = {"n2.mask": Format.BIT}
    if reset is Reset.HARD:
        want["n2"] = Format.BIT
    if kind is SurrogateKind.TRIANGLE or (reset is Reset.HARD and not detach):
        want["n2.membrane"] = Format.COMPRESSED
    assert {value.name: value.format for value in training.kept} == want
    dense = replace(KeepAll()(training), outputs=("d.x",))
    assert [value.format for value in dense.kept] == [Format.DENSE] * (2 if reset is Reset.HARD else 1)
    x = random_like(torch.empty(5, 2, 3))
    m = run_training(dense, x, given={"d.n2": x}, want=["n2.membrane"]).values["n2.membrane"]
    kept = run_training(training, x, given={"d.n2": x}, want=want).values
    inside = (m > 0.5) & (m < 1.5)
    assert torch.equal(kept["n2.mask"], inside.float())
    if "n2.membrane" in want:
        assert torch.equal(kept["n2.membrane"], torch.where(inside, m, 0.0))


def small_network() -> Graph:
    """(N, 1, 4, 4) -> direct, 3 steps -> conv 1-2 -> hard Lif -> max pool 2x2 -> linear 8-5 -> soft Lif -> rate."""
    return chain(
        Encode(kind=Encoding.DIRECT, timesteps=3),
        Conv2d(weight=Param("w"), padding=(1, 1)),
        Lif(decay=0.5, threshold=1.0),
        MaxPool2d(kernel=(2, 2), stride=(2, 2)),
        Flatten(),
        Linear(weight=Param("m"), bias=Param("b")),
        Lif(decay=0.5, threshold=1.0, reset=Reset.SOFT),
        Readout(kind=Reading.RATE),
        shape=("N", 1, 4, 4),
        axes="NCHW",
        arrays={"w": normal(2, 1, 3, 3), "m": normal(5, 8), "b": normal(5)},
    )


def test_kept_bytes_by_hand() -> None:
    """Batch 2. x: 2 * 16 numbers; n4: 3 * 2 * 2 * 16 = 192 spikes; pool: 48; n8: 3 * 2 * 5 = 30; scores: 10.

    The encoding and the flatten are views of x and of the pool; nothing reads the spikes of n8, a soft reset.
    """
    training = differentiate(small_network(), Loss.MSE)
    assert dict(kept_bytes(training, 2)) == {
        "x": 32 * 4,
        "n4": 192 * 4,
        "n4.membrane": 192 * 4,
        "n5": 48 * 4,
        "n5.winners": 48 * 2 // 8,
        "n8.membrane": 30 * 4,
        "n9": 10 * 4,
    }
    compressed = {
        "x": 32 * 2,
        "n4": 192 // 8,
        "n4.mask": 192 // 8,
        "n4.membrane": 48 * 2,
        "n5": 48 // 8,
        "n5.winners": 48 * 2 // 8,
        "n8.mask": 4,
        "n9": 10 * 2,
    }
    assert dict(kept_bytes(KeepCompressed()(training), 2, number_bits=16, inside={"n4": 0.25})) == compressed
    assert kept_bytes(KeepCompressed()(training), 2)["n4.membrane"] == 192 * 4


def test_kept_is_what_the_outputs_need() -> None:
    """The input gradient alone reads no input of a layer with weights."""
    training = replace(differentiate(small_network(), Loss.MSE), outputs=("d.x",))
    assert [value.name for value in training.kept] == ["n4", "n4.membrane", "n5.winners", "n8.membrane", "n9"]


def test_work_by_hand() -> None:
    """conv: 192 results of 9 weights, linear: 30 results of 8; of the conv no BP, as nothing needs d.x."""
    counts = {item.makes: item.multiply_adds for item in work(differentiate(small_network(), Loss.MSE), 2)}
    assert {name: count for name, count in counts.items() if count} == {
        "n3": 192 * 9,
        "n7": 30 * 8,
        "d.m": 30 * 8,
        "d.n6": 30 * 8,
        "d.w": 192 * 9,
    }


def test_policies_undo_each_other() -> None:
    training = differentiate(small_network(), Loss.MSE)
    assert str(KeepAll()(KeepCompressed()(training))) == str(training)
    assert str(KeepCompressed()(KeepCompressed()(training))) == str(KeepCompressed()(training))


@pytest.mark.parametrize("kind", [kind for kind in SurrogateKind if kind not in VANISHING])
def test_surrogates_with_tails_are_refused(kind: SurrogateKind) -> None:
    op = Lif(decay=0.5, threshold=1.0, surrogate=Surrogate(kind=kind))
    with pytest.raises(CompileError) as fault:
        KeepCompressed()(differentiate(chain(op, shape=(2, "N", 3), axes="TNC"), None))
    assert str(fault.value) == (
        f"net.py:2: error: n2: KeepCompressed: surrogate {kind} is not zero outside its window, "
        "so every membrane potential is needed\n"
        "  hint: use a rectangle or triangle surrogate, or KeepAll"
    )


def test_resets_without_a_proof_are_refused() -> None:
    op = Lif(decay=0.5, threshold=1.0, reset=cast(Reset, "gradual"))
    with pytest.raises(CompileError) as fault:
        KeepCompressed()(differentiate(chain(op, shape=(2, "N", 3), axes="TNC"), None))
    assert str(fault.value) == (
        "net.py:2: error: n2: KeepCompressed: there is no proof that reset gradual needs no membrane potential "
        "outside the window\n  hint: use KeepAll"
    )


def test_batch_norm_and_average_pool_keep_what_they_need() -> None:
    """A batch norm keeps its input and statistics; an average nothing."""
    norm = BatchNorm(weight=Param("g"), bias=Param("b"), mean=Param("b"), var=Param("g"))
    pool = AvgPool2d(kernel=(2, 2), stride=(2, 2))
    arrays = {"g": abs(normal(2)), "b": normal(2)}
    graph = chain(pool, norm, shape=(3, "N", 2, 4, 4), axes="TNCHW", arrays=arrays)
    training = KeepCompressed()(differentiate(graph, None))
    assert [value.name for value in training.kept] == ["n2", "n3.mean", "n3.var"]
    running = differentiate(graph, None, statistics=BatchStatistics.RUNNING)
    assert [value.name for value in running.kept] == ["n2"]
