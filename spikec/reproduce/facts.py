"""What the dissertation prints, and the rows that put our numbers beside it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Any

Value = float | int | bool | str | None

FILES = ("published.toml", "published_attack.toml", "published_robust.toml")


class Kind(StrEnum):
    """How our number came about."""

    EXACT = "exact"  # by construction
    REPRODUCED = "reproduced"  # free of the published number
    CHOSEN = "chosen"  # a structural option was picked with the number in sight
    FITTED = "fitted"  # a constant was solved for it
    PREDICTED = "predicted"  # of an analytic model, for hardware that was not there
    MEASURED = "measured-cpu"  # here and now, on this machine's CPU
    GIVEN = "given"  # an input of the model, or of a machine that is not ours
    INCONSISTENT = "inconsistent"  # print contradicts itself, as the assumption calculates
    LOST = "lost"  # not in the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published number and ours. `item` is table.name; a variant stands beside its item, with another setting."""

    item: str
    published: Value
    ours: Value
    unit: str
    kind: Kind
    assumption: str
    variant: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over published, where both are numbers."""
        for value in (self.ours, self.published):
            if isinstance(value, bool | str) or value is None:
                return None
        assert isinstance(self.ours, int | float)
        assert isinstance(self.published, int | float)
        return self.ours / self.published if self.published else None

    def as_json(self) -> dict[str, str | float | bool | None]:
        """The row with stable keys."""
        return {
            "item": self.item,
            "published": self.published,
            "ours": self.ours,
            "ratio": self.ratio,
            "kind": str(self.kind),
            "assumption": self.assumption,
            "unit": self.unit,
            "variant": self.variant,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One published number. Claims in words have the value true, and the words in `note`."""

    item: str
    value: Value
    unit: str
    where: str
    status: str = "printed"
    note: str = ""

    def row(self, ours: Value, kind: Kind, assumption: str, variant: str = "", unit: str = "") -> Row:
        """Ours beside it; what was lost stays lost, and a figure's bars have units of their own."""
        if self.status == "lost":
            kind = Kind.LOST
        return Row(
            item=self.item,
            published=self.value,
            ours=ours,
            unit=unit or self.unit,
            kind=kind,
            assumption=assumption,
            variant=variant,
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts by item."""

    by_item: Mapping[str, Fact]

    def __getitem__(self, item: str) -> Fact:
        return self.by_item[item]

    def number(self, item: str) -> float:
        """The value of a fact that is a number, as an input of a calculation."""
        value = self.by_item[item].value
        assert isinstance(value, int | float)
        return float(value)

    def groups(self) -> tuple[str, ...]:
        """Tables and figures, in the order of the file."""
        return tuple(dict.fromkeys(item.rsplit(".", 1)[0] for item in self.by_item))


def load_facts() -> Facts:
    """The facts of chapters 2 to 6, from the files beside this module."""
    found: dict[str, Fact] = {}
    for file in FILES:
        text = (resources.files("spikec.reproduce") / file).read_text(encoding="utf-8")
        for group, facts in tomllib.loads(text).items():
            for name, entry in facts.items():
                fact = _fact(f"{group}.{name}", entry)
                found[fact.item] = fact
    return Facts(found)


def _fact(item: str, entry: Mapping[str, Any]) -> Fact:
    value = entry.get("value")
    if isinstance(value, list):
        value = ", ".join(value)
    return Fact(
        item=item,
        value=value,
        unit=entry["unit"],
        where=entry["where"],
        status=entry.get("status", "printed"),
        note=entry.get("note", ""),
    )
