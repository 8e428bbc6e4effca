"""Printed plans: golden texts, and the bytes that they name."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given

from compiler.fused.order import LoopOrder
from compiler.fused.plan import Plan, Stage
from compiler.fused.stages import plan_stages
from compiler.fused.text import kept_bytes_per_sample, kept_values, plan_text
from compiler.ir import DType, Graph, Loc, Node, Param, Reading
from compiler.ir.ops import AvgPool2d, Conv2d, Flatten, Input, Lif, Linear, MaxPool2d, Op, Readout
from frontends.from_torch import from_torch
from frontends.zoo import build, entry
from tests.golden import Golden
from tests.strategies import RandomNetwork, networks

LOC = Loc("net.py", 1)


def zoo_plan(name: str) -> Plan:
    module = build(name, timesteps=4).eval()
    with torch.no_grad():
        return plan_stages(from_torch(module, torch.rand(entry(name).example_shape(1, 4)), 4, name=name))


def events_plan() -> Plan:
    """Bits, per-channel numbers, every way of pooling, spikes that leave a stage."""
    lif = Lif(decay=0.5, threshold=Param("th"))
    ops: list[tuple[str, Op, str]] = [
        ("first conv", Conv2d(weight=Param("w"), padding=(1, 1)), "x"),
        ("s", lif, "first conv"),
        ("p", MaxPool2d(kernel=(3, 3), stride=(2, 2)), "s"),
        ("r", lif, "p"),
        ("q", AvgPool2d(kernel=(2, 2), stride=(2, 2), ceil_mode=True), "r"),
        ("c", Conv2d(weight=Param("w"), padding=(1, 1)), "q"),
        ("m", MaxPool2d(kernel=(2, 2), stride=(2, 2)), "c"),
        ("t", Lif(decay=0.5, threshold=0.5), "m"),
        ("f", Flatten(), "t"),
        ("fc", Linear(weight=Param("v")), "f"),
        ("out", Readout(kind=Reading.RATE), "f"),
    ]
    first = Node("x", Input(shape=(5, "N", 2, 9, 9), dtype=DType.SPIKE, axes="TNCHW"), (), LOC)
    nodes = (first, *(Node(name, op, (source,), LOC) for name, op, source in ops))
    arrays = {
        "w": np.ones((2, 2, 3, 3), np.float32),
        "v": np.ones((3, 2), np.float32),
        "th": np.array([0.5, 1.0], np.float32),
    }
    return plan_stages(Graph("events", nodes, "out", arrays))


def test_plan_of_a_zoo_network(golden: Golden) -> None:
    golden("plan_digits_conv.txt", plan_text(zoo_plan("digits-conv")))


def test_plan_with_bits_pools_and_loop_orders(golden: Golden) -> None:
    golden("plan_events.txt", plan_text(events_plan(), {"first conv": LoopOrder(), "c": LoopOrder(3)}))


def test_hand_counted_bytes() -> None:
    """x 5 * 162 bits; first conv 5 * 2 * 81 f32; c and m 5 * 2 * 4 and 5 * 2 f32, and 5 * 2 places of 8 bytes."""
    plan = events_plan()
    found = {kept.value: kept for step in plan.steps for kept in kept_values(plan, step) if kept.format != "places"}
    assert {name: (kept.format, kept.bytes_per_sample) for name, kept in found.items()} == {
        "x": ("bits", 102),
        "first conv": ("f32", 3240),
        "c": ("f32", 160),
        "m": ("f32", 40),
    }
    assert kept_bytes_per_sample(plan) == 102 + 3240 + 160 + 40 + 80


@given(networks(residual=True, blocks=(1, 2), late_encode=True))
def test_each_step_has_a_line_and_each_stage_keeps_its_source(network: RandomNetwork) -> None:
    plan = plan_stages(network.graph)
    lines = plan_text(plan).splitlines()
    assert len(lines) == len(plan.steps) + 3
    for line, step in zip(lines[1:-2], plan.steps, strict=True):
        if isinstance(step, Stage):
            (kept,) = kept_values(plan, step)
            assert kept.value == step.source
            assert line.startswith("  stage ")
        assert all(f"%{name}" in line for name in step.outputs)
    whole = {kept for step in plan.steps for kept in kept_values(plan, step)}
    assert lines[-1] == f"}} keeps {sum(kept.bytes_per_sample for kept in whole):,} bytes for each sample"
