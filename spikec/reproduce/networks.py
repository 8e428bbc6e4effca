"""The dissertation's networks as the rows need them: layer facts, densities of table 3.2, training time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from compiler.h2learn.facts import network_layers
from compiler.ir import Graph
from hwmodel.config import H2LearnConfig
from hwmodel.program import Layer
from hwmodel.timing.network import TrainingTime, training_time
from hwmodel.timing.passes import Setting
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from hwmodel.timing.tiles import DenseTiles
from spikec.models import load_model
from spikec.reproduce.facts import Facts

TRAINED = {"mnist": 60_000, "cifar10": 50_000, "imagenet": 1_281_167}  # samples of an epoch, with a V100 latency
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Densities of table 3.2: the k-th column belongs to the gradient that leaves the convolution behind layer k."""

    densities: dict[int, Density]

    @classmethod
    def of(cls, facts: Facts, name: str) -> Published:
        """Those of a data set."""
        densities: dict[int, Density] = {}
        while f"table-3.2.{name}_conv{len(densities) + 1}_output" in facts.by_item:
            column = f"table-3.2.{name}_conv{len(densities) + 1}"
            densities[len(densities)] = Density(
                inputs=1 - facts.number(f"{column}_input") / 100, outputs=1 - facts.number(f"{column}_output") / 100
            )
        return cls(densities=densities)

    @property
    def windows(self) -> dict[int, float]:
        """Membrane potentials inside the window are those whose spike gradient is wanted, equation 3.1."""
        return {layer: density.outputs for layer, density in self.densities.items()}


@cache
def graph_of(name: str) -> Graph:
    """A network of the zoo, with initial weights."""
    return load_model(f"zoo:{name}").graph


@cache
def layers_of(name: str, config: H2LearnConfig) -> tuple[Layer, ...]:
    """Its layers."""
    return network_layers(graph_of(name), config)


def setting_of(facts: Facts, name: str, config: H2LearnConfig, *, dense: bool = False) -> Setting:
    """A sub-batch of the preset with the densities of table 3.2, or dense."""
    published = Published.of(facts, name)
    return Setting(
        config=config,
        timesteps=config.timesteps,
        batch=config.sub_batch,
        tiles=DenseTiles(config) if dense else SampledTiles(config, published.densities, seed=SEED),
        window_density=published.windows,
    )


def time_of(facts: Facts, name: str, config: H2LearnConfig, *, dense: bool = False) -> TrainingTime:
    """The closed form of a training step."""
    return training_time(layers_of(name, config), setting_of(facts, name, config, dense=dense))


def v100_seconds_per_sample(facts: Facts, name: str) -> float:
    """Epoch latency of table 3.1 over the samples of the training set."""
    fact = facts.by_item[f"table-3.1.{name}_snn_epoch"]
    hours = 3600 if fact.unit == "h" else 1
    return facts.number(fact.item) * hours / TRAINED[name]
