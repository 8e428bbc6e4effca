"""The command that trains networks: `spikec train`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from spikec.cli_options import DATA_HELP, ConfigOption, JsonOption, LossOption, SeedOption
from spikec.commands.target import given_options


class OptimiserOption(StrEnum):
    """The update of a training run."""

    SGD = "sgd"
    ADAM = "adam"


class TrainBackend(StrEnum):
    """What computes the updates of a training run."""

    TORCH = "torch"
    FUSED = "fused"
    H2LEARN = "h2learn"


class SpikeKernelsOption(StrEnum):
    """Kernels of layers with spike input in fused training."""

    MEASURED = "measured"
    LOOKUP = "look-up"
    EVENTS = "events"
    OFF = "off"


class Rule(StrEnum):
    """What weights learn by."""

    BPTT = "bptt"
    STDP = "stdp"


def train_network(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="zoo:NAME, zoo:NAME@DATA, FILE.spk or module:function; stdp:N, a layer of N neurons")
    ],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    rule: Annotated[Rule | None, typer.Option(help="what weights learn by; stdp for stdp:N, else bptt")] = None,
    backend: Annotated[TrainBackend, typer.Option(help="what computes the updates")] = TrainBackend.TORCH,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="trained network, .spk")] = None,
    epochs: Annotated[int | None, typer.Option(help="the recipe's own")] = None,
    batch: Annotated[
        int | None, typer.Option(help="samples of an update, of all processes together; the recipe's own")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate at its highest; the recipe's own")] = None,
    optimiser: Annotated[OptimiserOption | None, typer.Option(help="the recipe's own")] = None,
    momentum: Annotated[float | None, typer.Option(help="of adam, decay of first moments; the recipe's own")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="the recipe's own")] = None,
    loss: Annotated[LossOption | None, typer.Option(help="the recipe's own")] = None,
    loss_scale: Annotated[float | None, typer.Option(help="h2learn: factor of the loss before FP16")] = None,
    master_weights: Annotated[bool, typer.Option("--master-weights", help="h2learn: f32 weights on the host")] = False,
    machines: Annotated[int, typer.Option(help="h2learn: accelerators that share a batch")] = 1,
    fold_batch_norm: Annotated[
        bool | None, typer.Option("--fold-batch-norm/--no-fold-batch-norm", help="into the weights, before training")
    ] = None,
    seed: SeedOption = 0,
    timesteps: Annotated[int | None, typer.Option(help="time steps; 10, the file's own, 25 of stdp:N")] = None,
    config: ConfigOption = "h2learn",
    sub_batch: Annotated[int | None, typer.Option(help="h2learn: samples of a sub-batch; 4 in the preset")] = None,
    input_shape: Annotated[str, typer.Option(help="for module:function: 3x32x32")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="file to save to, and to continue from")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(metavar="STEPS", help="default: about every 10 s")] = None,
    golden_check: Annotated[bool, typer.Option(help="h2learn: a first step on both engines")] = True,
    compare: Annotated[
        bool | None, typer.Option("--compare/--no-compare", help="the same training in torch, f32; h2learn: by default")
    ] = None,
    robust: Annotated[
        str, typer.Option(metavar="SET", help="against all inputs of linf:eps=0.05, l0:k=4 or box:share=0.02")
    ] = "",
    robust_timesteps: Annotated[int | None, typer.Option(help="robust: time steps in training; the network's")] = None,
    robust_warmup: Annotated[float | None, typer.Option(help="robust: share in which the set grows; 5/6")] = None,
    robust_weight: Annotated[float | None, typer.Option(help="robust: share of the bounds' loss; 0.6")] = None,
    robust_kappa: Annotated[float | None, typer.Option(help="robust: share of S-CROWN in margins; 0")] = None,
    robust_samples: Annotated[int | None, typer.Option(help="robust: test samples to certify; 200")] = None,
    spike_kernels: Annotated[
        SpikeKernelsOption | None,
        typer.Option(
            help="fused: kernels of layers with spike input; measured by default: the fastest on this machine, so that "
            "the bits may be others on another, or with another cache folder; the other choices fix the kernels"
        ),
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option(
            "--recompute/--no-recompute",
            help="fused: results of layers that read bits are computed again in the backward pass, by default, or "
            "kept: less memory, or less time; the same bits",
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="fused: which kernels layers with spike input took, and why")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a network; the default numbers are those of its recipe.

    Under torchrun, the fused backend trains on all of its processes together.
    """
    from spikec.commands.train_stdp import StdpRequest, by_stdp, run_train_stdp

    if by_stdp(model, rule.value if rule is not None else None, given_options(context)):
        stdp = StdpRequest(
            model=model,
            data=data,
            epochs=epochs,
            batch=batch,
            learning_rate=lr,
            seed=seed,
            timesteps=timesteps,
            output=output,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
        )
        raise typer.Exit(run_train_stdp(stdp, as_json=json))
    from compiler.fused.spikes.costs import SpikeKernels
    from compiler.losses import Loss
    from frontends.descent import Optimiser
    from spikec.commands.train import run_train
    from spikec.training.request import Backend, TrainRequest
    from spikec.training.robust import robust_request

    request = TrainRequest(
        model=model,
        backend=Backend(backend.value),
        data=data,
        epochs=epochs,
        batch=batch,
        learning_rate=lr,
        optimiser=Optimiser(optimiser.value) if optimiser is not None else None,
        momentum=momentum,
        weight_decay=weight_decay,
        loss=Loss(loss.value) if loss is not None else None,
        loss_scale=loss_scale,
        master_weights=master_weights,
        machines=machines,
        fold_batch_norm=fold_batch_norm,
        seed=seed,
        timesteps=timesteps,
        config=config,
        sub_batch=sub_batch,
        input_shape=input_shape,
        output=output,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        golden_check=golden_check,
        compare=compare,
        spike_kernels=SpikeKernels(spike_kernels.value) if spike_kernels is not None else None,
        recompute=recompute,
        explain=explain,
        robust=robust_request(
            robust,
            timesteps=robust_timesteps,
            warmup=robust_warmup,
            weight=robust_weight,
            kappa=robust_kappa,
            samples=robust_samples,
        ),
    )
    raise typer.Exit(run_train(request, as_json=json))
