"""The stages of the training compiler, run one by one for the tests."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from compiler.h2learn.compile import plan_layers
from compiler.h2learn.compile_training import PASSES, _backward_actions, _forward_actions
from compiler.h2learn.emit_sgd import Descent, update_actions
from compiler.h2learn.layers import split_layers
from compiler.h2learn.synchronise import Action
from compiler.h2learn.training_plan import TrainingPlan
from compiler.ir import Encoding, Graph
from compiler.passes import run_passes
from hwmodel.config import H2LearnConfig, load_config
from hwmodel.errors import Loc
from hwmodel.program import Tensor
from tests.hwmodel.training_programs import training_config
from tests.strategies import networks

LOC = Loc("test")
NETWORKS = networks(
    trainable=True, encodings=list(Encoding), late_encode=True, max_size=9, max_channels=9, max_timesteps=5
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A network with all choices taken, and the actions of each phase in program order."""

    graph: Graph
    plan: TrainingPlan
    config: H2LearnConfig
    batch: int
    descent: Descent

    @property
    def forward(self) -> Iterator[Action]:
        return _forward_actions(self.plan, self.config)

    @property
    def backward(self) -> Iterator[Action]:
        return _backward_actions(self.plan)

    @property
    def update(self) -> Iterator[Action]:
        return update_actions(tuple(self.plan.targets), self.descent, self.config, LOC)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.plan.table.placed(LOC)


def stages_of(graph: Graph, config: H2LearnConfig, batch: int, descent: Descent | None = None) -> Stages:
    """What compile_training does before it emits a program.

    Raises: CompileError as it does.
    """
    options = descent or Descent()
    lowered, _ = run_passes(graph, PASSES, show=lambda _: None)
    network = split_layers(lowered)
    layers = tuple(
        plan
        for layer in network.layers
        for plan in plan_layers(lowered, layer, config, batch, config.tile, training=True)
    )
    plan = TrainingPlan(network, layers, config, batch, options)
    return Stages(graph=lowered, plan=plan, config=config, batch=batch, descent=options)


@functools.cache
def configs() -> tuple[H2LearnConfig, ...]:
    """The dissertation's accelerator, one with few PEs and tight buffers, and one with tiles of two by three."""
    small = training_config()
    narrow = replace(small, tile=replace(small.tile, h=2, w=3), backward=replace(small.backward, rows=2, cols=8))
    return load_config("h2learn"), small, narrow
