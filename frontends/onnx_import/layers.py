"""Rules for layers with weights or windows, and for reductions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch.nn import functional

from frontends.onnx_import import elementwise
from frontends.onnx_import.elementwise import Rule
from frontends.onnx_import.nodes import shortest
from frontends.onnx_import.values import Site

Axes = tuple[int, ...]
_SUM = elementwise.RULES["Add"]


def conv(site: Site) -> None:
    """Convolution over lines or maps."""
    rank = len(site.shape(0)) - 2
    site.content(1, "weight")
    kernel = site.shape(1)[2:]
    if rank not in (1, 2) or len(kernel) != rank:
        found = f"a window of {len(kernel)} axes over {rank}"
        raise site.node.fail(f"has {found}", "convolutions over lines and maps are expressed")
    strides, dilations = _per_axis(site, "strides", rank), _per_axis(site, "dilations", rank)
    padding = _symmetric(site, *_padding(site, kernel, strides, dilations))
    groups = site.node.integer("group", 1)
    function = functional.conv1d if rank == 1 else functional.conv2d
    site.compute(
        lambda x, weight, bias=None: function(x, weight, bias, strides, padding, dilations, groups),
        site.operands(0, 1, 2),
    )


def gemm(site: Site) -> None:
    """A fully connected layer."""
    node = site.node
    if node.real("alpha", 1.0) != 1.0 or node.real("beta", 1.0) != 1.0 or node.integer("transA", 0):
        raise node.fail("alpha and beta must be 1, transA 0", "fold them into the weights")
    if site.content(1, "weight").ndim != 2:
        raise node.fail(f"its weight has {len(site.shape(1))} axes, must have 2")
    weight = node.inputs[1] if node.integer("transB", 0) else site.derive(1, "transposed", lambda w: w.t())
    if not site.given(2):
        site.compute(functional.linear, (node.inputs[0], weight))
        return
    out = site.values.known[weight].meta.shape[0]
    bias = site.derive(2, f"bias{out}", lambda b: b.reshape(-1).expand(out) if b.numel() in (1, out) else b)
    site.compute(functional.linear, (node.inputs[0], weight, bias))


def matmul(site: Site) -> None:
    """A fully connected layer without bias."""
    if site.known(0).content is None and len(site.shape(1)) == 2:
        site.content(1, "weight")
        weight = site.derive(1, "transposed", lambda w: w.t())
        site.compute(functional.linear, (site.node.inputs[0], weight))
        return
    site.compute(torch.matmul, site.operands(0, 1))


def add(site: Site) -> None:
    """A sum; of a fully connected layer and its bias, the layer with it."""
    for product, bias in ((0, 1), (1, 0)):
        maker = site.values.makers.get(site.node.inputs[product]) if site.given(product) else None
        if maker is None or maker.compute is not functional.linear or len(maker.operands) != 2 or not site.given(bias):
            continue
        known, out = site.known(bias), site.shape(product)[-1]
        if known.content is not None and known.content.numel() == out and known.content.shape[-1:] == (out,):
            flat = site.derive(bias, f"bias{out}", lambda b: b.reshape(-1))
            site.compute(functional.linear, (*maker.operands, flat), path=maker.path)
            return
    _SUM(site)


def batch_norm(site: Site) -> None:
    """Batch normalisation with running statistics."""
    if site.node.integer("training_mode", 0) or len(site.node.outputs) > 1:
        raise site.node.fail("uses the statistics of the batch", "export the network in evaluation mode")
    for index, what in enumerate(("scale", "bias", "mean", "var"), start=1):
        site.content(index, what)
    eps = shortest(site.node.real("epsilon", 1e-5))
    site.compute(
        lambda x, weight, bias, mean, var: functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps),
        site.operands(0, 1, 2, 3, 4),
    )


def average_pool(site: Site) -> None:
    """Average pooling over lines or maps."""
    rank, kernel, strides = _window(site)
    padding = _symmetric(site, *_padding(site, kernel, strides, (1,) * rank))
    ceil_mode = bool(site.node.integer("ceil_mode", 0))
    counts = bool(site.node.integer("count_include_pad", 0))
    function = functional.avg_pool1d if rank == 1 else functional.avg_pool2d
    site.compute(lambda x: function(x, kernel, strides, padding, ceil_mode, counts), site.operands(0))


def max_pool(site: Site) -> None:
    """Maximum pooling over lines or maps."""
    if len(site.node.outputs) > 1:
        raise site.node.fail("its indices are expressed by nothing")
    rank, kernel, strides = _window(site)
    dilations = _per_axis(site, "dilations", rank)
    padding = _symmetric(site, *_padding(site, kernel, strides, dilations))
    ceil_mode = bool(site.node.integer("ceil_mode", 0))
    function = functional.max_pool1d if rank == 1 else functional.max_pool2d
    site.compute(lambda x: function(x, kernel, strides, padding, dilations, ceil_mode), site.operands(0))


def global_average_pool(site: Site) -> None:
    """The mean over each map."""
    rank = len(site.shape(0)) - 2
    if rank not in (1, 2):
        raise site.node.fail(f"is over {rank} axes", "pooling over lines and maps is expressed")
    function = functional.adaptive_avg_pool1d if rank == 1 else functional.adaptive_avg_pool2d
    site.compute(lambda x: function(x, 1), site.operands(0))


def reduce(site: Site) -> None:
    """Mean, sum, maximum, minimum or product along axes; of constants, for shapes, too."""
    ndim = len(site.shape(0))
    axes = site.axes(1)
    keep = bool(site.node.integer("keepdims", 1))
    if not axes:
        if site.node.integer("noop_with_empty_axes", 0):
            site.alias()
            return
        axes = tuple(range(ndim))
    if any(not -ndim <= axis < ndim for axis in axes):
        raise site.node.fail(f"axes {axes[:8]} are not among {ndim} axes")
    dims = [axis % ndim for axis in axes]
    match site.node.op:
        case "ReduceMean":
            site.compute(lambda x: x.mean(dims, keepdim=keep), site.operands(0))
        case "ReduceSum":
            site.compute(lambda x: x.sum(dims, keepdim=keep), site.operands(0))
        case "ReduceMax":
            site.compute(lambda x: x.amax(dims, keepdim=keep), site.operands(0))
        case "ReduceMin":
            site.compute(lambda x: x.amin(dims, keepdim=keep), site.operands(0))
        case _:
            if len(dims) != 1:
                raise site.node.fail("is over more than one axis")
            site.compute(lambda x: x.prod(dims[0], keepdim=keep), site.operands(0))


def _window(site: Site) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Rank, kernel and strides of a pooling."""
    rank = len(site.shape(0)) - 2
    kernel = site.node.integers("kernel_shape") or ()
    if rank not in (1, 2) or len(kernel) != rank or min(kernel) < 1:
        raise site.node.fail(f"has a window {kernel[:8]} over {rank} axes", "pooling over lines and maps is expressed")
    if site.node.op == "AveragePool" and _per_axis(site, "dilations", rank) != (1,) * rank:
        raise site.node.fail("dilations must be 1")
    return rank, kernel, _per_axis(site, "strides", rank)


