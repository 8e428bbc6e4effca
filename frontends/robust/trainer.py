"""Trains a graph in torch so that its margins hold around each sample (section 6.2.3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from compiler.ir import CompileError, Encoding, Graph
from compiler.ir.ops import Encode
from compiler.losses import RATE_SCALE
from compiler.passes import DropEncode, Retime
from frontends.descent import DescentRecipe
from frontends.recipe import loss_of
from frontends.robust.intervals import check_rules, intervals
from frontends.robust.linear_margins import check_linear_rules, linear_margins
from frontends.robust.margins import interval_margins
from frontends.robust.settings import RobustSettings
from frontends.robust.surroundings import surroundings
from frontends.robust.values import Interval
from frontends.to_torch import GraphModule, to_torch
from frontends.torch_training import TorchTrainer


class RobustTrainer(TorchTrainer):
    """A graph in training against all inputs around each sample, by S-IBP and S-CROWN.

    The loss is (1 - w) natural + w CE(-RATE_SCALE margins), w = g weight: margins hold the least
    score[label] - score[j] over the set, 0 for the label, so that the second term is the cross entropy of the worst
    that the bounds allow. Weights are shared over time: a step takes `settings.timesteps` steps, a prediction all of
    the network's. Batch norms stay as they are, in evaluation mode: the certified network is that one.

    Shapes: x (N, ...) or (T, N, ...) as the graph's input says; labels (N,).
    Source: section 6.2.3; Zhang et al. 2020 (CROWN-IBP) for the mixture.
    """

    def __init__(self, graph: Graph, recipe: DescentRecipe, settings: RobustSettings, presentations: int) -> None:
        """presentations: of samples, over the whole run.

        Raises: CompileError if the network has an op without bounds, or the settings do not fit it.
        """
        super().__init__(graph, recipe)
        self._settings, self._presentations = settings, presentations
        steps = settings.timesteps or graph.timesteps
        self._around = surroundings(graph, settings.threat, steps)
        self._bounded_graph = bounded_graph(graph, steps, kappa=settings.kappa)
        self._bounded = _sharing(self._module, self._bounded_graph)

    def _scored(self, x: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
        growth = self._settings.growth(first / self._presentations)
        clean, given = self._around.around(x, first, growth)
        scores: Tensor = self._bounded(clean)
        natural, weight = loss_of(self._loss, scores, labels), growth * self._settings.weight
        if weight == 0.0:
            return scores, natural
        bound = functional.cross_entropy(-RATE_SCALE * self.margins(given, labels), labels)
        return scores, (1 - weight) * natural + weight * bound

    def margins(self, given: Interval, labels: Tensor) -> Tensor:
        """The least margins over the sets, as the loss takes them. Shapes: labels (N,) -> (N, K)."""
        graph, module, kappa = self._bounded_graph, self._bounded, self._settings.kappa
        bounds = intervals(graph, module, given)
        if kappa == 0.0:
            return interval_margins(graph, module, bounds, labels)
        linear = linear_margins(graph, module, bounds, labels)
        if kappa == 1.0:
            return linear
        return (1 - kappa) * interval_margins(graph, module, bounds, labels) + kappa * linear


def bounded_graph(graph: Graph, timesteps: int, *, kappa: float = 0.0) -> Graph:
    """The network as it is bounded: without a Bernoulli encoding, and of so many steps.

    Raises: CompileError for an op without a rule, or an output that is no vector of class scores over time.
    """
    last = graph.node(graph.output)
    if graph.types[graph.output].axes != "NC":
        raise CompileError(f"{last.name}: the output is no vector of class scores", last.loc)
    short = Retime(timesteps)(graph)
    codes = (node.op for node in short.consumers(short.input.name) if isinstance(node.op, Encode))
    if any(op.kind is Encoding.BERNOULLI for op in codes):
        short = DropEncode()(short)
    check_rules(short)
    if kappa:
        check_linear_rules(short)
    return short


def _sharing(module: GraphModule, graph: Graph) -> GraphModule:
    """A module of the graph on the tensors of another module, in evaluation mode."""
    made = to_torch(graph)
    made.weights, made.constants = module.weights, module.constants
    return made.eval()
