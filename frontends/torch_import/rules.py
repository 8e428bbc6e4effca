"""One rule for each operator that PyTorch exports: what it is in the graph, or why it is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import fx

from compiler.ir.ops import Add, Flatten, Scale
from frontends.torch_import.adapters import Expects
from frontends.torch_import.axes import Lead, Value
from frontends.torch_import.call import Call
from frontends.torch_import.layers import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    batch_norm,
    conv,
    conv_with_named_padding,
    linear,
    max_pool,
)
from frontends.torch_import.literals import folded, literal
from frontends.torch_import.network import Network
from frontends.torch_import.operands import Constant, Operand, Part, Several, StepSum
from frontends.torch_import.sequences import (
    concatenate,
    cut,
    encode,
    expand,
    maximum,
    mean,
    permute,
    repeat,
    rows,
    select,
    stack,
    steps,
    total,
    transpose,
    unsqueeze,
)
from frontends.torch_import.steps import neuron_step, recurrence
from frontends.torch_import.trace import RECURRENCE

_GIVE: Mapping[Expects, str] = MappingProxyType(
    {
        Expects.SEPARATE: "separate with x.unflatten(0, (T, -1)), or, for spikec's own neurons, set timesteps=T",
        Expects.MERGED: "set timesteps=None, or merge with x.flatten(0, 1)",
        Expects.SAMPLES_FIRST: "give a sequence (N, T, ...), or exchange axes with x.transpose(0, 1)",
        Expects.SAMPLES_MERGED: "give a sequence (N * T, ...), or x.transpose(0, 1).flatten(0, 1)",
    }
)
BIAS = "put it into the bias of a convolution or linear layer"
Rule = Callable[[Network, Call], Operand]


def translate(network: Network, call: Call) -> Operand:
    """The value of one call.

    Raises: CompileError naming the operator, its module and the user's line.
    """
    rule = RULES.get(call.op)
    constant = None if rule in _OF_CONSTANTS else folded(network, call)
    if constant is not None:
        return constant
    if rule is None:
        raise call.fail("not an operator of spiking networks", _reason(call))
    result = rule(network, call)
    dtype = getattr(call.node.meta.get("val"), "dtype", None)
    if dtype in (torch.float64, torch.float16, torch.bfloat16):
        raise call.fail(f"computes in {dtype}", "networks are imported in torch.float32")
    return result


def _reason(call: Call) -> str:
    kind = call.op.split(".")[1] if "." in call.op else call.op
    if isinstance(call.node.target, torch._ops.OpOverload) and call.node.target.namespace != "aten":
        return "a neuron of a framework is recognised where it is a submodule: lists of modules are nn.ModuleList"
    return REASONS.get(kind, "")


def identity(network: Network, call: Call) -> Operand:
    """What hands its argument on in evaluation mode."""
    return network.operand(call, "input" if "input" in call.arguments else "self")


def cast(network: Network, call: Call) -> Operand:
    """A conversion that converts nothing, or a constant."""
    dtype = call.node.meta["val"].dtype
    if dtype != torch.float32:
        raise call.fail(f"converts to {dtype}", "networks are imported in torch.float32")
    operand = identity(network, call)
    return Constant(name=operand.name, tensor=operand.tensor.float()) if isinstance(operand, Constant) else operand


def dropout(network: Network, call: Call) -> Operand:
    """Identity, unless the user's code keeps it active."""
    if call.flag("train"):
        raise call.fail("dropout is active in evaluation mode", "F.dropout(x, training=self.training)")
    if call.real("p") > 0.0:
        network.dropouts.append((call.path or str(call.where), call.real("p")))
    return identity(network, call)


def neuron(network: Network, call: Call) -> Operand:
    """A Lif or Li node."""
    x = network.value(call, "x")
    module = network.neuron(call)
    if x.lead in (Lead.IMAGE, Lead.UNSQUEEZED):
        raise call.fail(
            f"the neuron gets a value without a time axis, {x}",
            "repeat the image over time: x.unsqueeze(0).repeat(T, 1, 1, 1, 1)",
        )
    if x.lead.name != module.expects.name:
        raise call.fail(f"the neuron takes time from {module.expects.value}, it gets {x}", _GIVE[module.expects])
    return x.of(network.populate(call, module, x))


