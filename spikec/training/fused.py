"""Trains a graph on fused kernels: the schedule of the torch backend, equal to it but for rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.fused.plan import Stage
from compiler.fused.spikes.costs import SpikeKernels
from compiler.fused.stages import plan_stages
from compiler.ir import Graph
from frontends.descent import DescentRecipe
from frontends.to_torch import GraphModule, to_torch
from frontends.torch_training import Sharing, TorchTrainer
from runtime.fused.keep_buffers import keep_buffers
from runtime.fused.module import FusedModule
from runtime.fused.spikes.explain import Explained
from spikec.training.processes import Processes


class FusedTrainer(TorchTrainer):
    """A graph in training on fused kernels, which keep layers' results alone for the backward pass.

    group: name of the process group over which batch norms take their statistics; "" for this process alone.
    kernels, recompute: as of `FusedModule`; the bits depend on the kernels, and measured ones on the machine.
    Raises: CompileError for an op that has no rule there.
    """

    def __init__(
        self,
        graph: Graph,
        recipe: DescentRecipe,
        *,
        sharing: Sharing | None = None,
        group: str = "",
        kernels: SpikeKernels = SpikeKernels.MEASURED,
        recompute: bool = True,
    ) -> None:
        keep_buffers()

        def execution(module: GraphModule) -> FusedModule:
            return fused(module, graph, group, kernels=kernels, recompute=recompute)

        super().__init__(graph, recipe, execution=execution, sharing=sharing)

    def explained(self) -> list[Explained]:
        """Which kernels the layers with spike input took in the last step."""
        return self._fused.explained()

    def explanation(self) -> str:
        """The same as text."""
        return self._fused.explain()

    @property
    def _fused(self) -> FusedModule:
        assert isinstance(self._network, FusedModule)
        return self._network


def fused(
    module: GraphModule,
    graph: Graph,
    group: str = "",
    *,
    kernels: SpikeKernels = SpikeKernels.MEASURED,
    recompute: bool = True,
) -> FusedModule:
    """The module that `to_torch` made of the graph, in stages; weights of convolutions get their channels last."""
    names = {id(tensor): path for path, tensor in (*module.named_parameters(), *module.named_buffers())}
    paths = {name: names[id(tensor)] for name, tensor in module.arrays().items()}
    made = FusedModule(module, plan_stages(graph), paths, kernels=kernels, recompute=recompute)
    made.process_group = group
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedFacts:
    """What a report says of fused training besides what it reached.

    Units: bytes that autograd keeps for each further sample of a batch, between its forward and its backward pass.
    """

    processes: int
    kernels: str  # of layers with spike input
    recompute: bool  # whether results of layers that read bits are computed again
    stages: tuple[tuple[str, ...], ...]  # the nodes of each
    torch_nodes: tuple[str, ...]  # which torch computes and differentiates
    kept_bytes_per_sample: int
    kept_bytes_per_sample_torch: int  # of the same network by autograd alone


def fused_facts(
    graph: Graph,
    processes: Processes | None,
    *,
    kernels: SpikeKernels = SpikeKernels.MEASURED,
    recompute: bool = True,
) -> FusedFacts:
    """Of the network itself; nothing is trained."""
    module = fused(to_torch(graph), graph, kernels=kernels, recompute=recompute)
    steps = plan_stages(graph).steps
    return FusedFacts(
        processes=processes.place.count if processes is not None else 1,
        kernels=str(kernels),
        recompute=recompute,
        stages=tuple(step.nodes for step in steps if isinstance(step, Stage)),
        torch_nodes=tuple(
            step.node.name for step in steps if not isinstance(step, Stage) and step.node.name != graph.input.name
        ),
        kept_bytes_per_sample=_kept_bytes_per_sample(module, graph),
        kept_bytes_per_sample_torch=_kept_bytes_per_sample(to_torch(graph), graph),
    )


def _kept_bytes_per_sample(module: nn.Module, graph: Graph) -> int:
    few, more = (_kept_bytes(module, graph, samples) for samples in (2, 3))
    return more - few


def _kept_bytes(module: nn.Module, graph: Graph, samples: int) -> int:
    """Bytes of all memory that autograd holds after a forward pass in training, parameters among it."""
    kept: list[Tensor] = []  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    shape = [samples if size == "N" else size for size in graph.types[graph.input.name].shape]
    module.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = module(torch.zeros(*map(int, shape)))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    del scores
    return sum(storages.values())
