"""One rule for each operator that PyTorch exports: what it is in the graph, or why it is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from compiler.ir import Encoding, Reading
from compiler.ir.ops import Add, Encode, Flatten, Readout, Scale
from frontends.torch_import.adapters import Expects
from frontends.torch_import.axes import Lead, Value
from frontends.torch_import.layers import (
    adaptive_avg_pool,
    avg_pool,
    batch_norm,
    conv,
    conv_with_named_padding,
    linear,
    max_pool,
    mean_over_space,
)
from frontends.torch_import.network import Constant, Network, Operand
from frontends.torch_import.trace import Call

BIAS = "put it into the bias of a convolution or linear layer"
Rule = Callable[[Network, Call], Operand]


def translate(network: Network, call: Call) -> Operand:
    """The value of one call.

    Raises: CompileError naming the operator, its module and the user's line.
    """
    rule = RULES.get(call.op)
    if rule is None:
        raise call.fail("not an operator of spiking networks", REASONS.get(call.op.split(".")[1], ""))
    return rule(network, call)


def identity(network: Network, call: Call) -> Operand:
    """What hands its argument on in evaluation mode."""
    return network.operand(call, "input" if "input" in call.arguments else "self")


def cast(network: Network, call: Call) -> Operand:
    """A conversion that converts nothing."""
    dtype = call.arguments.get("dtype")
    if dtype not in (None, torch.float32):
        raise call.fail(f"converts to {dtype}", "networks are imported in torch.float32")
    return identity(network, call)


def dropout(network: Network, call: Call) -> Operand:
    """Identity, unless the user's code keeps it active."""
    if call.flag("train"):
        raise call.fail("dropout is active in evaluation mode", "F.dropout(x, training=self.training)")
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
        merged = module.expects is Expects.MERGED
        raise call.fail(
            f"the neuron takes time from {module.expects.value}, it gets {x}",
            "set timesteps=None, or merge with x.flatten(0, 1)"
            if merged
            else "separate with x.unflatten(0, (T, -1)), or, for spikec's own neurons, set timesteps=T",
        )
    for name, tensor in module.arrays:
        network.parameter(call, name, tensor)
    return Value(name=network.emit(call, module.op, x), lead=x.lead, extents=x.extents)


def reshape(network: Network, call: Call) -> Operand:
    """Flatten, or only another grouping of time and batch."""
    x = identity(network, call)
    if isinstance(x, Constant):
        return Constant(name=x.name, tensor=x.tensor.reshape(call.shape))
    result = x.reshaped(call.shape, network.layout.extents)
    if result is None:
        raise call.fail(
            f"reshapes {x} to {call.shape}",
            "only T and N may be merged or split, and C, H, W flattened",
        )
    if result.extents == x.extents:
        return result
    return Value(name=network.emit(call, Flatten(), x), lead=result.lead, extents=result.extents)


def unsqueeze(network: Network, call: Call) -> Operand:
    """A new first axis of an image becomes time."""
    x = network.operand(call, "self")
    if isinstance(x, Constant):
        return Constant(name=x.name, tensor=x.tensor.unsqueeze(call.integer("dim")))
    if x.lead is not Lead.IMAGE or call.integer("dim") not in (0, -1 - x.ndim):
        raise call.fail(f"adds an axis to {x}", "only a first axis, for time, may be added to an image")
    if network.layout.extents.timesteps == 1:
        return encode(network, call, x, Lead.SEPARATE)
    return x.leads(Lead.UNSQUEEZED)


def repeat(network: Network, call: Call) -> Operand:
    """An image repeated over time."""
    x = network.value(call)
    extents = network.layout.extents
    repeats = call.integers("repeats")
    if all(count == 1 for count in repeats) and len(repeats) == x.ndim:
        return x
    over_time = (extents.timesteps, *(1 for _ in repeats[1:]))
    if repeats == over_time and x.lead in (Lead.IMAGE, Lead.UNSQUEEZED):
        added = len(repeats) - len(x.extents) - 1
        if added == 1:
            return encode(network, call, x, Lead.SEPARATE)
        if added == 0 and x.lead is Lead.IMAGE:
            return encode(network, call, x, Lead.MERGED)
    raise call.fail(f"repeats {x} by {repeats}", f"only an image, T = {extents.timesteps} times along axis 0")


