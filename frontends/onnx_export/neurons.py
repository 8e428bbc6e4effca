"""Neurons as ONNX functions: a `Scan` over time whose body is the op's equation in standard ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.ir import Compare, Reset
from compiler.ir.ops import Li, Lif
from frontends.onnx_export.writer import DOMAIN, OPSET, value_info

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

Attributes = dict[str, str | int | float]


def function_name(op: Lif | Li) -> str:
    """One name for each equation, as LifHardGe or LifSoftDelayedGt."""
    if isinstance(op, Li):
        return "Li"
    delayed = "Delayed" if _is_delayed(op) else ""
    return f"Lif{op.reset.capitalize()}{delayed}{op.compare.capitalize()}"


def number_fields(op: Lif | Li) -> tuple[str, ...]:
    """The op's numbers that its function takes, in the order of its inputs after x."""
    if isinstance(op, Li):
        return ("decay", "input_scale", "leak_bias", "initial")
    hard = ("reset_value",) if op.reset is Reset.HARD else ()
    return ("decay", "input_scale", "leak_bias", "initial", "threshold", *hard)


def neuron_attributes(op: Lif | Li) -> Attributes:
    """What the equation needs only backward, or says already by the function's name."""
    if isinstance(op, Li):
        return {}
    return {
        "reset": str(op.reset),
        "reset_delay": int(op.reset_delay),
        "compare": str(op.compare),
        "detach_reset": int(op.detach_reset),
        "surrogate": str(op.surrogate.kind),
        "surrogate_width": float(op.surrogate.width),
        "surrogate_scale": float(op.surrogate.scale),
        "surrogate_offset": float(op.surrogate.offset),
    }


def neuron_function(op: Lif | Li) -> FunctionProto:
    """y, spikes or membrane potentials, from x (T, N, C, ...) and the numbers.

    The carried state is v; with a delayed reset also the spikes of the step before.
    """
    from onnx import helper

    numbers = number_fields(op)
    steps, spikes = _step(op)
    states = ["v", "fired"] if _is_delayed(op) else ["v"]
    after = [f"{state}_next" for state in states]
    body = helper.make_graph(
        steps,
        "step",
        [value_info(name, None) for name in (*states, "x_t")],
        [value_info(name, None) for name in (*after, spikes)],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("Expand", ["initial", "shape"], ["v_first"]),
    ]
    first = ["v_first"]
    if _is_delayed(op):
        nodes.append(helper.make_node("ConstantOfShape", ["shape"], ["fired_first"]))  # of zeros
        first.append("fired_first")
    last = [f"{state}_last" for state in states]
    nodes.append(helper.make_node("Scan", [*first, "x"], [*last, "y"], body=body, num_scan_inputs=1))
    return helper.make_function(
        DOMAIN,
        function_name(op),
        ["x", *numbers],
        ["y"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=list(neuron_attributes(op)),
    )


def _step(op: Lif | Li) -> tuple[list[NodeProto], str]:
    """One time step, in the order of `evaluate`; and the name of its result."""
    from onnx import TensorProto, helper

    node = helper.make_node
    steps = [
        node("Mul", ["decay", "v"], ["decayed"]),
        node("Mul", ["input_scale", "x_t"], ["scaled"]),
        node("Add", ["decayed", "scaled"], ["charged"]),
    ]
    if isinstance(op, Li):
        return [*steps, node("Add", ["charged", "leak_bias"], ["v_next"]), node("Identity", ["v_next"], ["m"])], "m"
    if _is_delayed(op):
        steps += [
            node("Add", ["charged", "leak_bias"], ["leaked"]),
            node("Mul", ["threshold", "fired"], ["reset_by"]),
            node("Sub", ["leaked", "reset_by"], ["m"]),
        ]
    else:
        steps.append(node("Add", ["charged", "leak_bias"], ["m"]))
    compare = "GreaterOrEqual" if op.compare is Compare.GE else "Greater"
    steps += [node(compare, ["m", "threshold"], ["fires"]), node("Cast", ["fires"], ["s"], to=TensorProto.FLOAT)]
    if op.reset is Reset.HARD:
        steps.append(node("Where", ["fires", "reset_value", "m"], ["v_next"]))
    elif op.reset is Reset.SOFT and not op.reset_delay:
        steps += [node("Mul", ["threshold", "s"], ["reset_by"]), node("Sub", ["m", "reset_by"], ["v_next"])]
    else:
        steps.append(node("Identity", ["m"], ["v_next"]))
    if _is_delayed(op):
        steps.append(node("Identity", ["s"], ["fired_next"]))
    return steps, "s"


def _is_delayed(op: Lif | Li) -> bool:
    return isinstance(op, Lif) and op.reset is Reset.SOFT and op.reset_delay
