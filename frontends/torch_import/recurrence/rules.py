"""The elementwise operators of a trace as polynomials of their arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, fx

from compiler.ir import Compare
from frontends.torch_import.call import Call
from frontends.torch_import.recurrence.polynomial import CONSTANT, Coefficient, Kind, Polynomial

_SAME = ("alias", "clone", "contiguous", "detach", "expand", "expand_as", "lift_fresh_copy", "reshape", "view")
_CASTS = ("to", "type_as", "_to_copy")
_RELATIONS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        **dict.fromkeys(("ge", "greater_equal"), operator.ge),
        **dict.fromkeys(("gt", "greater"), operator.gt),
        **dict.fromkeys(("lt", "less"), operator.lt),
        **dict.fromkeys(("le", "less_equal"), operator.le),
        "eq": operator.eq,
        **dict.fromkeys(("ne", "not_equal"), operator.ne),
    }
)
# By operator: which relation it tests, or whose opposite.
ORDERINGS: Mapping[str, tuple[Compare, bool]] = MappingProxyType(
    {
        "ge": (Compare.GE, False),
        "greater_equal": (Compare.GE, False),
        "gt": (Compare.GT, False),
        "greater": (Compare.GT, False),
        "lt": (Compare.GE, True),
        "less": (Compare.GE, True),
        "le": (Compare.GT, True),
        "less_equal": (Compare.GT, True),
    }
)
COMPARING = frozenset((*ORDERINGS, "heaviside"))

Operand = Callable[[object], Polynomial]  # by the argument's name, or what it holds
Rule = Callable[[Operand, Call], Polynomial | None]


def base(call: Call) -> str:
    """The operator without namespace, overload and the mark of an operator in place."""
    return call.op.split(".")[1].rstrip("_") if call.op.startswith("aten.") else call.op


def mapped(value: object, change: Callable[[fx.Node], object]) -> object:
    """An argument, or a list of them, with something in the place of each node."""
    match value:
        case fx.Node():
            return change(value)
        case list() | tuple():
            return [mapped(item, change) for item in value]
    return value


def arguments(call: Call, change: Callable[[fx.Node], object]) -> dict[str, object]:
    """The arguments of a call with something in the place of each node."""
    return {name: mapped(value, change) for name, value in call.arguments.items()}


def sources(call: Call) -> list[fx.Node]:
    """The nodes that a call takes."""
    found: list[fx.Node] = []
    arguments(call, found.append)
    return found


def execute(call: Call, value: Callable[[fx.Node], Tensor]) -> object:
    """The result of an operator on the values of its nodes, which it does not change."""
    target = call.node.target
    assert isinstance(target, torch._ops.OpOverload)
    in_place = call.op.rpartition(".")[0].endswith("_")
    with torch.no_grad():
        return target(**arguments(call, lambda node: value(node).clone() if in_place else value(node)))


def repeatable(call: Call) -> bool:
    """Whether a call is an operator that gives the same each time."""
    target = call.node.target
    if not call.op.startswith("aten.") or not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags


def _is_binary(polynomial: Polynomial) -> bool:
    """Whether the value is 0 or 1: a product of spikes, or 1 minus one."""
    monomials = [monomial for monomial in polynomial.terms if monomial]
    if len(monomials) != 1 or any(atom.kind is not Kind.SPIKE for atom in monomials[0]):
        return False
    constant, factor = polynomial[CONSTANT], polynomial[monomials[0]]
    return constant.ndim == factor.ndim == 0 and (float(constant), float(factor)) in ((0.0, 1.0), (1.0, -1.0))


def _dtype(call: Call) -> torch.dtype:
    dtype: torch.dtype = call.node.meta["val"].dtype
    return dtype


def _relation(operand: Operand, call: Call) -> Polynomial | None:
    """A spike that is compared itself, as `spike > 0`."""
    source, bound = operand("self"), operand("other").number
    if bound is None or bound.ndim or not _is_binary(source):
        return None
    at_zero, at_one = (_RELATIONS[base(call)](value, float(bound)) for value in (0.0, 1.0))
    return Polynomial.constant(at_zero) + source.scaled(np.asarray(float(at_one) - float(at_zero)))


def _same(operand: Operand, call: Call) -> Polynomial | None:
    return operand("self")


def _cast(operand: Operand, call: Call) -> Polynomial | None:
    source = operand("self")
    return source if _dtype(call) is torch.float32 or _is_binary(source) else None


def _alpha(call: Call) -> Coefficient:
    return np.asarray(call.real("alpha"))


def _add(operand: Operand, call: Call) -> Polynomial | None:
    return None if _dtype(call) is torch.bool else operand("self") + operand("other").scaled(_alpha(call))


def _sub(operand: Operand, call: Call) -> Polynomial | None:
    return operand("self") - operand("other").scaled(_alpha(call))


def _rsub(operand: Operand, call: Call) -> Polynomial | None:
    return operand("other") - operand("self").scaled(_alpha(call))


def _mul(operand: Operand, call: Call) -> Polynomial | None:
    return operand("self").times(operand("other"))


def _div(operand: Operand, call: Call) -> Polynomial | None:
    divisor = operand("other").number
    if divisor is None or not divisor.all() or call.arguments.get("rounding_mode") is not None:
        return None
    return operand("self").scaled(1.0 / divisor)


def _neg(operand: Operand, call: Call) -> Polynomial | None:
    return operand("self").scaled(np.asarray(-1.0))


def _not(operand: Operand, call: Call) -> Polynomial | None:
    source = operand("self")
    return Polynomial.constant(1.0) - source if _is_binary(source) and _dtype(call) is torch.bool else None


def _and(operand: Operand, call: Call) -> Polynomial | None:
    left, right = operand("self"), operand("other")
    return left.times(right) if _is_binary(left) and _is_binary(right) else None


def _or(operand: Operand, call: Call) -> Polynomial | None:
    left, right = operand("self"), operand("other")
    both = left.times(right)
    return left + right - both if both and _is_binary(left) and _is_binary(right) else None


def _chosen(mask: Polynomial, yes: Polynomial, no: Polynomial) -> Polynomial | None:
    """mask * yes + (1 - mask) * no."""
    if not _is_binary(mask):
        return None
    left, right = mask.times(yes), (Polynomial.constant(1.0) - mask).times(no)
    return left + right if left and right else None


def _where(operand: Operand, call: Call) -> Polynomial | None:
    return _chosen(operand("condition"), operand("self"), operand("other"))


def _masked_fill(operand: Operand, call: Call) -> Polynomial | None:
    return _chosen(operand("mask"), operand("value"), operand("self"))


def _put(operand: Operand, call: Call) -> Polynomial | None:
    """self[mask] = number."""
    masks = call.arguments["indices"]
    if not isinstance(masks, list | tuple) or len(masks) != 1 or call.flag("accumulate"):
        return None
    value = operand("values")
    single = value.number is not None and value.number.ndim == 0
    return _chosen(operand(masks[0]), value, operand("self")) if single else None


def _lerp(operand: Operand, call: Call) -> Polynomial | None:
    start = operand("self")
    way = (operand("end") - start).times(operand("weight"))
    return start + way if way else None


def _addcmul(operand: Operand, call: Call) -> Polynomial | None:
    product = operand("tensor1").times(operand("tensor2"))
    return operand("self") + product.scaled(np.asarray(call.real("value"))) if product else None


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_SAME, _same),
        **dict.fromkeys(_CASTS, _cast),
        **dict.fromkeys(_RELATIONS, _relation),
        "add": _add,
        "sub": _sub,
        "subtract": _sub,
        "rsub": _rsub,
        **dict.fromkeys(("mul", "multiply"), _mul),
        **dict.fromkeys(("div", "divide", "true_divide"), _div),
        **dict.fromkeys(("neg", "negative"), _neg),
        **dict.fromkeys(("logical_not", "bitwise_not"), _not),
        **dict.fromkeys(("logical_and", "bitwise_and", "__and"), _and),
        **dict.fromkeys(("logical_or", "bitwise_or", "__or"), _or),
        "where": _where,
        "masked_fill": _masked_fill,
        "index_put": _put,
        "lerp": _lerp,
        "addcmul": _addcmul,
    }
)
# What a membrane potential may pass between its loop and the comparison.
AFFINE = frozenset(("add", "sub", "rsub", "mul", "div", "neg", *_SAME, *_CASTS))
# What makes a spike of a spike.
BINARY = frozenset(("logical_not", "bitwise_not", "rsub", "mul", "where", "index_put", "masked_fill", *_SAME, *_CASTS))
UNCHANGED = frozenset((*_SAME, *_CASTS))
