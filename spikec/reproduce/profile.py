"""Tables 3.1 and 3.2: what the GPU and the training masks give, the inputs of the model."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from spikec.reproduce.facts import Facts, Kind, Row

_GPU = "another platform: its published constant"


def profile_rows(facts: Facts) -> Iterator[Row]:
    """The V100's latencies and their ratios; sparsities, ours where the data set is at hand."""
    for name in ("mnist", "cifar10", "imagenet"):
        item = f"table-3.1.{name}"
        ann, snn = facts.number(f"{item}_ann_epoch"), facts.number(f"{item}_snn_epoch")
        yield facts[f"{item}_ann_epoch"].row(ann, Kind.GIVEN, _GPU)
        yield facts[f"{item}_snn_epoch"].row(snn, Kind.GIVEN, _GPU)
        drop = facts[f"{item}_drop"]
        quotient, why = round(snn / ann, 2), "SNN over ANN latency of the same table"
        if quotient == drop.value:
            yield drop.row(quotient, Kind.EXACT, why)
        else:
            yield drop.row(snn / ann, Kind.REPRODUCED, f"{why}, which are rounded themselves")
    yield from _sparsities(facts)


def _sparsities(facts: Facts) -> Iterator[Row]:
    measured = measured_numbers()
    for item in [item for item in facts.by_item if item.startswith("table-3.2.")]:
        name = item.removeprefix("table-3.2.")
        if name in measured.percent:
            yield facts[item].row(measured.percent[name], Kind.REPRODUCED, measured.how)
        elif name.endswith("_accuracy"):
            yield facts[item].row(None, Kind.GIVEN, "of a full training run, which is not repeated here")
        else:
            yield facts[item].row(
                None, Kind.GIVEN, "input of the model; not measured here, the data set is not at hand"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Sparsities in percent by item, the Backward Engine's speedups on real masks, and how they were measured."""

    how: str
    percent: dict[str, float]
    speedups: dict[str, float]
    how_speedups: str


def measured_numbers() -> Measured:
    """The measurements, from the file beside this module."""
    text = (resources.files("spikec.reproduce") / "measured.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    speedups = dict(table["backward_speedup"])
    how = speedups.pop("how")
    return Measured(how=table["how"], percent=table["percent"], speedups=speedups, how_speedups=how)
