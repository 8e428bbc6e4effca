"""Rules for operators that act on each element."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from frontends.onnx_import.values import Site

Rule = Callable[[Site], None]
_DTYPES: Mapping[int, torch.dtype] = MappingProxyType(
    {
        1: torch.float32,
        2: torch.uint8,
        3: torch.int8,
        6: torch.int32,
        7: torch.int64,
        9: torch.bool,
        10: torch.float16,
        11: torch.float64,
    }
)


def elementwise(function: Callable[..., Any], *, tensors: int = 0, arithmetic: bool = False) -> Rule:
    """A function of all inputs; constants of one value are handed on as numbers, unless among the first `tensors`."""

    def rule(site: Site) -> None:
        names = site.operands(*range(len(site)))
        dtypes = {site.values.known[name].meta.dtype for name in names}
        if arithmetic and (len(dtypes) != 1 or torch.bool in dtypes):
            raise site.node.fail(f"takes numbers of one type, gets {', '.join(sorted(map(str, dtypes)))}")
        numbers = _numbers(site, names, tensors)

        def compute(*given: Tensor) -> Tensor:
            rest = iter(given)
            result: Tensor = function(*(numbers[at] if at in numbers else next(rest) for at in range(len(names))))
            return result

        site.compute(compute, [name for at, name in enumerate(names) if at not in numbers])

    return rule


def _numbers(site: Site, names: tuple[str, ...], tensors: int) -> dict[int, float | int | bool]:
    """The operands that are one number each, where the others alone have the result's shape."""
    known = [site.values.known[name] for name in names]
    dynamic = [value for value in known if value.content is None]
    shape = site.broadcast(*(value.meta.shape for value in known))
    full = bool(dynamic) and site.broadcast(*(value.meta.shape for value in dynamic)) == shape
    numbers: dict[int, float | int | bool] = {}
    for at, value in enumerate(known):
        content = value.content
        if not full or at < tensors or content is None or not content.numel():
            continue
        if bool((content == content.reshape(-1)[0]).all()):
            numbers[at] = content.reshape(-1)[0].item()
    return numbers


def _less(x: Tensor, y: Tensor) -> Any:
    return operator.gt(y, x)


def _less_or_equal(x: Tensor, y: Tensor) -> Any:
    return operator.ge(y, x)


def _divided(x: Any, y: Any) -> Any:
    """Division; of integers towards zero."""
    if any(isinstance(v, int) or (isinstance(v, Tensor) and not v.is_floating_point()) for v in (x, y)):
        return torch.div(x, y, rounding_mode="trunc")
    return x / y


def _summed(*terms: Any) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _where(condition: Tensor, x: Any, y: Any) -> Tensor:
    return torch.where(condition, x, y)


def cast(site: Site) -> None:
    """A conversion; one that converts nothing is left out."""
    _cast(site, site.node.integer("to", 0))


def cast_like(site: Site) -> None:
    """A conversion to the element type of another value."""
    dtype = site.known(1).meta.dtype
    _converted(site, dtype)


def _cast(site: Site, to: int) -> None:
    dtype = _DTYPES.get(to)
    if dtype is None:
        raise site.node.fail(f"converts to element type {to}", "networks are imported in float32")
    _converted(site, dtype)


def _converted(site: Site, dtype: torch.dtype) -> None:
    if site.known(0).meta.dtype == dtype:
        site.alias()
        return
    site.compute(lambda x: x.to(dtype), site.operands(0))


def clip(site: Site) -> None:
    """Clamping to constant limits."""
    limits = [site.content(index, what) if site.given(index) else None for index, what in ((1, "min"), (2, "max"))]
    if any(limit is not None and limit.numel() != 1 for limit in limits):
        raise site.node.fail("its limits are not two numbers")
    low, high = (None if limit is None else limit.item() for limit in limits)
    if low is None and high is None:
        site.alias()
        return
    site.compute(lambda x: torch.clamp(x, low, high), site.operands(0))


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Neg": elementwise(operator.neg, arithmetic=True),
        "Not": elementwise(torch.logical_not, tensors=1),
        "Abs": elementwise(torch.abs),
        "Sign": elementwise(torch.sign),
        "Floor": elementwise(torch.floor),
        "Ceil": elementwise(torch.ceil),
        "Round": elementwise(torch.round),
        "Sqrt": elementwise(torch.sqrt),
        "Exp": elementwise(torch.exp),
        "Log": elementwise(torch.log),
        "Reciprocal": elementwise(torch.reciprocal),
        "Relu": elementwise(torch.relu),
        "Sigmoid": elementwise(torch.sigmoid),
        "Tanh": elementwise(torch.tanh),
        "Add": elementwise(operator.add, arithmetic=True),
        "Sub": elementwise(operator.sub, arithmetic=True),
        "Mul": elementwise(operator.mul, arithmetic=True),
        "Div": elementwise(_divided, arithmetic=True),
        "Pow": elementwise(operator.pow),
        "Sum": elementwise(_summed, arithmetic=True),
        "Max": elementwise(torch.maximum, tensors=2),
        "Min": elementwise(torch.minimum, tensors=2),
        "Greater": elementwise(operator.gt),
        "GreaterOrEqual": elementwise(operator.ge),
        "Less": elementwise(_less),
        "LessOrEqual": elementwise(_less_or_equal),
        "Equal": elementwise(operator.eq),
        "And": elementwise(torch.logical_and, tensors=2),
        "Or": elementwise(torch.logical_or, tensors=2),
        "Xor": elementwise(torch.logical_xor, tensors=2),
        "Where": elementwise(_where, tensors=1),
        "Cast": cast,
        "CastLike": cast_like,
        "Clip": clip,
    }
)
