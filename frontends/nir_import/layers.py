"""Layer nodes of NIR without state, as ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from compiler.ir import CompileError, Loc, Param
from compiler.ir.ops import Array, AvgPool2d, Conv2d, Flatten, Linear, Op, Scale
from frontends.nir_file.nodes import NirNode
from frontends.nir_import.numbers import numbers


@dataclass(frozen=True, slots=True)
class Layer:
    """A node to translate. shape: of what it takes, without samples and time: (C,), (C, L) or (C, H, W)."""

    node: NirNode
    name: str
    shape: tuple[int, ...]
    loc: Loc

    def fault(self, message: str, hint: str = "") -> CompileError:
        """The error that names this node."""
        return CompileError(message, self.loc, hint=hint)

    def array(self, field: str, ndim: int) -> Array:
        """A field's numbers as f32.

        Raises: CompileError where it is missing, has another number of axes, or is not finite.
        """
        value = self.node.fields.get(field)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise self.fault(f"{self.node.kind} has no numbers named {field}")
        if value.ndim != ndim:
            raise self.fault(f"{field} has shape {value.shape}, {ndim} axes are needed")
        with np.errstate(over="ignore"):
            array = value.astype(np.float32)
        if not np.isfinite(array).all():
            raise self.fault(f"{field} holds a NaN or infinite value")
        return array

    def integers(self, field: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """A field of one integer for all or one for each axis."""
        value = self.node.fields.get(field)
        if value is None and default is not None:
            return (default,) * count
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.size not in (1, count):
            raise self.fault(f"{field} is not {count} integers")
        whole = [int(v) for v in value.reshape(-1).tolist() if math.isfinite(v) and v == int(v) and abs(v) < 2**31]
        if len(whole) != value.size:
            raise self.fault(f"{field} is not {count} integers")
        return tuple(whole) if len(whole) == count else (whole[0],) * count


@dataclass(frozen=True, slots=True)
class Translated:
    """Ops one after another, each with what its node's name ends in; the last one stands for the NIR node."""

    ops: tuple[tuple[str, Op], ...]
    arrays: Mapping[str, Array]
    note: str = ""


def translate(layer: Layer) -> Translated:
    """The ops of a node.

    Raises: CompileError for a kind of node, or settings, that no op has.
    """
    rule = _RULES.get(layer.node.kind)
    if rule is None:
        raise layer.fault(f"NIR's {layer.node.kind} has no place in the graph", _HINTS.get(layer.node.kind, ""))
    return rule(layer)


def _conv(layer: Layer) -> Translated:
    """Source: torch.nn.Conv1d and Conv2d, which NIR's fields are named after; Conv1d is H = 1."""
    axes = 1 if layer.node.kind == "Conv1d" else 2
    weight = layer.array("weight", axes + 2)
    kernel = weight.shape[2:]
    if layer.integers("dilation", axes, 1) != (1,) * axes:
        raise layer.fault("dilation is not 1", "dilated convolutions have no place in the graph")
    stride, padding = layer.integers("stride", axes, 1), _padding(layer, kernel)
    _check_extents(layer, axes)
    if axes == 1:
        weight, stride, padding = weight[:, :, None], (1, *stride), (0, *padding)
    arrays = {f"{layer.name}.weight": weight}
    bias = _bias(layer, arrays)
    op = Conv2d(
        weight=Param(f"{layer.name}.weight"),
        bias=bias,
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        groups=layer.integers("groups", 1, 1)[0],
    )
    return Translated((("", op),), arrays)


