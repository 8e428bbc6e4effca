"""Rules for the layers with parameters or windows: convolution, linear, batch norm, pooling."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from compiler.ir.ops import AvgPool2d, BatchNorm, Conv2d, Flatten, Linear, MaxPool2d, Scale
from frontends.torch_import.axes import Value
from frontends.torch_import.call import Call
from frontends.torch_import.network import Network
from frontends.torch_import.operands import Constant

Pair = tuple[int, int]


def conv(network: Network, call: Call) -> Value:
    """A convolution; one over lines of features has H = 1."""
    rank = _rank(call)
    return _conv(network, call, _pair(call, "padding", rank, fill=0))


def conv_with_named_padding(network: Network, call: Call) -> Value:
    """A convolution with padding 'valid' or 'same'."""
    weight = network.constant(call, "weight")
    assert weight is not None
    spans = [kernel - 1 for kernel in weight.tensor.shape[2:]]
    match call.arguments["padding"]:
        case "valid":
            sides = [0 for _ in spans]
        case "same" if any(span % 2 for span in spans):
            raise call.fail(
                f"padding 'same' of the even kernel {tuple(weight.tensor.shape[2:])} is not symmetric",
                "pad with an odd kernel, or give the padding as numbers",
            )
        case "same":
            sides = [span // 2 for span in spans]
        case other:
            raise call.fail(f"padding is {other!r}")
    return _conv(network, call, (0, sides[0]) if len(sides) == 1 else (sides[0], sides[1]))


def _conv(network: Network, call: Call, padding: Pair) -> Value:
    rank = _rank(call)
    x = _batched(network, call, rank)
    dilation = _pair(call, "dilation", rank, fill=1)
    if dilation != (1, 1):
        raise call.fail(f"dilation is {call.integers('dilation')}, must be 1")
    weight, bias = network.constant(call, "weight"), network.constant(call, "bias")
    assert weight is not None
    kernel = weight.tensor.unsqueeze(2) if rank == 1 else weight.tensor
    op = Conv2d(
        weight=network.parameter(call, weight.name, kernel),
        bias=network.parameter(call, bias.name, bias.tensor) if bias else None,
        stride=_pair(call, "stride", rank, fill=1),
        padding=padding,
        groups=call.integer("groups"),
    )
    return _result(call, x, network.emit(call, op, x))


def linear(network: Network, call: Call) -> Value:
    """A fully connected layer."""
    x = network.value(call)
    if len(x.extents) != 1:
        raise call.fail(f"acts on the last axis of {x}", "flatten the features first: nn.Flatten()")
    weight, bias = network.constant(call, "weight"), network.constant(call, "bias")
    assert weight is not None
    op = Linear(
        weight=network.parameter(call, weight.name, weight.tensor),
        bias=network.parameter(call, bias.name, bias.tensor) if bias else None,
    )
    return _result(call, x, network.emit(call, op, x))


def batch_norm(network: Network, call: Call) -> Value:
    """Batch normalisation with running statistics; weight 1 and bias 0 where the layer has none."""
    x = network.value(call)
    if x.lead_ndim != 1:
        raise call.fail(f"normalises axis 1, which is not the channel of {x}", "merge T and N first")
    mean, var = network.constant(call, "running_mean"), network.constant(call, "running_var")
    if mean is None or var is None or call.flag("training"):
        raise call.fail("uses the statistics of the batch", "set track_running_stats=True")
    stem = mean.name.removesuffix("running_mean")
    weight = network.constant(call, "weight") or Constant(name=stem + "weight", tensor=torch.ones_like(mean.tensor))
    bias = network.constant(call, "bias") or Constant(name=stem + "bias", tensor=torch.zeros_like(mean.tensor))
    op = BatchNorm(
        weight=network.parameter(call, weight.name, weight.tensor),
        bias=network.parameter(call, bias.name, bias.tensor),
        mean=network.parameter(call, mean.name, mean.tensor),
        var=network.parameter(call, var.name, var.tensor),
        eps=call.real("eps"),
    )
    name = network.emit(call, op, x)
    network.norms[name] += 1
    return _result(call, x, name)


def avg_pool(network: Network, call: Call) -> Value:
    """Average pooling; with a divisor of its own it is scaled."""
    rank = _rank(call)
    x = _batched(network, call, rank)
    op = AvgPool2d(
        kernel=_pair(call, "kernel_size", rank, fill=1),
        stride=_stride(call, rank),
        padding=_pair(call, "padding", rank, fill=0),
        ceil_mode=call.flag("ceil_mode"),
        count_include_pad=call.flag("count_include_pad"),
    )
    if call.arguments.get("divisor_override") is not None:
        return _sum_pool(network, call, x, op)
    return _result(call, x, network.emit(call, op, x))


def _sum_pool(network: Network, call: Call, x: Value, op: AvgPool2d) -> Value:
    """Sums over windows by a divisor: means over whole windows, scaled by a power of two.

    Raises: CompileError where the scale would round, or a window at the border is smaller.
    """
    area, divisor = op.kernel[0] * op.kernel[1], call.integer("divisor_override")
    if any(abs(math.frexp(number)[0]) != 0.5 for number in (area, divisor)):
        raise call.fail(
            f"divides sums of {area} values by {divisor}: their mean times {area} / {divisor} would round otherwise",
            "leave divisor_override out, or use powers of two",
        )
    axes = zip(x.extents[-2:] if len(x.extents) == 3 else (1, x.extents[1]), range(2), strict=True)
    whole = [(size + 2 * op.padding[i] - op.kernel[i]) // op.stride[i] + 1 for size, i in axes]
    if op.ceil_mode and tuple(whole[-(len(x.extents) - 1) :]) != call.shape[x.lead_ndim + 1 :]:
        raise call.fail("ceil_mode leaves windows that are not whole, with divisor_override")
    whole_windows = replace(op, ceil_mode=False, count_include_pad=True)
    pooled = _result(call, x, network.emit(call, whole_windows, x))
    return pooled.of(network.emit(call, Scale(factor=area / divisor), pooled))


def max_pool(network: Network, call: Call) -> Value:
    """Maximum pooling."""
    rank = _rank(call)
    x = _batched(network, call, rank)
    if _pair(call, "dilation", rank, fill=1) != (1, 1):
        raise call.fail(f"dilation is {call.integers('dilation')}, must be 1")
    op = MaxPool2d(
        kernel=_pair(call, "kernel_size", rank, fill=1),
        stride=_stride(call, rank),
        padding=_pair(call, "padding", rank, fill=0),
        ceil_mode=call.flag("ceil_mode"),
    )
    return _result(call, x, network.emit(call, op, x))


def adaptive_avg_pool(network: Network, call: Call) -> Value:
    """Adaptive average pooling whose windows are all of one size.

    PyTorch divides the sum by rows and columns in turn, AvgPool2d by their product: the same bits for powers of
    two, otherwise one rounding apart.
    """
    x = _batched(network, call, _rank(call))
    window = _adaptive_window(call, x, call.shape[-len(x.extents) + 1 :])
    return _result(call, x, network.emit(call, AvgPool2d(kernel=window, stride=window), x))


def _adaptive_window(call: Call, x: Value, targets: tuple[int, ...]) -> Pair:
    """The window that pools all of the input to the target's extents."""
    sizes = x.extents[1:]
    if any(size % target for size, target in zip(sizes, targets, strict=True)):
        raise call.fail(
            f"pools {sizes} to {targets} in windows of different sizes",
            "the input must be a multiple of the output",
        )
    kernel = tuple(size // target for size, target in zip(sizes, targets, strict=True))
    return (1, kernel[0]) if len(kernel) == 1 else (kernel[0], kernel[1])


def adaptive_max_pool(network: Network, call: Call) -> Value:
    """Adaptive maximum pooling whose windows are all of one size."""
    x = _batched(network, call, _rank(call))
    window = _adaptive_window(call, x, _targets(call, x))
    extents = tuple(size // kernel for size, kernel in zip(x.extents[1:], window[-len(x.extents) + 1 :], strict=True))
    return x.of(network.emit(call, MaxPool2d(kernel=window, stride=window), x), (x.extents[0], *extents))


def _targets(call: Call, x: Value) -> tuple[int, ...]:
    sizes = call.integers("output_size")
    return sizes if len(sizes) == len(x.extents) - 1 else sizes * (len(x.extents) - 1)


def mean_over_space(network: Network, call: Call, x: Value) -> Value:
    """The mean over rows and columns as one window of average pooling."""
    window = (x.extents[1], x.extents[2])
    pooled = x.of(network.emit(call, AvgPool2d(kernel=window, stride=window), x), (x.extents[0], 1, 1))
    if call.flag("keepdim"):
        return pooled
    return _result(call, x, network.emit(call, Flatten(), pooled))


def _result(call: Call, x: Value, name: str) -> Value:
    return x.of(name, call.shape[x.lead_ndim :])


def _batched(network: Network, call: Call, rank: int) -> Value:
    """The argument, if it has one axis in front of channels and `rank` axes of space."""
    x = network.value(call)
    if x.lead_ndim != 1 or len(x.extents) != rank + 1:
        axes = "C, H, W" if rank == 2 else "C, L"
        raise call.fail(f"takes (N, {axes}) or (T * N, {axes}), gets {x}", "merge T and N with x.flatten(0, 1)")
    return x


def _rank(call: Call) -> int:
    return 1 if "1d" in call.op else 2


def _stride(call: Call, rank: int) -> Pair:
    given = call.arguments["stride"]
    return _pair(call, "stride" if given not in (None, []) else "kernel_size", rank, fill=1)


def _pair(call: Call, name: str, rank: int, *, fill: int) -> Pair:
    values = call.integers(name)
    if rank == 1:
        return (fill, values[0])
    return (values[0], values[-1])
