"""What one process of the benchmark runs, and which contenders there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, nn

from tests.bench.training_contenders.images import coded
from tests.bench.training_contenders.names import CONTENDERS
from tests.bench.training_contenders.networks import NETWORKS, SEED, Network, initialise
from tests.bench.training_contenders.weights import load_batch, load_weights

CLASSES = 10
Model = TypeVar("Model", bound=nn.Module)


class MissingContenderError(Exception):
    """A package of the contender is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One contender on one network; its fields are plain values, so that they pass through a command line."""

    contender: str
    network: str
    timesteps: int
    input: str  # "fresh" or "repeated"
    layout: str  # "contiguous" or "channels_last"
    threads: int
    trained: str = ""  # file of weights and images; "" for fresh weights and random numbers

    @property
    def shape(self) -> Network:
        return NETWORKS[self.network]

    @property
    def repeated(self) -> bool:
        return self.input == "repeated"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def prepared(self, model: Model) -> Model:
        """The model with the benchmark's weights, in this setting's layout, in training mode."""
        initialise(model)
        if self.trained:
            load_weights(model, self.trained)
        # memory_format is missing from the annotations of nn.Module.to
        return model.to(memory_format=self.memory_format).train()  # type: ignore[call-overload, no-any-return]

    def merged(self) -> Tensor:
        """One image (N, C, H, W) if it is repeated, else a fresh one at each time step, (T * N, C, H, W)."""
        generator = torch.Generator().manual_seed(SEED)
        if self.trained:
            images = load_batch(self.trained).images
            values = images if self.repeated else coded(images, self.timesteps, generator)
        else:
            count = self.shape.batch * (1 if self.repeated else self.timesteps)
            values = torch.rand((count, *self.shape.input_shape), generator=generator)
        return values.to(memory_format=self.memory_format)

    def sequence(self) -> Tensor:
        """The same values as (T, N, C, H, W), each step in this setting's layout; an image stays one."""
        merged = self.merged()
        return merged if self.repeated else merged.unflatten(0, (self.timesteps, -1))

    def labels(self) -> Tensor:
        if self.trained:
            return load_batch(self.trained).labels
        return torch.arange(self.shape.batch) % CLASSES

    def build(self) -> tuple[nn.Module, Tensor]:
        """The contender's network, and its input. Raises: MissingContenderError."""
        source = CONTENDERS[self.contender]
        module = import_module(f"tests.bench.training_contenders.{source.module}")
        make: Callable[[Setting], nn.Module] = getattr(module, source.function)
        try:
            model = make(self)
        except ModuleNotFoundError as error:
            raise MissingContenderError(f"no module {error.name}") from error
        return model, self.merged() if source.takes_merged else self.sequence()