def _symmetric(site: Site, begin: Axes, end: Axes) -> Axes:
    if begin != end:
        raise site.node.fail(f"pads {begin} at the beginning and {end} at the end", "equal padding is expressed")
    return begin


def _per_axis(site: Site, name: str, rank: int) -> tuple[int, ...]:
    values = site.node.integers(name) or (1,) * rank
    if len(values) != rank or min(values) < 1:
        raise site.node.fail(f"{name} are {values[:8]} for {rank} axes")
    return values


def _padding(site: Site, kernel: Axes, strides: Axes, dilations: Axes) -> tuple[Axes, Axes]:
    """Padding at the beginning and at the end, given or named."""
    named = site.node.text("auto_pad", "NOTSET")
    rank = len(kernel)
    if named in ("NOTSET", ""):
        pads = site.node.integers("pads") or (0,) * (2 * rank)
        if len(pads) != 2 * rank or min(pads) < 0:
            raise site.node.fail(f"pads are {pads[:8]} for {rank} axes")
        return pads[:rank], pads[rank:]
    if named == "VALID":
        return (0,) * rank, (0,) * rank
    if named in ("SAME_UPPER", "SAME_LOWER"):
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        sizes = site.shape(0)[2:]
        totals = [
            max(0, (math.ceil(size / stride) - 1) * stride + span - size)
            for size, stride, span in zip(sizes, strides, spans, strict=True)
        ]
        less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
        return (less, more) if named == "SAME_UPPER" else (more, less)
    raise site.node.fail(f"auto_pad is {named!r}")


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Conv": conv,
        "Gemm": gemm,
        "MatMul": matmul,
        "Add": add,
        "BatchNormalization": batch_norm,
        "AveragePool": average_pool,
        "MaxPool": max_pool,
        "GlobalAveragePool": global_average_pool,
        "ReduceMean": reduce,
        "ReduceSum": reduce,
        "ReduceMax": reduce,
        "ReduceMin": reduce,
        "ReduceProd": reduce,
    }
)
