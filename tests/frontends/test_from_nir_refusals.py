"""What NIR files say that no graph expresses, each with the node and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from compiler.ir import CompileError, Reset
from frontends.from_nir import Choices, Writer, from_nir_node
from frontends.nir_file.nodes import NirNode
from tests.golden import Golden

ONES = np.ones((2, 2, 3, 3), np.float32)
LIF: Mapping[str, float] = {"tau": 2e-4, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
IF: Mapping[str, float] = {"r": 1e4, "v_threshold": 1.0, "v_reset": 0.0}


def chain(*nodes: NirNode, shape: tuple[int, ...] = (2, 5, 5), output: tuple[int, ...] = ()) -> NirNode:
    """A graph whose nodes n0, n1, ... stand one after another."""
    named = {f"n{i}": node for i, node in enumerate(nodes)}
    names = ["input", *named, "output"]
    ends = {
        "input": NirNode(kind="Input", fields={"shape": np.array(shape)}),
        "output": NirNode(kind="Output", fields={"shape": np.array(output)} if output else {}),
    }
    return NirNode(kind="NIRGraph", nodes={**ends, **named}, edges=tuple(pairwise(names)))


def node(kind: str, fields: Mapping[str, Any] | None = None, /, **changed: Any) -> NirNode:
    values = {**(fields or {}), **changed}
    return NirNode(
        kind=kind, fields={k: v if isinstance(v, str) else np.asarray(v) for k, v in values.items() if v is not None}
    )


def conv(**changed: Any) -> NirNode:
    whole = {"weight": ONES, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": np.zeros(2, np.float32)}
    return node("Conv2d", whole, **changed)


def edges(root: NirNode, *more: tuple[str, str], without: tuple[tuple[str, str], ...] = ()) -> NirNode:
    kept = tuple(edge for edge in root.edges if edge not in without)
    return replace(root, edges=kept + more)


SPREAD = np.broadcast_to(np.arange(1.0, 6.0), (2, 5, 5))
TWO = chain(node("LIF", LIF), conv())
SUB = NirNode(kind="NIRGraph", nodes={"a": node("LIF", LIF)}, edges=())
CASES: dict[str, tuple[NirNode, Choices]] = {
    "CubaLIF": (chain(node("CubaLIF", LIF)), Choices()),
    "Delay": (chain(node("Delay", delay=1.0)), Choices()),
    "an unknown kind": (chain(node("Izhikevich")), Choices()),
    "recurrence": (edges(TWO, ("n1", "n0")), Choices()),
    "itself": (edges(TWO, ("n0", "n0")), Choices()),
    "edge to nowhere": (edges(TWO, ("n1", "n9")), Choices()),
    "edge twice": (edges(TWO, ("n0", "n1")), Choices()),
    "fed by nothing": (edges(TWO, ("input", "n1"), without=(("input", "n0"),)), Choices()),
    "read by nothing": (edges(TWO, ("n0", "output"), without=(("n1", "output"),)), Choices()),
    "two outputs": (
        replace(edges(TWO, ("n0", "more")), nodes={**TWO.nodes, "more": node("Output")}),
        Choices(),
    ),
    "subgraph without input": (chain(SUB), Choices()),
    "dilation": (chain(conv(dilation=np.array([1, 2]))), Choices()),
    "same with stride": (chain(conv(padding="same", stride=2)), Choices()),
    "same of an even kernel": (chain(conv(padding="same", weight=ONES[:, :, :2])), Choices()),
    "padding in words": (chain(conv(padding="reflect")), Choices()),
    "half a stride": (chain(conv(stride=1.5)), Choices()),
    "other extents": (chain(conv(input_shape=np.array([6, 6]))), Choices()),
    "maps of lines": (chain(conv(), shape=(2, 5)), Choices()),
    "a pool of features": (chain(node("AvgPool2d", kernel_size=1, stride=1, padding=0), shape=(2,)), Choices()),
    "channels": (chain(conv(weight=ONES[:, :1])), Choices()),
    "NaN weight": (chain(conv(weight=ONES * np.nan)), Choices()),
    "no weight": (chain(conv(weight=None)), Choices()),
    "weight in words": (chain(conv(weight="ones")), Choices()),
    "features of maps": (chain(node("Linear", weight=np.ones((3, 50), np.float32))), Choices()),
    "part flattened": (chain(node("Flatten", start_dim=0, end_dim=1)), Choices()),
    "output shape": (chain(conv(), output=(2, 4, 4)), Choices()),
    "no input shape": (chain(node("LIF", LIF), shape=()), Choices()),
    "rows of a pool": (chain(node("AvgPool2d", kernel_size=np.array([6, 1]), stride=1, padding=0)), Choices()),
    "per neuron": (chain(node("LIF", LIF, v_threshold=SPREAD)), Choices()),
    "other neurons": (chain(node("LIF", LIF, tau=np.array([1e-3, 2e-3, 3e-3]))), Choices()),
    "NaN tau": (chain(node("LIF", LIF, tau=np.nan)), Choices()),
    "infinite threshold": (chain(node("LIF", LIF, v_threshold=np.inf)), Choices()),
    "no threshold": (chain(node("LIF", LIF, v_threshold=None)), Choices()),
    "tau below dt": (chain(node("LIF", LIF)), Choices(dt=1e-3)),
    "negative tau": (chain(node("LIF", LIF, tau=-2e-4)), Choices()),
    "tau 0": (chain(node("LIF", LIF, tau=0.0)), Choices()),
    "r of SpikingJelly": (chain(node("LIF", LIF, r=3.0)), Choices(writer=Writer.SPIKINGJELLY)),
    "r of snnTorch": (chain(node("LIF", LIF)), Choices(writer=Writer.SNNTORCH)),
    "r of norse": (chain(node("LIF", LIF, r=2.0, tau=1e-5)), Choices(writer=Writer.NORSE)),
    "r of an IF": (chain(node("IF", IF, r=1.0)), Choices(writer=Writer.SPIKINGJELLY)),
    "infinite r": (chain(node("IF", IF, r=np.inf)), Choices(writer=Writer.OTHER)),
    "dt 0": (chain(node("LIF", LIF)), Choices(dt=0.0)),
    "soft without delay": (chain(node("IF", IF)), Choices(writer=Writer.SNNTORCH, reset=Reset.SOFT, reset_delay=False)),
    "unknown reset": (
        chain(replace(node("LIF", LIF), metadata={"reset": "sideways"})),
        Choices(),
    ),
}


def test_what_no_graph_expresses(golden: Golden) -> None:
    lines = []
    for name, (root, choices) in CASES.items():
        with pytest.raises(CompileError) as fault:
            from_nir_node(root, "net.nir", choices=choices)
        lines.append(f"{name}:\n{fault.value}\n")
    golden("from_nir_refusals.txt", "\n".join(lines))


@pytest.mark.parametrize("timesteps", [0, -1, 1 << 40])
def test_numbers_of_steps(timesteps: int) -> None:
    with pytest.raises(CompileError, match="timesteps is"):
        from_nir_node(chain(node("LIF", LIF)), "net.nir", timesteps=timesteps)


@pytest.mark.parametrize("shape", [(), (0,), (1, 2, 3, 4), (-1, 3, 3)])
def test_input_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(CompileError, match="the input shape is"):
        from_nir_node(chain(node("LIF", LIF)), "net.nir", input_shape=shape)
