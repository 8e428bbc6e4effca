"""Rules for the axis of time: images repeated, steps taken and put together, readouts."""

from __future__ import annotations

import torch

from compiler.ir import Encoding, Reading
from compiler.ir.ops import Encode, Readout
from frontends.torch_import.axes import Lead, Value
from frontends.torch_import.call import Call
from frontends.torch_import.layers import mean_over_space
from frontends.torch_import.network import Network
from frontends.torch_import.operands import Constant, Operand, Several, StepSum

_ROWS = {0: Lead.SEPARATE, 1: Lead.SAMPLES_FIRST}


def unsqueeze(network: Network, call: Call) -> Operand:
    """A new first axis of an image becomes time, of a step it stays a step."""
    x = network.tensor(call, "self")
    if isinstance(x, Constant):
        return Constant(name=x.name, tensor=x.tensor.unsqueeze(call.integer("dim")))
    if x.lead not in (Lead.IMAGE, Lead.STEP) or call.integer("dim") not in (0, -1 - x.ndim):
        raise call.fail(f"adds an axis to {x}", "only a first axis, for time, may be added to an image")
    if x.lead is Lead.STEP:
        return x.leads(Lead.STEP_ROW)
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
    x = network.tensor(call)
    extents = network.layout.extents
    if isinstance(x, Constant):
        return Constant(name=x.name, tensor=x.tensor.expand(call.shape))
    if call.shape == x.shape(extents):
        return x
    if x.lead in (Lead.IMAGE, Lead.UNSQUEEZED) and call.shape == (*extents.lead(Lead.SEPARATE), *x.extents):
        return encode(network, call, x, Lead.SEPARATE)
    raise call.fail(f"expands {x} to {call.shape}", f"only an image, over T = {extents.timesteps} steps")


def encode(network: Network, call: Call, image: Value, lead: Lead) -> Value:
    """The image at every time step."""
    op = Encode(kind=Encoding.DIRECT, timesteps=network.layout.extents.timesteps)
    return image.of(network.emit(call, op, image)).leads(lead)


def stack(network: Network, call: Call) -> Operand:
    """One image, stacked T times, or all steps of a sequence in their order."""
    items = _items(network, call)
    dim = call.integer("dim")
    first = items[0]
    if _is_one_image(network, items) and dim == 0:
        return encode(network, call, first, Lead.SEPARATE)
    if _are_all_steps(network, items, Lead.STEP) and dim in (0, 1):
        return first.sequence(_ROWS[dim])
    raise call.fail(
        f"stacks {len(items)} values",
        f"only one image, or the steps of one sequence, T = {_timesteps(network)} of them in their order",
    )


def concatenate(network: Network, call: Call) -> Operand:
    """All steps of a sequence in their order, one after the other, or one image T times."""
    items = _items(network, call)
    if call.integer("dim") == 0:
        if _is_one_image(network, items):
            return encode(network, call, items[0], Lead.MERGED)
        if _are_all_steps(network, items, Lead.STEP):
            return items[0].sequence(Lead.MERGED)
        if _are_all_steps(network, items, Lead.STEP_ROW):
            return items[0].sequence(Lead.SEPARATE)
    raise call.fail(
        f"concatenates {len(items)} values",
        f"only one image, or the steps of one sequence, T = {_timesteps(network)} of them in their order",
    )


def _items(network: Network, call: Call) -> list[Value]:
    tensors = call.arguments["tensors"]
    assert isinstance(tensors, list | tuple)
    return [network.as_value(call, network.resolve(call, tensor, "tensors"), "tensors") for tensor in tensors]


def _timesteps(network: Network) -> int:
    return network.layout.extents.timesteps


def _is_one_image(network: Network, items: list[Value]) -> bool:
    """Whether it comes T times."""
    first = items[0]
    return first.lead is Lead.IMAGE and items == [first] * _timesteps(network)


def _are_all_steps(network: Network, items: list[Value], lead: Lead) -> bool:
    return items == [items[0].step(at, lead) for at in range(_timesteps(network))]


def select(network: Network, call: Call) -> Operand:
    """One time step; the last one of a sequence that no loop goes over is a readout."""
    x = network.value(call)
    dim, index = call.integer("dim") % x.ndim, call.integer("index")
    timesteps = _timesteps(network)
    others = {user.args[2] for user in call.node.all_input_nodes[0].users if user.target is call.node.target}
    if x.time_axis == dim and (network.looped or len(others) > 1) and -timesteps <= index < timesteps:
        network.looped = True
        return x.step(index % timesteps)
    if x.lead is Lead.STEP_ROW and dim == 0:
        return x.leads(Lead.STEP)
    if index not in (-1, timesteps - 1):
        raise call.fail(f"selects index {index} of axis {dim}", "only the last time step may be selected")
    return readout(network, call, x, (dim,), Reading.LAST)


