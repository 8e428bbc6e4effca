"""Rounds weights and neuron parameters to FP16 as the engines hold them, and refuses what does not fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compiler.h2learn.layers import NetworkLayer
from compiler.ir import Compare, DType, Graph, Node, Number, Reset
from compiler.ir.ops import AvgPool2d, Conv2d, Flatten, Li, Lif, Linear, MaxPool2d, Site
from hwmodel.isa import FP16_OVERFLOW, NEURON_FIELDS

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]

LARGEST = 65504.0  # of FP16; a surrogate's window reaches no further
SUB_LUT_TAPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SomaStage:
    """One neuron of a layer as the Soma runs it; a raw stage hands its input on (decay 0, no fire)."""

    node: str  # "" for a raw stage
    fire: bool
    reset: Reset
    compare: Compare
    has_pre_bias: bool
    has_scale: bool
    has_bias: bool
    table: F16  # (NEURON_FIELDS, channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """FP16 constants of a layer.

    Shapes: weights (O, C / groups, kh, kw), features of a linear layer in memory order (row, column, channel)
    as (O, features, 1, 1); None for a layer without weights.
    """

    weights: F16 | None
    stages: tuple[SomaStage, ...]
    flushed: int  # weights that are not zero and became zero
    total: int  # weights


def quantise(graph: Graph, layer: NetworkLayer, *, fold: bool = True) -> Quantised:
    """Constants of one layer, with input_scale and leak_bias folded in.

    Where an average or nothing stands between the synapse and its neuron, weights and bias are multiplied by
    input_scale; leak_bias joins the bias where there is no pool. Elsewhere, and for training (not `fold`), where
    weights must stay what the optimiser changes, the Soma applies both itself.

    Raises: CompileError for a weight, LUT entry or neuron parameter that overflows FP16 (layer and channel
    named), and for a threshold that is not positive in FP16.
    """
    channels = layer.synapse_type.size("C")
    scale = np.ones(channels, np.float32)
    first = layer.neuron1
    folds = fold and layer.synapse is not None and (layer.pool1 is None or isinstance(layer.pool1.op, AvgPool2d))
    if first is not None and folds and isinstance(first.op, Lif | Li):
        scale = graph.site(first).channels(first.op.input_scale, channels, "input_scale")
    weights, bias, flushed, total = _weights(graph, layer, scale)
    stages = []
    is_or = isinstance(layer.nodes[-1].op, MaxPool2d) and layer.source_type.dtype is DType.SPIKE
    if layer.synapse is not None or first is not None or not is_or:
        stages.append(_first_stage(graph, layer, bias, folds=folds, fold_leak=fold))
    if layer.neuron2 is not None:
        stages.append(_stage(graph, layer.neuron2, None, fold_leak=False, scaled=False))
    elif layer.pool2 is not None and isinstance(layer.pool2.op, AvgPool2d):
        stages.append(_raw_stage(graph, layer.pool2, None))
    return Quantised(weights=weights, stages=tuple(stages), flushed=flushed, total=total)


def to_f16(values: F32, what: str, site: Site) -> F16:
    """Round to FP16, nearest even; the first axis is the channel that an error names."""
    too_large = np.abs(values.astype(np.float64)) >= FP16_OVERFLOW
    if too_large.any():
        channel = int(np.argwhere(too_large)[0][0])
        worst = float(values[too_large].flat[0])
        raise site.fail(
            f"{what} {worst:g} of channel {channel} overflows FP16 (largest 65504)",
            "scale the layer's weights, threshold and bias down together",
        )
    return values.astype(np.float16)


def _weights(graph: Graph, layer: NetworkLayer, scale: F32) -> tuple[F16 | None, F32 | None, int, int]:
    node = layer.synapse
    if node is None:
        return None, None, 0, 0
    assert isinstance(node.op, Conv2d | Linear)
    site = graph.site(node)
    weight = graph.parameters[node.op.weight.name]
    if isinstance(node.op, Linear):
        weight = _memory_order(graph, layer, weight)
    weight = weight * scale.reshape(-1, 1, 1, 1)
    rounded = to_f16(weight, "weight", site)
    flushed = int(np.count_nonzero((rounded == 0) & (weight != 0)))
    if isinstance(node.op, Conv2d) and not layer.real:
        _check_lut_entries(rounded, site)
    bias = None if node.op.bias is None else graph.parameters[node.op.bias.name] * scale
    return rounded, bias, flushed, rounded.size


def _memory_order(graph: Graph, layer: NetworkLayer, weight: F32) -> F32:
    """Columns from PyTorch's (channel, row, column) order to memory's (row, column, channel)."""
    assert layer.synapse is not None
    out = weight.shape[0]
    producer = graph.node(layer.synapse.inputs[0])
    if isinstance(producer.op, Flatten):
        maps = graph.types[producer.inputs[0]]
        shape = (out, maps.size("C"), maps.size("H"), maps.size("W"))
        weight = np.ascontiguousarray(weight.reshape(shape).transpose(0, 2, 3, 1))
    return weight.reshape(out, -1, 1, 1)


def _check_lut_entries(weights: F16, site: Site) -> None:
    """Refuse sub-LUT entries (sums of up to three taps, in raster order) that leave FP16."""
    out = weights.shape[0]
    taps = weights.reshape(out, weights.shape[1], -1)
    piece_taps = 9
    padded = np.zeros((*taps.shape[:2], -(-taps.shape[2] // piece_taps) * piece_taps), np.float16)
    padded[:, :, : taps.shape[2]] = taps
    triples = padded.reshape(out, -1, SUB_LUT_TAPS)
    large = np.abs(triples.astype(np.float32)).sum(-1).max(1) >= FP16_OVERFLOW / 2
    for channel in np.flatnonzero(large):
        entries = np.zeros((len(triples[channel]), 1), np.float16)
        with np.errstate(over="ignore"):
            for tap in range(SUB_LUT_TAPS):
                entries = np.concatenate([entries, entries + triples[channel][:, tap, None]], 1)
        if not np.isfinite(entries).all():
            worst = np.abs(triples[channel].astype(np.float64)).sum(-1).max()
            raise site.fail(
                f"LUT entry {worst:g} of channel {channel}, a sum of up to three weights, "
                "overflows FP16 (largest 65504)",
                "scale the layer's weights, threshold and bias down together",
            )


def _first_stage(graph: Graph, layer: NetworkLayer, bias: F32 | None, *, folds: bool, fold_leak: bool) -> SomaStage:
    if layer.neuron1 is not None:
        fold_leak = fold_leak and layer.synapse is not None and layer.pool1 is None
        return _stage(graph, layer.neuron1, bias, fold_leak=fold_leak, scaled=folds)
    return _raw_stage(graph, layer.pool1 or layer.nodes[-1], bias)


def _raw_stage(graph: Graph, node: Node, bias: F32 | None) -> SomaStage:
    """A stage without a neuron: m = 0 * m + x."""
    table = np.zeros((NEURON_FIELDS, graph.types[node.name].size("C")), np.float16)
    if bias is not None:
        table[0] = to_f16(bias, "bias", graph.site(node))
    return SomaStage(
        node="",
        fire=False,
        reset=Reset.NONE,
        compare=Compare.GE,
        has_pre_bias=bias is not None,
        has_scale=False,
        has_bias=False,
        table=table,
    )


def _stage(graph: Graph, node: Node, bias: F32 | None, *, fold_leak: bool, scaled: bool) -> SomaStage:
    op = node.op
    assert isinstance(op, Lif | Li)
    site = graph.site(node)
    channels = graph.types[node.name].size("C")
    leak = site.channels(op.leak_bias, channels, "leak_bias")
    if fold_leak and leak.any():
        bias = leak if bias is None else bias + leak
        leak = np.zeros_like(leak)
    scale = np.ones_like(leak) if scaled else site.channels(op.input_scale, channels, "input_scale")
    rows = {
        "bias": np.zeros_like(leak) if bias is None else bias,
        "input_scale": scale,
        "leak_bias": leak,
        **_dynamics(op, site, channels),
    }
    table = np.stack([to_f16(row, what, site) for what, row in rows.items()])
    fires = isinstance(op, Lif)
    if fires:
        _check_threshold(rows["threshold"], table[4], site)
    return SomaStage(
        node=node.name,
        fire=fires,
        reset=op.reset if isinstance(op, Lif) else Reset.NONE,
        compare=op.compare if isinstance(op, Lif) else Compare.GE,
        has_pre_bias=bias is not None,
        has_scale=bool((table[1] != 1).any()),
        has_bias=bool((table[2] != 0).any()),
        table=table,
    )


def _dynamics(op: Lif | Li, site: Site, channels: int) -> dict[str, F32]:
    """The rows of the table behind scale and bias, in its order; zero where an integrator has none."""

    def values(number: Number, what: str) -> F32:
        return site.channels(number, channels, what)

    decay, initial, zero = values(op.decay, "decay"), values(op.initial, "initial"), np.zeros(channels, np.float32)
    if isinstance(op, Li):
        rows = (decay, zero, zero, initial, zero, zero)
    else:
        threshold, window = values(op.threshold, "threshold"), op.surrogate
        low, high = (np.float32(window.offset + side * window.width) for side in (-1, 1))
        rows = (
            decay,
            threshold,
            values(op.reset_value, "reset_value"),
            initial,
            np.clip(threshold + low, -LARGEST, LARGEST),
            np.clip(threshold + high, -LARGEST, LARGEST),
        )
    return dict(zip(("decay", "threshold", "reset_value", "initial", "th_l", "th_r"), rows, strict=True))


def _check_threshold(threshold: F32, rounded: F16, site: Site) -> None:
    faulty = np.flatnonzero(~(rounded > 0))
    if not faulty.size:
        return
    channel = int(faulty[0])
    value = float(threshold[channel])
    if value > 0:
        raise site.fail(
            f"threshold {value:g} of channel {channel} is 0 in FP16; the Soma unit needs a positive one",
            "scale the layer's weights, threshold and bias up together",
        )
    raise site.fail(
        f"threshold of channel {channel} is {value:g}; the Soma unit needs a positive one",
        "a neuron with threshold <= 0 fires without input; give it a positive threshold",
    )
