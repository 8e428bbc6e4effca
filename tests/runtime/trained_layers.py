"""Sets every layer of a training step against the training graph in f64, which is fed with the machine's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from compiler.differentiate import KeepCompressed, differentiate, gradient_of, run_training
from compiler.ir import Graph, Node, Number, Param, TensorType
from compiler.ir.ops import AvgPool2d, Conv2d, Flatten, Li, Lif, Linear, MaxPool2d
from hwmodel.program import Format, Program
from runtime.host import F32
from tests.runtime import fp16_bounds as bounds
from tests.runtime.fp16_bounds import Bounded, Kept, Numbers, exact
from tests.runtime.trained_step import Step, SubBatch, order_of


def rounded(graph: Graph) -> Graph:
    """The network with weights and neuron numbers as the machine holds them in FP16."""
    parameters = {name: array.astype(np.float16).astype(np.float32) for name, array in graph.parameters.items()}
    nodes = tuple(
        replace(node, op=_rounded_op(node.op)) if isinstance(node.op, Lif | Li) else node for node in graph.nodes
    )
    return Graph(graph.name, nodes, graph.output, parameters)


def _rounded_op(op: Lif | Li) -> Lif | Li:
    numbers = {f.name: float(np.float16(v)) for f in fields(op) if isinstance(v := getattr(op, f.name), float)}
    if isinstance(op, Li):
        return replace(op, **numbers)
    return replace(op, **numbers, surrogate=replace(op.surrogate, scale=float(np.float16(op.surrogate.scale))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One tensor of gradients: the machine's, and the training graph's with the bound on their distance."""

    name: str
    machine: Tensor
    reference: Bounded

    @property
    def excess(self) -> float:
        """By how much the bound is broken; not above 0 if it holds."""
        return self.reference.excess(self.machine)


