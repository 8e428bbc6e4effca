"""Claims in the making: drafts of certificates, whose claims follow from what the checker finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from compiler.certify_check.content import Content, packed
from compiler.certify_check.forms import Slopes
from compiler.certify_check.layers import Integers, Neurons
from compiler.certify_check.proof import Claims, GivenSlopes, margins_by_forms, refined
from compiler.certify_check.ranges import Bools, Bounds, Cell, Knowledge
from compiler.certify_check.rounding import Reals, inward
from compiler.ir import Compare
from compiler.ir.ops import Lif

# Claims keep that much distance from what follows here, as other machines sum in another order.
APART = 2.0**-36


@dataclass(slots=True, kw_only=True)
class Draft:
    """Claims in the making: what the checker finds, rounded outwards to so many bits, and what follows from that."""

    known: Knowledge
    is_refined: bool
    bits: int
    steps: dict[str, list[tuple[Reals, Reals, npt.NDArray[np.int8], Bools]]] = field(default_factory=dict)

    def __call__(self, known: Knowledge, name: str, step: int, lower: Reals, upper: Reals) -> Bounds:
        layer, cell = known.layers[name], known.cells[name][step]
        assert isinstance(layer, Neurons)
        where = np.zeros(len(lower), bool)
        apart = np.where(cell.lost > 0.0, APART * (cell.size + 1.0), 0.0)
        lower, upper = lower - apart, upper + apart
        if self.is_refined and cell.open.any():
            units = np.flatnonzero(cell.open)
            least, most = refined(known, name, step, units)
            is_better = (least > lower[units]) | (most < upper[units])
            where[units] = is_better
            lower[units] = np.fmax(lower[units], least - APART * (np.abs(least) + 1.0))
            upper[units] = np.fmin(upper[units], most + APART * (np.abs(most) + 1.0))
        lower, upper = inward(lower, upper, cell.grid)
        fires, silent = _known_spikes(layer, lower, upper)
        stability = fires.astype(np.int8) - silent.astype(np.int8)
        claims = _below(lower, self.bits), -_below(-upper, self.bits)
        self.steps.setdefault(name, []).append((*claims, stability, where))
        lower, upper = claims
        own = Claims(lower=lower[None], upper=upper[None], stability=stability[None], refined=where[None])
        return own.at(0, layer, cell.grid)

    def content(self) -> Content:
        """The claims of all populations."""
        found = {}
        for name, steps in self.steps.items():
            lower, upper, stability, where = (np.stack(part) for part in zip(*steps, strict=True))
            found[name] = {
                "lower": packed(lower.astype(np.float32)),
                "upper": packed(upper.astype(np.float32)),
                "stability": packed(stability),
                "refined": packed(where),
            }
        return found


@dataclass(slots=True)
class Rows:
    """The margins to the other classes, each by the first means that proves it."""

    known: Knowledge
    label: int
    others: Integers = field(init=False)
    ways: list[str | None] = field(init=False)
    least: Reals = field(init=False)
    lines: dict[int, Mapping[str, Reals]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.known.values[self.known.graph.output].lower.shape[1]
        self.others = np.array([j for j in range(count) if j != self.label], np.int64)
        self.ways, self.least = [None] * len(self.others), np.zeros(len(self.others))

    @property
    def open(self) -> Integers:
        """Places of the margins that nothing has proved so far."""
        return np.array([i for i, way in enumerate(self.ways) if way is None], np.int64)

    @property
    def is_proved(self) -> bool:
        return None not in self.ways

    def attempt(self, way: str, margins: Reals) -> None:
        """Take what is proved of margins to all classes. Shapes: (K,)."""
        for i in self.open:
            claimed = _claimed_margin(margins[self.others[i]])
            if claimed > 0.0:
                self.ways[i], self.least[i] = way, claimed

    def attempt_lines(self, slopes: Slopes) -> None:
        """Try slopes for what is open; they are rounded to f32 first."""
        places = self.open
        record = _Record(slopes)
        margins_by_forms(self.known, self.label, self.others[places], record)
        given = record.given(self.known, len(places))
        margins = margins_by_forms(self.known, self.label, self.others[places], GivenSlopes(self.known, given))
        for row, i in enumerate(places):
            claimed = _claimed_margin(margins[row])
            if claimed > 0.0:
                self.ways[i], self.least[i] = "lines", claimed
                self.lines[int(i)] = {name: values[row] for name, values in given.items()}

    def content(self) -> dict[str, object]:
        """The margins and the slopes of those that name some, in their order."""
        rows = zip(self.others.tolist(), self.ways, self.least.tolist(), strict=True)
        lined = [self.lines[i] for i in sorted(self.lines)]
        names = lined[0] if lined else {}
        return {
            "margins": [{"class": j, "way": way, "least": least} for j, way, least in rows],
            "slopes": {name: packed(np.stack([own[name] for own in lined]).astype(np.float32)) for name in names},
        }


@dataclass(slots=True)
class _Record:
    """Slopes as a chooser gives them, rounded to f32 and kept."""

    choose: Slopes
    kept: dict[str, dict[int, Reals]] = field(default_factory=dict)

    def __call__(self, name: str, step: int, cell: Cell, fired: Reals, rest: Reals) -> Reals:
        limit = float(np.finfo(np.float32).max)
        chosen = np.clip(np.nan_to_num(self.choose(name, step, cell, fired, rest)), -limit, limit)
        rounded = chosen.astype(np.float32).astype(np.float64)
        self.kept.setdefault(name, {})[step] = rounded
        return rounded

    def given(self, known: Knowledge, rows: int) -> dict[str, Reals]:
        """All slopes of each population; 0 at steps that no form comes to. Shapes: (R, open)."""
        found = {}
        for name, cells in known.cells.items():
            if isinstance(known.graph.node(name).op, Lif):
                kept = self.kept.get(name, {})
                parts = [kept.get(t, np.zeros((rows, int(cell.open.sum())))) for t, cell in enumerate(cells)]
                found[name] = np.concatenate(parts, 1)
        return found


def _known_spikes(layer: Neurons, lower: Reals, upper: Reals) -> tuple[Bools, Bools]:
    op = layer.op
    if isinstance(op, Lif) and op.compare is Compare.GE:
        return lower >= layer.threshold, upper < layer.threshold
    return lower > layer.threshold, upper <= layer.threshold


def _below(values: Reals, bits: int) -> Reals:
    """The largest number of so many bits, at most those of f32, up to each value."""
    exponent = np.maximum(np.frexp(values)[1], -100)  # far above the smallest f32
    return np.asarray(np.ldexp(np.floor(np.ldexp(values, bits - exponent)), exponent - bits))


def _claimed_margin(margin: float) -> float:
    """What is claimed of a margin: a bit less, in few bits."""
    return float(_below(np.array(margin * (1.0 - 2.0**-16) - APART), 24)) if margin > 0.0 else 0.0
