"""Trains a graph in torch: autograd and torch.optim.SGD in f32, with the surrogates of the graph's neurons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compiler.ir import Graph
from compiler.losses import Loss
from frontends.descent import F32, BatchResult, DescentRecipe, Labels, State
from frontends.recipe import loss_of, torch_threads
from frontends.to_torch import graph_with, to_torch
from hwmodel.errors import CompileError, Loc

_EVALUATION_BATCH = 256


class TorchTrainer:
    """A graph in training, with the update of `torch.optim.SGD`.

    Each presentation of a sample draws its own Bernoulli code, from the graph's seed and the number of samples
    presented before it.

    Shapes: x (N, ...) or (T, N, ...) as the graph's input says; labels (N,).
    """

    def __init__(self, graph: Graph, recipe: DescentRecipe) -> None:
        self._graph = graph
        self._loss: Loss = recipe.loss
        self._threads = recipe.threads
        self._has_time = graph.types[graph.input.name].has("T")
        self._module = to_torch(graph)
        if not list(self._module.parameters()):
            raise CompileError("the network has no weights to train", graph.input.loc)
        self._optimiser = torch.optim.SGD(
            self._module.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self._presented = 0

    def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        """One update by the gradient of the mean loss over a batch of any size."""
        self._module.train()
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        with torch_threads(self._threads):
            scores: Tensor = self._module(torch.from_numpy(x), self._presented)
            loss = loss_of(self._loss, scores, torch.from_numpy(labels))
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        self._presented += len(labels)
        correct = int((scores.detach().numpy().argmax(1) == labels).sum())
        return BatchResult(loss=float(loss.detach()), correct=correct, samples=len(labels))

    def predict(self, x: F32) -> Labels:
        """The class of each sample, in evaluation mode: the highest score, the first of equal ones."""
        self._module.eval()
        axis = 1 if self._has_time else 0
        classes = []
        with torch.no_grad(), torch_threads(self._threads):
            for first in range(0, x.shape[axis], _EVALUATION_BATCH):
                part = x[:, first : first + _EVALUATION_BATCH] if axis else x[first : first + _EVALUATION_BATCH]
                scores: Tensor = self._module(torch.from_numpy(part), first)
                classes.append(scores.numpy().argmax(1))
        return np.concatenate(classes)

    def weights(self) -> dict[str, F32]:
        """The trained parameters by their names in the graph."""
        return {name: np.array(value.detach().numpy()) for name, value in self._parameters()}

    def graph(self) -> Graph:
        """The network with its current parameters and running statistics."""
        return graph_with(self._module, self._graph)

    def state(self) -> State:
        """All that later steps depend on."""
        state: State = {"presented": np.array(self._presented)}
        for name, value in self._module.arrays().items():
            state[f"array.{name}"] = np.array(value.detach().numpy())
        for name, parameter in self._parameters():
            momentum = self._optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                state[f"momentum.{name}"] = np.array(momentum.numpy())
        return state

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from a state of the same network, bit for bit.

        Raises: CompileError for a state of another network.
        """
        try:
            self._restore(state)
        except (KeyError, ValueError, RuntimeError) as fault:
            raise CompileError(f"the state does not fit the network: {fault}", Loc(self._graph.name)) from fault

    def _restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        with torch.no_grad():
            for name, value in self._module.arrays().items():
                value.copy_(torch.from_numpy(state[f"array.{name}"]))
        for name, parameter in self._parameters():
            momentum = state.get(f"momentum.{name}")
            if momentum is None:
                self._optimiser.state.pop(parameter, None)
            else:
                self._optimiser.state[parameter]["momentum_buffer"] = torch.from_numpy(momentum.copy())
        self._presented = int(state["presented"])

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, value in self._module.arrays().items():
            if isinstance(value, torch.nn.Parameter):
                yield name, value