class Reference:
    """The training graph of a program's network in f64, fed with what the machine computed."""

    def __init__(self, program: Program, graph: Graph, weights: Mapping[str, F32] | None = None) -> None:
        self._program = program
        parameters = dict(graph.parameters) | dict(weights or {})
        self._graph = rounded(Graph(graph.name, graph.nodes, graph.output, parameters))
        self._training = replace(KeepCompressed()(differentiate(self._graph, None)), outputs=())
        self._lowest = next(n for n, layer in enumerate(program.layers) if layer.kind != "pool")

    def compare(self, step: Step) -> Iterator[Comparison]:
        """Every layer's gradient in every sub-batch, then the sums of the weight gradients."""
        sums: dict[str, list[Bounded]] = {}
        for sub_batch in step.sub_batches:
            for number in range(len(self._program.layers) - 1, self._lowest - 1, -1):
                yield self.layer_gradient(number, sub_batch)
                for name, part in self.weight_gradients(number, sub_batch).items():
                    sums.setdefault(name, []).append(part)
        for name, parts in sums.items():
            yield Comparison(name=gradient_of(name), machine=step.gradients[name], reference=bounds.accumulated(parts))

    def end_to_end(self, step: Step, loss_gradients: Sequence[Bounded]) -> dict[str, Bounded]:
        """The sums of the weight gradients from the gradients of the loss on, the bounds growing layer by layer.

        loss_gradients: of each sub-batch, and how far the machine's lie from them.
        """
        sums: dict[str, list[Bounded]] = {}
        for sub_batch, sent in zip(step.sub_batches, loss_gradients, strict=True):
            gradient = sent
            for number in range(len(self._program.layers) - 1, self._lowest - 1, -1):
                gradient = self.layer_gradient(number, sub_batch, gradient).reference
                for name, part in self.weight_gradients(number, sub_batch, gradient).items():
                    sums.setdefault(name, []).append(part)
        return {name: bounds.accumulated(parts) for name, parts in sums.items()}

    def layer_gradient(self, number: int, sub_batch: SubBatch, incoming: Bounded | None = None) -> Comparison:
        """A layer's gradient from the machine's gradient behind it, or from another one."""
        given = incoming or exact(self._incoming(number, sub_batch))
        wanted = gradient_of(self._gradient_node(number))
        values = {self._incoming_name(number): given.value, **self._kept_values(number, sub_batch)}
        reference = self._run(values, (wanted,))[wanted]
        bound = self._bound(number, sub_batch, given)
        assert torch.allclose(bound.value, reference, rtol=1e-11, atol=1e-300 + 1e-12 * float(given.reach.max()))
        return Comparison(
            name=f"{number}.{wanted}",
            machine=self._maps(sub_batch, f"{number}.gradient", self._gradient_node(number)),
            reference=Bounded(reference, bound.error),
        )

    def weight_gradients(self, number: int, sub_batch: SubBatch, dy: Bounded | None = None) -> dict[str, Bounded]:
        """A layer's weight and bias gradient from the machine's gradient of its sums, or from another one."""
        node = self._node(number, 0)
        op = node.op
        if not isinstance(op, Conv2d | Linear):
            return {}
        given = dy or exact(self._maps(sub_batch, f"{number}.gradient", node.name))
        source = self._source(number, sub_batch)
        names = [op.weight.name] if op.bias is None else [op.weight.name, op.bias.name]
        values = {gradient_of(node.name): given.value, node.inputs[0]: source}
        found = self._run(values, tuple(gradient_of(name) for name in names))
        order, conv = order_of(self._program, number), op if isinstance(op, Conv2d) else None
        is_real = (
            self._program.tensors[self._program.input_index].format is not Format.S1 and number == self._lowest == 0
        )
        shape = self._graph.parameters[op.weight.name].shape
        bound = [
            bounds.weight_gradient(given, source, shape, conv, order.weight_gradient, real=is_real),
            bounds.bias_gradient(given, order.bias_gradient),
        ]
        return {name: Bounded(found[gradient_of(name)], part.error) for name, part in zip(names, bound, strict=False)}

    def _run(self, given: Mapping[str, Tensor], want: tuple[str, ...]) -> Mapping[str, Tensor]:
        batch = self._program.batch
        shape = [batch if isinstance(size, str) else size for size in self._graph.types[self._graph.input.name].shape]
        return run_training(self._training, torch.zeros(shape), given=given, want=want, dtype=torch.float64).values

    # -- what the machine computed ------------------------------------------------------------------------------------

    def _incoming(self, number: int, sub_batch: SubBatch) -> Tensor:
        if number + 1 == len(self._program.layers):
            return self._maps(sub_batch, "loss_gradient", self._last(number).name)
        return self._maps(sub_batch, f"{number + 1}.gradient", self._gradient_node(number + 1))

    def _incoming_name(self, number: int) -> str:
        if number + 1 == len(self._program.layers):
            return gradient_of(self._last(number).name)
        return gradient_of(self._gradient_node(number + 1))

    def _gradient_node(self, number: int) -> str:
        """The node of whose value a layer hands the gradient on: its sums, or its source where it has no weights."""
        node = self._node(number, 0)
        return node.name if isinstance(node.op, Conv2d | Linear) else node.inputs[0]

    def _kept_values(self, number: int, sub_batch: SubBatch) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for node, kept in self._kept(number, sub_batch):
            parts = {"": kept.spikes, ".mask": kept.mask, ".membrane": kept.membrane}
            values |= {node.name + suffix: part for suffix, part in parts.items() if part is not None}
        for node in self._nodes(number):
            if isinstance(node.op, MaxPool2d) and (winners := self._winners(number, node, sub_batch)) is not None:
                values[f"{node.name}.winners"] = winners
        return values

    def _kept(self, number: int, sub_batch: SubBatch) -> list[tuple[Node, Kept]]:
        nodes = self._nodes(number)
        neurons = [node for node in nodes if isinstance(node.op, Lif | Li)]
        found = []
        for stage, node in enumerate(neurons):
            output = f"{number}.{node.name}" if node is nodes[-1] else f"{number}.spikes{stage}"
            fires = isinstance(node.op, Lif)
            found.append(
                (
                    node,
                    Kept(
                        spikes=self._optional(sub_batch, output, node) if fires else None,
                        mask=self._optional(sub_batch, f"{number}.mask{stage}", node),
                        membrane=self._optional(sub_batch, f"{number}.membrane{stage}", node),
                    ),
                )
            )
        return found

    def _winners(self, number: int, node: Node, sub_batch: SubBatch) -> Tensor | None:
        """Row * W + column of each window's winner, where the machine kept one bit per sum."""
        name = f"{number}.winners"
        if name not in sub_batch.maps or self._nodes(number).index(node) > 1:
            return None
        op = node.op
        assert isinstance(op, MaxPool2d)
        bits = self._maps(sub_batch, name, node.inputs[0])
        found, winners = _first_maxima(bits, op)
        assert bool((found == 1).all()), "a window has no winner"
        assert float(bits.sum()) == found.numel(), "a window has several winners"
        return winners

    def _source(self, number: int, sub_batch: SubBatch) -> Tensor:
        node = self._node(number, 0)
        kind = self._graph.types[node.inputs[0]]
        source = self._graph.node(node.inputs[0])
        if isinstance(source.op, Flatten):
            maps = self._graph.types[source.inputs[0]]
            return self._source_maps(number, sub_batch, maps).flatten(2)
        return self._source_maps(number, sub_batch, kind)

    def _source_maps(self, number: int, sub_batch: SubBatch, kind: TensorType) -> Tensor:
        name = f"{number - 1}.{self._last(number - 1).name}" if number else "input"
        values = _channels_first(sub_batch.maps[name], kind)
        return values.expand(self._program.timesteps, *values.shape[1:])

    def _maps(self, sub_batch: SubBatch, name: str, node: str) -> Tensor:
        """A tensor in the type of a node; zeros where pooling drops rows or columns."""
        kind = self._graph.types[node]
        values = sub_batch.maps[name].astype(np.float64)
        assert np.isfinite(values).all()
        if kind.has("H"):
            missing = [(0, 0), (0, 0), *((0, kind.size(a) - n) for a, n in zip("HW", values.shape[2:4], strict=True))]
            values = np.pad(values, [*missing, (0, 0)])
        return _channels_first(values, kind)

    def _optional(self, sub_batch: SubBatch, name: str, node: Node) -> Tensor | None:
        return self._maps(sub_batch, name, node.name) if name in sub_batch.maps else None

    # -- the bound ----------------------------------------------------------------------------------------------------

    def _bound(self, number: int, sub_batch: SubBatch, incoming: Bounded) -> Bounded:
        nodes = self._nodes(number)
        kept = {node.name: values for node, values in self._kept(number, sub_batch)}
        gradient = self._through_weights(number, incoming)
        for node in reversed(nodes):
            size = self._extents(node.inputs[0])
            match node.op:
                case Lif() | Li() as op:
                    gradient = bounds.neuron_backward(gradient, op, self._numbers(op, len(size)), kept[node.name])
                case AvgPool2d() as op:
                    gradient = bounds.average_backward(gradient, op, size)
                case MaxPool2d() as op:
                    winners = self._winners(number, node, sub_batch)
                    if winners is None:
                        spikes = kept[node.inputs[0]].spikes
                        assert spikes is not None
                        _, winners = _first_maxima(spikes, op)
                    gradient = bounds.maximum_backward(gradient, winners, size)
                case _:
                    assert node is nodes[0]
        return gradient

    def _through_weights(self, number: int, incoming: Bounded) -> Bounded:
        """The gradient of the layer's output."""
        if number + 1 == len(self._program.layers):
            return incoming
        behind = self._node(number + 1, 0)
        op = behind.op
        if not isinstance(op, Conv2d | Linear):
            return incoming
        weight = torch.from_numpy(np.array(self._graph.parameters[op.weight.name], np.float64))
        size = self._extents(behind.inputs[0])
        chain = order_of(self._program, number).input_gradient
        found = bounds.input_gradient(incoming, weight, op if isinstance(op, Conv2d) else None, size, chain)
        whole = self._extents(self._last(number).name)
        return Bounded(found.value.reshape(whole), found.error.reshape(whole))

    def _numbers(self, op: Lif | Li, ndim: int) -> Numbers:
        def number(value: Number) -> Tensor:
            if isinstance(value, Param):
                array = torch.from_numpy(np.array(self._graph.parameters[value.name], np.float64))
                return array.reshape(-1, *(1,) * (ndim - 3))
            return torch.tensor(value, dtype=torch.float64)

        fires = isinstance(op, Lif)
        return Numbers(
            decay=number(op.decay),
            input_scale=number(op.input_scale),
            threshold=number(op.threshold) if fires else number(0.0),
            reset_value=number(op.reset_value) if fires else number(0.0),
            eta=number(op.surrogate.scale) if fires else number(0.0),
        )

    def _extents(self, node: str) -> tuple[int, ...]:
        shape = self._graph.types[node].shape
        return tuple(self._program.batch if isinstance(size, str) else size for size in shape)

    def _nodes(self, number: int) -> list[Node]:
        return [self._graph.node(name) for name in self._program.layers[number].nodes]

    def _node(self, number: int, place: int) -> Node:
        return self._nodes(number)[place]

    def _last(self, number: int) -> Node:
        return self._node(number, -1)


def _first_maxima(x: Tensor, op: MaxPool2d) -> tuple[Tensor, Tensor]:
    """The maxima of each window, and row * W + column of the first cell that reaches it. Shapes: (T, N, C, H, W)."""
    found, winners = max_pool2d(x.flatten(0, 1), op.kernel, op.stride, ceil_mode=op.ceil_mode, return_indices=True)
    return found.reshape(*x.shape[:2], *found.shape[1:]), winners.reshape(*x.shape[:2], *winners.shape[1:])


def _channels_first(values: npt.NDArray[np.generic], kind: TensorType) -> Tensor:
    """(t, n, y, x, c) to (T, N, C, H, W), or (T, N, C)."""
    array = np.ascontiguousarray(values.astype(np.float64).transpose(0, 1, 4, 2, 3))
    found = torch.from_numpy(array)
    return found if kind.has("H") else found.reshape(*found.shape[:2], -1)
