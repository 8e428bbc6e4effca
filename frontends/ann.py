"""ANN front end: a trained torch network with ReLU becomes a spiking graph that computes about the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from compiler.ir import CompileError, Graph, Loc
from compiler.ir.ops import Lif, MaxPool2d
from frontends.ann_conversion.accuracy import accuracy_by_timesteps, accuracy_of
from frontends.ann_conversion.activations import balanced_levels
from frontends.ann_conversion.balance import spiking
from frontends.ann_conversion.pool_first import is_constant
from frontends.ann_conversion.relu_import import ReluNetwork, import_relu_network
from frontends.datasets import Samples
from frontends.findings import Finding, Ground

PERCENTILE = 99.9
MEASURED_TIMESTEPS = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A converted network, and what the conversion cost.

    thresholds: by population. accuracies: fractions of the held-out samples; None and empty where none were given.
    """

    graph: Graph
    thresholds: Mapping[str, float]
    findings: tuple[Finding, ...]
    accuracy_ann: float | None = None
    accuracy_by_timesteps: Mapping[int, float] = field(default_factory=dict)


def convert_ann(
    module: nn.Module,
    example: Tensor,
    samples: Samples,
    *,
    timesteps: int,
    percentile: float = PERCENTILE,
    held_out: Samples | None = None,
    measured: Sequence[int] = MEASURED_TIMESTEPS,
    name: str = "network",
) -> Converted:
    """Convert a trained network of convolutions, linear layers, batch norms, poolings, sums and ReLU.

    Each ReLU becomes a population of integrate-and-fire neurons with the soft reset. Its threshold is the percentile
    of the positive activations of that ReLU over the samples (100: their maximum): what lies above is cut off, what
    lies below is rounded to a multiple of threshold / timesteps. The image comes at every step; the scores are means
    over time. Equal in the limit of many steps, but for what is cut off and for maximum pooling behind the first ReLU,
    which takes the logical or of spikes.

    samples: of the training set; labels are not looked at. held_out: labelled, for the accuracies, at `timesteps` and
    at each of `measured`.

    Shapes: example (N, C, H, W) or (N, C); samples of the same features.
    Raises: CompileError for an operator without a counterpart, weights that are not finite, samples that do not fit
    or numbers out of range.
    """
    _check_numbers(timesteps, percentile, measured, name)
    for given in (samples, *([held_out] if held_out is not None else [])):
        _check_samples(given, example)
    network = import_relu_network(module, example, name)
    levels = balanced_levels(network, module, samples, percentile)
    thresholds = {place: level or 1.0 for place, level in levels.items()}
    graph = spiking(network.graph, thresholds, timesteps)
    converted = Converted(
        graph=graph,
        thresholds=thresholds,
        findings=(*network.findings, *_findings(network, graph, levels, percentile, len(samples))),
    )
    return converted if held_out is None else _measured(converted, module, held_out, (*measured, timesteps))


def _measured(converted: Converted, module: nn.Module, held_out: Samples, timesteps: Sequence[int]) -> Converted:
    graph = converted.graph
    scores, loc = graph.types[graph.output], Loc(f"data {held_out.name}")
    if not held_out.labelled:
        raise CompileError("has no labels to measure an accuracy with", loc)
    if scores.axes != "NC":
        raise CompileError(f"the output {scores} is no vector of class scores", Loc(graph.name))
    if held_out.y.max() >= scores.size("C"):
        raise CompileError(f"a label is {held_out.y.max()}, the network has {scores.size('C')} classes", loc)
    return Converted(
        graph=graph,
        thresholds=converted.thresholds,
        findings=converted.findings,
        accuracy_ann=accuracy_of(module, held_out),
        accuracy_by_timesteps=accuracy_by_timesteps(graph, held_out, tuple(sorted(set(timesteps)))),
    )


def _findings(
    network: ReluNetwork, graph: Graph, levels: Mapping[str, float], percentile: float, samples: int
) -> list[Finding]:
    what = "the maximum" if percentile == 100.0 else f"percentile {percentile:g}"
    found = [Finding(place=graph.input.name, ground=Ground.ASSUMED, text="the image comes at every time step")]
    for node in graph.nodes:
        if isinstance(node.op, Lif) and levels[node.name] > 0:
            cut = f", cut off at {network.caps[node.name]:g}" if network.caps[node.name] < float("inf") else ""
            text = (
                f"threshold {levels[node.name]:.4g}: {what} of the ReLU's positive values over {samples} samples{cut}"
            )
            found.append(Finding(place=node.name, ground=Ground.ASSUMED, text=text))
        elif isinstance(node.op, Lif):
            text = "threshold 1: the ReLU is never active over the samples"
            found.append(Finding(place=node.name, ground=Ground.ASSUMED, text=text))
        elif isinstance(node.op, MaxPool2d) and not is_constant(graph, node.name):
            text = "the maximum is taken at each step: of spikes their logical or, whose rate is at least the maximum's"
            found.append(Finding(place=node.name, ground=Ground.ASSUMED, text=text))
    return found


def _check_numbers(timesteps: int, percentile: float, measured: Sequence[int], name: str) -> None:
    for steps in (timesteps, *measured):
        if steps < 1:
            raise CompileError(f"timesteps is {steps}, must be at least 1", Loc(name))
    if not 0.0 < percentile <= 100.0:
        raise CompileError(f"percentile is {percentile:g}, must be above 0 and at most 100", Loc(name))


def _check_samples(samples: Samples, example: Tensor) -> None:
    loc = Loc(f"data {samples.name}")
    if samples.has_time:
        raise CompileError("has a time axis; a network with ReLU takes images", loc)
    if not len(samples):
        raise CompileError("has no samples", loc)
    if samples.x.shape[1:] != tuple(example.shape[1:]):
        raise CompileError(
            f"samples are (N, {', '.join(map(str, samples.x.shape[1:]))}), the example is {tuple(example.shape)}", loc
        )