def expand(network: Network, call: Call) -> Operand:
    """An image expanded over time."""
    x = network.value(call)
    extents = network.layout.extents
    if call.shape == (*extents.lead(x.lead), *x.extents):
        return x
    if x.lead in (Lead.IMAGE, Lead.UNSQUEEZED) and call.shape == (*extents.lead(Lead.SEPARATE), *x.extents):
        return encode(network, call, x, Lead.SEPARATE)
    raise call.fail(f"expands {x} to {call.shape}", f"only an image, over T = {extents.timesteps} steps")


def stack(network: Network, call: Call) -> Operand:
    """One image, stacked T times."""
    tensors = call.arguments["tensors"]
    timesteps = network.layout.extents.timesteps
    assert isinstance(tensors, list | tuple)
    first = network.operands.get(tensors[0])
    repeated = len(tensors) == timesteps and all(tensor is tensors[0] for tensor in tensors)
    if not isinstance(first, Value) or first.lead is not Lead.IMAGE or not repeated or call.integer("dim") != 0:
        raise call.fail(
            f"stacks {len(tensors)} values",
            f"only one image, T = {timesteps} times; a loop over time must stand inside a neuron module",
        )
    return encode(network, call, first, Lead.SEPARATE)


def encode(network: Network, call: Call, image: Value, lead: Lead) -> Value:
    """The image at every time step."""
    op = Encode(kind=Encoding.DIRECT, timesteps=network.layout.extents.timesteps)
    return Value(name=network.emit(call, op, image), lead=lead, extents=image.extents)


def mean(network: Network, call: Call) -> Operand:
    """Over time a readout, over rows and columns a pooling."""
    x = network.value(call)
    axes = () if call.arguments["dim"] is None else call.integers("dim")
    dims = tuple(sorted(dim % x.ndim for dim in axes))
    if dims == (x.ndim - 2, x.ndim - 1) and len(x.extents) == 3:
        return mean_over_space(network, call, x)
    return readout(network, call, x, dims, Reading.RATE)


def maximum(network: Network, call: Call) -> Operand:
    """The maximum over time."""
    x = network.value(call)
    return readout(network, call, x, tuple(dim % x.ndim for dim in call.integers("dim")), Reading.MAX)


def select(network: Network, call: Call) -> Operand:
    """The last time step."""
    x = network.value(call)
    dim, index = call.integer("dim") % x.ndim, call.integer("index")
    if index not in (-1, network.layout.extents.timesteps - 1):
        raise call.fail(f"selects index {index} of axis {dim}", "only the last time step may be selected")
    return readout(network, call, x, (dim,), Reading.LAST)


def readout(network: Network, call: Call, x: Value, dims: tuple[int, ...], kind: Reading) -> Value:
    """One value from the sequence."""
    if x.lead is not Lead.SEPARATE or dims != (0,):
        raise call.fail(
            f"reduces axes {dims} of {x}",
            "only time may be reduced, as axis 0 of (T, N, ...): x.unflatten(0, (T, -1)).mean(0)",
        )
    if call.arguments.get("keepdim"):
        raise call.fail("keeps the reduced axis", "drop keepdim=True")
    return Value(name=network.emit(call, Readout(kind=kind), x), lead=Lead.IMAGE, extents=x.extents)


def add(network: Network, call: Call) -> Operand:
    """The sum of two activations."""
    if isinstance(call.arguments["other"], int | float):
        raise call.fail("adds a constant", BIAS)
    left, right = network.operand(call, "self"), network.operand(call, "other")
    if not isinstance(left, Value) or not isinstance(right, Value):
        raise call.fail("adds a constant", BIAS)
    if call.arguments["alpha"] != 1:
        raise call.fail(f"alpha is {call.arguments['alpha']}, must be 1")
    if (left.lead, left.extents) != (right.lead, right.extents):
        raise call.fail(f"adds {left} and {right}: shapes differ")
    return Value(name=network.emit(call, Add(), left, right), lead=left.lead, extents=left.extents)


