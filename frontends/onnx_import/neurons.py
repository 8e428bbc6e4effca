"""Functions that spikec wrote, recognised by their attributes and proved by their bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from compiler.ir import Compare, Reset, Surrogate, SurrogateKind
from compiler.ir.ops import Li, Lif
from frontends.nn import LI, LIF, Value
from frontends.onnx_export.neurons import neuron_function, number_fields
from frontends.onnx_export.writer import DOMAIN
from frontends.onnx_import.nodes import shortest
from frontends.onnx_import.values import Site

if TYPE_CHECKING:
    from onnx import FunctionProto


def neuron_module(site: Site, function: FunctionProto) -> nn.Module | None:
    """The neuron that a call means; None where the function is another program's, or has been changed."""
    if function.domain != DOMAIN:
        return None
    op = Li(decay=0.0) if function.name == "Li" else _equation(site)
    if op is None:
        return None
    if neuron_function(op).SerializeToString(deterministic=True) != function.SerializeToString(deterministic=True):
        return None
    names = number_fields(op)
    if len(site) != len(names) + 1 or len(site.node.outputs) != 1:
        raise site.node.fail(f"takes x, {', '.join(names)}")
    numbers = {name: _number(site, index, name) for index, name in enumerate(names, start=1)}
    if isinstance(op, Li):
        return LI(
            decay=numbers["decay"],
            input_scale=numbers["input_scale"],
            leak_bias=numbers["leak_bias"],
            initial=numbers["initial"],
        )
    return LIF(
        decay=numbers["decay"],
        threshold=numbers["threshold"],
        input_scale=numbers["input_scale"],
        leak_bias=numbers["leak_bias"],
        reset_value=numbers.get("reset_value", 0.0),
        initial=numbers["initial"],
        reset=op.reset,
        reset_delay=op.reset_delay,
        compare=op.compare,
        detach_reset=op.detach_reset,
        surrogate=op.surrogate,
    )


def _equation(site: Site) -> Lif | None:
    """The op without its numbers."""
    node = site.node
    try:
        return Lif(
            decay=0.0,
            threshold=0.0,
            reset=Reset(node.text("reset", "")),
            reset_delay=bool(node.integer("reset_delay", 0)),
            compare=Compare(node.text("compare", "")),
            detach_reset=bool(node.integer("detach_reset", 0)),
            surrogate=Surrogate(
                kind=SurrogateKind(node.text("surrogate", "")),
                width=shortest(node.real("surrogate_width", 0.0)),
                scale=shortest(node.real("surrogate_scale", 0.0)),
                offset=shortest(node.real("surrogate_offset", 0.0)),
            ),
        )
    except ValueError:  # a word that none of the enums has
        return None


def _number(site: Site, index: int, name: str) -> Value:
    content = site.content(index, name)
    if content.dtype != torch.float32 or not content.numel():
        raise site.node.fail(f"{name} is {tuple(content.shape)} of {content.dtype}, must be float32 numbers")
    return shortest(content.item()) if content.ndim == 0 else content.reshape(-1)
