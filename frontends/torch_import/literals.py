"""Rules for tensors that a network makes without its input."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx
from torch.fx.node import Argument, map_arg

from frontends.torch_import.call import Call
from frontends.torch_import.network import Network
from frontends.torch_import.operands import Constant


def literal(network: Network, call: Call) -> Constant:
    """zeros, full_like, new_ones and their kin."""
    kind = call.op.split(".")[1]
    value = {"zeros": 0.0, "ones": 1.0}.get(kind.removeprefix("new_").removesuffix("_like"))
    if value is None:
        value = call.real("s" if kind == "scalar_tensor" else "fill_value")
    dtype = call.node.meta["val"].dtype
    return Constant(name=kind, tensor=torch.tensor(value, dtype=dtype).expand(call.shape))


def folded(network: Network, call: Call) -> Constant | None:
    """What an operator makes of constants alone, as a normalised weight; None for every other call."""
    target = call.node.target
    if not isinstance(target, torch._ops.OpOverload) or call.op != str(target) or target.namespace != "aten":
        return None
    if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    tensors: dict[fx.Node, Tensor] = {}
    for node in call.inputs:
        operand = network.held(node)
        if operand is None:
            return None
        tensors[node] = operand.tensor.detach()
    if not tensors:
        return None
    result = target(**map_arg(cast(dict[str, Argument], dict(call.arguments)), tensors.__getitem__))
    if not isinstance(result, Tensor):
        return None
    kind = call.op.split(".")[1]
    return Constant(name=f"{call.path}.{kind}" if call.path else kind, tensor=result)