def reshape(network: Network, call: Call) -> Operand:
    """Flatten, or only another grouping of time and batch."""
    x = network.tensor(call)
    if isinstance(x, Constant):
        return Constant(name=x.name, tensor=x.tensor.reshape(call.shape))
    result = x.reshaped(call.shape, network.layout.extents)
    if result is None:
        raise call.fail(
            f"reshapes {x} to {call.shape}",
            "only T and N may be merged or split, and C, H, W flattened",
        )
    if len(result.extents) > 1 or result.extents == x.extents:
        return result
    return result.of(network.emit(call, Flatten(), x))


def add(network: Network, call: Call) -> Operand:
    """The sum of two activations, or of steps of one sequence; adding zero changes nothing."""
    if isinstance(call.arguments["other"], int | float):
        if call.arguments["other"] == 0:
            return identity(network, call)
        raise call.fail("adds a constant", BIAS)
    if call.arguments["alpha"] != 1:
        raise call.fail(f"alpha is {call.arguments['alpha']}, must be 1")
    left, right = network.operand(call, "self"), network.operand(call, "other")
    if isinstance(left, Constant) or isinstance(right, Constant):
        return _with_zeros(network, call, left, right)
    summed = _step_sum(left, right)
    if summed is not None:
        return summed
    return _added(network, call, network.as_value(call, left, "self"), network.as_value(call, right, "other"))


def _with_zeros(network: Network, call: Call, left: Operand, right: Operand) -> Operand:
    """A sum whose accumulator starts from zeros."""
    constant, other = (left, right) if isinstance(left, Constant) else (right, left)
    if isinstance(constant, Constant) and not isinstance(other, Constant) and constant.is_everywhere(0.0):
        shape = other.sequence.step(0).shape(network.layout.extents) if isinstance(other, StepSum) else None
        if call.shape == (shape or network.as_value(call, other, "other").shape(network.layout.extents)):
            return other
    raise call.fail("adds a constant", BIAS)


def _step_sum(left: Operand, right: Operand) -> StepSum | None:
    """The sum of two different steps of one sequence, or of more; else None."""
    parts = []
    for operand in (left, right):
        if isinstance(operand, StepSum):
            parts.append(operand)
        elif isinstance(operand, Value) and operand.lead is Lead.STEP and operand.at is not None:
            parts.append(StepSum(sequence=operand.sequence(), steps=frozenset({operand.at})))
        else:
            return None
    first, second = parts
    if first.sequence != second.sequence or first.steps & second.steps:
        return None
    return StepSum(sequence=first.sequence, steps=first.steps | second.steps)


def _added(network: Network, call: Call, left: Value, right: Value) -> Value:
    if {left.lead, right.lead} == {Lead.IMAGE, Lead.STEP}:
        left, right = _at_one_step(network, call, left, right)
    if left.lead is right.lead and left.at != right.at:
        raise call.fail(
            f"adds step {left.at} of {left.name} and step {right.at} of {right.name}",
            "recurrent connections and delays are not expressed",
        )
    if (left.lead, left.extents) != (right.lead, right.extents):
        raise call.fail(f"adds {left} and {right}: shapes differ")
    return left.of(network.emit(call, Add(), left, right))


def _at_one_step(network: Network, call: Call, left: Value, right: Value) -> tuple[Value, Value]:
    """An image that is added at each step comes again at each."""
    if left.lead is Lead.IMAGE:
        return encode(network, call.outside(), left, Lead.STEP).step(right.at), right
    return left, encode(network, call.outside(), right, Lead.STEP).step(left.at)


def power(network: Network, call: Call) -> Operand:
    """The first power."""
    if call.arguments["exponent"] != 1:
        raise call.fail(f"raises to the power {call.arguments['exponent']}", "only 1, as in a pooling by sums")
    return identity(network, call)


