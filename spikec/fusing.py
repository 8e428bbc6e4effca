"""`spikec.fuse`: a torch network, trained by fused kernels under its own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from compiler.fused.order import LoopOrder, layer_shapes, modelled_order, this_machine
from compiler.fused.order_cache import OrderCache, best_order
from compiler.fused.plan import Plan, Stage
from compiler.fused.program import buffer_names
from compiler.fused.spikes.costs import SpikeKernels
from compiler.fused.stages import plan_stages
from frontends.from_torch import Imported, import_module
from frontends.torch_import.axes import Lead
from hwmodel.errors import CompileError, Loc
from hwmodel.folders import cache_folder
from runtime.fused.keep_buffers import keep_buffers
from runtime.fused.module import FusedModule, Interface

Option = TypeVar("Option", bound=StrEnum)

_DENSITY = 0.15  # of spikes, where loop orders are measured


class _Dropout(Protocol):
    p: float


class LoopOrders(StrEnum):
    """How the loop order of each convolution is chosen: how many rows of time and batch one call takes."""

    MERGED = "merged"  # all
    MODELLED = "modelled"  # by a model of caches and calls
    MEASURED = "measured"  # by a short search on this machine, kept in the cache folder


def fuse(
    module: nn.Module,
    example: Tensor,
    timesteps: int,
    *,
    loop_orders: LoopOrders | str = LoopOrders.MODELLED,
    spike_kernels: SpikeKernels | str = SpikeKernels.MEASURED,
    recompute: bool = True,
    name: str = "network",
    output: int | None = None,
) -> FusedModule:
    """The network with its neurons, batch norms and pooling in fused kernels that keep layers' results alone.

    The result shares the module's parameters and buffers and computes what it computes, in training and in evaluation
    mode; everything that is not a layer's result is computed again in the backward pass. Weights of convolutions are
    laid out with their channels last. glibc is told to keep freed memory in this process; SPIKEC_KEEP_BUFFERS=0 in
    the environment switches that off.

    example: an input as the module takes it, see `from_torch`; the batch may differ later, and loop orders are chosen
    for the example's. Layers with spike input run on kernels of their own where measurements, made in the first steps
    and kept in the cache folder, say that it pays; `spike_kernels="off"` leaves them to the dense ones. Their
    results are computed again in the backward pass instead of being kept, unless `recompute` is False. A NaN in a
    gradient then counts only where it meets a spike or an open window.
    `print(fused.describe())` shows what runs how. Of a module that does one time step a call, the
    result does all: it takes (T, N, ...) and returns (T, N, ...). output: which of several outputs, as `from_torch`.
    Raises: CompileError for a network that the IR cannot express, with parameters that would not be trained, with
    dropout in training, with batch norms that do one time step a call, or with children named like an attribute of
    `FusedModule`.
    Source: chapter 4.
    """
    choice = _member(LoopOrders, loop_orders, "way to choose loop orders", name)
    kernels = _member(SpikeKernels, spike_kernels, "choice of spike kernels", name)
    imported = import_module(module, example, timesteps, name=name, output=output)
    _check_dropout(module, imported)
    _check_norms(imported)
    plan = plan_stages(imported.graph)
    paths = _paths(module, plan)
    keep_buffers()
    orders = _orders(plan, imported.input.extents.samples, choice)
    return FusedModule(
        module, plan, paths, interface=_interface(imported), orders=orders, kernels=kernels, recompute=recompute
    )


def _member(kind: type[Option], value: str, what: str, name: str) -> Option:
    try:
        return kind(value)
    except ValueError:
        raise CompileError(f"{value!r} is no {what}", Loc(name), hint=", ".join(kind)) from None


def _orders(plan: Plan, batch: int, choice: LoopOrders) -> dict[str, LoopOrder]:
    """By convolution of the plan's stages."""
    shapes = layer_shapes(plan, batch)
    match choice:
        case LoopOrders.MERGED:
            return {name: LoopOrder() for name in shapes}
        case LoopOrders.MODELLED:
            machine = this_machine()
            return {name: modelled_order(shape, machine) for name, shape in shapes.items()}
        case LoopOrders.MEASURED:
            cache = OrderCache(cache_folder())
            return {name: best_order(shape, density=_DENSITY, cache=cache) for name, shape in shapes.items()}


def _interface(imported: Imported) -> Interface:
    """Raises: CompileError for samples outermost, which fused stages would have to reorder."""
    for what, lead in (("input", imported.input.lead), ("output", imported.output.lead)):
        if lead in (Lead.SAMPLES_FIRST, Lead.SAMPLES_MERGED):
            raise CompileError(
                f"the {what} of the network is {lead.value} and fused stages take time first",
                Loc(imported.graph.name),
                hint="exchange time and samples outside the network",
            )
    features, extents = imported.input.features, imported.output.extents
    return Interface(
        merged_input=imported.input.lead is Lead.MERGED,
        merged_output=imported.output.lead is Lead.MERGED,
        input_features=features if len(features) == 2 else None,
        output_features=extents if len(extents) == 2 else None,
    )


def _paths(module: nn.Module, plan: Plan) -> dict[str, str]:
    """By parameter of the graph, its path in the module.

    Raises: CompileError for a parameter that the graph does not take over as it is.
    """
    tensors: Mapping[str, Tensor] = {  # under each of its names: the graph has one of them
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    paths = {}
    for name, array in plan.graph.parameters.items():
        path = next((known for known in (name, name.removesuffix(f".{array.ndim}d")) if known in tensors), None)
        if path is not None and tensors[path].numel() == array.size:
            values = tensors[path].detach().cpu().reshape(array.shape)
            if torch.equal(values.float(), torch.tensor(array)):
                paths[name] = path
    # a stage takes its neurons' numbers as they are
    fixed = {name for step in plan.steps if isinstance(step, Stage) for name in buffer_names(step)}
    taken = {id(tensors[path]) for name, path in paths.items() if name not in fixed}
    left = [name for name, tensor in module.named_parameters() if tensor.requires_grad and id(tensor) not in taken]
    if left:
        raise CompileError(
            f"{left[0]}: this parameter would not be trained, since the graph holds it as a constant or not at all",
            Loc(plan.network),
            hint=f"{left[0]}.requires_grad_(False) leaves it as it is",
        )
    return paths


def _check_dropout(module: nn.Module, imported: Imported) -> None:
    """Raises: CompileError for dropout as a module, of PyTorch or a framework, or as a call in a forward."""
    modules = [(path, child.p, f"set {path}.p = 0") for path, child in module.named_modules() if _is_dropout(child)]
    calls = [(place, probability, "leave it out") for place, probability in imported.dropouts]
    for place, probability, remedy in (*modules, *calls):
        if probability > 0.0:
            raise CompileError(
                f"{place}: dropout of {probability:g} in training has no place in fused stages",
                Loc(place),
                hint=f"{remedy}, or train the network as it is",
            )


def _check_norms(imported: Imported) -> None:
    """Raises: CompileError for batch norms inside a loop over time: a stage takes the statistics of all its steps."""
    for place in imported.stepped_norms:
        raise CompileError(
            f"{place}: this batch norm does one time step a call, and in training takes that step's statistics; "
            "fused stages take those of all steps",
            Loc(place),
            hint="give it all steps in one call, (T * N, ...), or train the network as it is",
        )


def _is_dropout(module: nn.Module) -> TypeGuard[_Dropout]:
    """Also those of frameworks, which evaluation mode leaves no trace of."""
    named = any("dropout" in cls.__name__.lower() for cls in type(module).__mro__)
    return named and isinstance(getattr(module, "p", None), int | float)
