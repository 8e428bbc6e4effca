"""Rules for constants, shapes, and operators that only move elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from compiler.ir import Loc
from frontends.onnx_import.elementwise import Rule
from frontends.onnx_import.files import MAX_CONSTANT, to_tensor
from frontends.onnx_import.values import Part, Site


def constant(site: Site) -> None:
    """A constant in one of the forms of its attribute."""
    node = site.node
    if (tensor := node.tensor("value")) is not None:
        site.constant(to_tensor(tensor.t, Path(node.file).parent, Loc(node.file)))
    elif node.has("value_float"):
        site.constant(torch.tensor(node.real("value_float", 0.0)))
    elif node.has("value_int"):
        site.constant(torch.tensor(node.integer("value_int", 0)))
    elif (reals := node.reals("value_floats")) is not None:
        site.constant(torch.tensor(reals, dtype=torch.float32))
    elif (integers := node.integers("value_ints")) is not None:
        site.constant(torch.tensor(integers, dtype=torch.int64))
    else:
        raise node.fail("is none of a tensor, a number or a list of numbers")


def constant_of_shape(site: Site) -> None:
    """One value everywhere; zero where none is given."""
    shape = _sizes(site, site.integers(0, "shape"))
    site.check(shape, MAX_CONSTANT)
    given = site.node.tensor("value")
    value = torch.zeros(1)
    if given is not None:
        value = to_tensor(given.t, Path(site.node.file).parent, Loc(site.node.file))
    if value.numel() != 1:
        raise site.node.fail(f"its value has {value.numel()} elements, must have 1")
    site.constant(value.reshape(()).expand(shape).contiguous())


def range_(site: Site) -> None:
    """A constant range."""
    start, limit, delta = (site.content(index, what) for index, what in enumerate(("start", "limit", "delta")))
    whole = all(value.numel() == 1 and not value.is_floating_point() for value in (start, limit, delta))
    if not whole or not delta.item():
        raise site.node.fail("its start, limit and delta are not three integers, the last other than 0")
    count = -((int(start.item()) - int(limit.item())) // int(delta.item()))
    site.check((max(0, count),), MAX_CONSTANT)
    values = start.item() + torch.arange(max(0, count)) * delta.item()
    site.constant(values.to(start.dtype))


def shape(site: Site) -> None:
    """The extents of a value."""
    extents = site.shape(0)
    chosen = extents[site.node.integer("start", 0) : site.node.integer("end", len(extents))]
    site.constant(torch.tensor(chosen, dtype=torch.int64))


def size(site: Site) -> None:
    """The number of elements of a value."""
    site.constant(torch.tensor(math.prod(site.shape(0)), dtype=torch.int64))


def identity(site: Site) -> None:
    """What hands its argument on when a network is not trained."""
    if site.node.op == "Dropout" and site.given(2) and bool(site.content(2, "training_mode").any()):
        raise site.node.fail("is active", "export the network in evaluation mode")
    if len(site.node.outputs) > 1:
        raise site.node.fail("its mask is expressed by nothing")
    site.alias()


def reshape(site: Site) -> None:
    """Other extents for the same elements; 0 keeps one."""
    given, before = site.integers(1, "shape"), site.shape(0)
    if site.node.integer("allowzero", 0) == 0:
        if any(extent == 0 and at >= len(before) for at, extent in enumerate(given)):
            raise site.node.fail(f"keeps an extent that {before} does not have")
        given = tuple(before[at] if extent == 0 else extent for at, extent in enumerate(given))
    if given == before:
        site.alias()
        return
    site.compute(lambda x: x.reshape(given), site.operands(0))


def flatten(site: Site) -> None:
    """Two axes: the product of the first ones and of the others."""
    before = site.shape(0)
    axis = _axis(site, site.node.integer("axis", 1), len(before) + 1)
    if axis == 1:
        site.compute(lambda x: x.flatten(1), site.operands(0))
        return
    lead = math.prod(before[:axis])
    site.compute(lambda x: x.reshape(lead, -1), site.operands(0))


def unsqueeze(site: Site) -> None:
    """New axes of extent 1."""
    axes = site.axes(1)
    if not axes:
        raise site.node.fail("lacks its axes")
    ndim = len(site.shape(0)) + len(axes)
    places = _distinct(site, axes, ndim)

    def compute(x: Tensor) -> Tensor:
        for place in places:
            x = x.unsqueeze(place)
        return x

    site.compute(compute, site.operands(0))
    if len(places) == 1:
        site.values.unsqueezed[site.node.outputs[0]] = (site.node.inputs[0], places[0])


def squeeze(site: Site) -> None:
    """Axes of extent 1 taken away; of one step of a value, the step itself."""
    before = site.shape(0)
    axes = site.axes(1)
    places = (
        [at for at, extent in enumerate(before) if extent == 1] if axes is None else _distinct(site, axes, len(before))
    )
    if any(before[place] != 1 for place in places):
        raise site.node.fail(f"takes the axes {places} away from {before}")
    source, axis = site.values.unsqueezed.get(site.node.inputs[0], ("", 0))
    if source and places == [axis]:
        site.alias(source)
        return
    part = site.values.parts.get(site.node.inputs[0])
    if part is not None and places == [part.axis]:
        at = part
        site.compute(lambda x: x.select(at.axis, at.index), [at.source])
        return
    target = [extent for at, extent in enumerate(before) if at not in places]
    if len(places) == 1:
        site.compute(lambda x: x.squeeze(places[0]), site.operands(0))
    else:
        site.compute(lambda x: x.reshape(target), site.operands(0))


def transpose(site: Site) -> None:
    """Another order of the axes."""
    ndim = len(site.shape(0))
    order = site.node.integers("perm") or tuple(reversed(range(ndim)))
    if order == tuple(range(ndim)):
        site.alias()
        return
    site.compute(lambda x: x.permute(order), site.operands(0))


def expand(site: Site) -> None:
    """Repetition along axes of extent 1."""
    before, given = site.shape(0), _sizes(site, site.integers(1, "shape"))
    target = site.broadcast(before, given)
    if target == before:
        site.alias()
        return
    site.compute(lambda x: x.expand(target), site.operands(0))


def tile(site: Site) -> None:
    """Repetition of the whole."""
    before, repeats = site.shape(0), _sizes(site, site.integers(1, "repeats"))
    if len(repeats) != len(before):
        raise site.node.fail(f"repeats {before} {len(repeats)} times")
    site.check(tuple(extent * count for extent, count in zip(before, repeats, strict=True)))
    site.compute(lambda x: x.repeat(repeats), site.operands(0))


def concat(site: Site) -> None:
    """Values one after the other; where each got the axis only for that, a stack."""
    names = site.operands(*range(len(site)))
    if not names:
        raise site.node.fail("has no inputs")
    axis = _axis(site, site.node.integer("axis", 0), len(site.shape(0)))
    site.check((sum(site.values.known[name].meta.numel() for name in names),))
    added = [site.values.unsqueezed.get(name) for name in names]
    if all(entry is not None and entry[1] == axis for entry in added):
        sources = [entry[0] for entry in added if entry is not None]
        site.compute(lambda *xs: torch.stack(xs, axis), sources)
        return
    site.compute(lambda *xs: torch.cat(xs, axis), names)


def split(site: Site) -> None:
    """Pieces along an axis."""
    before = site.shape(0)
    axis = _axis(site, site.node.integer("axis", 0), len(before))
    if site.given(1):
        sizes = _sizes(site, site.integers(1, "split"))
    else:
        count = site.node.integer("num_outputs", len(site.node.outputs))
        if count < 1:
            raise site.node.fail(f"splits into {count} pieces")
        piece = math.ceil(before[axis] / count)
        sizes = (*(piece for _ in range(count - 1)), before[axis] - piece * (count - 1))
    if min(sizes, default=-1) < 0 or sum(sizes) != before[axis] or len(sizes) != len(site.node.outputs):
        raise site.node.fail(f"splits the extent {before[axis]} into {sizes[:8]}, {len(site.node.outputs)} results")
    site.compute(lambda x: torch.split(x, list(sizes), axis), site.operands(0))
    first = 0
    for name, extent in zip(site.node.outputs, sizes, strict=True):
        if extent == 1 and name:
            site.values.parts[name] = Part(source=site.node.inputs[0], axis=axis, index=first)
        first += extent


def slice_(site: Site) -> None:
    """Every so many elements from one to another, along some axes."""
    before = site.shape(0)
    starts, ends = site.integers(1, "starts"), site.integers(2, "ends")
    given = site.integers(3, "axes") if site.given(3) else tuple(range(len(starts)))
    _distinct(site, given, len(before))
    axes = [_axis(site, axis, len(before)) for axis in given]
    steps = site.integers(4, "steps") if site.given(4) else (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or min(steps, default=1) < 1:
        raise site.node.fail("its starts, ends and axes do not fit, or it goes backwards")
    window = [slice(None) for _ in before]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        window[axis] = slice(*slice(start, end, step).indices(before[axis]))
    if all(range(*w.indices(extent)) == range(extent) for w, extent in zip(window, before, strict=True)):
        site.alias()
        return
    picked = tuple(window)
    site.compute(lambda x: x[picked], site.operands(0))
    if len(axes) == 1 and site.values.known[site.node.outputs[0]].meta.shape[axes[0]] == 1:
        site.values.parts[site.node.outputs[0]] = Part(
            source=site.node.inputs[0], axis=axes[0], index=window[axes[0]].start
        )


def gather(site: Site) -> None:
    """The elements at constant places along an axis."""
    before = site.shape(0)
    axis = _axis(site, site.node.integer("axis", 0), len(before))
    indices = site.content(1, "indices")
    if indices.is_floating_point() or indices.ndim > 1:
        raise site.node.fail(f"gathers at {indices.ndim} axes of indices", "a number or a list of numbers is expressed")
    places = [int(index) for index in indices.reshape(-1).tolist()]
    if any(not -before[axis] <= place < before[axis] for place in places):
        raise site.node.fail(f"gathers outside the extent {before[axis]}")
    places = [place % before[axis] for place in places]
    source, added = site.values.unsqueezed.get(site.node.inputs[0], ("", 0))
    if indices.ndim == 0 and source and added == axis:
        site.alias(source)
        return
    if indices.ndim == 0:
        site.compute(lambda x: x.select(axis, places[0]), site.operands(0))
        return
    if len(places) == 1:
        site.compute(lambda x: x.narrow(axis, places[0], 1), site.operands(0))
        site.values.parts[site.node.outputs[0]] = Part(source=site.node.inputs[0], axis=axis, index=places[0])
        return
    site.compute(lambda x, at: x.index_select(axis, at), (site.node.inputs[0], site.node.inputs[1]))


def _axis(site: Site, axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise site.node.fail(f"axis {axis} is not one of {ndim} axes")
    return axis % ndim


def _distinct(site: Site, axes: Sequence[int], ndim: int) -> list[int]:
    places = sorted(_axis(site, axis, ndim) for axis in axes)
    if len(set(places)) < len(places):
        raise site.node.fail(f"axes {tuple(axes)[:8]} come twice")
    return places


def _sizes(site: Site, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(extent < 0 for extent in sizes):
        raise site.node.fail(f"has negative extents, {sizes[:8]}")
    site.check(sizes)
    return sizes


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Constant": constant,
        "ConstantOfShape": constant_of_shape,
        "Range": range_,
        "Shape": shape,
        "Size": size,
        "Identity": identity,
        "Dropout": identity,
        "Reshape": reshape,
        "Flatten": flatten,
        "Unsqueeze": unsqueeze,
        "Squeeze": squeeze,
        "Transpose": transpose,
        "Expand": expand,
        "Tile": tile,
        "Concat": concat,
        "Split": split,
        "Slice": slice_,
        "Gather": gather,
    }
)