def part(network: Network, call: Call) -> Operand:
    """The sign or the magnitude of a value."""
    kind = {"sign": "sign", "abs": "magnitude"}[call.op.split(".")[1]]
    return Part(kind=kind, value=network.value(call, "self"))


def relu(network: Network, call: Call) -> Operand:
    """Of a magnitude the same; else no operator of spiking networks."""
    operand = network.operand(call, "self")
    if isinstance(operand, Part) and operand.kind == "magnitude":
        return operand
    raise call.fail(
        "not an operator of spiking networks", "spiking networks use a neuron module here, as spikec.nn.LIF"
    )


def multiply(network: Network, call: Call) -> Operand:
    """An activation times a number, or times one number per channel; a sign times its magnitude."""
    factors = (call.arguments["self"], call.arguments["other"])
    held = [network.operands.get(factor) for factor in factors if isinstance(factor, fx.Node)]
    parts = [operand for operand in held if isinstance(operand, Part)]
    if sorted(half.kind for half in parts) == ["magnitude", "sign"] and parts[0].value == parts[1].value:
        return parts[0].value
    numbers = [factor for factor in factors if isinstance(factor, int | float)]
    if numbers:
        return scaled(network, call, network.value(call), float(numbers[0]))
    operands = [network.tensor(call, name) for name in ("self", "other")]
    constants = [operand for operand in operands if isinstance(operand, Constant)]
    values = [operand for operand in operands if isinstance(operand, Value)]
    if len(values) != 1:
        raise call.fail("multiplies two activations", "only a constant factor can be expressed")
    (x,), (factor,) = values, constants
    if factor.tensor.numel() == 1 and call.shape == x.shape(network.layout.extents):
        return scaled(network, call, x, factor.tensor.item())
    per_channel = (x.extents[0], *(1 for _ in x.extents[1:]))
    leading = factor.tensor.shape[: -len(per_channel)]
    if tuple(factor.tensor.shape[-len(per_channel) :]) != per_channel or any(size != 1 for size in leading):
        raise call.fail(
            f"multiplies {x} by {factor.name} of shape {tuple(factor.tensor.shape)}",
            "a factor is one number, or one per channel",
        )
    numbers_per_channel = factor.tensor.reshape(-1)
    if not numbers_per_channel.is_floating_point():
        numbers_per_channel = numbers_per_channel.to(torch.float32)  # as the product of both has it
    param = network.parameter(call, factor.name, numbers_per_channel)
    return x.of(network.emit(call, Scale(factor=param), x))


def divide(network: Network, call: Call) -> Operand:
    """An activation divided by a power of two, or the sum over time divided by T."""
    divisor = call.real("other")
    summed = network.operand(call, "self")
    if isinstance(summed, StepSum) and divisor == network.layout.extents.timesteps:
        return network.average(call, summed)
    if abs(math.frexp(divisor)[0]) != 0.5:
        raise call.fail(
            f"divides by {divisor:g}, whose reciprocal is not exact",
            f"multiply by {1 / divisor if divisor else 0:.9g}",
        )
    return scaled(network, call, network.value(call), 1.0 / divisor)


def scaled(network: Network, call: Call, x: Value, factor: float) -> Value:
    """factor * x."""
    return x.of(network.emit(call, Scale(factor=factor), x))