def multiply(network: Network, call: Call) -> Operand:
    """An activation times a number, or times one number per channel."""
    factors = (call.arguments["self"], call.arguments["other"])
    numbers = [factor for factor in factors if isinstance(factor, int | float)]
    if numbers:
        return scaled(network, call, network.value(call), float(numbers[0]))
    operands = [network.operand(call, name) for name in ("self", "other")]
    constants = [operand for operand in operands if isinstance(operand, Constant)]
    values = [operand for operand in operands if isinstance(operand, Value)]
    if len(values) != 1:
        raise call.fail("multiplies two activations", "only a constant factor can be expressed")
    (x,), (factor,) = values, constants
    if factor.tensor.numel() == 1 and call.shape == (*network.layout.extents.lead(x.lead), *x.extents):
        return scaled(network, call, x, factor.tensor.item())
    per_channel = (x.extents[0], *(1 for _ in x.extents[1:]))
    leading = factor.tensor.shape[: -len(per_channel)]
    if tuple(factor.tensor.shape[-len(per_channel) :]) != per_channel or any(size != 1 for size in leading):
        raise call.fail(
            f"multiplies {x} by {factor.name} of shape {tuple(factor.tensor.shape)}",
            "a factor is one number, or one per channel",
        )
    param = network.parameter(call, factor.name, factor.tensor.reshape(-1))
    return Value(name=network.emit(call, Scale(factor=param), x), lead=x.lead, extents=x.extents)


def divide(network: Network, call: Call) -> Operand:
    """An activation divided by a power of two."""
    divisor = call.real("other")
    if abs(math.frexp(divisor)[0]) != 0.5:
        raise call.fail(
            f"divides by {divisor:g}, whose reciprocal is not exact",
            f"multiply by {1 / divisor if divisor else 0:.9g}",
        )
    return scaled(network, call, network.value(call), 1.0 / divisor)


def scaled(network: Network, call: Call, x: Value, factor: float) -> Value:
    """factor * x."""
    return Value(name=network.emit(call, Scale(factor=factor), x), lead=x.lead, extents=x.extents)


def first_result(network: Network, call: Call) -> Operand:
    """The values of a maximum; its indices have no place in a graph."""
    if call.arguments["1"] != 0:
        raise call.fail(f"takes result {call.arguments['1']} of {call.arguments['0']}", "only values are kept")
    return network.operand(call, "0")


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "spikec.neuron.default": neuron,
        "getitem": first_result,
        "aten.alias.default": identity,
        "aten.clone.default": identity,
        "aten.contiguous.default": identity,
        "aten.detach.default": identity,
        "aten.detach_.default": identity,
        "aten.lift_fresh_copy.default": identity,
        "aten.to.dtype": cast,
        "aten.to.dtype_layout": cast,
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
        "aten.flatten.using_ints": reshape,
        "aten.unflatten.int": reshape,
        "aten.view.default": reshape,
        "aten.reshape.default": reshape,
        "aten.unsqueeze.default": unsqueeze,
        "aten.repeat.default": repeat,
        "aten.expand.default": expand,
        "aten.stack.default": stack,
        "aten.mean.dim": mean,
        "aten.amax.default": maximum,
        "aten.max.dim": maximum,
        "aten.select.int": select,
        "aten.add.Tensor": add,
        "aten.add_.Tensor": add,
        "aten.mul.Tensor": multiply,
        "aten.mul_.Tensor": multiply,
        "aten.div.Tensor": divide,
        "aten.div_.Tensor": divide,
    }
)

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "pad": "padding inside a convolution with padding_mode='zeros' is expressed",
        "permute": "axes stand as (T, N, C, H, W); batch-major sequences are not imported",
        "transpose": "axes stand as (T, N, C, H, W); batch-major sequences are not imported",
        "relu": "spiking networks use a neuron module here, as spikec.nn.LIF",
        "sum": "of time, use the mean: x.mean(0)",
        "repeat_interleave": "it gives a batch-major sequence; use x.unsqueeze(0).repeat(T, 1, 1, 1, 1)",
        "ge": "a neuron written out in operators is not recognised; use spikec.nn.LIF",
        "gt": "a neuron written out in operators is not recognised; use spikec.nn.LIF",
    }
)
