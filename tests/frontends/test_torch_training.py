"""Training a graph in torch: the update of torch.optim on the module itself, and states that continue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compiler.evaluate import evaluate
from compiler.ir import Encoding, Graph
from compiler.ir.ops import BatchNorm
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm, PrependEncode
from frontends import zoo
from frontends.descent import F32, DescentRecipe, Labels, Optimiser
from frontends.from_torch import from_torch
from frontends.recipe import loss_of
from frontends.torch_training import TorchTrainer
from hwmodel.errors import CompileError

STEPS = 3
RECIPE = DescentRecipe(epochs=1, batch=4, learning_rate=0.2, momentum=0.5, weight_decay=0.01, threads=1)


def network(name: str) -> tuple[nn.Module, Graph]:
    module = zoo.build(name, seed=1, timesteps=STEPS)
    return module, from_torch(module, torch.zeros(zoo.entry(name).example_shape(2, STEPS)), STEPS)


def batches(count: int, shape: tuple[int, ...], size: int = 5) -> list[tuple[F32, Labels]]:
    rng = np.random.default_rng(0)
    return [(rng.random((size, *shape), dtype=np.float32), rng.integers(0, 10, size)) for _ in range(count)]


def bernoulli_graph() -> Graph:
    return PrependEncode(Encoding.BERNOULLI, 7)(network("certify-fc")[1])


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("kind", Optimiser)
def test_the_update_is_that_of_torch_on_the_module_itself(kind: Optimiser, loss: Loss) -> None:
    module, graph = network("digits-fc")
    trainer = TorchTrainer(graph, replace(RECIPE, loss=loss, optimiser=kind))
    optimiser: torch.optim.Optimizer
    match kind:
        case Optimiser.SGD:
            optimiser = torch.optim.SGD(module.parameters(), lr=9.0, momentum=0.5, weight_decay=0.01)
        case Optimiser.ADAM:
            optimiser = torch.optim.Adam(module.parameters(), lr=9.0, betas=(0.5, 0.999), weight_decay=0.01)
    module.train()
    for number, (x, labels) in enumerate(batches(4, (1, 8, 8)), start=1):
        rate = {Optimiser.SGD: 0.3, Optimiser.ADAM: 1e-3}[kind] / number
        optimiser.param_groups[0]["lr"] = rate
        value = loss_of(loss, module(torch.from_numpy(x)), torch.from_numpy(labels))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        result = trainer.step(x, labels, rate)
        # the module repeats the image behind its batch norms' inputs in another order of sums
        assert result.loss == pytest.approx(value.item(), rel=1e-5)
        assert result.samples == 5
    for ours, theirs in zip(trainer.weights().values(), module.parameters(), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_running_statistics_are_part_of_the_graph() -> None:
    _, graph = network("digits-conv")
    trainer = TorchTrainer(graph, RECIPE)
    for x, labels in batches(2, (1, 8, 8)):
        trainer.step(x, labels, 0.1)
    after = trainer.graph()
    norm = next(node.op for node in graph.nodes if isinstance(node.op, BatchNorm))
    for param in (norm.mean, norm.var, norm.weight, norm.bias):
        assert (after.parameters[param.name] != graph.parameters[param.name]).any()
    assert [node.name for node in after.nodes] == [node.name for node in graph.nodes]


def test_correct_predictions_are_counted_before_the_update() -> None:
    graph = FoldBatchNorm()(network("digits-fc")[1])
    ((x, labels),) = batches(1, (1, 8, 8), size=40)
    trainer = TorchTrainer(graph, RECIPE)
    classes = evaluate(graph, torch.from_numpy(x)).output.argmax(1).numpy()
    np.testing.assert_array_equal(trainer.predict(x), classes)
    assert trainer.step(x, labels, 0.1).correct == int((classes == labels).sum())


def test_more_samples_than_an_evaluation_takes_at_once() -> None:
    graph = bernoulli_graph()
    ((x, _),) = batches(1, (1, 28, 28), size=300)
    want = evaluate(graph, torch.from_numpy(x)).output.argmax(1)
    np.testing.assert_array_equal(TorchTrainer(graph, RECIPE).predict(x), want.numpy())


def test_every_presentation_draws_its_own_code() -> None:
    """The loss of each step is that of the graph evaluated with the samples counted on."""
    graph = bernoulli_graph()
    ((x, labels),) = batches(1, (1, 28, 28))
    trainer = TorchTrainer(graph, replace(RECIPE, weight_decay=0.0))
    losses = [trainer.step(x, labels, 1e-30).loss for _ in range(3)]  # a rate that moves no weight
    for presented, loss in zip((0, 5, 10), losses, strict=True):
        scores = evaluate(graph, torch.from_numpy(x), first_sample=presented).output
        assert loss == float(loss_of(Loss.MSE, scores, torch.from_numpy(labels)))
    assert len(set(losses)) == 3


@pytest.mark.parametrize("make", [bernoulli_graph, lambda: network("digits-conv")[1]], ids=["bernoulli", "batch_norm"])
@pytest.mark.parametrize("kind", Optimiser)
def test_a_restored_state_continues_bit_for_bit(kind: Optimiser, make: object) -> None:
    graph = make()  # type: ignore[operator]
    shape = tuple(graph.types[graph.input.name].shape[1:])
    shown = batches(5, shape)
    whole, first, second = (TorchTrainer(graph, replace(RECIPE, optimiser=kind)) for _ in range(3))
    for x, labels in shown:
        whole.step(x, labels, 0.1)
    for x, labels in shown[:2]:
        first.step(x, labels, 0.1)
    second.step(*shown[4], 0.7)  # what it did before is forgotten
    second.restore(first.state())
    first.step(*shown[0], 0.5)  # and does not share its arrays
    for x, labels in shown[2:]:
        second.step(x, labels, 0.1)
    assert second.graph() == whole.graph()
    assert {k: v.tobytes() for k, v in second.state().items()} == {k: v.tobytes() for k, v in whole.state().items()}


def test_a_state_of_another_network_is_refused() -> None:
    state = TorchTrainer(network("digits-conv")[1], RECIPE).state()
    with pytest.raises(CompileError, match="the state does not fit the network"):
        TorchTrainer(network("digits-fc")[1], RECIPE).restore(state)


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    ((x, labels),) = batches(1, (1, 8, 8))
    TorchTrainer(network("digits-fc")[1], replace(RECIPE, threads=before + 1)).step(x, labels, 0.1)
    assert torch.get_num_threads() == before
