"""Makes the backward pass explicit: a network and a loss become a training graph."""

from __future__ import annotations

from collections import Counter

from compiler.differentiate.adjoints import Place, adjoint
from compiler.differentiate.steps import Accumulate, LossGradient, LossValue, Step
from compiler.differentiate.training_graph import (
    LABELS,
    LOSS,
    BatchStatistics,
    Stage,
    TrainingGraph,
    TrainingNode,
    Value,
    gradient_of,
)
from compiler.ir import DType, Graph, Node, TensorType
from compiler.losses import Loss

_PARAMETER_AXES = {1: "O", 2: "OI", 4: "OIHW"}  # by their number


def differentiate(
    graph: Graph, loss: Loss | None, *, statistics: BatchStatistics = BatchStatistics.BATCH
) -> TrainingGraph:
    """The training graph of a network: a node per op and stage, membrane potentials kept dense.

    Without a loss, each run is given the gradient of the output. There are gradients of every value on a path to
    the output, and of the weights, biases and affine numbers of batch norms there. A Bernoulli or latency encoding
    passes none on to its input; the gradient of its own output is a value like any other.

    Raises: CompileError for an op without a rule, for a loss over an output that is not (N, classes), and where
    two values would have one name.
    """
    return _Builder(graph, loss, statistics).build()


class _Builder:
    """Collects the steps, forward ones first."""

    def __init__(self, graph: Graph, loss: Loss | None, statistics: BatchStatistics) -> None:
        self.graph = graph
        self.loss = loss
        self.statistics = statistics
        self.rules = {node.name: adjoint(node.op, self._place(node)) for node in graph.nodes}
        self.reached = self._reached()
        self.trained = {param.name for node in self.reached for param in self.rules[node.name].trains}
        self.parts = Counter(target for node in self.reached for target in self._targets(node))
        self.sent: dict[str, list[str]] = {target: [] for target in self.parts}
        self.nodes: list[TrainingNode] = []

    def build(self) -> TrainingGraph:
        self._check_names()
        for node in self.graph.nodes:
            rule = self.rules[node.name]
            results = (Value(node.name, self.graph.types[node.name]), *rule.saves)
            self._add(node, Stage.FP, rule.forward, node.inputs, results)
        if self.loss is not None:
            self._add_loss(self.loss)
        for node in self.reached:
            self._accumulate(node.name, Stage.BP, node)
            updates = self._add_update(node)
            self._add_backward(node, updates)
        gradients = tuple(gradient_of(name) for name in sorted(self.trained))
        outputs = (self.graph.output, *((LOSS,) if self.loss else ()), *gradients)
        return TrainingGraph(self.graph, self.loss, self.statistics, tuple(self.nodes), outputs)

    def _place(self, node: Node) -> Place:
        types = self.graph.types
        return Place(
            node=node,
            sources=tuple(types[name] for name in node.inputs),
            type=types[node.name],
            statistics=self.statistics,
        )

    def _reached(self) -> list[Node]:
        """The nodes whose output has a gradient, from last to first."""
        names = {self.graph.output}
        reached = []
        for node in reversed(self.graph.nodes):
            if node.name in names:
                reached.append(node)
                if self.rules[node.name].backward is not None:
                    names.update(node.inputs)
        return reached

    def _targets(self, node: Node) -> list[str]:
        """The values and parameters that the node sends gradients to."""
        rule = self.rules[node.name]
        values = node.inputs if rule.backward is not None else ()
        return [*values, *(param.name for param in rule.trains)]

    def _check_names(self) -> None:
        for node in self.graph.nodes:
            if node.name in self.trained:
                raise self.graph.site(node).fail(
                    f"node and parameter @{node.name} would have one gradient, {gradient_of(node.name)}",
                    "rename the parameter",
                )

    def _add(self, node: Node, stage: Stage, step: Step, inputs: tuple[str, ...], results: tuple[Value, ...]) -> None:
        self.nodes.append(
            TrainingNode(name=node.name, stage=stage, step=step, inputs=inputs, results=results, loc=node.loc)
        )

    def _add_loss(self, loss: Loss) -> None:
        node = self.graph.node(self.graph.output)
        scores = self.graph.types[node.name]
        if scores.axes != "NC":
            raise self.graph.site(node).fail(
                f"the output {scores} is no vector of class scores, so there is no {loss} of it",
                "end the network in a readout over time, or give the output's gradient instead of a loss",
            )
        taken = (node.name, LABELS)
        value = Value(LOSS, TensorType((), DType.F32, ""))
        self._add(node, Stage.FP, LossValue(loss=loss), taken, (value,))
        self._add(node, Stage.BP, LossGradient(loss=loss), taken, (self._gradient_value(node.name, ""),))

    def _add_update(self, node: Node) -> tuple[str, ...]:
        """The update step, if there is one; returns what it makes."""
        rule = self.rules[node.name]
        if rule.update is None:
            return ()
        targets = [param.name for param in rule.trains]
        results = self._send(node, targets)
        self._add(node, Stage.WU, rule.update, (gradient_of(node.name), *rule.update_reads), results)
        for target in dict.fromkeys(targets):
            self._accumulate(target, Stage.WU, node)
        return tuple(value.name for value in results)

    def _add_backward(self, node: Node, updates: tuple[str, ...]) -> None:
        rule = self.rules[node.name]
        if rule.backward is None:
            return
        reads = (*rule.backward_reads, *(updates if rule.backward_reads_update else ()))
        results = self._send(node, node.inputs)
        self._add(node, Stage.BP, rule.backward, (gradient_of(node.name), *reads), results)

    def _send(self, node: Node, targets: list[str] | tuple[str, ...]) -> tuple[Value, ...]:
        """The values in which a node sends gradients, named as the docstring of `TrainingGraph` says."""
        results = []
        for index, target in enumerate(targets):
            part = ""
            if self.parts[target] > 1:
                part = f".by.{node.name}" + (f".{index}" if targets.count(target) > 1 else "")
            results.append(self._gradient_value(target, part))
            self.sent[target].append(results[-1].name)
        return tuple(results)

    def _accumulate(self, target: str, stage: Stage, node: Node) -> None:
        """Sum the parts of a gradient once all are there."""
        sent = self.sent.get(target, [])
        if len(sent) > 1 and len(sent) == self.parts[target]:
            value = self._gradient_value(target, "")
            self._add(node, stage, Accumulate(), tuple(sent), (value,))

    def _gradient_value(self, target: str, part: str) -> Value:
        if target in self.graph.types:
            kind = self.graph.types[target].of(DType.F32)
        else:
            shape = self.graph.parameters[target].shape
            kind = TensorType(shape, DType.F32, _PARAMETER_AXES[len(shape)])
        return Value(f"{gradient_of(target)}{part}", kind)
