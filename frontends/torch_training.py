"""Trains a graph in torch: autograd and torch.optim in f32, with the surrogates of the graph's neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from compiler.ir import Graph
from compiler.losses import Loss
from frontends.descent import F32, BatchResult, DescentRecipe, Labels, Optimiser, State
from frontends.recipe import loss_of, torch_threads
from frontends.to_torch import GraphModule, graph_with, to_torch
from hwmodel.errors import CompileError, Loc

_EVALUATION_BATCH = 256
_SECOND_MOMENT = 0.999
# what an optimiser remembers of a parameter: our names, torch's
_STATE = {"momentum": "momentum_buffer", "moment1": "exp_avg", "moment2": "exp_avg_sq", "updates": "step"}

Execution = Callable[[GraphModule], nn.Module]  # makes what computes a pass, on the module's own tensors


class Sharing(Protocol):
    """How the processes of a run share a batch."""

    def part(self, samples: int) -> slice:
        """The samples of a batch that this process takes, at least one."""
        ...

    def add(self, values: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the processes."""
        ...


class Alone:
    """One process takes all samples."""

    def part(self, samples: int) -> slice:
        """All of them."""
        return slice(0, samples)

    def add(self, values: Sequence[Tensor]) -> None:
        """A sum over one process."""


class TorchTrainer:
    """A graph in training, with the update of `torch.optim.SGD` or `torch.optim.Adam`.

    Each presentation of a sample draws its own Bernoulli code, from the graph's seed and the number of samples
    presented before it. Of several processes each is shown the whole batch and takes its part.

    Shapes: x (N, ...) or (T, N, ...) as the graph's input says; labels (N,).
    """

    def __init__(
        self, graph: Graph, recipe: DescentRecipe, *, execution: Execution | None = None, sharing: Sharing | None = None
    ) -> None:
        """execution: None for autograd through the graph's nodes. sharing: None for one process."""
        self._graph = graph
        self._sharing = sharing or Alone()
        self._loss: Loss = recipe.loss
        self._threads = recipe.threads
        self._has_time = graph.types[graph.input.name].has("T")
        self._module = to_torch(graph)
        if not list(self._module.parameters()):
            raise CompileError("the network has no weights to train", graph.input.loc)
        self._network: nn.Module = execution(self._module) if execution is not None else self._module
        self._optimiser = _optimiser(recipe, self._module)
        self._presented = 0

    def step(self, x: F32, labels: Labels, learning_rate: float) -> BatchResult:
        """One update by the gradient of the mean loss over a batch of any size."""
        self._network.train()
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        own = self._sharing.part(len(labels))
        with torch_threads(self._threads):
            first = self._presented + own.start
            scores, mean = self._scored(self._samples(x, own), torch.from_numpy(labels[own]), first)
            loss = len(labels[own]) / len(labels) * mean  # so that the processes' parts add up to the batch's mean
            self._optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._sharing.add([value.grad for value in self._module.parameters() if value.grad is not None])
            self._optimiser.step()
        self._presented += len(labels)
        correct = int((scores.detach().numpy().argmax(1) == labels[own]).sum())
        sums = torch.tensor([float(loss.detach()), correct], dtype=torch.float64)
        self._sharing.add([sums])
        return BatchResult(loss=float(sums[0]), correct=int(sums[1]), samples=len(labels))

    def predict(self, x: F32) -> Labels:
        """The class of each sample, in evaluation mode: the highest score, the first of equal ones."""
        self._network.eval()
        classes = []
        with torch.no_grad(), torch_threads(self._threads):
            for first in range(0, x.shape[int(self._has_time)], _EVALUATION_BATCH):
                part = self._samples(x, slice(first, first + _EVALUATION_BATCH))
                scores: Tensor = self._network(part, first)
                classes.append(scores.numpy().argmax(1))
        return np.concatenate(classes)

    def weights(self) -> dict[str, F32]:
        """The trained parameters by their names in the graph."""
        return {name: _array(value) for name, value in self._parameters()}

    def graph(self) -> Graph:
        """The network with its current parameters and running statistics."""
        return graph_with(self._module, self._graph)

    def state(self) -> State:
        """All that later steps depend on."""
        state: State = {"presented": np.array(self._presented)}
        for name, value in self._module.arrays().items():
            state[f"array.{name}"] = _array(value)
        for name, parameter in self._parameters():
            own = self._optimiser.state[parameter]
            for kind, key in _STATE.items():
                if own.get(key) is not None:
                    state[f"{kind}.{name}"] = _array(own[key])
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
            self._optimiser.state.pop(parameter, None)
            for kind, key in _STATE.items():
                stored = state.get(f"{kind}.{name}")
                if stored is not None:
                    value = torch.from_numpy(stored)
                    # laid out as its parameter, as torch does: another layout may round otherwise
                    like = torch.empty_like(parameter, requires_grad=False) if value.ndim else torch.empty(())
                    self._optimiser.state[parameter][key] = like.copy_(value)
        self._presented = int(state["presented"])

    def _scored(self, x: Tensor, labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Scores of samples, and their mean loss. first: how many were presented before them."""
        scores: Tensor = self._network(x, first)
        return scores, loss_of(self._loss, scores, labels)

    def _samples(self, x: F32, part: slice) -> Tensor:
        return torch.from_numpy(x[:, part] if self._has_time else x[part])

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, value in self._module.arrays().items():
            if isinstance(value, torch.nn.Parameter):
                yield name, value


def _optimiser(recipe: DescentRecipe, module: nn.Module) -> torch.optim.Optimizer:
    """Torch's own, over all parameters of the module."""
    parameters, rate, decay = module.parameters(), recipe.learning_rate, recipe.weight_decay
    match recipe.optimiser:
        case Optimiser.SGD:
            return torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)
        case Optimiser.ADAM:
            return torch.optim.Adam(parameters, lr=rate, betas=(recipe.momentum, _SECOND_MOMENT), weight_decay=decay)


def _array(value: Tensor) -> F32:
    """A copy whose bytes do not depend on the tensor's layout."""
    return np.array(value.detach().numpy(), order="C")
