"""Planned scratch memory: buffers that live together do not overlap, and a step's buffers are those it needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from compiler.fused.arena import ALIGNMENT_BYTES, Arrangement, Request, arrange, scratch_requests
from compiler.fused.plan import Plan, Stage
from compiler.fused.population import Activation, Population
from compiler.fused.stages import plan_stages
from compiler.ir import DType, Encoding, Graph, Loc, Node, Param
from compiler.ir.ops import Add, AvgPool2d, BatchNorm, Conv2d, Encode, Flatten, Input, Lif, Linear, Op
from tests.strategies import RandomNetwork, networks

LOC = Loc("net.py", 1)
BATCH = 3


@st.composite
def requests(draw: st.DrawFn) -> tuple[Request, ...]:
    spans = st.tuples(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 8))
    drawn = draw(st.lists(spans, max_size=25))
    return tuple(
        Request(("s", "forward", "y", at), size, first, first + length)
        for at, (size, first, length) in enumerate(drawn)
    )


def assert_disjoint(given_requests: tuple[Request, ...], found: Arrangement) -> None:
    """Any two buffers that share a tick, as a grid of ticks and cache lines."""
    assert set(found.places) == {request.key for request in given_requests}
    lines = -(-found.total_bytes // ALIGNMENT_BYTES)
    ticks = max((request.last for request in given_requests), default=0) + 1
    owners = np.zeros((ticks, lines), np.int32)
    for request in given_requests:
        place = found.places[request.key]
        assert place.offset % ALIGNMENT_BYTES == 0
        assert place.size_bytes == request.size_bytes
        end = -(-(place.offset + place.size_bytes) // ALIGNMENT_BYTES)
        assert end <= lines
        owners[request.first : request.last + 1, place.offset // ALIGNMENT_BYTES : end] += 1
    assert owners.max(initial=0) <= 1
    alive = [
        sum(-(-r.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for r in given_requests if r.first <= t <= r.last)
        for t in range(ticks)
    ]
    assert found.lower_bound_bytes == max(alive)
    assert found.total_bytes >= found.lower_bound_bytes


@settings(max_examples=200)
@given(requests())
def test_buffers_that_live_together_are_disjoint(given_requests: tuple[Request, ...]) -> None:
    found = arrange(given_requests)
    assert_disjoint(given_requests, found)
    event(f"ratio to the lower bound {found.ratio:.1f}")


def test_a_gap_is_filled_by_what_fits_it_best() -> None:
    """Two gaps at the end of tick 1: 128 bytes at 64, 64 bytes at 256; the last buffer takes the smaller one."""
    sizes_and_ticks = [(64, 0, 9), (128, 0, 0), (64, 0, 9), (64, 0, 0), (64, 0, 9)]
    wanted = [Request(("s", "forward", "y", at), *rest) for at, rest in enumerate(sizes_and_ticks)]
    late = Request(("s", "forward", "late", 0), 64, 1, 9)
    found = arrange((*wanted, late))
    assert found.total_bytes == found.lower_bound_bytes == 384
    assert found.ratio == 1.0


@settings(max_examples=40)
@given(networks(residual=True, blocks=(1, 2), late_encode=True), st.integers(1, 4))
def test_a_step_of_any_network_is_arranged(network: RandomNetwork, batch: int) -> None:
    wanted = scratch_requests(plan_stages(network.graph), batch)
    found = arrange(wanted)
    event(f"ratio to the lower bound {found.ratio:.2f}")
    for request in wanted:
        for other in wanted:
            if request.key < other.key and request.first <= other.last and other.first <= request.last:
                one, two = found.places[request.key], found.places[other.key]
                apart = one.offset + one.size_bytes <= two.offset or two.offset + two.size_bytes <= one.offset
                assert apart or 0 in (one.size_bytes, two.size_bytes)


@settings(max_examples=40)
@given(networks(residual=True, blocks=(1, 2), late_encode=True))
def test_each_population_writes_its_spikes_twice(network: RandomNetwork) -> None:
    """Forward, and again backward; every buffer grows with the batch or not at all."""
    plan = plan_stages(network.graph)
    found = {request.key: request for request in scratch_requests(plan, BATCH)}
    doubled = {request.key: request for request in scratch_requests(plan, 2 * BATCH)}
    for stage in stages(plan):
        for index, part in enumerate(stage.parts):
            if isinstance(part, Population):
                forward, backward = (found[stage.name, way, "y", index] for way in ("forward", "backward"))
                assert forward.size_bytes == backward.size_bytes > 0
                assert forward.last < backward.first or stage.spikes is not None
    per_sample = {"y", "features", "grad_x", "grad_maps"}
    for key, request in found.items():
        if key[2] == "bits":  # whole bytes
            assert 2 * request.size_bytes - 1 <= doubled[key].size_bytes <= 2 * request.size_bytes
            continue
        assert doubled[key].size_bytes == request.size_bytes * (2 if key[2] in per_sample else 1)


def stages(plan: Plan) -> list[Stage]:
    return [step for step in plan.steps if isinstance(step, Stage)]


def small_net() -> Graph:
    """conv, batch norm, LIF, average pooling, LIF, flatten, linear, LIF on an image of 4 x 4, 2 channels, T = 3."""
    weights = {what: Param(f"bn.{what}") for what in ("weight", "bias", "mean", "var")}
    ops: list[tuple[str, Op, str]] = [
        ("code", Encode(kind=Encoding.DIRECT, timesteps=3), "x"),
        ("c", Conv2d(weight=Param("w"), padding=(1, 1)), "code"),
        ("bn", BatchNorm(**weights), "c"),
        ("s", Lif(decay=0.5, threshold=0.5), "bn"),
        ("p", AvgPool2d(kernel=(2, 2), stride=(2, 2)), "s"),
        ("r", Lif(decay=0.5, threshold=0.5), "p"),
        ("f", Flatten(), "r"),
        ("fc", Linear(weight=Param("v")), "f"),
        ("o", Lif(decay=0.5, threshold=0.5), "fc"),
    ]
    first = Node("x", Input(shape=("N", 2, 4, 4), dtype=DType.F32, axes="NCHW"), (), LOC)
    nodes = (first, *(Node(name, op, (source,), LOC) for name, op, source in ops))
    arrays = {param.name: np.ones(2, np.float32) for param in weights.values()}
    arrays |= {"w": np.ones((2, 2, 3, 3), np.float32), "v": np.ones((5, 8), np.float32)}
    return Graph("small", nodes, "o", arrays)


def test_hand_counted_step() -> None:
    """Batch 3, C = 2. Pooled spikes: 3 * 3 * 2 * 2 * 2 * 4 bytes; the repeated input has no T: 3 * 2 * 4 * 4 * 4.

    Ticks: x 0, c 1, stage of fc (two parts) 2 to 5, stage of o (one part) 6 to 8; backward o 9 to 11, fc 12 to 15,
    c 16, x 17, end 18.
    """
    plan = plan_stages(small_net())
    assert [step.outputs for step in plan.steps] == [("x",), ("c",), ("fc",), ("o",)]
    pooled, image, scores = 288, 384, 3 * 3 * 5 * 4
    wanted = {
        ("fc", "forward", "table", 0): (5 * 2 * 4, 2, 5),
        ("fc", "forward", "reciprocal", 0): (2 * 8, 2, 5),
        ("fc", "forward", "sums", 0): (64 * 2 * 2 * 8, 2, 5),
        ("fc", "forward", "moments", 0): (3 * 2 * 8, 2, 15),
        ("fc", "backward", "table", 0): (5 * 2 * 4, 12, 15),
        ("fc", "backward", "reciprocal", 0): (2 * 8, 12, 15),
        ("fc", "backward", "sums", 0): (64 * 2 * 2 * 8, 12, 15),
        ("fc", "backward", "totals", 0): (2 * 2 * 8, 12, 15),
        ("fc", "forward", "y", 0): (pooled, 2, 5),
        ("fc", "forward", "y", 1): (pooled, 3, 5),
        ("fc", "forward", "features", 2): (pooled, 5, 5),
        ("fc", "backward", "y", 0): (pooled, 12, 15),
        ("fc", "backward", "y", 1): (pooled, 12, 15),
        ("fc", "backward", "features", 2): (pooled, 12, 15),
        ("fc", "backward", "grad_maps", 2): (pooled, 12, 14),
        ("fc", "backward", "grad_x", 0): (image, 14, 16),
        ("o", "forward", "y", 0): (scores, 6, 11),
        ("o", "backward", "y", 0): (scores, 9, 11),
    }
    found = {r.key: (r.size_bytes, r.first, r.last) for r in scratch_requests(plan, BATCH)}
    assert found == wanted


def test_half_the_bytes_in_bfloat16() -> None:
    plan = plan_stages(small_net())
    wide = {request.key: request.size_bytes for request in scratch_requests(plan, BATCH)}
    for request in scratch_requests(plan, BATCH, Activation.BF16):
        is_data = request.key[2] in ("y", "features", "grad_x", "grad_maps")
        assert request.size_bytes == wide[request.key] // (2 if is_data else 1)


def test_a_gradient_that_sums_hand_on_lives_until_they_have() -> None:
    """The pooled stage's input is a sum, whose backward pass gives the same memory to both convolutions."""
    pool, lif = AvgPool2d(kernel=(2, 2), stride=(2, 2)), Lif(decay=0.5, threshold=0.5)
    conv = Conv2d(weight=Param("w"), padding=(1, 1))
    nodes = (
        Node("x", Input(shape=(3, "N", 2, 4, 4), dtype=DType.F32, axes="TNCHW"), (), LOC),
        Node("c", conv, ("x",), LOC),
        Node("d", conv, ("x",), LOC),
        Node("a", Add(), ("c", "d"), LOC),
        Node("s", lif, ("a",), LOC),
        Node("p", pool, ("s",), LOC),
    )
    plan = plan_stages(Graph("sum", nodes, "p", {"w": np.ones((2, 2, 3, 3), np.float32)}))
    found = {request.key: request for request in scratch_requests(plan, BATCH)}
    # Forward x 0, c 1, d 2, a 3, stage 4 to 6; backward stage 7 to 9, a 10, d 11, c 12, x 13.
    grad_x = found["p", "backward", "grad_x", 0]
    assert (grad_x.first, grad_x.last) == (8, 12)
    direct = replace(plan.graph.node("s"), inputs=("x",))
    short = plan_stages(plan.graph.with_nodes((plan.graph.node("x"), direct, plan.graph.node("p"))))
    # Forward x 0, stage 1 to 3; backward stage 4 to 6, x 7; the caller may keep the gradient of the input.
    assert [r.last for r in scratch_requests(short, BATCH) if r.key[2] == "grad_x"] == [8]


def test_a_packed_stage_unpacks_its_input() -> None:
    nodes = (
        Node("x", Input(shape=(3, "N", 2, 4, 4), dtype=DType.SPIKE, axes="TNCHW"), (), LOC),
        Node("c", Conv2d(weight=Param("w")), ("x",), LOC),
    )
    plan = plan_stages(Graph("code", nodes, "c", {"w": np.ones((2, 2, 3, 3), np.float32)}))
    bits, spikes = scratch_requests(plan, BATCH)
    values = 3 * BATCH * 2 * 16
    assert bits == Request(("c", "forward", "bits", 0), -(-values // 8), 1, 4)
    assert spikes == Request(("c", "backward", "y", 0), values * 4, 3, 4)


@pytest.mark.parametrize("batch", [1, 5])
def test_no_stage_needs_no_memory(batch: int) -> None:
    node = Node("x", Input(shape=("N", 2), dtype=DType.F32, axes="NC"), (), LOC)
    found = arrange(scratch_requests(plan_stages(Graph("empty", (node,), "x")), batch))
    assert (found.total_bytes, found.ratio) == (0, 1.0)