def item(network: Network, call: Call) -> Operand:
    """One of several results; of a maximum the values, its indices have no place in a graph."""
    operand, index = network.operand(call, "0"), call.integer("1")
    if isinstance(operand, Several):
        return operand.items[index]
    if index != 0:
        raise call.fail(f"takes result {index} of {call.arguments['0']}", "only values are kept")
    return operand


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "spikec.neuron.default": neuron,
        "spikec.neuron_step.default": neuron_step,
        RECURRENCE: recurrence,
        "getitem": item,
        "aten.zeros.default": literal,
        "aten.ones.default": literal,
        "aten.full.default": literal,
        "aten.scalar_tensor.default": literal,
        "aten.new_zeros.default": literal,
        "aten.new_ones.default": literal,
        "aten.new_full.default": literal,
        "aten.zeros_like.default": literal,
        "aten.ones_like.default": literal,
        "aten.full_like.default": literal,
        "aten.alias.default": identity,
        "aten.clone.default": identity,
        "aten.contiguous.default": identity,
        "aten.detach.default": identity,
        "aten.detach_.default": identity,
        "aten.lift_fresh_copy.default": identity,
        "aten.to.dtype": cast,
        "aten.to.dtype_layout": cast,
        "aten.to.device": cast,
        "aten.to.other": cast,
        "aten.type_as.default": cast,
        "aten.dropout.default": dropout,
        "aten.dropout_.default": dropout,
        "aten.feature_dropout.default": dropout,
        "aten.feature_dropout_.default": dropout,
        "aten.conv1d.default": conv,
        "aten.conv2d.default": conv,
        "aten.conv1d.padding": conv_with_named_padding,
        "aten.conv2d.padding": conv_with_named_padding,
        "aten.linear.default": linear,
        "aten.batch_norm.default": batch_norm,
        "aten.avg_pool1d.default": avg_pool,
        "aten.avg_pool2d.default": avg_pool,
        "aten.max_pool1d.default": max_pool,
        "aten.max_pool2d.default": max_pool,
        "aten.adaptive_avg_pool1d.default": adaptive_avg_pool,
        "aten.adaptive_avg_pool2d.default": adaptive_avg_pool,
        "aten.adaptive_max_pool1d.default": adaptive_max_pool,
        "aten.adaptive_max_pool2d.default": adaptive_max_pool,
        "aten.flatten.using_ints": reshape,
        "aten.unflatten.int": reshape,
        "aten.view.default": reshape,
        "aten.reshape.default": reshape,
        "aten.unsqueeze.default": unsqueeze,
        "aten.repeat.default": repeat,
        "aten.expand.default": expand,
        "aten.squeeze.default": reshape,
        "aten.squeeze.dim": reshape,
        "aten.squeeze.dims": reshape,
        "aten.stack.default": stack,
        "aten.cat.default": concatenate,
        "aten.unbind.int": steps,
        "aten.split.Tensor": rows,
        "aten.chunk.default": rows,
        "aten.slice.Tensor": cut,
        "aten.transpose.int": transpose,
        "aten.swapaxes.default": transpose,
        "aten.swapdims.default": transpose,
        "aten.permute.default": permute,
        "aten.mean.dim": mean,
        "aten.sum.dim_IntList": total,
        "aten.amax.default": maximum,
        "aten.max.dim": maximum,
        "aten.select.int": select,
        "aten.pow.Tensor_Scalar": power,
        "aten.sign.default": part,
        "aten.abs.default": part,
        "aten.relu.default": relu,
        "aten.add.Tensor": add,
        "aten.add_.Tensor": add,
        "aten.mul.Tensor": multiply,
        "aten.mul_.Tensor": multiply,
        "aten.div.Tensor": divide,
        "aten.div_.Tensor": divide,
    }
)

_RANDOM = "draw spikes outside the network, and give it their sequence (T, N, ...)"

# These keep a constant's name, and layers of constants are recurrent connections at their start.
_OF_CONSTANTS = (identity, cast, reshape, unsqueeze, expand, linear, conv, conv_with_named_padding)

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "pad": "padding inside a convolution with padding_mode='zeros' is expressed",
        "neuron_state": "the state after the last step has no place in a graph: use the spikes",
        "bernoulli": _RANDOM,
        "rand": _RANDOM,
        "rand_like": _RANDOM,
        "sum": "of time, use the mean: x.mean(0)",
        "wrap_with_set_grad_enabled": "leave torch.enable_grad() to the caller of the network",
        "wrap_with_autocast": "networks are imported in torch.float32: leave torch.autocast to the network's caller",
        "repeat_interleave": "it gives a batch-major sequence; use x.unsqueeze(0).repeat(T, 1, 1, 1, 1)",
        "ge": "a spike is a comparison in a loop over time, once a step; over whole sequences use spikec.nn.LIF",
        "gt": "a spike is a comparison in a loop over time, once a step; over whole sequences use spikec.nn.LIF",
    }
)