def _padding(layer: Layer, kernel: tuple[int, ...]) -> tuple[int, ...]:
    stated = layer.node.fields.get("padding")
    if not isinstance(stated, str):
        return layer.integers("padding", len(kernel), 0)
    if stated == "valid":
        return (0,) * len(kernel)
    if stated != "same":
        raise layer.fault(f"padding is {stated[:20]!r}", "it is 'same', 'valid' or integers")
    if layer.integers("stride", len(kernel), 1) != (1,) * len(kernel):
        raise layer.fault("padding 'same' with a stride")
    if any(size % 2 == 0 for size in kernel):
        raise layer.fault(f"padding 'same' of an even kernel {kernel} is not the same on both sides")
    return tuple(size // 2 for size in kernel)


def _check_extents(layer: Layer, axes: int) -> None:
    """It takes channels and so many axes; their extents are what the file states, where it does."""
    _check_axes(layer, axes)
    if not isinstance(layer.node.fields.get("input_shape"), np.ndarray):
        return
    stated = layer.integers("input_shape", axes)
    if stated != layer.shape[1:]:
        raise layer.fault(f"input_shape is {stated}, but it gets {layer.shape[1:]}")


def _check_axes(layer: Layer, axes: int) -> None:
    if len(layer.shape) != axes + 1:
        raise layer.fault(f"{layer.node.kind} takes channels and {axes} more axes, it gets {layer.shape}")


def _bias(layer: Layer, arrays: dict[str, Array]) -> Param | None:
    """The bias; writers put zeros where a layer has none."""
    if "bias" not in layer.node.fields:
        return None
    bias = layer.array("bias", 1)
    if not bias.any():
        return None
    arrays[f"{layer.name}.bias"] = bias
    return Param(f"{layer.name}.bias")


def _linear(layer: Layer) -> Translated:
    arrays = {f"{layer.name}.weight": layer.array("weight", 2)}
    if layer.node.kind == "Affine" and "bias" not in layer.node.fields:
        raise layer.fault("Affine has no numbers named bias")
    bias = _bias(layer, arrays) if layer.node.kind == "Affine" else None
    return Translated((("", Linear(weight=Param(f"{layer.name}.weight"), bias=bias)),), arrays)


def _pool(layer: Layer) -> Translated:
    """A sum is the average times the window's size, as torch.nn.LPPool2d of norm 1 computes it (sinabs, norse)."""
    _check_axes(layer, 2)
    (rows, columns), stride = layer.integers("kernel_size", 2), layer.integers("stride", 2)
    padding = layer.integers("padding", 2, 0)
    pool = AvgPool2d(kernel=(rows, columns), stride=(stride[0], stride[1]), padding=(padding[0], padding[1]))
    if layer.node.kind == "AvgPool2d":
        return Translated((("", pool),), {})
    return Translated(((".average", pool), ("", Scale(factor=float(rows * columns)))), {})


def _flatten(layer: Layer) -> Translated:
    """NIR counts axes without samples; axes of extent 1 before the first one change nothing."""
    axes = len(layer.shape)
    if axes == 1:
        return Translated((), {})
    first, last = layer.integers("start_dim", 1, 0)[0], layer.integers("end_dim", 1, -1)[0]
    first, last = first + axes * (first < 0), last + axes * (last < 0)
    if last != axes - 1 or math.prod(layer.shape[:first]) != 1:
        raise layer.fault(f"flattens axes {first} to {last} of {layer.shape}", "only all of a sample's axes together")
    return Translated((("", Flatten()),), {})


def _scale(layer: Layer) -> Translated:
    values = numbers(layer.node, "scale", layer.shape, layer.loc).astype(np.float64)
    if not values.ndim:
        return Translated((("", Scale(factor=float(values))),), {})
    name = f"{layer.name}.factor"
    return Translated((("", Scale(factor=Param(name))),), {name: values.astype(np.float32)})


_RULES: Mapping[str, Callable[[Layer], Translated]] = MappingProxyType(
    {
        "Conv1d": _conv,
        "Conv2d": _conv,
        "Linear": _linear,
        "Affine": _linear,
        "SumPool2d": _pool,
        "AvgPool2d": _pool,
        "Flatten": _flatten,
        "Scale": _scale,
    }
)
_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "CubaLIF": "neurons have one state, the membrane potential; this one has a synaptic current too",
        "CubaLI": "neurons have one state, the membrane potential; this one has a synaptic current too",
        "Delay": "every connection takes no time within a step",
    }
)
