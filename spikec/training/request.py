"""What a training run is asked for, checked before anything is loaded, and what identifies it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch

import spikec
from compiler.fused.spikes.costs import SpikeKernels
from compiler.ir import Graph
from compiler.ir.ops import BatchNorm
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm
from frontends.datasets import Samples
from frontends.descent import DescentRecipe, Optimiser, default_recipe, descent_recipe
from frontends.robust.recipes import default_robust_recipe, robust_recipe
from hwmodel.errors import CompileError, Loc
from spikec.training.checkpoint import Identity
from spikec.training.h2learn import Accelerators
from spikec.training.robust import RobustRequest, robust_identity

SUFFIX = ".spk"


class Backend(StrEnum):
    """What computes the updates."""

    TORCH = "torch"
    FUSED = "fused"
    H2LEARN = "h2learn"


class BatchNorms(StrEnum):
    """What becomes of a network's batch norms."""

    NONE = "none"  # it has none
    FOLDED = "folded"  # into the weights, before training
    KEPT = "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """The command's arguments; None leaves a choice to the network's recipe."""

    model: str
    backend: Backend
    data: str
    epochs: int | None
    batch: int | None
    learning_rate: float | None
    optimiser: Optimiser | None
    momentum: float | None
    weight_decay: float | None
    loss: Loss | None
    loss_scale: float | None
    master_weights: bool
    machines: int
    fold_batch_norm: bool | None
    seed: int
    timesteps: int | None
    config: str
    sub_batch: int | None
    input_shape: str
    output: Path | None
    checkpoint: Path | None
    checkpoint_every: int | None
    golden_check: bool
    compare: bool | None  # with the same training in torch; None: where the arithmetic is another
    robust: RobustRequest | None = None
    spike_kernels: SpikeKernels | None = None  # of fused training; None: as measured
    recompute: bool | None = None  # in fused training, results of layers that read bits; None: yes
    explain: bool = False  # which kernels layers with spike input took

    @property
    def kernels(self) -> SpikeKernels:
        """Of layers with spike input, in fused training."""
        return self.spike_kernels or SpikeKernels.MEASURED

    @property
    def recomputes(self) -> bool:
        """Whether fused training computes results of layers that read bits again, and does not keep them."""
        return self.recompute is not False

    def verify(self) -> None:
        """Refuse what can be told before the model is loaded, which may train it.

        Raises: CompileError naming the option or the file.
        """
        for name in ("machines", "sub_batch", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CompileError(f"is {value}, must be at least 1", Loc(f"--{name.replace('_', '-')}"))
        options = self._of_fused()
        if options and self.backend is not Backend.FUSED:
            raise CompileError(
                "is about the kernels of fused training", Loc(", ".join(options)), hint=f"use --backend {Backend.FUSED}"
            )
        if self.robust is not None:
            self.robust.settings()
            if self.backend is not Backend.TORCH:
                message, hint = f"trains in torch, not with {self.backend}", f"use --backend {Backend.TORCH}"
                raise CompileError(message, Loc("--robust"), hint=hint)
        check_files(self.output, self.checkpoint, self.checkpoint_every)

    def _of_fused(self) -> list[str]:
        """The given options that the other backends have no use for."""
        given = {
            "--spike-kernels": self.spike_kernels is not None,
            "--recompute": self.recompute is True,
            "--no-recompute": self.recompute is False,
            "--explain": self.explain,
        }
        return [option for option, is_given in given.items() if is_given]

    def recipe(self) -> DescentRecipe:
        """The network's own recipe with what the command says instead.

        Raises: CompileError for numbers out of range, or an unknown zoo network.
        """
        name, _, _ = self.model.removeprefix("zoo:").partition("@")
        of_zoo, other = (descent_recipe, default_recipe)
        if self.robust is not None:
            of_zoo, other = (robust_recipe, default_robust_recipe)
        own = of_zoo(name) if self.model.startswith("zoo:") else other()
        fields = ("epochs", "batch", "learning_rate", "optimiser", "momentum", "weight_decay", "loss", "loss_scale")
        given = {field: getattr(self, field) for field in (*fields, "fold_batch_norm")}
        recipe = replace(own, **{field: value for field, value in given.items() if value is not None})
        recipe.verify()
        if self.backend is Backend.H2LEARN and recipe.optimiser is not Optimiser.SGD:
            message = f"the accelerator updates by {Optimiser.SGD}, not by {recipe.optimiser}"
            raise CompileError(message, Loc("--optimiser"), hint=f"--optimiser {Optimiser.SGD}, or --backend torch")
        return recipe


def without_batch_norms(graph: Graph, recipe: DescentRecipe) -> tuple[Graph, BatchNorms]:
    """The network that the recipe trains."""
    if not any(isinstance(node.op, BatchNorm) for node in graph.nodes):
        return graph, BatchNorms.NONE
    if recipe.fold_batch_norm:
        return FoldBatchNorm()(graph), BatchNorms.FOLDED
    return graph, BatchNorms.KEPT


def identity(
    request: TrainRequest,
    recipe: DescentRecipe,
    graph: Graph,
    sets: tuple[Samples, Samples],
    accelerators: Accelerators,
    processes: int = 1,
) -> Identity:
    """All that decides the bits of a run, under the names that a user knows."""
    ours: Identity = {
        "spikec": spikec.__version__,
        "backend": str(request.backend),
        "network": graph.digest(),
        "training samples": sets[0].digest(),
        "test samples": sets[1].digest(),
        "seed": request.seed,
        **_plain(asdict(recipe)),
    }
    if request.robust is not None:
        ours |= robust_identity(request.robust)
    threads = recipe.threads or torch.get_num_threads()
    if request.backend is Backend.TORCH:
        return {**ours, "threads": threads}
    if request.backend is Backend.FUSED:
        return {**ours, "threads": threads, "processes": processes, "spike_kernels": str(request.kernels)}
    return {
        **ours,
        "config": hashlib.sha256(repr(accelerators.config).encode()).hexdigest(),
        "sub_batch": accelerators.sub_batch or accelerators.config.sub_batch,
        "machines": accelerators.machines,
        "master_weights": accelerators.master_weights,
    }


def _plain(fields: Mapping[str, object]) -> Identity:
    return {name: value if isinstance(value, int | float | None) else str(value) for name, value in fields.items()}


def check_files(output: Path | None, checkpoint: Path | None, checkpoint_every: int | None) -> None:
    """Refuse what a run could not write when it is done.

    Raises: CompileError naming the option or the file.
    """
    if output is not None:
        if output.suffix != SUFFIX:
            raise CompileError(f"a network's file must end in {SUFFIX}", Loc(str(output)))
        check_place(output)
    if checkpoint is not None:
        if checkpoint.suffix == SUFFIX:
            raise CompileError(f"a checkpoint is no {SUFFIX} file", Loc(str(checkpoint)))
        check_place(checkpoint)
    elif checkpoint_every is not None:
        raise CompileError("needs a file to write to", Loc("--checkpoint-every"), hint="give --checkpoint FILE")


def check_place(path: Path) -> None:
    """Refuse a file that could not be written when all is done.

    Raises: CompileError naming the file or its folder.
    """
    loc = Loc(str(path))
    if path.is_dir():
        raise CompileError("is a folder, not a file", loc, hint="name a file inside it")
    if not path.parent.is_dir():
        raise CompileError(f"the folder {path.parent} does not exist", loc, hint="create it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as fault:
        raise CompileError(f"the folder {path.parent} cannot be written: {fault.strerror}", loc) from fault