def cut(network: Network, call: Call) -> Operand:
    """A slice that is everything, or one step."""
    x = network.tensor(call, "self")
    if isinstance(x, Constant):
        raise call.fail(f"takes a part of the constant {x.name}")
    if call.shape == x.shape(network.layout.extents):
        return x
    start = call.arguments["start"] or 0
    dim = call.integer("dim") % x.ndim
    if x.lead is Lead.SEPARATE and dim == 0 and call.shape[0] == 1 and isinstance(start, int):
        network.looped = True
        return x.step(start % _timesteps(network), Lead.STEP_ROW)
    raise call.fail(f"takes a part of axis {dim} of {x}", "only one time step of (T, N, ...) may be taken")


def steps(network: Network, call: Call) -> Operand:
    """The time steps of a sequence, as a list."""
    x = network.value(call)
    dim = call.integer("dim") % x.ndim
    if x.time_axis != dim:
        raise call.fail(f"iterates over axis {dim} of {x}", "only time may be iterated over")
    network.looped = True
    return Several(tuple(x.step(at) for at in range(_timesteps(network))))


def rows(network: Network, call: Call) -> Operand:
    """The time steps of a sequence, each keeping its axis of time; of a merged one, which has none, plain steps."""
    x = network.value(call)
    extents = network.layout.extents
    lead, size = {Lead.SEPARATE: (Lead.STEP_ROW, 1), Lead.MERGED: (Lead.STEP, extents.samples)}.get(x.lead, (None, 0))
    pieces = call.arguments.get("chunks", call.arguments.get("split_size"))
    whole = extents.timesteps if "chunks" in call.arguments else size
    if lead is None or call.integer("dim") % x.ndim != 0 or pieces != whole:
        raise call.fail(f"splits {x}", "only time may be split, into single steps: for step in x")
    network.looped = True
    return Several(tuple(x.step(at, lead) for at in range(extents.timesteps)))


def transpose(network: Network, call: Call) -> Operand:
    """Time and samples in the other order."""
    x = network.value(call)
    other = {Lead.SEPARATE: Lead.SAMPLES_FIRST, Lead.SAMPLES_FIRST: Lead.SEPARATE}.get(x.lead)
    dims = {call.integer(name) % x.ndim for name in call.arguments if name != "self"}
    if other is None or dims != {0, 1}:
        raise call.fail(f"exchanges axes {sorted(dims)} of {x}", "only time and samples may change places")
    return x.leads(other)


def permute(network: Network, call: Call) -> Operand:
    """Time and samples in the other order."""
    x = network.value(call)
    other = {Lead.SEPARATE: Lead.SAMPLES_FIRST, Lead.SAMPLES_FIRST: Lead.SEPARATE}.get(x.lead)
    dims = tuple(dim % x.ndim for dim in call.integers("dims"))
    if dims == tuple(range(x.ndim)):
        return x
    if other is None or dims != (1, 0, *range(2, x.ndim)):
        raise call.fail(f"orders the axes of {x} as {dims}", "only time and samples may change places")
    return x.leads(other)


def mean(network: Network, call: Call) -> Operand:
    """Over time a readout, over rows and columns a pooling."""
    x = network.value(call)
    axes = () if call.arguments["dim"] is None else call.integers("dim")
    dims = tuple(sorted(dim % x.ndim for dim in axes))
    if dims == (x.ndim - 2, x.ndim - 1) and len(x.extents) == 3:
        return mean_over_space(network, call, x)
    return readout(network, call, x, dims, Reading.RATE)


def total(network: Network, call: Call) -> Operand:
    """The sum over time."""
    x = network.value(call)
    dims = () if call.arguments["dim"] is None else call.integers("dim")
    _check_time(call, x, tuple(dim % x.ndim for dim in dims))
    return StepSum(sequence=x, steps=frozenset(range(_timesteps(network))))


def maximum(network: Network, call: Call) -> Operand:
    """The maximum over time."""
    x = network.value(call)
    return readout(network, call, x, tuple(dim % x.ndim for dim in call.integers("dim")), Reading.MAX)


def readout(network: Network, call: Call, x: Value, dims: tuple[int, ...], kind: Reading) -> Value:
    """One value from the sequence."""
    _check_time(call, x, dims)
    return x.of(network.emit(call, Readout(kind=kind), x)).leads(Lead.IMAGE)


def _check_time(call: Call, x: Value, dims: tuple[int, ...]) -> None:
    """Raises: CompileError unless time alone is reduced."""
    if x.time_axis is None or dims != (x.time_axis,):
        raise call.fail(
            f"reduces axes {dims} of {x}",
            "only time may be reduced, as axis 0 of (T, N, ...): x.unflatten(0, (T, -1)).mean(0)",
        )
    if call.arguments.get("keepdim"):
        raise call.fail("keeps the reduced axis", "drop keepdim=True")
    if call.arguments.get("dtype") not in (None, torch.float32):
        raise call.fail(f"reduces in {call.arguments['dtype']}", "networks are imported in torch.float32")
